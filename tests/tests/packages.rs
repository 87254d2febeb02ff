//! The packages: what is in them, what a purge leaves, what systemd and lintian say.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::config::Config;
use system_tests::output::{run, said};
use system_tests::stand::need_program;
use system_tests::tool::programs;
use system_tests::{Scratch, project};

/// What `systemd-analyze security` may say of a unit at most.
const EXPOSURE: f64 = 2.0;

/// The packages, built once, and all of them unpacked into one tree.
struct Packages {
    _scratch: Scratch,
    files: Vec<PathBuf>,
    tree: PathBuf,
}

fn build(into: &Path, pages: &Path) -> Vec<PathBuf> {
    let built = run(Command::new(project("packaging/build-packages.sh"))
        .arg(programs())
        .arg(pages)
        .env("PGKEEP_DEBIAN", into)
        .env("PGKEEP_DEB_OPTIONS", "-Zgzip -z1")
        .env("SOURCE_DATE_EPOCH", "1790000000"));
    assert!(built.status.success(), "{}", said(&built));
    String::from_utf8(built.stdout)
        .unwrap()
        .lines()
        .map(PathBuf::from)
        .collect()
}

fn packages() -> Option<&'static Packages> {
    static BUILT: OnceLock<Option<Packages>> = OnceLock::new();
    let make = || {
        need_program("dh")?;
        let scratch = Scratch::new("packages");
        let pages = scratch.path("pages");
        let made = run(Command::new(programs().join("pages")).arg(&pages));
        assert!(made.status.success(), "{}", said(&made));
        let files = build(&scratch.path("debian"), &pages);
        let again = build(&scratch.path("again"), &pages);
        for (one, other) in files.iter().zip(&again) {
            assert!(
                fs::read(one).unwrap() == fs::read(other).unwrap(),
                "{} differs",
                one.display()
            );
        }
        let tree = scratch.path("tree");
        for file in &files {
            let out = run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&tree));
            assert!(out.status.success(), "{}", said(&out));
        }
        Some(Packages {
            _scratch: scratch,
            files,
            tree,
        })
    };
    BUILT.get_or_init(make).as_ref()
}

fn contents(package: &Path) -> Vec<String> {
    let listed = run(Command::new("dpkg-deb").arg("-c").arg(package));
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.split(" ./").nth(1))
        .map(str::to_owned)
        .collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn every_program_is_in_one_package_with_its_page() {
    let Some(packages) = packages() else { return };
    let mut holders: BTreeMap<String, usize> = BTreeMap::new();
    for package in &packages.files {
        for name in contents(package) {
            if let Some(program) = name.strip_prefix("usr/bin/").filter(|name| !name.is_empty()) {
                *holders.entry(program.to_owned()).or_default() += 1;
            }
            let page = name.strip_prefix("usr/bin/").filter(|name| !name.is_empty());
            let page = page.map(|program| format!("usr/share/man/man1/{program}.1.gz"));
            assert!(page.is_none_or(|page| contents(package).contains(&page)), "{name}");
            let odd = name.starts_with("var/") || name.starts_with("home/");
            assert!(
                !odd,
                "{name}: what a package holds goes with it, and a repository may lie there"
            );
        }
    }
    let tools: BTreeSet<String> = names(&project("bins"))
        .into_iter()
        .filter(|name| name != "common" && !name.contains('.'))
        .map(|name| format!("pgkeep-{name}"))
        .collect();
    assert_eq!(holders.keys().cloned().collect::<BTreeSet<_>>(), tools);
    assert!(holders.values().all(|count| *count == 1), "{holders:?}");
}

