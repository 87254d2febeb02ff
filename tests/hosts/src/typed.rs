//! Everything that the documents tell a reader to type, and which test types it.
//!
//! A block is what a fence ```` ```sh ```` holds. Whatever is not listed in [`LEFT`] is typed by `host_documents` on a host, as it
//! stands but for [`STANDS_FOR`]; `tests/hosts/typed.txt` is the record of what it has typed. So a block that is new or changed,
//! and that no host has seen, fails the tests here, which need no host.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use system_tests::project;

/// The record: each block that was typed, with its commands; before those that are left stands a `-`.
pub const RECORD: &str = "tests/hosts/typed.txt";

/// The tests of `host_documents`, and the documents that each types from top to bottom.
pub const STORIES: &[(&str, &[&str])] = &[
    ("the_first_page", &["README.md"]),
    ("the_guide", &["docs/guide.md"]),
    (
        "what_is_done_every_day",
        &[
            "docs/packages.md",
            "docs/dumps.md",
            "docs/restore-test.md",
            "docs/verify.md",
            "docs/monitoring.md",
            "docs/capacity.md",
            "docs/migration.md",
            "docs/snapshots.md",
            "docs/s3.md",
            "docs/managed.md",
            "docs/troubleshooting.md",
            "packaging/examples/cron/README.md",
        ],
    ),
    ("the_runbooks", &["docs/runbooks.md"]),
    ("the_disasters", &["docs/disasters.md"]),
    ("recovery_by_hand", &["docs/recover-by-hand.md"]),
    // Nothing of these is typed on this host.
    (
        "none",
        &[
            "docs/patroni.md",
            "ansible/README.md",
            "packaging/examples/compose/README.md",
            "packaging/examples/image/README.md",
            "packaging/examples/kubernetes/README.md",
        ],
    ),
];

/// What a document writes where the reader puts something of their own, and what the story calls that.
pub const STANDS_FOR: &[(&str, &str)] = &[
    ("https://apt.example.com/pgkeep", "the repository for apt"),
    ("20261120T020000Z-full-3f9a1c", "a full backup"),
    ("LABEL", "the label"),
    ("2026-11-20T13:59:00+01:00", "a moment"),
    ("2026-11-20T13:30:00+01:00", "a moment"),
    ("now-10m", "a moment"),
    ("now-1h", "a moment"),
    ("now-2h", "a moment"),
    ("A/3F000028", "a position"),
    ("--target-xid 734", "a transaction"),
    ("--tablespace 16400=", "a tablespace"),
    ("--target-timeline 3", "a timeline"),
    ("oid = 16384", "a database"),
    ("(0, 24576)", "a file of a table"),
    ("5b0b2f0a-8c1d-4e63-9a7e-3f1f0c2d9e11", "the repository that is gone"),
    ("/pg_wal/NAME", "a segment"),
    // What runs until the reader ends it.
    ("tail -f ", "the end of a log"),
    ("top -H", "what runs"),
];

