//! What the documents tell a reader to type, to be typed by a test.

use std::fs;

use crate::archive::project;

/// The command blocks of a document below the heading `section`, in their order, each as it stands there.
pub fn commands(document: &str, section: &str) -> Vec<String> {
    let text = fs::read_to_string(project(document)).unwrap();
    let heading = |line: &str| line.starts_with('#') && line.trim_start_matches('#').trim() == section;
    let mut lines = text.lines().skip_while(|line| !heading(line)).skip(1).peekable();
    assert!(lines.peek().is_some(), "{document} has no section {section:?}");
    let (mut blocks, mut block): (Vec<String>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in lines {
        match &mut block {
            Some(_) if line == "```" => blocks.extend(block.take().map(|lines| lines.join("\n"))),
            Some(lines) => lines.push(line),
            None if line == "```sh" => block = Some(Vec::new()),
            // The next section of the same rank or a higher one.
            None if line.starts_with("## ") || line.starts_with("# ") => break,
            None => {}
        }
    }
    blocks
}
