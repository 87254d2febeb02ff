//! Every tool against what a tired person or a broken machine hands it: a wrong configuration, a repository that may not
//! be read, is not ours, is too new or is none at all. Each says what is wrong with what, ends with its own code, and
//! leaves repository, data directory and destination as they were.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use system_tests::story::newer_format;
use system_tests::{Options, Repo, Server, Story, Tool, account, mutilate};

/// What is run, in this order.
const TOOLS: [&str; 7] = [
    "archive-push",
    "archive-get",
    "archive-get in a standby",
    "base-backup",
    "restore",
    "info",
    "init",
];

/// A cluster with a backup, and places where archive-push and archive-get can be run as PostgreSQL does.
struct Bench {
    story: Story,
    segment: String,
    recovery: PathBuf,
    standby: PathBuf,
}

/// What must not change: the objects of the repository, and what lies where WAL is fetched to.
type Things = BTreeMap<PathBuf, (u64, SystemTime)>;

impl Bench {
    fn new(server: &Server) -> Bench {
        let story = Story::begin("bad_input", server, Options::default());
        story.backup();
        let segment = story.cluster.switch_wal();
        story.cluster.wait_archived(&segment);
        let control = fs::read(story.cluster.data().join("global/pg_control")).unwrap();
        let content = fs::read(story.cluster.data().join("pg_wal").join(&segment)).unwrap();
        let [recovery, standby] = ["recovery", "standby"].map(|name| {
            let data = story.scratch.create_dir(name);
            for below in ["global", "pg_wal"] {
                story.scratch.create_dir(&format!("{name}/{below}"));
            }
            account::write(&data.join("global/pg_control"), &control, 0o600);
            account::write(&data.join("pg_wal").join(&segment), &content, 0o600);
            data
        });
        account::write(&standby.join("standby.signal"), "", 0o600);
        Bench {
            story,
            segment,
            recovery,
            standby,
        }
    }

    fn repo(&self) -> &Repo {
        self.story.site.repo()
    }

    fn never(&self) -> PathBuf {
        self.story.scratch.path("never")
    }

    /// One of [`TOOLS`].
    fn tool(&self, name: &str, config: &Path, arguments: &[&str]) -> Tool {
        let tool = |name: &str| Tool::new(name).arg("--config").arg(config).args(arguments);
        let get = |data: &Path| {
            tool("archive-get")
                .args([self.segment.as_str(), "pg_wal/RECOVERYXLOG"])
                .cwd(data)
        };
        match name {
            "archive-push" => tool(name).arg(format!("pg_wal/{}", self.segment)).cwd(&self.recovery),
            "archive-get" => get(&self.recovery),
            "archive-get in a standby" => get(&self.standby),
            "restore" => tool(name).arg("--to").arg(self.never()),
            name => tool(name),
        }
    }

    fn things(&self) -> Things {
        let mut found = self.repo().objects();
        for data in [&self.recovery, &self.standby] {
            let entries = fs::read_dir(data.join("pg_wal")).unwrap();
            found.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let of = |path: PathBuf| {
            let meta = fs::metadata(&path).unwrap();
            (path, (meta.len(), meta.modified().unwrap()))
        };
        found.into_iter().map(of).collect()
    }

    /// Runs tools that must all fail with these words and touch nothing. `code` is that of the tools that are not
    /// archive-get, whose codes are PostgreSQL's business.
    fn refused(&self, title: &str, tools: &[&str], code: i32, words: &[&str], config: &Path, arguments: &[&str]) {
        self.story.step(title);
        let before = self.things();
        for name in tools {
            let code = match *name {
                "archive-get" => 200,
                "archive-get in a standby" => 75,
                _ => code,
            };
            let mut ran = self.tool(name, config, arguments).run().expect_code(code);
            for words in words {
                ran = ran.expect_said(words);
            }
            assert!(
                !ran.stderr.contains("panicked") && !ran.stderr.is_empty(),
                "{}",
                ran.report()
            );
            assert!(!self.never().exists(), "{title}\n{}", ran.report());
            assert_eq!(self.things(), before, "{title}\n{}", ran.report());
        }
    }

    /// As [`Bench::refused`], with the configuration that is right.
    fn refused_repository(&self, title: &str, tools: &[&str], words: &[&str]) {
        self.refused(title, tools, 1, words, &self.story.site.config, &[]);
    }
}

fn without<'a>(left_out: &[&str]) -> Vec<&'a str> {
    TOOLS.into_iter().filter(|name| !left_out.contains(name)).collect()
}

#[test]
fn a_wrong_configuration_is_named_by_every_tool() {
    let Some(server) = Server::need(15) else { return };
    let bench = Bench::new(&server);
    let story = &bench.story;
    let text = fs::read_to_string(&story.site.config).unwrap();
    let with = |name: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in\n{text}");
        story.scratch.write(name, text.replace(from, to), 0o600)
    };

