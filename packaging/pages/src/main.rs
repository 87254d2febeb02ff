//! Writes man pages and shell completions of every tool into the directory named on the command line.
//!
//! The tools are programs, not libraries, so their argument definitions (`args.rs`, which needs clap and `common`
//! only) are compiled in here once more. What users read is thus made from what the tools parse.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

#[path = "../../../bins/archive-get/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod archive_get;
#[path = "../../../bins/archive-push/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod archive_push;
#[path = "../../../bins/base-backup/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod base_backup;
#[path = "../../../bins/check-age/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod check_age;
#[path = "../../../bins/check-archive/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod check_archive;
#[path = "../../../bins/dump/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod dump;
#[path = "../../../bins/dump-restore/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod dump_restore;
#[path = "../../../bins/info/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod info;
#[path = "../../../bins/init/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod init;
#[path = "../../../bins/notify/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod notify;
#[path = "../../../bins/prune/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod prune;
#[path = "../../../bins/restore/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod restore;
#[path = "../../../bins/restore-test/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod restore_test;
#[path = "../../../bins/sync/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod sync;
#[path = "../../../bins/verify/src/args.rs"]
#[allow(dead_code, missing_docs)]
mod verify;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        let _ = writeln!(io::stderr(), "usage: pages DIRECTORY");
        return ExitCode::from(2);
    };
    match write_all(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "pages: cannot write into {}: {error}",
                directory.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// Every tool, in alphabetical order.
fn commands() -> Vec<Command> {
    vec![
        archive_get::Args::command(),
        archive_push::Args::command(),
        base_backup::Args::command(),
        dump::Args::command(),
        dump_restore::Args::command(),
        info::Args::command(),
        init::Args::command(),
        prune::Args::command(),
        restore::Args::command(),
        notify::Args::command(),
        check_age::Args::command(),
        check_archive::Args::command(),
        restore_test::Args::command(),
        sync::Args::command(),
        verify::Args::command(),
    ]
}

/// Writes `man1/`, `bash/`, `zsh/` and `fish/`, with the names under which the shells look for them.
fn write_all(directory: &Path) -> io::Result<()> {
    let pages = directory.join("man1");
    fs::create_dir_all(&pages)?;
    let all = commands();
    for command in &all {
        fs::write(
            pages.join(format!("{}.1", command.get_name())),
            man_page(command, &all)?,
        )?;
    }
    for (name, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
        let place = directory.join(name);
        fs::create_dir_all(&place)?;
        for mut command in all.clone() {
            let tool = command.get_name().to_owned();
            let file = match shell {
                Shell::Zsh => format!("_{tool}"),
                Shell::Fish => format!("{tool}.fish"),
                _ => tool.clone(),
            };
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, tool, &mut text);
            fs::write(place.join(file), text)?;
        }
    }
    Ok(())
}

/// A page of section 1; the headings at the end of the help text become sections of their own.
fn man_page(command: &Command, all: &[Command]) -> io::Result<Vec<u8>> {
    let end = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let version = command.get_version().unwrap_or_default();
    let man = Man::new(command.clone().after_help(""))
        .title(command.get_name().to_uppercase())
        .section("1")
        .date("")
        .source(format!("pgkeep {version}"))
        .manual("pgkeep");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    sections(&end).to_writer(&mut page)?;
    see_also(command, all).to_writer(&mut page)?;
    Ok(page)
}

/// `Heading:` lines and the indented lines below them, as sections of preformatted text.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::default();
    for block in text.split("\n\n") {
        let (heading, lines) = block.split_once('\n').unwrap_or((block, ""));
        let heading = match heading.trim_end_matches(':') {
            "Exit codes" => "EXIT STATUS".to_owned(),
            other => other.to_uppercase(),
        };
        roff.control("SH", [heading.as_str()]).control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff
}

