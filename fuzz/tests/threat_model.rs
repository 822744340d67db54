//! The threat model names its proofs, and each of them exists.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use courser_fuzz::TARGETS;

#[test]
fn every_proof_that_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/THREAT_MODEL.md")).unwrap();
    let rows: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("| T"))
        .collect();
    assert!(
        rows.len() > 20,
        "the table of threats has {} rows",
        rows.len()
    );
    let mut proofs = BTreeSet::new();
    for row in rows {
        let proof = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let quoted: Vec<_> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!quoted.is_empty(), "no proof: {row}");
        for name in quoted {
            match name.split_once("::") {
                Some((file, test)) => {
                    let path = root.join(file);
                    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
                        panic!("{}: {error}", path.display());
                    });
                    assert!(text.contains(&format!("fn {test}(")), "{name} is not there");
                    proofs.insert(test);
                }
                None if name.contains('/') => assert!(root.join(name).exists(), "{name}"),
                None => assert!(
                    TARGETS.iter().any(|target| target.name == name),
                    "{name} is no target"
                ),
            }
        }
    }
    assert!(proofs.len() > 25, "{} proofs", proofs.len());
}
