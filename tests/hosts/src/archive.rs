//! The packages in a signed repository for apt, served on the hosts' network.

use std::path::PathBuf;
use std::time::Duration;

use system_tests::tool::{Running, programs};
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Tool, project};

use crate::lab::{CONTROL, Lab};

/// A repository for apt.
#[derive(Debug)]
pub struct Archive {
    /// Where it lies.
    pub directory: PathBuf,
    gnupg: PathBuf,
    pages: PathBuf,
    scratch: PathBuf,
    _server: Running,
}

impl Archive {
    /// Makes the first packages and a key, and serves them at `http://apt.test`.
    pub fn new(lab: &Lab) -> Archive {
        let scratch = lab.scratch.dir().to_path_buf();
        let (gnupg, pages) = (scratch.join("gnupg"), scratch.join("pages"));
        std::fs::create_dir_all(&gnupg).unwrap();
        Tool::program("chmod")
            .arg("700")
            .arg(&gnupg)
            .as_root()
            .run()
            .expect_code(0);
        let directory = scratch.join("apt");
        std::fs::create_dir_all(&directory).unwrap();
        Tool::program("gpg")
            .args([
                "--batch",
                "--passphrase",
                "",
                "--quick-gen-key",
                "packages@pgkeep.example",
                "ed25519",
                "sign",
                "never",
            ])
            .env("GNUPGHOME", &gnupg)
            .as_root()
            .run()
            .expect_code(0);
        Tool::program(programs().join("pages"))
            .arg(&pages)
            .as_root()
            .run()
            .expect_code(0);
        let server = lab
            .tool("python3")
            .args(["-m", "http.server", "80", "--bind", CONTROL, "--directory"])
            .arg(&directory)
            .spawn();
        wait_until("the repository for apt", PATIENCE, || {
            lab.tool("curl").args(["-sf", "http://10.77.0.1/"]).run().code == Some(0)
        });
        let archive = Archive {
            directory,
            gnupg,
            pages,
            scratch,
            _server: server,
        };
        archive.publish("0.1.0");
        archive
    }

    /// Makes the packages of this version and puts them in.
    pub fn publish(&self, version: &str) {
        let out = self.scratch.join(format!("debian-{version}"));
        let built = Tool::program(project("packaging/build-packages.sh"))
            .arg(programs())
            .arg(&self.pages)
            .arg(version)
            .env("PGKEEP_DEBIAN", &out)
            .env("PGKEEP_DEB_OPTIONS", "-Zgzip -z1")
            .env("SOURCE_DATE_EPOCH", "1790000000")
            .env("HOME", "/root")
            .timeout(Duration::from_secs(600))
            .as_root()
            .run()
            .expect_code(0);
        Tool::program(project("packaging/build-repository.sh"))
            .arg(&self.directory)
            .arg("packages@pgkeep.example")
            .args(built.stdout.lines())
            .env("GNUPGHOME", &self.gnupg)
            .env("PGKEEP_APT_URL", "http://apt.test")
            .as_root()
            .run()
            .expect_code(0);
    }
}
