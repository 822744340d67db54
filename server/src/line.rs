//! A line about one thing: what it is and its fields, as text or as a JSON object.

use serde_json::{Map, Value};

/// How much of a body is shown, in bytes.
const PREVIEW_MAX: usize = 64;

/// See the module. The fields are in the order in which they are printed.
pub(crate) struct Line {
    /// What it is about.
    pub(crate) what: &'static str,
    /// What is said of it.
    pub(crate) fields: Vec<(&'static str, Value)>,
}

impl Line {
    /// Puts it behind `text`; `indent` is for people only.
    pub(crate) fn write(&self, text: &mut String, json: bool, indent: &str) {
        if json {
            let mut object = Map::new();
            object.insert("is".to_owned(), self.what.into());
            for (name, value) in &self.fields {
                object.insert((*name).to_owned(), value.clone());
            }
            text.push_str(&Value::Object(object).to_string());
        } else {
            text.push_str(indent);
            text.push_str(self.what);
            for (name, value) in &self.fields {
                text.push_str(&format!("  {} {value}", name.replace('_', " ")));
            }
        }
        text.push('\n');
    }
}

/// A checksum as ack logs and dumps have it.
pub(crate) fn checksum(sum: u32) -> Value {
    format!("{sum:08x}").into()
}

/// How a body begins. What is no text in it is shown as what stands for that.
pub(crate) fn preview(body: &[u8]) -> Value {
    let shown = body.get(..PREVIEW_MAX).unwrap_or(body);
    let mut text = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < body.len() {
        // A character that is cut in two is not shown.
        while text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
        text.push_str("...");
    }
    text.into()
}