    let config = with("key.toml", "patience =", "patienze =");
    let words = ["unknown key \"patienze\"", "\"patience\"", "key.toml:"];
    bench.refused("an unknown key", &TOOLS, 2, &words, &config, &[]);
    let config = with("value.toml", "patience = \"30s\"", "patience = \"soon\"");
    bench.refused(
        "a value that is none",
        &TOOLS,
        2,
        &["soon", "value.toml:"],
        &config,
        &[],
    );
    let config = with("path.toml", "[cluster.main]", "[cluster.\"../main\"]");
    bench.refused("a cluster that would be a path", &TOOLS, 2, &["../main"], &config, &[]);
    let config = with("paths.toml", "[repository.local]", "[repository.\"../local\"]");
    bench.refused(
        "a repository that would be a path",
        &TOOLS,
        2,
        &["../local"],
        &config,
        &[],
    );
    let config = with("closed.toml", "patience =", "patience =");
    mutilate::chmod(&config, 0);
    let words = ["closed.toml", "Permission denied"];
    bench.refused("a file that may not be read", &TOOLS, 2, &words, &config, &[]);
    let config = story.scratch.path("nothing.toml");
    bench.refused("a file that is not there", &TOOLS, 2, &["nothing.toml"], &config, &[]);

    let good = &story.site.config;
    let words = ["../main", "main"];
    bench.refused(
        "another cluster's name",
        &TOOLS,
        2,
        &words,
        good,
        &["--cluster", "../main"],
    );
    let tools = without(&["archive-push", "init"]);
    let words = ["../local", "local"];
    bench.refused(
        "another repository's",
        &tools,
        2,
        &words,
        good,
        &["--repository", "../local"],
    );

    let data = format!("{:?}", story.cluster.data());
    let config = with("data.toml", &data, "\"/nonexistent/data\"");
    let words = ["/nonexistent/data"];
    bench.refused("no data directory", &["base-backup"], 2, &words, &config, &[]);
    bench.refused("no data directory", &["init"], 1, &words, &config, &[]);
}

#[test]
fn a_repository_that_cannot_be_used_is_named_by_every_tool() {
    let Some(server) = Server::need(15) else { return };
    let bench = Bench::new(&server);
    let (story, repo) = (&bench.story, bench.repo());
    let place = repo.dir.display().to_string();

    mutilate::chmod(&repo.dir, 0);
    bench.refused_repository("permissions", &TOOLS, &["Permission denied", &place]);
    mutilate::chmod(&repo.dir, 0o700);

    // Creating one is what init is for.
    let aside = story.scratch.path("aside");
    fs::rename(repo.path(""), &aside).unwrap();
    let title = "an empty directory";
    let gets = ["archive-get", "archive-get in a standby"];
    bench.refused_repository(title, &gets, &["there is no repository of this cluster at", &place]);
    let words = ["there is no repository at", &place, "pgkeep-init"];
    bench.refused(title, &["archive-push"], 2, &words, &story.site.config, &[]);
    let words = ["main/repository.json does not exist", &place];
    bench.refused_repository(title, &["base-backup", "restore", "info"], &words);
    fs::rename(&aside, repo.path("")).unwrap();

    let identity = repo.path("repository.json");
    let original = fs::read_to_string(&identity).unwrap();
    let newer = newer_format(&original);
    let foreign = original.replace("\"cluster\":\"main\"", "\"cluster\":\"other\"");
    let at = original.find("\"uuid\":\"").unwrap() + 8;
    let mut exchanged = original.clone();
    exchanged.replace_range(at..at + 8, "01234567");
    for changed in [&newer, &foreign, &exchanged] {
        assert_ne!(*changed, original);
    }
    let with = |title: &str, content: &str, tools: &[&str], words: &[&str]| {
        account::write(&identity, content, 0o400);
        bench.refused_repository(title, tools, words);
    };
    with("a newer format", &newer, &TOOLS, &["it has format 2", "a newer pgkeep"]);
    with(
        "another cluster's",
        &foreign,
        &TOOLS,
        &["belongs to cluster \"other\"", "wrong place"],
    );
    with(
        "rubbish",
        "<html>log in</html>",
        &TOOLS,
        &["repository.json", "not a document"],
    );
    with("nothing in it", "", &TOOLS, &["repository.json", "not a document"]);
    with(
        "cut",
        &original[..original.len() / 2],
        &TOOLS,
        &["repository.json", "not a document"],
    );
    // The others may run on hosts that have never seen it.
    let tools = without(&["base-backup", "restore", "info", "init"]);
    with(
        "another one in the same place",
        &exchanged,
        &tools,
        &["this host knows it as"],
    );
    account::write(&identity, &original, 0o400);

    story.step("put right, everything works");
    for name in without(&["archive-get in a standby"]) {
        bench.tool(name, &story.site.config, &[]).run().expect_code(0);
    }
}
