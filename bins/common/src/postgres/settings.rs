//! How to reach a server: libpq's words, connection strings, environment and password file.
//!
//! Knows the rules of libpq (`src/interfaces/libpq/fe-connect.c`) as far as they are useful here; service
//! files and URIs are not read. The environment is passed in as a function. TLS is not spoken: a mode
//! that insists on it is an error, never silently less.

use crate::error::{Error, Kind, Result};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Where Debian's servers keep their sockets.
pub const DEFAULT_HOST: &str = "/var/run/postgresql";

/// The port where nothing else is said.
pub const DEFAULT_PORT: u16 = 5432;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How much TLS is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// None.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server offers it; libpq's default.
    Prefer,
    /// Always.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate for this very host.
    VerifyFull,
}

impl SslMode {
    /// As libpq spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => {
                return Err(Error::new(Kind::Config, format!("\"{text}\" is not an sslmode"))
                    .hint("disable, allow, prefer, require, verify-ca or verify-full"));
            }
        })
    }
}

impl ConnectionSettings {
    /// The same server, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self {
            dbname: Some(database.to_owned()),
            ..self.clone()
        }
    }

    /// The server and a database as libpq's environment, for a program of PostgreSQL's: so nothing of it is in the list of processes.
    pub fn reach(&self, command: &mut std::process::Command, database: &str) {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let values = [
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.map(|port| port.to_string())),
            ("PGUSER", self.user.clone()),
            ("PGPASSWORD", self.password.clone()),
            ("PGPASSFILE", path(&self.passfile)),
            ("PGSSLMODE", self.sslmode.map(|mode| mode.name().to_owned())),
            ("PGSSLROOTCERT", path(&self.sslrootcert)),
            ("PGOPTIONS", self.options.clone()),
            ("PGDATABASE", Some(database.to_owned())),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
    }
}

/// How to reach a server; what is not set comes from libpq's environment, then from its defaults.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConnectionSettings {
    /// A socket directory, a host name, an address, or several of them with commas between.
    pub host: Option<String>,
    /// The port, also a part of the socket's name.
    pub port: Option<u16>,
    /// The role; the operating system user's name if not set.
    pub user: Option<String>,
    /// The database; the role's name if not set.
    pub dbname: Option<String>,
    /// The password; better kept in the password file.
    pub password: Option<String>,
    /// The password file, `~/.pgpass` if not set.
    pub passfile: Option<PathBuf>,
    /// How much TLS is asked for.
    pub sslmode: Option<SslMode>,
    /// The authorities that a server's certificate may come from.
    pub sslrootcert: Option<PathBuf>,
    /// How long one host may take to answer.
    pub connect_timeout: Option<Duration>,
    /// Further options for the server, as in PGOPTIONS.
    pub options: Option<String>,
    /// Take only a host that is not in recovery.
    pub primary_only: bool,
    /// Where `.pgpass` lies.
    pub home: Option<PathBuf>,
}

impl fmt::Debug for ConnectionSettings {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("dbname", &self.dbname)
            .field("sslmode", &self.sslmode)
            .finish_non_exhaustive()
    }
}

impl ConnectionSettings {
    /// Parses a connection string like `host=10.0.0.1 user=postgres`.
    ///
    /// # Errors
    /// `Config` if it is not understood.
    pub fn parse(conninfo: &str) -> Result<Self> {
        let mut settings = ConnectionSettings::default();
        for (name, value) in parse_pairs(conninfo)? {
            settings.set(&name, value)?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "host" => self.host = Some(value),
            "hostaddr" if self.host.is_none() => self.host = Some(value),
            "port" => self.port = Some(number(name, &value)?),
            "user" => self.user = Some(value),
            "dbname" => self.dbname = Some(value),
            "password" => self.password = Some(value),
            "passfile" => self.passfile = Some(value.into()),
            "sslmode" => self.sslmode = Some(value.parse()?),
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            "connect_timeout" => self.connect_timeout = timeout(number(name, &value)?),
            "options" => self.options = Some(value),
            "target_session_attrs" => self.primary_only = matches!(value.as_str(), "read-write" | "primary"),
            // Nothing that changes whom we talk to, or how safely.
            "hostaddr" | "application_name" | "fallback_application_name" | "keepalives" => {}
            _ => {
                return Err(Error::new(
                    Kind::Config,
                    format!("connection string has \"{name}\", which is not supported"),
                ));
            }
        }
        Ok(())
    }

