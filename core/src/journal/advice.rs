//! What to do about damage, in the words that journals and checkpoints share.

/// A later version wrote it.
pub(super) const NEWER: &str = "start the version of courser that wrote it, or a later one";
/// It belongs elsewhere.
pub(super) const FOREIGN: &str = "move files that were copied here out of the directory, or restore \
     all of the data directory from one copy";
/// It is not there.
pub(super) const MISSING: &str =
    "put the file back, or restore all of the data directory from one copy";
/// It is not what was written.
pub(super) const DAMAGED: &str = "check the device, and restore all of the data directory from one \
     copy; `courser dump DIR` prints what can still be read";
