//! docs/FAILURES.md names tests that exist.

use std::fs;
use std::path::Path;

#[test]
fn the_tests_that_failures_md_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/FAILURES.md")).unwrap();
    let named: Vec<_> = text
        .split('`')
        .filter_map(|words| words.split_once("::"))
        .collect();
    assert!(named.len() > 40, "{} are named", named.len());
    for (file, test) in named {
        let source = fs::read_to_string(root.join(file)).expect(file);
        assert!(
            source.contains(&format!("#[test]\nfn {test}() {{"))
                || source.contains(&format!("#[test]\n    fn {test}() {{"))
                || source.contains(&format!("@check\ndef {test}():")),
            "{file} has no test {test}"
        );
    }
    // and every line of a table names one
    let lines = text.lines().filter(|line| line.starts_with("| "));
    for line in lines.filter(|line| !line.starts_with("| what fails")) {
        assert!(line.contains(".rs::") || line.contains(".py::"), "{line}");
    }
}