/// Commands that no story types: document, section, the commands (`*`: all of the section), and why.
pub const LEFT: &[(&str, &str, &[&str], &str)] = &[
    (
        "README.md",
        "See it work",
        &[
            "make demo    # a first backup and restore on a throw-away cluster, once in clear and once encrypted",
            "make test    # every test; takes at most 40 minutes on two cores, or fails",
        ],
        "they are how the project is shown and tested, in a clone with a compiler: see CONTRIBUTING.md",
    ),
    (
        "README.md",
        "Ten minutes to a first restore",
        &["make build"],
        "hosts have no compiler; what it builds is there when the next line is typed",
    ),
    (
        "docs/packages.md",
        "From a repository",
        &[
            "make packages",
            "PGKEEP_APT_URL=https://apt.example.com/pgkeep packaging/build-repository.sh /srv/apt packages@example.com target/debian/*.deb",
        ],
        "not on a host: the repository that hosts of `host_packages` install from is made by that script",
    ),
    (
        "docs/s3.md",
        "Lifecycle",
        &[
            "aws s3api put-bucket-lifecycle-configuration --bucket company-backups --lifecycle-configuration file://rules.json",
        ],
        "there is no bucket of AWS; `lifecycle` gives the same rules to a store that speaks its protocol",
    ),
    (
        "docs/troubleshooting.md",
        "Files come slowly",
        &["iostat -x 5"],
        "hosts have no sysstat; it changes nothing",
    ),
    (
        "docs/disasters.md",
        "Data directory corrupted",
        &["smartctl -a /dev/sda"],
        "hosts have no disks of their own; it changes nothing",
    ),
    (
        "docs/disasters.md",
        "A Patroni cluster lost altogether",
        &[
            "patronictl -c /etc/patroni/config.yml show-config main > /srv/rescue/patroni-dcs.yml",
            "patronictl -c /etc/patroni/config.yml remove main",
            "systemctl start patroni",
            "journalctl -u patroni -f",
            "patronictl -c /etc/patroni/config.yml list",
        ],
        "this host has no Patroni: `host_recovery` loses such a cluster and brings it back",
    ),
    (
        "docs/disasters.md",
        "Identity or S3 key stolen",
        &[
            "aws s3api list-object-versions --bucket company-backups --prefix postgres/main/ --query 'DeleteMarkers[].[Key,VersionId]' --output text",
            "aws s3api delete-object --bucket company-backups --key KEY --version-id VERSION",
        ],
        "there is no bucket of AWS; `bucket_objects` reads below delete markers in a store that speaks its protocol",
    ),
    (
        "docs/disasters.md",
        "pgkeep itself cannot be used",
        &[
            "aws s3 sync s3://company-backups/postgres/main /srv/copy/main",
            "rsync -a pgkeep@nas.example.com:/backups/main /srv/copy/",
        ],
        "there is no bucket of AWS and no rsync; `by_hand` recovers from a directory such as they make",
    ),
    (
        "docs/disasters.md",
        "The wrong PostgreSQL version is installed",
        &["/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh"],
        "hosts reach nothing outside",
    ),
    (
        "docs/patroni.md",
        "The whole cluster at an earlier moment",
        &["*"],
        "this host has no Patroni: `host_recovery` runs the playbook",
    ),
    (
        "docs/patroni.md",
        "All members are gone",
        &["*"],
        "this host has no Patroni: `host_recovery` runs the playbook",
    ),
    (
        "ansible/README.md",
        "From nothing to a restore test that passed",
        &["*"],
        "not on a database host: `ansible` builds the collection, `host_roles` and `host_cluster` run the playbook with both lines' flags",
    ),
    (
        "ansible/README.md",
        "Playbooks",
        &["*"],
        "not on a database host: `host_playbooks` runs it with and without the dry run",
    ),
    (
        "packaging/examples/compose/README.md",
        "To begin with",
        &["*"],
        "needs an engine of Docker; what the scheduler runs is run by `homes_run`",
    ),
    (
        "packaging/examples/compose/README.md",
        "A restore",
        &["*"],
        "needs an engine of Docker; a restore over what is there is `delta`",
    ),
    (
        "packaging/examples/image/README.md",
        "Images",
        &["*"],
        "needs an engine of Docker; `homes` reads the Dockerfile",
    ),
    (
        "packaging/examples/kubernetes/README.md",
        "To begin with",
        &["*"],
        "needs a cluster of Kubernetes; what its jobs run is run by `homes_run`",
    ),
    (
        "packaging/examples/kubernetes/README.md",
        "A restore in place",
        &["*"],
        "needs a cluster of Kubernetes; a restore over what is there is `delta`",
    ),
];

/// Exit codes other than 0: document, section, the command (all that begin so, if it ends with a space), the code, and what it
/// means there. A command has to end with it; where the document is `*`, it may.
pub const CODES: &[(&str, &str, &str, i32, &str)] = &[
    (
        "*",
        "*",
        "ls /var/lib/postgresql/15/main/pg_wal/archive_status | grep -c ready",
        1,
        "nothing waits",
    ),
    ("*", "*", "findmnt /var/backups/pgkeep", 1, "nothing is mounted there"),
    (
        "docs/disasters.md",
        "A whole database server lost",
        "diff -r ",
        1,
        "the new machine's configuration is another one",
    ),
    (
        "docs/runbooks.md",
        "PgkeepWalGap",
        "pgkeep-verify",
        1,
        "it names the segment that is missing",
    ),
    (
        "docs/runbooks.md",
        "PgkeepChecksStale",
        "systemctl status pgkeep-check@main.service",
        3,
        "the check is not running just now",
    ),
    (
        "docs/runbooks.md",
        "PgkeepErasurePending",
        "pgkeep-check-archive",
        2,
        "it says what is pending",
    ),
    (
        "docs/disasters.md",
        "The repository is lost",
        "pgkeep-init --check",
        1,
        "it says what is not there",
    ),
    (
        "docs/disasters.md",
        "The repository is lost",
        "pgkeep-init",
        1,
        "it says the UUID",
    ),
    (
        "docs/disasters.md",
        "The repository is damaged",
        "pgkeep-verify --read-data --format json > /srv/rescue/verify.json",
        1,
        "there is damage",
    ),
];

