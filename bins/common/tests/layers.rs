//! Style as a test: imports point down only, one module syncs and renames, one function ends the process.
//!
//! Reads the sources as text. What it looks for is written on one line by rustfmt or stands in a `use` group, so
//! that is enough; a macro that hides an import could deceive it, and nobody writes one here.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, layer, and rank within the layer: a module may use what has a lower layer, or in its own layer a lower
/// rank. Modules of equal rank do not know each other.
const MODULES: [(&str, u8, u8); 28] = [
    ("error", 0, 0),
    ("units", 0, 1),
    ("digest", 0, 1),
    ("time", 0, 2),
    ("durable", 0, 3),
    ("lock", 0, 4),
    ("secret", 0, 4),
    ("retry", 0, 4),
    ("process", 0, 4),
    ("progress", 0, 4),
    ("interrupt", 0, 4),
    ("sorter", 0, 4),
    ("journal", 0, 4),
    ("leftovers", 0, 5),
    ("exit", 0, 5),
    ("check", 1, 0),
    ("codec", 1, 0),
    ("job", 1, 0),
    ("postgres", 1, 0),
    ("storage", 1, 0),
    ("repository", 2, 0),
    ("erasure", 2, 1),
    ("config", 3, 0),
    ("leadership", 3, 1),
    ("open", 3, 1),
    ("retention", 3, 1),
    ("scratch", 3, 1),
    ("lib", 4, 0),
];

/// Only here: what makes bytes durable.
const DURABLE: [&str; 7] = [
    "fs::rename",
    "renameat",
    ".sync_all",
    ".sync_data",
    "fsync(",
    "fdatasync(",
    "syncfs(",
];

/// Only in `exit.rs`: what ends the process.
const ENDS: [&str; 4] = ["process::exit", "process::abort", "unistd::_exit", "libc::exit"];

/// One broken rule.
#[derive(Debug, PartialEq)]
struct Breach {
    line: usize,
    why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.why)
    }
}

