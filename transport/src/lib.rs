//! The ends of Courser that touch the kernel.