/// A block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The document, as a path below the project's root.
    pub document: String,
    /// The heading above it.
    pub section: String,
    /// Which block of that section it is, from 1.
    pub number: usize,
    /// Its commands, each with the lines that it goes on in.
    pub commands: Vec<String>,
}

impl Block {
    /// How the record calls it.
    pub fn name(&self) -> String {
        format!("{} > {} > {}", self.document, self.section, self.number)
    }

    /// Why a command of it is not typed here, if it is not.
    pub fn left(&self, command: &str) -> Option<&'static str> {
        let here = |(document, section, commands, _): &&(&str, &str, &[&str], &str)| {
            *document == self.document
                && *section == self.section
                && (commands.contains(&"*") || commands.contains(&command))
        };
        LEFT.iter().find(here).map(|(_, _, _, why)| *why)
    }

    /// The commands that a story types.
    pub fn typed(&self) -> Vec<&String> {
        self.commands
            .iter()
            .filter(|command| self.left(command).is_none())
            .collect()
    }
}

/// The documents that tell the reader to type something.
pub fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "ansible/README.md".to_owned()];
    for below in ["docs", "packaging/examples"] {
        pages(below, &mut found);
    }
    found.sort();
    found
}

fn pages(below: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(project(below)).unwrap().flatten() {
        let path = format!("{below}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            pages(&path, found);
        } else if Path::new(&path).extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The blocks of a document, in their order. Those that are marked `by-hand` are typed by the test `by_hand`.
pub fn blocks(document: &str) -> Vec<Block> {
    let is_typed = |info: &str| {
        let mut words = info.split_whitespace();
        words.next() == Some("sh") && words.next() != Some("by-hand")
    };
    let mut blocks: Vec<Block> = Vec::new();
    for (section, info, lines) in fences(document) {
        if !is_typed(&info) {
            continue;
        }
        let number = blocks.iter().filter(|block| block.section == section).count() + 1;
        blocks.push(Block {
            document: document.to_owned(),
            section,
            number,
            commands: commands(&lines),
        });
    }
    blocks
}

/// What a document shows below a heading in fences of this kind, such as a configuration.
pub fn shown(document: &str, section: &str, kind: &str) -> Vec<String> {
    let fences = fences(document).into_iter();
    let here = fences.filter(|(heading, info, _)| heading == section && info == kind);
    here.map(|(_, _, lines)| lines.join("\n") + "\n").collect()
}

/// Every fence with its heading, its kind and its lines, as if it were not indented.
pub fn fences(document: &str) -> Vec<(String, String, Vec<String>)> {
    let text = fs::read_to_string(project(document)).unwrap();
    let (mut found, mut section) = (Vec::new(), String::new());
    let mut open: Option<(usize, String, Vec<String>)> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        match (bare.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => {
                found.extend(open.take().map(|(_, info, lines)| (section.clone(), info, lines)));
            }
            (Some(info), None) => open = Some((line.len() - bare.len(), info.to_owned(), Vec::new())),
            (None, Some((indent, _, lines))) => lines.push(line.get(*indent..).unwrap_or_default().to_owned()),
            (None, None) if line.starts_with('#') => section = line.trim_start_matches('#').trim().to_owned(),
            (None, None) => {}
        }
    }
    found
}

/// Lines that end in `\` go on in the next one.
fn commands(lines: &[String]) -> Vec<String> {
    let (mut commands, mut goes_on) = (Vec::<String>::new(), false);
    for line in lines {
        match commands.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.push('\n');
                last.push_str(line);
            }
            None if line.trim().is_empty() => {}
            None => commands.push(line.clone()),
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// A command with what the reader would put into it. What the story has no value for fails it.
pub fn filled(command: &str, values: &BTreeMap<&'static str, String>) -> String {
    STANDS_FOR.iter().filter(|(written, _)| command.contains(written)).fold(
        command.to_owned(),
        |command, (written, meant)| {
            let value = values
                .get(meant)
                .unwrap_or_else(|| panic!("nobody said which is {meant}: {command}"));
            command.replace(written, value)
        },
    )
}

/// Whether an entry of [`CODES`] means this command.
fn is_meant(command: &str, begins: &str) -> bool {
    command == begins || (begins.ends_with(' ') && command.starts_with(begins))
}

/// The codes with which a command may end.
pub fn codes(block: &Block, command: &str) -> Vec<i32> {
    let of = |here: &str, there: &str| -> Vec<i32> {
        let is_it = |(document, section, begins, _, _): &&(&str, &str, &str, i32, &str)| {
            *document == here && *section == there && is_meant(command, begins)
        };
        CODES.iter().filter(is_it).map(|(_, _, _, code, _)| *code).collect()
    };
    match of(&block.document, &block.section) {
        codes if codes.is_empty() => [of("*", "*"), vec![0]].concat(),
        codes => codes,
    }
}

/// What the record has to say of a document once all of it was typed.
pub fn record(document: &str) -> String {
    let mut text = String::new();
    for block in blocks(document) {
        let _ = writeln!(text, "{}", block.name());
        for command in &block.commands {
            let mark = if block.left(command).is_none() { "    " } else { "  - " };
            for line in command.lines() {
                let _ = writeln!(text, "{mark}{line}");
            }
        }
    }
    text
}

/// Puts what was typed of a story's documents into the record, and what is left of documents of which nothing is typed.
pub fn write_record(typed: &[&str]) {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap();
    let is_written =
        |document: &str| typed.contains(&document) || blocks(document).iter().all(|block| block.typed().is_empty());
    let part = |document: &&str| match is_written(document) {
        true => record(document),
        false => recorded(document),
    };
    let parts: Vec<String> = STORIES
        .iter()
        .flat_map(|(_, documents)| documents.iter())
        .map(part)
        .collect();
    fs::write(project(RECORD), parts.concat()).unwrap();
}

/// What the record says of a document.
pub fn recorded(document: &str) -> String {
    let all = fs::read_to_string(project(RECORD)).unwrap_or_default();
    let (mut text, mut here) = (String::new(), false);
    for line in all.lines() {
        if !line.starts_with(' ') {
            here = line.starts_with(&format!("{document} > "));
        }
        if here {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_document_tells_to_type_was_typed_or_is_left_for_a_reason() {
        let stories: Vec<&str> = STORIES
            .iter()
            .flat_map(|(_, documents)| documents.iter().copied())
            .collect();
        for document in documents() {
            assert!(
                blocks(&document).is_empty() || stories.contains(&document.as_str()),
                "no story types {document}"
            );
            let (known, recorded) = (record(&document), recorded(&document));
            let differs = known
                .lines()
                .zip(recorded.lines())
                .position(|(one, other)| one != other);
            let from = differs.unwrap_or_else(|| recorded.lines().count().min(known.lines().count()));
            assert!(
                known == recorded,
                "{document} was changed: let the hosts type it, \
                 `PGKEEP_RECORD=1 cargo test -p host-tests --test host_documents`, or say in {} why not; \
                 line {} of the record of it should be {:?} and is {:?}",
                file!(),
                from + 1,
                known.lines().nth(from),
                recorded.lines().nth(from)
            );
        }
    }

    #[test]
    fn the_record_has_nothing_that_no_document_has() {
        let all = fs::read_to_string(project(RECORD)).unwrap();
        let known: String = STORIES
            .iter()
            .flat_map(|(_, documents)| documents.iter())
            .map(|document| recorded(document))
            .collect();
        assert_eq!(all, known);
    }

    #[test]
    fn what_is_left_or_ends_otherwise_stands_in_the_documents() {
        let all: Vec<Block> = documents().iter().flat_map(|document| blocks(document)).collect();
        let of = |document: &str, section: &str| -> Vec<&String> {
            let here = |block: &&Block| {
                (document == "*" || block.document == document) && (section == "*" || block.section == section)
            };
            all.iter().filter(here).flat_map(|block| &block.commands).collect()
        };
        for (document, section, commands, why) in LEFT {
            let there = of(document, section);
            assert!(!there.is_empty() && !why.is_empty(), "{document} > {section}");
            for command in commands.iter().filter(|command| **command != "*") {
                assert!(
                    there.iter().any(|other| other == command),
                    "{document} > {section}: {command}"
                );
            }
        }
        for (document, section, begins, code, _) in CODES {
            let mut there = of(document, section).into_iter();
            assert!(
                there.any(|command| is_meant(command, begins)),
                "{document} > {section}: {begins}"
            );
            assert_ne!(*code, 0, "{begins}");
        }
        for (written, _) in STANDS_FOR {
            let mut there = of("*", "*").into_iter();
            assert!(there.any(|command| command.contains(written)), "{written}");
        }
    }

    #[test]
    fn tests_that_are_named_are_there() {
        for (document, section, _, why) in LEFT {
            for name in why.split('`').skip(1).step_by(2) {
                let places = ["tests/tests", "tests/hosts/tests"].map(|below| project(&format!("{below}/{name}.rs")));
                assert!(
                    places.iter().any(|place| place.is_file()),
                    "{document} > {section}: {name}"
                );
            }
        }
    }

    #[test]
    fn a_command_goes_on_where_its_line_says_so() {
        let lines = ["a \\", "    b", "", "c"].map(String::from);
        assert_eq!(commands(&lines), ["a \\\n    b", "c"]);
    }
}
