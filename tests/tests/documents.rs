//! What the documents say can be followed: links lead somewhere, commands have the flags they are shown with,
//! configurations can be read, files that are named exist.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::config::Config;
use system_tests::Tool;

/// One document, parted into what is fenced and what is not.
struct Document {
    path: PathBuf,
    /// Info string and content of each fenced block.
    fenced: Vec<(String, String)>,
    /// The lines outside of them.
    prose: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every *.md of the project.
fn documents() -> Vec<Document> {
    let mut found = Vec::new();
    collect(&root(), &mut found);
    found.sort();
    assert!(
        found.iter().any(|path| path.ends_with("docs/recover-by-hand.md")),
        "{found:?}"
    );
    found.into_iter().map(read).collect()
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && name != ".git" {
                collect(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

fn read(path: PathBuf) -> Document {
    let text = fs::read_to_string(&path).unwrap();
    let (mut fenced, mut prose) = (Vec::new(), Vec::new());
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => fenced.extend(open.take()),
            (Some(info), None) => open = Some((info.to_owned(), String::new())),
            (None, Some((_, content))) => {
                content.push_str(line);
                content.push('\n');
            }
            (None, None) => prose.push(line.to_owned()),
        }
    }
    assert!(open.is_none(), "{}: a fence is not closed", path.display());
    Document { path, fenced, prose }
}

impl Document {
    /// Its name in messages.
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// `code` in running text.
    fn spans(&self) -> impl Iterator<Item = &str> {
        self.prose.iter().flat_map(|line| line.split('`').skip(1).step_by(2))
    }

    /// The targets of links in running text, `code` left out.
    fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in &self.prose {
            let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
            let ends = text
                .split("](")
                .skip(1)
                .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
            links.extend(ends);
        }
        links
    }

    /// The names that `#...` may have, as GitHub makes them of headings.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self
            .prose
            .iter()
            .filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
        let slug = |heading: &str| {
            let kept = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
                .collect::<String>();
            kept.replace(' ', "-")
        };
        headings.map(slug).collect()
    }
}