#[test]
fn imports_point_down_only() {
    let root = common().join("src");
    let mut breaches = Vec::new();
    let files = sources(&root);
    assert!(files.len() > 10, "found the sources: {files:?}");
    for file in files {
        let below = file.strip_prefix(&root).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        breaches.extend(
            judge_imports(below, &text)
                .iter()
                .map(|breach| format!("{}:{breach}", file.display())),
        );
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn one_module_renames_and_syncs_and_one_ends_the_process() {
    let bins = common().parent().unwrap().to_owned();
    let mut breaches = Vec::new();
    for file in sources(&bins) {
        let below = file.strip_prefix(&bins).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        breaches.extend(
            judge_calls(below, &text)
                .iter()
                .map(|breach| format!("{}:{breach}", file.display())),
        );
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn every_module_of_the_library_has_a_layer_and_every_layer_has_its_module() {
    let text = fs::read_to_string(common().join("src/lib.rs")).unwrap();
    let mut declared: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    declared.push("lib");
    declared.sort_unstable();
    let mut known: Vec<&str> = MODULES.iter().map(|(name, _, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(declared, known);
}

#[test]
fn an_upward_or_sideways_import_is_noticed() {
    let why = |file: &str, text: &str| {
        let breaches = judge_imports(Path::new(file), text);
        breaches
            .into_iter()
            .map(|breach| (breach.line, breach.why))
            .collect::<Vec<_>>()
    };
    let cases = [
        (
            "storage/posix.rs",
            "use crate::error::Result;\nuse crate::repository::Keys;",
            2,
        ),
        ("storage/mod.rs", "use crate::codec::seal;", 1),
        (
            "units.rs",
            "use crate::{\n    error::Error,\n    durable::replace,\n};",
            3,
        ),
        ("codec/mod.rs", "fn x() { let y = crate::config::Config::load(); }", 1),
        ("digest.rs", "use super::lock::FileLock;", 1),
        ("codec/a.rs", "use super::super::storage::Key;", 1),
        ("config/mod.rs", "use crate::open::repositories;", 1),
    ];
    for (file, text, line) in cases {
        let found = why(file, text);
        assert_eq!(found.len(), 1, "{file}: {text}: {found:?}");
        assert_eq!(found[0].0, line, "{file}: {text}");
    }
    let allowed = [
        (
            "storage/posix.rs",
            "use crate::{durable, error::{Error, Result}, time::UtcTime};\nuse super::Key;",
        ),
        (
            "codec/mod.rs",
            "// crate::config\n/// see [`crate::open`]\nuse crate::codec::seal::Sealing;",
        ),
        (
            "open.rs",
            "use crate::config::Config;\nuse crate::repository::Repository;",
        ),
        ("config/cluster.rs", "use super::repository::X;"),
    ];
    for (file, text) in allowed {
        assert_eq!(why(file, text), [], "{file}: {text}");
    }
    assert!(
        why("units.rs", "use crate::open::x;")[0]
            .1
            .contains("layer 0 may not use \"open\" of layer 3")
    );
    assert!(why("nowhere.rs", "")[0].1.contains("no layer"));
}

#[test]
fn a_call_out_of_place_is_noticed() {
    let count = |file: &str, text: &str| judge_calls(Path::new(file), text).len();
    assert_eq!(count("prune/src/main.rs", "std::process::exit(1);"), 1);
    assert_eq!(count("common/src/exit.rs", "process::exit(1);"), 0);
    assert_eq!(count("common/src/job.rs", "file.sync_all()?;\nfs::rename(a, b)?;"), 2);
    assert_eq!(count("common/src/durable.rs", "file.sync_all()?;"), 0);
    assert_eq!(count("common/src/storage/posix.rs", "file.sync_all()?;"), 0);
    assert_eq!(count("common/src/storage/posix.rs", "process::exit(2)"), 1);
    assert_eq!(
        count(
            "common/src/job.rs",
            "// fs::rename\n#[cfg(test)]\nmod tests { fn x() { fs::rename(a, b); } }"
        ),
        0
    );
}

fn common() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust sources below, without the tests that stand in files of their own.
fn sources(root: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "target" && entry.file_name() != "tests")
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// `below` is the path under `src`.
fn judge_imports(below: &Path, text: &str) -> Vec<Breach> {
    let mut parts: Vec<String> = below
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    parts.retain(|part| part != "mod");
    let module = parts[0].clone();
    let Some((layer, rank)) = place(&module) else {
        let why = format!("module \"{module}\" is in no layer: add it to tests/layers.rs");
        return vec![Breach { line: 1, why }];
    };
    let judge = |(line, used): (usize, String)| {
        let (used_layer, used_rank) = place(&used)?;
        let fine = used == module || used_layer < layer || (used_layer == layer && used_rank < rank);
        let why = if used_layer == layer {
            format!("\"{module}\" may not use \"{used}\": modules of layer {layer} know only those below them")
        } else {
            format!(
                "\"{module}\" of layer {layer} may not use \"{used}\" of layer {used_layer}: imports point down only"
            )
        };
        (!fine).then_some(Breach { line, why })
    };
    let code = without_comments(text);
    let top = "super::".repeat(parts.len());
    let mut used = names_after(&code, "crate::");
    // Further in, `super` is a sibling; in an inline module of tests it is the file itself, with names of its own.
    used.extend(names_after(&code, &top).into_iter().filter(|(_, name)| *name != module));
    used.into_iter().filter_map(judge).collect()
}

fn place(module: &str) -> Option<(u8, u8)> {
    MODULES
        .iter()
        .find(|(name, _, _)| *name == module)
        .map(|(_, layer, rank)| (*layer, *rank))
}

/// The names that follow `prefix`, those in a group included, each with its line.
fn names_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let boundary = code[..at]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        if !boundary {
            continue;
        }
        let start = at + prefix.len();
        if !code[start..].starts_with('{') {
            names.push((line_of(code, start), identifier(&code[start..])));
            continue;
        }
        let (mut depth, mut expects_name) = (0, false);
        for (offset, c) in code[start..].char_indices() {
            match c {
                '{' => {
                    depth += 1;
                    expects_name = depth == 1;
                }
                '}' => depth -= 1,
                ',' => expects_name = depth == 1,
                c if c.is_whitespace() => {}
                _ if expects_name => {
                    names.push((line_of(code, start + offset), identifier(&code[start + offset..])));
                    expects_name = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// The text with comments cut off; lines keep their numbers.
fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

/// `below` is the path under `bins`.
fn judge_calls(below: &Path, text: &str) -> Vec<Breach> {
    let durable = below == Path::new("common/src/durable.rs")
        || below.starts_with("common/src/storage/posix")
        || below == Path::new("common/src/storage/posix.rs");
    let ends = below == Path::new("common/src/exit.rs");
    let code = without_comments(text);
    // Tests at the end of a file may damage what they like.
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut breaches = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let found = |words: &[&'static str]| words.iter().find(|word| text.contains(**word)).copied();
        let mut note = |word: &str, home: &str| {
            let why = format!("\"{word}\" belongs to {home} only");
            breaches.push(Breach { line: line + 1, why });
        };
        if let (false, Some(word)) = (durable, found(&DURABLE)) {
            note(word, "durable.rs and storage/posix.rs");
        }
        if let (false, Some(word)) = (ends, found(&ENDS)) {
            note(word, "exit.rs");
        }
    }
    breaches
}
