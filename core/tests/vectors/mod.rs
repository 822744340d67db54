//! Reads the golden vectors.
//!
//! `frames.hex` is printed by `scripts/wire-vectors`, an encoder of its own
//! written from `docs/wire.md`; nothing in this crate had a part in its bytes.

/// One frame of the file, with its padding.
#[derive(Clone, Debug)]
pub(crate) struct Vector {
    /// What the tests call it.
    pub(crate) name: &'static str,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Every vector, in the order of the file.
///
/// # Panics
///
/// If the file is not of the form that its script prints.
pub(crate) fn all() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in include_str!("frames.hex").lines() {
        if let Some(title) = line.strip_prefix("= ") {
            let (name, _) = title.split_once(": ").expect("a title is `name: what`");
            vectors.push(Vector {
                name,
                bytes: Vec::new(),
            });
            continue;
        }
        let bytes = line.split('#').next().unwrap_or_default();
        for byte in bytes.split_whitespace() {
            vectors
                .last_mut()
                .expect("a title comes before bytes")
                .bytes
                .push(u8::from_str_radix(byte, 16).expect("bytes are hexadecimal"));
        }
    }
    assert!(!vectors.is_empty());
    vectors
}
