//! One-liners in a build without a broker of its own.
#![cfg(not(feature = "embedded"))]
#![allow(clippy::unwrap_used)]

use courser::facade::{FacadeError, producer};

#[test]
fn a_facade_that_was_not_told_where_the_broker_is_says_so() {
    let error = producer::queue("x").send("text").unwrap_err();
    assert!(matches!(error, FacadeError::NotInitialised { .. }));
    let said = error.to_string();
    assert!(
        said.contains("queue [x]") && said.contains("init"),
        "{said}"
    );
}
