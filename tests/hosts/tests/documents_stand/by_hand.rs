//! Recovery without pgkeep, on a Debian whose configuration lies outside of the data directory. The page's blocks for the test
//! `by_hand` are typed around the one that only such a host needs.

use host_tests::Reader;
use host_tests::typed::{Block, fences};

use super::TWO;

const PAGE: &str = "docs/recover-by-hand.md";
/// What the page has set, in a file: whoever reads it types in one shell from first to last.
const SET: &str = "/var/lib/postgresql/set.sh";

pub fn begin(reader: &mut Reader) {
    reader.installs();
    reader.works(TWO);
    reader.archived();
    // Neither the server nor a program of pgkeep is left.
    reader.host.run(
        "systemctl stop postgresql@15-main; apt-get remove -y -q 'pgkeep*'; ! ls /usr/bin/pgkeep-*
        mv /var/lib/postgresql/15/main /var/lib/postgresql/15/main.broken; rm -r /srv/rescue
        install -d -o postgres -m 700 /srv/rescue",
    );
    reader.user = "postgres".into();
    reader.directory = "/var/lib/postgresql".into();
}

pub fn before(reader: &mut Reader, _: &Block, _: &str) {
    let (before, _) = parts();
    let keeps = format!("declare -p repository restore identity pg_bin label backup system references data >{SET}");
    types(reader, &format!("set -eu\n{before}{keeps}\n"));
    reader.prelude = format!(". {SET}\n");
}

pub fn end(reader: &mut Reader) {
    let (_, after) = parts();
    // What the page says in words.
    let lines = "sed -i -E '/^ *(data_directory|hba_file|ident_file|external_pid_file|include_dir)/d' \"$data/postgresql.conf\"";
    types(reader, &format!("set -eu\n. {SET}\n{lines}\n{after}"));
    assert_eq!(reader.shop("SELECT count(*) FROM orders"), "3000");
    assert_eq!(reader.shop("SHOW config_file"), "/srv/rescue/data/postgresql.conf");
    let stop = "runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -D /srv/rescue/data -m fast stop";
    reader.host.run(stop);
}

/// The blocks before and after the one that only such a host needs, without those for a moment in the past.
fn parts() -> (String, String) {
    let (mut parts, mut behind) = ([String::new(), String::new()], 0);
    for (_, info, lines) in fences(PAGE) {
        let marks: Vec<&str> = info.split_whitespace().collect();
        match marks[..] {
            ["sh"] => behind = 1,
            ["sh", "by-hand"] | ["sh", "by-hand", "set"] => parts[behind].push_str(&(lines.join("\n") + "\n")),
            _ => {}
        }
    }
    let [before, after] = parts;
    (before, after)
}

fn types(reader: &Reader, script: &str) {
    reader.host.write("/var/lib/postgresql/page.sh", script);
    let ran = reader
        .host
        .shell("cd /var/lib/postgresql && runuser -u postgres -- bash page.sh")
        .run();
    let log = reader.host.shell("cat /srv/rescue/log").run().stdout;
    assert_eq!(ran.code, Some(0), "{}\n{log}", ran.report());
}
