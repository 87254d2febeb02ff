//! pgkeep set up for a cluster: its configuration, repositories on the local disk, and the commands PostgreSQL runs.
//!
//! Knows the configuration file's words and where things lie in a scratch directory. Promises files that belong to the
//! account the tools run under. Leaves creating the repositories to `pgkeep-init`, which a test runs itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::Cluster;
use crate::s3::S3;
use crate::scratch::Scratch;
use crate::tool::{self, Tool};

/// What is said of one repository.
#[derive(Debug, Clone)]
pub struct RepoOptions {
    name: String,
    encrypted: bool,
    keyless: bool,
    elsewhere: Option<(String, PathBuf)>,
    lines: Vec<String>,
}

impl RepoOptions {
    /// A repository in clear.
    pub fn new(name: &str) -> RepoOptions {
        RepoOptions {
            name: name.into(),
            encrypted: false,
            keyless: false,
            elsewhere: None,
            lines: Vec::new(),
        }
    }

    /// Encrypts it; the identity is configured, so it can be read here too.
    pub fn encrypted(mut self) -> RepoOptions {
        self.encrypted = true;
        self
    }

    /// Encrypts it without an identity in the configuration: a host that writes and cannot read.
    pub fn keyless(mut self) -> RepoOptions {
        self.keyless = true;
        self.encrypted()
    }

    /// Puts it at a URL; `dir` is where its objects are files, if they are.
    pub fn at(mut self, url: &str, dir: &Path) -> RepoOptions {
        self.elsewhere = Some((url.into(), dir.into()));
        self
    }

    /// Puts it into a bucket of an S3 server, below its own name.
    pub fn in_s3(self, s3: &S3, bucket: &str, credentials: &Path) -> RepoOptions {
        let (url, dir) = (
            format!("s3://{bucket}/{}", self.name),
            s3.root.join(bucket).join(&self.name),
        );
        self.at(&url, &dir)
            .line(&format!("endpoint = {}", quoted(&s3.endpoint())))
            .line(&format!(
                "credentials_file = {}",
                quoted(&credentials.to_string_lossy())
            ))
    }

    /// Adds a line to its table, such as `required = false`.
    pub fn line(mut self, line: &str) -> RepoOptions {
        self.lines.push(line.into());
        self
    }
}

/// A repository on the local disk.
#[derive(Debug, Clone)]
pub struct Repo {
    /// Its name in the configuration.
    pub name: String,
    /// Where its URL points.
    pub dir: PathBuf,
    /// The age identity that opens it, if it is encrypted.
    pub identity: Option<PathBuf>,
    /// The age recipient it is encrypted to.
    pub recipient: Option<String>,
}

/// A configuration with all that belongs to it.
#[derive(Debug)]
pub struct Site {
    /// The directory that holds everything below.
    pub dir: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// The repositories, in the order they were added.
    pub repos: Vec<Repo>,
    path: String,
    top: BTreeMap<String, String>,
    cluster_table: Vec<String>,
    repo_tables: Vec<String>,
}

/// The name the cluster has in every configuration written here.
pub const CLUSTER: &str = "main";

impl Site {
    /// A configuration for a cluster, without a repository yet.
    pub fn new(scratch: &Scratch, cluster: &Cluster) -> Site {
        Site::named(scratch, cluster, "site")
    }

    /// A further configuration in the same scratch directory, as another host has it.
    pub fn named(scratch: &Scratch, cluster: &Cluster, name: &str) -> Site {
        let dir = scratch.create_dir(name);
        for part in ["state", "spool", "metrics"] {
            scratch.create_dir(&format!("{name}/{part}"));
        }
        let mut top = BTreeMap::new();
        for part in ["state", "spool", "metrics"] {
            top.insert(format!("{part}_directory"), quoted(&dir.join(part).to_string_lossy()));
        }
        // A repository that does not answer should not hold up a test for minutes.
        top.insert("patience".into(), quoted("2s"));
        top.insert("standby_patience".into(), quoted("1s"));
        let cluster_table = vec![
            format!("data_directory = {}", quoted(&cluster.data().to_string_lossy())),
            format!("host = {}", quoted(&cluster.socket_dir().to_string_lossy())),
            format!("port = {}", cluster.port()),
            format!("user = {}", quoted("postgres")),
        ];
        let config = dir.join("pgkeep.toml");
        let site = Site {
            dir,
            config,
            repos: Vec::new(),
            path: scratch.path_variable(),
            top,
            cluster_table,
            repo_tables: Vec::new(),
        };
        site.write();
        site
    }