/// The files of Markdown below a directory.
fn pages(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => pages(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

#[test]
fn documents_link_to_what_is_installed() {
    let Some(packages) = packages() else { return };
    let pages = pages(&packages.tree.join("usr/share/doc/pgkeep-common"));
    assert!(pages.len() > 20, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let place = match target.strip_prefix('/') {
                Some(path) => packages.tree.join(path),
                None => page.parent().unwrap().join(target),
            };
            assert!(place.exists(), "{}: {target}", page.display());
        }
    }
}

#[test]
fn lintian_finds_nothing() {
    let Some(packages) = packages() else { return };
    if need_program("lintian").is_none() {
        return;
    }
    let looked = run(Command::new("lintian")
        .args(["--fail-on", "error,warning", "--allow-root", "--tag-display-limit", "0"])
        .args(&packages.files));
    let lines: Vec<String> = said(&looked)
        .lines()
        .filter(|line| line.starts_with("E:") || line.starts_with("W:"))
        .map(str::to_owned)
        .collect();
    assert!(looked.status.success() && lines.is_empty(), "{}", said(&looked));
}

#[test]
fn units_are_sound_and_hardened() {
    let Some(packages) = packages() else { return };
    if need_program("systemd-analyze").is_none() {
        return;
    }
    let directory = packages.tree.join("usr/lib/systemd/system");
    let mut looked = 0;
    for name in names(&directory) {
        let instance = name.replace("@.", "@main.");
        let kind = name.rsplit('.').next().unwrap_or_default();
        if !["service", "timer"].contains(&kind) {
            continue;
        }
        looked += 1;
        if kind == "service" {
            let scored = run(Command::new("systemd-analyze")
                .args(["security", "--offline=true", "--root"])
                .arg(&packages.tree)
                .arg(&instance));
            let text = said(&scored);
            let line = text
                .lines()
                .find(|line| line.contains("Overall exposure level"))
                .unwrap_or_default();
            let score = line
                .split(": ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
            assert!(score.is_some_and(|score| score <= EXPOSURE), "{name}: {text}");
            let unit = fs::read_to_string(directory.join(&name)).unwrap();
            let program = unit
                .split("/usr/bin/")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .unwrap();
            assert!(
                packages.tree.join("usr/bin").join(program).is_file(),
                "{name}: {program}"
            );
        }
        let verified = run(Command::new("systemd-analyze")
            .args(["verify", &instance])
            .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display())));
        // The programs and pages are not installed here.
        let complaints: Vec<String> = said(&verified)
            .lines()
            .filter(|line| !line.contains("is not executable") && !line.contains("man ") && line.contains("pgkeep"))
            .map(str::to_owned)
            .collect();
        assert!(complaints.is_empty(), "{complaints:?}");
    }
    assert!(looked > 15, "only {looked} units were found");
    for name in names(&directory).iter().filter(|name| name.ends_with(".timer")) {
        let timer = fs::read_to_string(directory.join(name)).unwrap();
        let calendar = timer.lines().find_map(|line| line.strip_prefix("OnCalendar="));
        if let Some(calendar) = calendar {
            assert!(calendar.ends_with(" UTC"), "{name}: {calendar}");
            let understood = run(Command::new("systemd-analyze").args(["calendar", calendar]));
            assert!(understood.status.success(), "{name}: {}", said(&understood));
        }
    }
}

/// What a unit says of a key, as it stands there.
fn says<'u>(unit: &'u str, key: &str) -> Option<&'u str> {
    unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn a_unit_is_not_repeated_for_ever_and_none_is_stopped_by_its_own_timer() {
    let directory = project("packaging/systemd");
    let mut repeated = 0;
    for name in names(&directory).iter().filter(|name| name.ends_with("@.service")) {
        let unit = fs::read_to_string(directory.join(name)).unwrap();
        if says(&unit, "Restart").is_none() {
            // Its timer, or another unit, comes however often it did.
            assert_eq!(says(&unit, "StartLimitIntervalSec"), Some("0"), "{name}");
            continue;
        }
        repeated += 1;
        let number = |key: &str, unit_of_time: &str| -> u64 {
            let value = says(&unit, key).unwrap().strip_suffix(unit_of_time).unwrap();
            value.parse().unwrap()
        };
        let (hours, burst) = (number("StartLimitIntervalSec", "h"), number("StartLimitBurst", ""));
        let pause = number("RestartSec", "min");
        // Runs of five minutes, which is how long a store that is away is waited for, come to their end within the span.
        assert!(burst * (pause + 5) <= hours * 60, "{name}: it is repeated for ever");
        assert!(
            burst >= 2 * hours + 2,
            "{name}: a timer that comes every half hour stops it"
        );
    }
    assert!(repeated >= 5, "only {repeated} units are repeated");
}

#[test]
fn sync_does_what_is_needed_by_its_timer_and_everything_by_hand() {
    let unit = fs::read_to_string(project("packaging/systemd/pgkeep-sync@.service")).unwrap();
    let line = says(&unit, "ExecStart").unwrap();
    let script = line
        .strip_prefix("/bin/sh -c '")
        .and_then(|rest| rest.strip_suffix("' %i"))
        .unwrap();
    assert!(script.starts_with("exec /usr/bin/pgkeep-sync "), "{script}");
    let script = script.replace("exec /usr/bin/pgkeep-sync", "echo").replace("$$", "$");
    let asked = |trigger: Option<&str>| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, "main"]).env("PGKEEP_FLAGS", "--jobs 2");
        match trigger {
            Some(unit) => shell.env("TRIGGER_UNIT", unit),
            None => shell.env_remove("TRIGGER_UNIT"),
        };
        String::from_utf8(run(&mut shell).stdout).unwrap()
    };
    assert_eq!(
        asked(Some("pgkeep-sync@main.timer")),
        "--cluster main --quiet --if-needed --jobs 2\n"
    );
    assert_eq!(asked(None), "--cluster main --quiet --jobs 2\n");
}