#[test]
fn every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading() {
    let all = documents();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in &all {
        for link in document.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => document.path.clone(),
                file => document.path.parent().unwrap().join(file),
            };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{}: {link}: no such file", document.name()));
                continue;
            };
            let other = all.iter().find(|other| other.path.canonicalize().unwrap() == target);
            if !anchor.is_empty() && !other.is_some_and(|other| other.anchors().contains(anchor)) {
                wrong.push(format!("{}: {link}: no such heading", document.name()));
            }
        }
    }
    assert!(checked > 20, "only {checked} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_of_the_project_that_are_named_exist() {
    let mut wrong = Vec::new();
    for document in documents() {
        for span in document.spans() {
            let of_the_project = ["bins/", "docs/", "tests/", "packaging/"]
                .iter()
                .any(|top| span.starts_with(top));
            let pattern = span.contains(['*', '<', ' ', '$']);
            if of_the_project && !pattern && !root().join(span).exists() {
                wrong.push(format!("{}: {span}", document.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A tool as it is called somewhere, with the flags that follow.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    tool: String,
    flags: Vec<String>,
}

/// The calls of our tools in a piece of shell, or in a setting that holds a command.
fn calls(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split(" # ").next().unwrap_or_default();
        let mut open = false;
        for word in line.split_whitespace() {
            // A quote that ends here ends the setting's value.
            let quote_ends = word.ends_with('"') && !word.starts_with('"');
            let ends = quote_ends || word.ends_with(';') || ["|", "||", "&&", "&"].contains(&word);
            let bare = word.trim_matches(|c| "'\";()".contains(c));
            let tool = bare.rsplit('/').next().and_then(|name| name.strip_prefix("pgkeep-"));
            let tool = tool
                .filter(|tool| !tool.is_empty() && tool.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
            if let Some(tool) = tool {
                calls.push(Call {
                    tool: tool.to_owned(),
                    flags: Vec::new(),
                });
                open = true;
            } else if open && bare.starts_with('-') && bare != "-" {
                let flag = bare.split('=').next().unwrap_or_default();
                calls.last_mut().unwrap().flags.push(flag.to_owned());
            }
            open = open && !ends;
        }
    }
    calls
}

/// Every tool with the flags that its help names.
fn tools() -> BTreeMap<String, BTreeSet<String>> {
    let entries = fs::read_dir(root().join("bins")).unwrap().flatten();
    let names = entries
        .filter(|entry| entry.path().join("src/main.rs").is_file())
        .map(|entry| entry.file_name());
    names
        .map(|name| {
            let name = name.into_string().unwrap();
            let help = Tool::new(&name).arg("--help").run().expect_code(0).stdout;
            // What stands in the examples of the help is no proof of a flag.
            let options = help.split("\nExamples:").next().unwrap();
            let flags = options
                .lines()
                .filter(|line| line.trim_start().starts_with('-'))
                .flat_map(|line| {
                    line.split_whitespace()
                        .take_while(|word| word.starts_with(['-', '<', '[']))
                })
                // A value that may be left out stands in brackets behind the flag.
                .map(|word| {
                    word.split('[')
                        .next()
                        .unwrap_or(word)
                        .trim_end_matches([',', '.'])
                        .to_owned()
                })
                .filter(|word| word.starts_with('-'))
                .collect();
            (name, flags)
        })
        .collect()
}

/// Packages and units that are no tools: `pgkeep-` is left out.
fn others() -> BTreeSet<String> {
    let of = |directory: &str| fs::read_dir(root().join(directory)).unwrap().flatten();
    let names = of("packaging/debian").chain(of("packaging/systemd"));
    let bare = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let name = name.strip_prefix("pgkeep-")?;
        name.split(['.', '@']).next().map(str::to_owned)
    };
    names.filter_map(bare).collect()
}

/// Every unit that a document names is one.
#[test]
fn every_unit_shown_is_there() {
    let units: BTreeSet<String> = fs::read_dir(root().join("packaging/systemd"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let (mut wrong, mut shown) = (Vec::new(), 0);
    for document in documents() {
        let fenced = document.fenced.iter().map(|(_, content)| content.as_str());
        for text in fenced.chain(document.spans()) {
            for word in text.split(|c: char| c.is_whitespace() || "'\"`(),;".contains(c)) {
                let Some((name, rest)) = word.split_once('@').filter(|(name, _)| name.starts_with("pgkeep-")) else {
                    continue;
                };
                shown += 1;
                let kind = if rest.ends_with(".timer") { "timer" } else { "service" };
                if !units.contains(&format!("{name}@.{kind}")) {
                    wrong.push(format!("{}: {word}", document.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(shown > 20, "only {shown} units were found");
}

#[test]
fn every_command_shown_has_the_flags_it_is_shown_with() {
    let (tools, others) = (tools(), others());
    let mut wrong = Vec::new();
    let mut shown = BTreeSet::new();
    for document in documents() {
        let fenced = document.fenced.iter().map(|(_, content)| content.as_str());
        let spans = document
            .spans()
            .filter(|span| span.starts_with("pgkeep-") || span.contains("_command = "));
        for text in fenced.chain(spans) {
            for call in calls(text) {
                shown.insert(call.tool.clone());
                let Some(known) = tools.get(&call.tool) else {
                    if others.contains(&call.tool) && call.flags.is_empty() {
                        continue;
                    }
                    wrong.push(format!("{}: there is no pgkeep-{}", document.name(), call.tool));
                    continue;
                };
                let unknown = call.flags.iter().filter(|flag| !known.contains(*flag));
                wrong.extend(unknown.map(|flag| format!("{}: pgkeep-{} has no {flag}", document.name(), call.tool)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let hidden: Vec<_> = tools.keys().filter(|tool| !shown.contains(*tool)).collect();
    assert!(hidden.is_empty(), "no document shows how to call {hidden:?}");
}

#[test]
fn a_call_is_found_wherever_it_stands() {
    let call = |tool: &str, flags: &[&str]| Call {
        tool: tool.into(),
        flags: flags.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(
        calls("0 2 * * * root /usr/bin/pgkeep-base-backup -q\n"),
        [call("base-backup", &["-q"])]
    );
    assert_eq!(
        calls("psql -c \"SET archive_command = 'pgkeep-archive-push %p'\" \\\n    -c \"x\"\n"),
        [call("archive-push", &[])]
    );
    assert_eq!(
        calls("pgkeep-restore --to X \\\n  --wal-dir=Y | less -R; rm pgkeep-identity.txt pgkeep-{a,b}\n"),
        [call("restore", &["--to", "--wal-dir"])]
    );
}

#[test]
fn every_configuration_shown_can_be_read() {
    let mut read = 0;
    for document in documents() {
        for (_, content) in document
            .fenced
            .iter()
            .filter(|(info, _)| info.split_whitespace().next() == Some("toml"))
        {
            let config = Config::parse(&document.path, content, &|_| None);
            let config = config.unwrap_or_else(|error| panic!("{}: {error}\n{content}", document.name()));
            assert!(
                !config.clusters.is_empty() && !config.repositories.is_empty(),
                "{}\n{content}",
                document.name()
            );
            read += 1;
        }
    }
    assert!(read >= 3, "only {read} configurations were found");
}

/// The sections of a page, by their headings.
fn sections(text: &str) -> Vec<(&str, &str)> {
    let sections = text.split("\n## ").skip(1);
    sections.map(|section| section.split_once('\n').unwrap()).collect()
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    let rules = fs::read_to_string(root().join("packaging/prometheus/pgkeep.rules.yml")).unwrap();
    let values = |name: &str| -> Vec<&str> {
        let lines = rules.lines().map(str::trim);
        lines.filter_map(|line| line.strip_prefix(name)).collect()
    };
    let alerts = values("- alert: ");
    assert!(alerts.len() > 20, "{alerts:?}");
    let anchors: Vec<String> = alerts
        .iter()
        .map(|alert| format!("docs/runbooks.md#{}", alert.to_lowercase()))
        .collect();
    assert_eq!(values("runbook: "), anchors, "each alert leads to its own section");
    let page = fs::read_to_string(root().join("docs/runbooks.md")).unwrap();
    let all = sections(&page);
    let mut titles: Vec<&str> = all.iter().map(|(title, _)| *title).collect();
    titles.retain(|title| *title != "Before you type");
    assert_eq!(titles, alerts, "one section for each alert, in the order of the rules");
    for (title, text) in all.iter().filter(|(title, _)| alerts.contains(title)) {
        for part in ["**Means:**", "**Lost?**", "**Urgent?**", "**Look", "```sh", "**Over**"] {
            assert!(text.contains(part), "{title} has no {part}");
        }
    }
}

#[test]
fn every_disaster_says_what_not_to_do_how_to_check_and_what_follows() {
    let page = fs::read_to_string(root().join("docs/disasters.md")).unwrap();
    let general = [
        "The first five minutes",
        "Stop retention",
        "Save the newest WAL",
        "Check the data",
        "Afterwards",
    ];
    let all = sections(&page);
    let disasters: Vec<_> = all.iter().filter(|(title, _)| !general.contains(title)).collect();
    assert!(disasters.len() >= 15, "only {} disasters", disasters.len());
    for (title, text) in disasters {
        for part in ["**Do not** ", "```sh", "**Check:**", "**Afterwards:**"] {
            assert!(text.contains(part), "{title} has no {part}");
        }
        let (first, _) = text.trim_start().split_once("```").unwrap();
        assert!(
            first.contains("**Do not** "),
            "{title} has a command before what not to do"
        );
    }
}

/// Messages in the tables of `docs/troubleshooting.md` that are not ours.
const OF_OTHERS: [&str; 2] = ["command not found", "No space left on device"];

#[test]
fn the_policies_shown_are_json_and_allow_what_their_titles_say() {
    let all = documents();
    let document = all.iter().find(|document| document.name() == "docs/s3.md").unwrap();
    let shown = document.fenced.iter().filter(|(info, _)| info == "json");
    let parsed: Vec<serde_json::Value> = shown
        .map(|(_, text)| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}")))
        .collect();
    let (policies, others): (Vec<_>, Vec<_>) = parsed.iter().partition(|json| json["Version"] == "2012-10-17");
    let actions = |policy: &serde_json::Value| {
        let statements = policy["Statement"].as_array().unwrap();
        for statement in statements {
            assert_eq!(statement["Effect"], "Allow", "{statement}");
            assert!(
                statement["Resource"].to_string().contains("arn:aws:s3:::"),
                "{statement}"
            );
        }
        let all = statements.iter().map(|statement| statement["Action"].to_string());
        all.collect::<String>()
    };
    let [push, prune, restore, owner] = policies[..] else {
        panic!("{} policies", policies.len())
    };
    assert!(actions(push).contains("s3:PutObject") && !actions(push).contains("Delete"));
    assert!(actions(prune).contains("s3:DeleteObjectVersion"));
    assert!(!actions(restore).contains("Put") && !actions(restore).contains("Delete"));
    assert!(actions(owner).contains("s3:*"));
    for policy in [push, prune, restore] {
        // Without it what is missing looks forbidden.
        assert!(actions(policy).contains("\"s3:ListBucket\""), "{policy}");
    }
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn the_messages_that_are_explained_are_those_that_the_tools_print() {
    let mut sources = String::new();
    read_sources(&root().join("bins"), &mut sources);
    let all = documents();
    let page = all
        .iter()
        .find(|document| document.path.ends_with("docs/troubleshooting.md"))
        .unwrap();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for row in page.prose.iter().filter(|line| line.starts_with('|')) {
        let cell = row.split('|').nth(1).unwrap();
        for message in cell
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|span| span.contains(' ') && !OF_OTHERS.contains(span))
        {
            checked += 1;
            // What varies is shown as dots, where the source has a brace.
            let missing = message.split("...").map(str::trim).find(|part| !sources.contains(part));
            wrong.extend(missing.map(|part| format!("{message}: no source says \"{part}\"")));
        }
    }
    assert!(checked > 20, "only {checked} messages were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tools' sources, with strings that go on over a line's end put together.
fn read_sources(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let joined = lines
                .iter()
                .map(|line| line.trim_start().strip_suffix('\\').unwrap_or(line.trim_start()));
            sources.push_str(&joined.collect::<Vec<_>>().join(""));
        }
    }
}
