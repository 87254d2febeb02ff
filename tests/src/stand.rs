//! Which servers there are, and how a test says that it cannot run here.
//!
//! Knows the places that `tests/stand/install.sh` fills: Debian's PostgreSQL 15 with all its programs, unpacked servers of
//! 13 to 18 that have only initdb, pg_ctl and postgres, and client programs of 17 and 18. Promises that no test passes silently without its
//! server: it prints `SKIPPED: ...`, which the Makefile counts, or fails where PGKEEP_MUST_HAVE names the version.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The major versions of PostgreSQL that pgkeep works with.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// The programs of one version of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The major version.
    pub major: u32,
    /// Where its initdb, pg_ctl and postgres are.
    pub bin: PathBuf,
}

impl Server {
    /// Finds a version, Debian's first: it has the client programs too.
    pub fn major(major: u32) -> Option<Server> {
        [debian_bin(major), directory().join(format!("postgresql-{major}/bin"))]
            .into_iter()
            .find(|bin| bin.join("postgres").is_file())
            .map(|bin| Server { major, bin })
    }

    /// Finds a version or says that the calling test is skipped; a version in PGKEEP_MUST_HAVE must be there.
    pub fn need(major: u32) -> Option<Server> {
        let found = Server::major(major);
        if found.is_none() {
            let reason = format!("PostgreSQL {major} is not here; tests/stand/install.sh {major} fetches it");
            let must_have = env::var("PGKEEP_MUST_HAVE").unwrap_or_default();
            let must = must_have.split([',', ' ']).any(|one| one == major.to_string());
            assert!(!must, "{reason} (PGKEEP_MUST_HAVE={must_have})");
            skipped(&reason);
        }
        found
    }

    /// All versions that are here, oldest first.
    pub fn all() -> Vec<Server> {
        MAJORS.into_iter().filter_map(Server::major).collect()
    }

    /// One of the version's own programs: initdb, pg_ctl, postgres; with Debian's 15 every other too.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A client program of this very version (pg_verifybackup, pg_dump, pg_waldump, pg_amcheck, pg_checksums, ...), where
    /// there is one: Debian's for 15, unpacked ones for 17 and 18, none for the others.
    pub fn client(&self, name: &str) -> Option<PathBuf> {
        [
            &self.bin,
            &debian_bin(self.major),
            &directory().join(format!("clients-{}/bin", self.major)),
        ]
        .into_iter()
        .map(|bin| bin.join(name))
        .find(|path| path.is_file())
    }

    /// [`Server::client`], or says that the calling test is skipped.
    pub fn need_client(&self, name: &str) -> Option<PathBuf> {
        let found = self.client(name);
        if found.is_none() {
            skipped(&format!(
                "{name} of PostgreSQL {} is not here; tests/stand/install.sh clients fetches those of 17 and 18, and \
                 says what it lacks",
                self.major
            ));
        }
        found
    }
}

/// Where `tests/stand/install.sh` unpacks what is no package of the system.
pub fn directory() -> PathBuf {
    env::var_os("PGKEEP_STAND").map_or_else(|| PathBuf::from("/var/cache/pgkeep-stand"), PathBuf::from)
}

fn debian_bin(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

/// A client program of Debian's PostgreSQL 15: psql, pgbench, pg_verifybackup, pg_waldump, pg_controldata, ...
pub fn debian_program(name: &str) -> PathBuf {
    let path = debian_bin(15).join(name);
    assert!(
        path.is_file(),
        "{} is not there: run tests/stand/install.sh servers",
        path.display()
    );
    path
}

/// Finds a program of the system on the tools' PATH, or says that the calling test is skipped.
pub fn need_program(name: &str) -> Option<PathBuf> {
    let found = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        skipped(&format!("the program {name} is not installed"));
    }
    found
}

/// Says that the calling test did not run, and why; the test then returns. At most once a test: the Makefile counts.
/// (Past libtest, which swallows what a passing test prints.)
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    tell(&format!("SKIPPED: {}: {reason}", thread.name().unwrap_or("?")));
}

/// Writes a line to stderr past libtest.
pub(crate) fn tell(line: &str) {
    // Without stderr there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Whether a story runs with this version in this run. With PGKEEP_SHARE set, 15 and 18 always do, and of the others those that the
/// seed (PGKEEP_SEED) chooses, about every second one: over some days all do.
pub fn is_of_share(story: &str, major: u32) -> bool {
    if std::env::var_os("PGKEEP_SHARE").is_none() || matches!(major, 15 | 18) {
        return true;
    }
    let seed = std::env::var("PGKEEP_SEED").unwrap_or_default();
    let chosen = common::digest::xxh3_128(format!("{seed} {story} {major}").as_bytes()).to_string();
    let even = chosen.ends_with(['0', '2', '4', '6', '8', 'a', 'c', 'e']);
    if !even {
        tell(&format!("{story} with PostgreSQL {major} is not of this run's share"));
    }
    even
}

/// Turns a story `fn name(server: &Server)` into one test per version: `name::pg13` to `name::pg18`.
///
/// `each_major!(name)` takes all versions, `each_major!(name: 13 18)` some.
#[macro_export]
macro_rules! each_major {
    ($story:ident) => { $crate::each_major!($story: 13 14 15 16 17 18); };
    ($story:ident: $($major:tt)+) => {
        mod $story {
            $($crate::each_major!(@one $story $major);)+
        }
    };
    (@one $story:ident 13) => { $crate::each_major!(@test $story pg13 13); };
    (@one $story:ident 14) => { $crate::each_major!(@test $story pg14 14); };
    (@one $story:ident 15) => { $crate::each_major!(@test $story pg15 15); };
    (@one $story:ident 16) => { $crate::each_major!(@test $story pg16 16); };
    (@one $story:ident 17) => { $crate::each_major!(@test $story pg17 17); };
    (@one $story:ident 18) => { $crate::each_major!(@test $story pg18 18); };
    (@test $story:ident $test:ident $major:literal) => {
        #[test]
        fn $test() {
            if !$crate::stand::is_of_share(stringify!($story), $major) {
                return;
            }
            if let Some(server) = $crate::Server::need($major) {
                super::$story(&server);
            }
        }
    };
}