#[test]
fn the_configuration_to_begin_with_can_be_read_once_its_lines_are_taken() {
    let path = project("packaging/debian/pgkeep.toml");
    let text = fs::read_to_string(&path).unwrap();
    let taken = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|first: char| first == '[' || first.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let whole: Vec<String> = text.lines().map(taken).collect();
    let config = Config::parse(&path, &whole.join("\n"), &|_| None).unwrap();
    assert_eq!((config.clusters.len(), config.repositories.len()), (1, 1));
    // As it is installed it names no cluster: no timer does anything before somebody has said what is backed up.
    assert!(Config::parse(&path, &text, &|_| None).is_ok_and(|config| config.clusters.is_empty()));
}

/// Runs a package's postrm with its directories below `root`.
fn purge(root: &Path) -> Output {
    let script = fs::read_to_string(project("packaging/debian/pgkeep-common.postrm")).unwrap();
    let script = script
        .replace("/var/", &format!("{}/var/", root.display()))
        .replace("#DEBHELPER#", "");
    run(Command::new("sh").args(["-c", &script, "postrm", "purge"]))
}

#[test]
fn a_purge_leaves_every_repository_wherever_it_lies() {
    let scratch = Scratch::new("purge");
    let root = scratch.path("");
    for below in [
        "var/lib/pgkeep/main/status",
        "var/spool/pgkeep/main",
        "var/backups/pgkeep/main",
    ] {
        fs::create_dir_all(root.join(below)).unwrap();
    }
    fs::write(root.join("var/lib/pgkeep/main/status/prune.json"), "{}").unwrap();
    // What a host remembers of a backup is none.
    fs::write(root.join("var/lib/pgkeep/main/backup.json"), "{}").unwrap();
    fs::write(root.join("var/backups/pgkeep/main/repository.json"), "{}").unwrap();
    // Metrics of other programs lie beside those of the jobs.
    let metrics = root.join("var/lib/prometheus/node-exporter");
    fs::create_dir_all(metrics.join("pgkeep_directory.prom")).unwrap();
    for name in ["pgkeep_main_prune.prom", "apt.prom", "pgkeep_notes.txt"] {
        fs::write(metrics.join(name), "").unwrap();
    }
    assert!(purge(&root).status.success());
    let left: Vec<String> = names(&metrics).into_iter().collect();
    assert_eq!(left, ["apt.prom", "pgkeep_directory.prom", "pgkeep_notes.txt"]);
    assert!(root.join("var/backups/pgkeep/main/repository.json").is_file());
    assert!(!root.join("var/lib/pgkeep").exists() && !root.join("var/spool/pgkeep").exists());

    fs::create_dir_all(root.join("var/lib/pgkeep/repository/main/backup/x")).unwrap();
    fs::write(root.join("var/lib/pgkeep/repository/main/repository.json"), "{}").unwrap();
    fs::write(root.join("var/lib/pgkeep/repository/main/backup/x/backup.json"), "{}").unwrap();
    let purged = purge(&root);
    assert!(
        purged.status.success() && said(&purged).contains("there is a repository in it"),
        "{}",
        said(&purged)
    );
    assert!(
        root.join("var/lib/pgkeep/repository/main/backup/x/backup.json")
            .is_file()
    );
}

#[test]
fn removing_the_archiver_warns_where_a_server_may_still_call_it() {
    let scratch = Scratch::new("remove_archive");
    let root = scratch.path("");
    let etc = root.join("etc/postgresql/15/main");
    fs::create_dir_all(&etc).unwrap();
    let file = etc.join("postgresql.conf");
    let script = fs::read_to_string(project("packaging/debian/pgkeep-archive.prerm")).unwrap();
    let script = script
        .replace("/var/", &format!("{}/var/", root.display()))
        .replace("/etc/", &format!("{}/etc/", root.display()))
        .replace("#DEBHELPER#", "");
    let prerm = |why: &str| {
        let ended = run(Command::new("sh").args(["-c", &script, "prerm", why]));
        assert!(ended.status.success(), "{}", said(&ended));
        said(&ended)
    };
    let calls = "archive_command = '/usr/bin/pgkeep-archive-push %p'";
    for (text, warns) in [
        (calls.to_owned(), true),
        ("restore_command = 'pgkeep-archive-get %f %p'".to_owned(), true),
        (format!("#{calls}"), false),
        ("archive_command = '/bin/true'".to_owned(), false),
    ] {
        fs::write(&file, format!("port = 5432\n{text}\n")).unwrap();
        let told = prerm("remove");
        assert_eq!(
            told.contains("/etc/postgresql/15/main/postgresql.conf "),
            warns,
            "{text}: {told}"
        );
        assert_eq!(told.lines().count(), usize::from(warns), "{text}: {told}");
    }
    fs::write(&file, calls).unwrap();
    assert_eq!(prerm("upgrade"), "");
}
