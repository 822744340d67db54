//! What the notes beside a vector's bytes say, and what a page says of the same.

/// One field of a vector, as its line says: place, bytes, name.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) at: usize,
    pub(crate) size: usize,
    pub(crate) name: &'static str,
}

/// The fields of the vector `name` of a file, without what only continues a field.
pub(crate) fn fields(vectors: &'static str, name: &str) -> Vec<Field> {
    let title = format!("= {name}: ");
    let mut fields: Vec<Field> = Vec::new();
    let lines = vectors
        .lines()
        .skip_while(|line| !line.starts_with(&title))
        .skip(1)
        .take_while(|line| !line.is_empty());
    for line in lines {
        let (bytes, note) = line.split_once('#').unwrap();
        let size = bytes.split_whitespace().count();
        match note.trim().split_once(' ') {
            Some((at, rest)) => fields.push(Field {
                at: at.parse().unwrap(),
                size,
                name: rest.split(" = ").next().unwrap(),
            }),
            None => fields.last_mut().unwrap().size += size,
        }
    }
    assert!(!fields.is_empty(), "{name} is in the file");
    fields
}

/// The text of a page under a heading, up to the next one.
pub(crate) fn section(document: &'static str, heading: &str) -> &'static str {
    let line = format!("\n{heading}\n");
    let (_, rest) = document
        .split_once(&line)
        .unwrap_or_else(|| panic!("the page has {heading:?}"));
    rest.split("\n#").next().unwrap()
}

/// How often a section's table has a row for a field at a fixed place.
pub(crate) fn rows(section: &str) -> usize {
    section
        .lines()
        .filter(|line| {
            line.strip_prefix("| ")
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        })
        .count()
}
