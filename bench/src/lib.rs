//! Floors, load generators and reports.