    /// Fills what is not set from libpq's environment; `get` looks a variable up.
    ///
    /// # Errors
    /// `Config` if a variable's value is impossible.
    pub fn with_environment(mut self, get: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        self.host = self.host.or_else(|| get("PGHOST")).or_else(|| get("PGHOSTADDR"));
        self.user = self.user.or_else(|| get("PGUSER"));
        self.dbname = self.dbname.or_else(|| get("PGDATABASE"));
        self.password = self.password.or_else(|| get("PGPASSWORD"));
        self.passfile = self.passfile.or_else(|| get("PGPASSFILE").map(PathBuf::from));
        self.sslrootcert = self.sslrootcert.or_else(|| get("PGSSLROOTCERT").map(PathBuf::from));
        self.options = self.options.or_else(|| get("PGOPTIONS"));
        self.home = self.home.or_else(|| get("HOME").map(PathBuf::from));
        if let (None, Some(port)) = (self.port, get("PGPORT")) {
            self.port = Some(number("PGPORT", &port)?);
        }
        if let (None, Some(mode)) = (self.sslmode, get("PGSSLMODE")) {
            self.sslmode = Some(mode.parse()?);
        }
        if let (None, Some(seconds)) = (self.connect_timeout, get("PGCONNECT_TIMEOUT")) {
            self.connect_timeout = timeout(number("PGCONNECT_TIMEOUT", &seconds)?);
        }
        Ok(self)
    }

    /// One target for each host, with defaults and passwords filled in.
    ///
    /// # Errors
    /// `Config` if the password file cannot be used, or TLS is insisted on.
    pub(super) fn targets(&self) -> Result<Vec<ConnectionTarget>> {
        let user = match &self.user {
            Some(user) => user.clone(),
            None => own_name()?,
        };
        let dbname = self.dbname.clone().unwrap_or_else(|| user.clone());
        let port = self.port.unwrap_or(DEFAULT_PORT);
        let mut targets = Vec::new();
        for host in self.host.as_deref().unwrap_or(DEFAULT_HOST).split(',') {
            let host = if host.is_empty() { DEFAULT_HOST } else { host };
            let password = match &self.password {
                Some(password) => Some(password.clone()),
                None => self
                    .read_passfile()?
                    .and_then(|text| find_password(&text, host, port, &dbname, &user)),
            };
            targets.push(ConnectionTarget {
                host: host.to_string(),
                port,
                user: user.clone(),
                dbname: dbname.clone(),
                password,
                connect_timeout: self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
                options: self.options.clone(),
                // libpq ignores sslmode on a socket too: nothing leaves the machine.
                sslmode: match host.starts_with('/') {
                    true => SslMode::Disable,
                    false => self.sslmode.unwrap_or(SslMode::Prefer),
                },
                sslrootcert: self.sslrootcert.clone(),
            });
        }
        Ok(targets)
    }

    fn read_passfile(&self) -> Result<Option<String>> {
        let (path, explicit) = match (&self.passfile, &self.home) {
            (Some(path), _) => (path.clone(), true),
            (None, Some(home)) => (home.join(".pgpass"), false),
            (None, None) => return Ok(None),
        };
        match read_private(&path) {
            Err(_) if !explicit => Ok(None),
            Err(error) => Err(error.with_kind(Kind::Config)),
            Ok(text) => Ok(Some(text)),
        }
    }
}

/// One host to try.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ConnectionTarget {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) password: Option<String>,
    pub(super) connect_timeout: Duration,
    pub(super) options: Option<String>,
    pub(super) sslmode: SslMode,
    pub(super) sslrootcert: Option<PathBuf>,
}