    /// A configuration with the repository `local`, in clear.
    pub fn with_repository(scratch: &Scratch, cluster: &Cluster) -> Site {
        Site::new(scratch, cluster).repository(RepoOptions::new("local"))
    }

    /// Adds a repository; its directory is there, empty.
    pub fn repository(self, options: RepoOptions) -> Site {
        let dir = match &options.elsewhere {
            Some((_, dir)) => dir.clone(),
            None => {
                let dir = self.dir.join(format!("repository-{}", options.name));
                crate::account::create_dir(&dir, 0o700);
                dir
            }
        };
        let mut repo = Repo {
            name: options.name.clone(),
            dir,
            identity: None,
            recipient: None,
        };
        if options.encrypted {
            let identity = self.dir.join(format!("{}.identity", options.name));
            repo.recipient = Some(generate_identity(&identity));
            repo.identity = Some(identity);
        }
        self.add(repo, &options)
    }

    /// Adds a repository that another site has already: the second host of a cluster.
    pub fn shared(self, repo: &Repo, options: RepoOptions) -> Site {
        self.add(repo.clone(), &options)
    }

    fn add(mut self, repo: Repo, options: &RepoOptions) -> Site {
        let url = match &options.elsewhere {
            Some((url, _)) => url.clone(),
            None => format!("file://{}", repo.dir.display()),
        };
        let mut table = format!("[repository.{}]\nurl = {}\n", repo.name, quoted(&url));
        if let (Some(recipient), Some(identity)) = (&repo.recipient, &repo.identity) {
            let identity = format!(", identity_file = {}", quoted(&identity.to_string_lossy()));
            let identity = if options.keyless { "" } else { &identity };
            writeln!(
                table,
                "encryption = {{ recipients = [{}]{identity} }}",
                quoted(recipient)
            )
            .unwrap();
        }
        for line in &options.lines {
            writeln!(table, "{line}").unwrap();
        }
        self.repo_tables.push(table);
        self.repos.push(repo);
        self.write();
        self
    }

    /// Sets an option outside all tables; the value is TOML: `site.set("patience", "\"10s\"")`.
    pub fn set(mut self, name: &str, value: &str) -> Site {
        self.top.insert(name.into(), value.into());
        self.write();
        self
    }

    /// Adds a line to the cluster's table.
    pub fn cluster_line(mut self, line: &str) -> Site {
        self.cluster_table.push(line.into());
        self.write();
        self
    }

    /// The first repository.
    pub fn repo(&self) -> &Repo {
        self.repos.first().expect("the site has a repository")
    }

    fn write(&self) {
        let mut text = String::new();
        for (name, value) in &self.top {
            writeln!(text, "{name} = {value}").unwrap();
        }
        writeln!(text, "\n[cluster.{CLUSTER}]\n{}\n", self.cluster_table.join("\n")).unwrap();
        text.push_str(&self.repo_tables.join("\n"));
        crate::account::write(&self.config, text, 0o600);
    }

    /// A tool with this configuration.
    pub fn tool(&self, name: &str) -> Tool {
        Tool::new(name)
            .env("PATH", &self.path)
            .arg("--config")
            .arg(&self.config)
    }

    /// Makes or takes another repository in place of the first, which this site has used and which is gone.
    pub fn init_anew(&self) {
        let pin = self
            .state()
            .join(CLUSTER)
            .join(format!("repository/{}.json", self.repo().name));
        let pin: serde_json::Value = serde_json::from_slice(&fs::read(&pin).unwrap()).unwrap();
        let uuid = pin["uuid"].as_str().unwrap().to_owned();
        self.tool("init").args(["--replace", &uuid]).run().expect_code(0);
    }