fn see_also(command: &Command, all: &[Command]) -> Roff {
    let others = all
        .iter()
        .map(Command::get_name)
        .filter(|name| *name != command.get_name());
    let list: Vec<String> = others.map(|name| format!("{name}(1)")).collect();
    let mut roff = Roff::default();
    roff.control("SH", ["FILES"]);
    roff.text([roman(
        "/etc/pgkeep/pgkeep.toml: the configuration, with every option explained in it",
    )]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(list.join(", "))]);
    roff
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use clap::Parser;

    #[test]
    fn the_definitions_are_sound() {
        for command in commands() {
            command.debug_assert();
        }
    }

    #[test]
    fn every_flag_is_explained_and_every_tool_has_examples_and_exit_codes() {
        for command in commands() {
            let name = command.get_name();
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{name}: {} has no help",
                    argument.get_id()
                );
            }
            assert!(command.get_long_about().is_some(), "{name} has no long description");
            let end = command.get_after_help().unwrap().to_string();
            assert!(
                end.contains("Examples:\n") && end.contains("Exit codes:\n"),
                "{name}: {end}"
            );
            assert!(end.contains(name), "{name}: {end}");
        }
    }

    #[test]
    fn every_tool_gets_a_page_and_three_completions() {
        let directory = std::env::temp_dir().join(format!("pgkeep-pages-{}", std::process::id()));
        write_all(&directory).unwrap();
        for command in commands() {
            let name = command.get_name();
            let page = fs::read_to_string(directory.join(format!("man1/{name}.1"))).unwrap();
            for section in [
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "OPTIONS",
                "EXAMPLES",
                "\"EXIT STATUS\"",
                "\"SEE ALSO\"",
            ] {
                assert!(
                    page.contains(&format!("\n.SH {section}\n")),
                    "{name} has no {section}\n{page}"
                );
            }
            assert!(!page.contains("prefetch"), "hidden flags stay hidden");
            for file in [
                format!("bash/{name}"),
                format!("zsh/_{name}"),
                format!("fish/{name}.fish"),
            ] {
                assert!(
                    fs::read_to_string(directory.join(&file)).unwrap().contains(name),
                    "{file}"
                );
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_forms_of_the_design_are_understood() {
        let get = archive_get::Args::try_parse_from(["x", "000000010000000000000001", "pg_wal/RECOVERYXLOG"]).unwrap();
        assert!(get.prefetch_from.is_none() && !get.attempt);
        archive_push::Args::try_parse_from(["x", "pg_wal/000000010000000000000001"]).unwrap();
        let backup = [
            "x",
            "--type",
            "incr",
            "--only-on",
            "prefer-standby",
            "--if-older-than",
            "20h",
            "--jobs",
            "4",
            "--audit",
        ];
        let backup = base_backup::Args::try_parse_from(backup).unwrap();
        assert_eq!(backup.kind, base_backup::BackupType::Incr);
        assert_eq!(backup.only_on, common::leadership::Where::PreferStandby);
        info::Args::try_parse_from(["x", "--format", "json", "--repository", "local"]).unwrap();
        init::Args::try_parse_from(["x", "--new-history"]).unwrap();
    }

    #[test]
    fn a_restore_takes_one_target_and_what_patroni_appends() {
        let parse = |arguments: &[&str]| restore::Args::try_parse_from([&["x"], arguments].concat());
        let full = parse(&[
            "--to",
            "/a",
            "--target-time",
            "now-1h",
            "--target-exclusive",
            "--target-action",
            "promote",
            "--tablespace",
            "16400=/t",
            "--tablespace",
            "/old=/new",
            "--archive-mode",
            "off",
            "--only-database",
            "a",
        ])
        .unwrap();
        assert_eq!(full.tablespaces.len(), 2);
        let patroni = parse(&["--scope=main", "--datadir=/d", "--role=replica", "--connstring=host=a"]).unwrap();
        assert_eq!(patroni.destination(), Some(&PathBuf::from("/d")));
        assert!(patroni.wants_standby());
        for wrong in [
            &["--target-immediate"][..],
            &["--to", "/a", "--target-time", "now", "--target-lsn", "0/1"],
            &["--to", "/a", "--target-name", "x", "--target-exclusive"],
            &["--to", "/a", "--target-action", "pause"],
            &["--to", "/a", "--primary-conninfo", "host=a"],
            &["--to", "/a", "--datadir", "/b"],
            &["--to", "/a", "--tablespace", "a=b"],
            &["--to", "/a", "--jobs", "0"],
            &["--to", "/a", "--only-database", "a", "--delta"],
            &["--to", "/a", "--only-database", "a", "--standby"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