impl ConnectionTarget {
    /// For messages.
    pub(super) fn describe(&self) -> String {
        format!("{}:{} as \"{}\"", self.host, self.port, self.user)
    }
}

/// Reads a password file that nobody else may read, as libpq demands.
fn read_private(path: &Path) -> Result<String> {
    let failed = |error| Error::io(error, format!("read password file {}", path.display()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        let message = format!("password file {} is open to others", path.display());
        log::warn!("{message}; it is not used");
        return Err(Error::new(Kind::Config, message).hint("chmod 0600"));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Finds a password in the text of a password file (`passwordFromFile`).
fn find_password(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    let port = port.to_string();
    // A socket directory that is a default one is called localhost there.
    let host = if host == DEFAULT_HOST || host == "/run/postgresql" || host == "/tmp" {
        "localhost"
    } else {
        host
    };
    let wanted = [host, &port, dbname, user];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = split_fields(line).into_iter();
        let fits = wanted
            .iter()
            .all(|wanted| fields.next().is_some_and(|(raw, field)| raw == "*" || field == *wanted));
        if let (true, Some((_, password))) = (fits, fields.next()) {
            return Some(password);
        }
    }
    None
}

/// Splits at colons that have no backslash in front; gives each field as written and without backslashes.
///
/// The password is the rest of the line up to the next colon, as libpq takes it.
fn split_fields(line: &str) -> Vec<(String, String)> {
    let mut fields = vec![(String::new(), String::new())];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == ':' {
            fields.push((String::new(), String::new()));
            continue;
        }
        let meant = if c == '\\' { chars.next().unwrap_or('\\') } else { c };
        if let Some((raw, field)) = fields.last_mut() {
            raw.push(c);
            field.push(meant);
        }
    }
    fields
}

/// Parses `name = value 'with spaces'` pairs (`conninfo_parse`).
fn parse_pairs(text: &str) -> Result<Vec<(String, String)>> {
    let wrong = |why: &str| Error::new(Kind::Config, format!("connection string is not understood: {why}"));
    if text.contains("://") && !text.contains(' ') {
        return Err(wrong("it is a URI").hint("write it as \"host=... port=... user=...\""));
    }
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| wrong("a name has no \"=\""))?;
        let (value, after) = parse_value(after.trim_start()).ok_or_else(|| wrong("a quote is not closed"))?;
        pairs.push((name.trim_end().to_string(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// Takes one value off the front; a backslash makes the next character ordinary.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Some((value, text.get(at + 1..)?)),
            c if !quoted && c.is_ascii_whitespace() => return Some((value, text.get(at..)?)),
            c => value.push(c),
        }
    }
    if quoted { None } else { Some((value, "")) }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| {
        Error::new(
            Kind::Config,
            format!("{name} \"{value}\" is not a number that can be used"),
        )
    })
}

/// libpq's rule: 0 and less mean "no limit", and 1 is too short.
fn timeout(seconds: i64) -> Option<Duration> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    Some(seconds.map_or(Duration::from_secs(24 * 3600), |seconds| {
        Duration::from_secs(seconds.max(2))
    }))
}