    /// Where the tools leave their state.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The status file a tool left for the cluster.
    pub fn status(&self, tool: &str) -> serde_json::Value {
        let path = self.state().join(CLUSTER).join(format!("status/{tool}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", path.display()))
    }

    /// What postgresql.conf says to archive through this site.
    pub fn archive_command(&self) -> String {
        self.command("archive-push", "\"%p\"")
    }

    /// What recovery needs to fetch WAL through this site.
    pub fn restore_command(&self) -> String {
        self.command("archive-get", "\"%f\" \"%p\"")
    }

    fn command(&self, tool: &str, arguments: &str) -> String {
        let program = tool::programs().join(format!("pgkeep-{tool}"));
        format!(
            "\"{}\" --config \"{}\" {arguments}",
            program.display(),
            self.config.display()
        )
    }

    /// Makes the cluster archive through this site. A running one is restarted if archive_mode was off.
    pub fn archive(&self, cluster: &Cluster) {
        cluster.conf(&[
            "archive_mode = on".into(),
            format!("archive_command = '{}'", self.archive_command()),
        ]);
        if cluster.is_running() {
            if cluster.query_one("SHOW archive_mode") == "off" {
                cluster.restart();
            } else {
                cluster.reload();
            }
        }
    }

    /// Writes what makes a restored data directory replay from this site: the setting and `recovery.signal`, or
    /// `standby.signal`. For tests of archive-get alone; the restore tool does this itself.
    pub fn recover(&self, cluster: &Cluster, standby: bool) {
        cluster.conf(&[format!("restore_command = '{}'", self.restore_command())]);
        let signal = if standby { "standby.signal" } else { "recovery.signal" };
        crate::account::write(&cluster.data().join(signal), "", 0o600);
    }
}

impl Repo {
    /// A path below the cluster's part of the repository.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(CLUSTER).join(below)
    }

    /// Every file in the repository, in order.
    pub fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.dir, &mut found);
        found.sort();
        found
    }

    /// The files whose path below the repository holds `part`.
    pub fn matching(&self, part: &str) -> Vec<PathBuf> {
        let below = |path: &PathBuf| {
            path.strip_prefix(&self.dir)
                .is_ok_and(|path| path.to_string_lossy().contains(part))
        };
        self.objects().into_iter().filter(below).collect()
    }

    /// The object of a WAL file (not its map); fails the test if there is none or more than one.
    pub fn wal(&self, name: &str) -> PathBuf {
        let mut found = self.matching(&format!("/{name}.zst"));
        assert_eq!(found.len(), 1, "objects of {name} in {}: {found:?}", self.dir.display());
        found.remove(0)
    }

    /// The directory of the WAL that is stored, of whichever system: there is one.
    pub fn wal_folder(&self) -> PathBuf {
        let segments = self.matching("/wal/").into_iter();
        let mut folders: Vec<PathBuf> = segments
            .filter_map(|path| path.parent().map(Path::to_path_buf))
            .collect();
        folders.dedup();
        assert_eq!(folders.len(), 1, "directories with WAL: {folders:?}");
        folders.remove(0)
    }

    /// Whether a WAL file is stored.
    pub fn has_wal(&self, name: &str) -> bool {
        !self.matching(&format!("/{name}.zst")).is_empty()
    }

    /// The names of the backups that were begun, oldest first; committed or not.
    pub fn backups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("backup")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries.flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found)
        } else {
            found.push(entry.path())
        }
    }
}

/// Makes a key pair with the standard program, and returns the recipient.
fn generate_identity(path: &Path) -> String {
    let output = Command::new("age-keygen").output();
    let output = output.unwrap_or_else(|error| panic!("age-keygen: {error}: run tests/stand/install.sh servers"));
    let secret = String::from_utf8(output.stdout).unwrap();
    let public = secret
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .unwrap()
        .to_string();
    crate::account::write(path, &secret, 0o600);
    public
}

fn quoted(text: &str) -> String {
    assert!(!text.contains(['"', '\\', '\n']), "not for a TOML string: {text:?}");
    format!("\"{text}\"")
}