fn own_name() -> Result<String> {
    let id = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(id) {
        Ok(Some(user)) => Ok(user.name),
        _ => Err(Error::new(
            Kind::Config,
            format!("the operating system user {id} has no name to connect as"),
        )
        .hint("set user in the cluster's configuration")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_connection_string_is_read_as_libpq_reads_it() {
        let settings =
            ConnectionSettings::parse(" host = a,b port=5433 user='o\\'neil x' password=a\\ b dbname=''").unwrap();
        assert_eq!((settings.host.as_deref(), settings.port), (Some("a,b"), Some(5433)));
        assert_eq!(
            (settings.user.as_deref(), settings.password.as_deref()),
            (Some("o'neil x"), Some("a b"))
        );
        assert_eq!(settings.dbname.as_deref(), Some(""));
        assert!(!format!("{settings:?}").contains("a b"));
        for wrong in [
            "host",
            "host='a",
            "colour=red",
            "port=x",
            "sslmode=maybe",
            "postgres://a/b",
        ] {
            assert_eq!(
                ConnectionSettings::parse(wrong).unwrap_err().kind(),
                Kind::Config,
                "{wrong}"
            );
        }
        assert!(
            ConnectionSettings::parse("host=a target_session_attrs=read-write")
                .unwrap()
                .primary_only
        );
    }

    #[test]
    fn the_environment_fills_only_what_is_not_set() {
        let get = |name: &str| match name {
            "PGHOST" => Some("env".to_string()),
            "PGPORT" => Some("6000".to_string()),
            "PGUSER" => Some(String::new()),
            "PGSSLMODE" => Some("require".to_string()),
            _ => None,
        };
        let given = ConnectionSettings {
            host: Some("given".into()),
            ..Default::default()
        };
        let settings = given.with_environment(&get).unwrap();
        assert_eq!(
            (settings.host.as_deref(), settings.port, settings.user),
            (Some("given"), Some(6000), None)
        );
        assert_eq!(settings.sslmode, Some(SslMode::Require));
    }

    #[test]
    fn tls_is_never_silently_less_than_asked_for_and_a_socket_needs_none() {
        let with = |host: &str, sslmode| ConnectionSettings {
            host: Some(host.into()),
            sslmode,
            ..Default::default()
        };
        for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
            assert_eq!(with("db.example", Some(mode)).targets().unwrap()[0].sslmode, mode);
            assert_eq!(
                with("/run/postgresql", Some(mode)).targets().unwrap()[0].sslmode,
                SslMode::Disable
            );
        }
        assert_eq!(with("db.example", None).targets().unwrap()[0].sslmode, SslMode::Prefer);
    }

    #[test]
    fn the_password_is_found_by_the_rules_of_libpq() {
        let text = "# comment\nother:5432:*:u:no\nlocalhost:5432:db:u:socket\n*:*:*:back\\\\slash:x\n\
                    h\\:1:5432:*:u:co\\:lon:rest\n*:*:*:u:any";
        let find = |host, user| find_password(text, host, 5432, "db", user);
        assert_eq!(find("/var/run/postgresql", "u").as_deref(), Some("socket"));
        assert_eq!(find("h:1", "u").as_deref(), Some("co:lon"));
        assert_eq!(find("elsewhere", "u").as_deref(), Some("any"));
        assert_eq!(find("elsewhere", "back\\slash").as_deref(), Some("x"));
        assert_eq!(find("elsewhere", "v"), None);
    }

    #[test]
    fn a_password_file_that_others_can_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".pgpass");
        std::fs::write(&path, "*:*:*:*:secret").unwrap();
        let password = |passfile: Option<PathBuf>, mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let home = Some(directory.path().to_path_buf());
            let settings = ConnectionSettings {
                user: Some("u".into()),
                passfile,
                home,
                ..Default::default()
            };
            settings.targets().map(|mut targets| targets.remove(0).password)
        };
        assert_eq!(password(None, 0o600).unwrap().as_deref(), Some("secret"));
        assert_eq!(password(None, 0o640).unwrap(), None);
        assert_eq!(password(Some(path.clone()), 0o600).unwrap().as_deref(), Some("secret"));
        assert_eq!(password(Some(path.clone()), 0o604).unwrap_err().kind(), Kind::Config);
        assert_eq!(
            password(Some("/nowhere/x".into()), 0o600).unwrap_err().kind(),
            Kind::Config
        );
    }

    #[test]
    fn every_host_is_a_target() {
        let settings = ConnectionSettings {
            host: Some("a,,/tmp".into()),
            user: Some("u".into()),
            ..Default::default()
        };
        let hosts: Vec<String> = settings
            .targets()
            .unwrap()
            .into_iter()
            .map(|target| target.host)
            .collect();
        assert_eq!(hosts, ["a", DEFAULT_HOST, "/tmp"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", pairs in "(host|port|user|x)?[ =']*[a-z\\\\' ]*") {
            let _ = (ConnectionSettings::parse(&text), ConnectionSettings::parse(&pairs));
            let _ = find_password(&text, "h", 1, "d", "u");
        }
    }
}
