//! The system's ssh: how it is called, and what its words mean for a person.
//!
//! Pure. The system's program is used so that ssh_config, agents, known_hosts, jump hosts and the distribution's security
//! fixes count. Host keys are checked as its configuration says; nothing here loosens that, and nothing secret stands in
//! the arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Kind};

/// Which account on which host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The user; `None`: as ssh's configuration says.
    pub user: Option<String>,
    /// Host name or address (an IPv6 address in brackets), or a name in ssh's configuration.
    pub host: String,
    /// The port; `None`: as ssh's configuration says.
    pub port: Option<u16>,
    /// The private key; `None`: as ssh's configuration and agent say.
    pub key: Option<PathBuf>,
}

impl Target {
    /// The host as ssh takes it: an IPv6 address without its brackets.
    fn bare_host(&self) -> &str {
        let inner = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.unwrap_or(&self.host)
    }

    /// The host as known_hosts has it.
    fn known_name(&self) -> String {
        match self.port {
            Some(port) if port != 22 => format!("[{}]:{port}", self.bare_host()),
            _ => self.bare_host().to_owned(),
        }
    }

    fn port_words(&self) -> String {
        self.port.map(|port| format!("-p {port} ")).unwrap_or_default()
    }
}

/// The command that opens SFTP on its stdin and stdout. A peer that says nothing for about `silence` is given up.
pub(super) fn command(target: &Target, connect: Duration, silence: Duration) -> Vec<OsString> {
    let interval = silence.as_secs().div_ceil(3).max(1);
    let mut words: Vec<OsString> = vec!["ssh".into(), "-x".into(), "-a".into(), "-T".into()];
    for option in [
        // Never asks: there is nobody to answer.
        "BatchMode=yes".to_owned(),
        format!("ConnectTimeout={}", connect.as_secs().max(1)),
        "ConnectionAttempts=1".to_owned(),
        format!("ServerAliveInterval={interval}"),
        "ServerAliveCountMax=3".to_owned(),
        "TCPKeepAlive=yes".to_owned(),
        // What a configuration may want for shells, and would be in the way here.
        "ClearAllForwardings=yes".to_owned(),
        "PermitLocalCommand=no".to_owned(),
        "RemoteCommand=none".to_owned(),
        "EscapeChar=none".to_owned(),
        // Says whether the login succeeded, which tells the causes of a closed connection apart.
        "LogLevel=VERBOSE".to_owned(),
    ] {
        words.push("-o".into());
        words.push(option.into());
    }
    if let Some(key) = &target.key {
        words.extend(["-o".into(), "IdentitiesOnly=yes".into(), "-i".into(), key.into()]);
    }
    if let Some(port) = target.port {
        words.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = &target.user {
        words.extend(["-l".into(), user.into()]);
    }
    words.extend(["-s".into(), "--".into(), target.bare_host().into(), "sftp".into()]);
    words
}

/// Words of ssh, the kind of error they stand for, and a sentence; the first that fits counts.
const KNOWN: [(&str, Kind, &str); 22] = [
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        Kind::Refused,
        "the host key has changed",
    ),
    (
        "REVOKED HOST KEY DETECTED",
        Kind::Refused,
        "the host key has been revoked",
    ),
    (
        "Host key verification failed",
        Kind::Refused,
        "the host key is not known",
    ),
    ("are too open", Kind::Failed, "others can read the private key"),
    ("Permission denied (", Kind::Failed, "the server refused the login"),
    (
        "Too many authentication failures",
        Kind::Failed,
        "the server refused the login",
    ),
    (
        "Bad owner or permissions on",
        Kind::Config,
        "ssh refuses its configuration",
    ),
    (
        "Bad configuration option",
        Kind::Config,
        "ssh refuses its configuration",
    ),
    ("subsystem request failed", Kind::Failed, "the server offers no SFTP"),
    (
        "Unable to negotiate",
        Kind::Failed,
        "client and server have no algorithm in common",
    ),
    (
        "Temporary failure in name resolution",
        Kind::Transient,
        "the host's name cannot be resolved now",
    ),
    (
        "Could not resolve hostname",
        Kind::Failed,
        "the host's name is not known",
    ),
    ("Connection refused", Kind::Transient, "the host refuses the connection"),
    ("Connection timed out", Kind::Transient, "the host does not answer"),
    ("Operation timed out", Kind::Transient, "the host does not answer"),
    ("not responding", Kind::Transient, "the host does not answer any more"),
    ("No route to host", Kind::Transient, "there is no way to the host"),
    ("Network is unreachable", Kind::Transient, "there is no way to the host"),
    ("Connection reset", Kind::Transient, "the connection was reset"),
    ("Broken pipe", Kind::Transient, "the connection broke"),
    (
        "closed by remote host",
        Kind::Transient,
        "the server closed the connection",
    ),
    (
        "Connection closed by",
        Kind::Transient,
        "the server closed the connection",
    ),
];

/// What became of a login, as far as ssh said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before SFTP answered.
    Opening,
    /// Before SFTP answered, and the same had just happened: then it is no accident.
    OpeningAgain,
    /// Requests had been answered.
    Working,
}

/// Whether the login had succeeded.
pub(super) fn let_in(said: &[String]) -> bool {
    said.iter().any(|line| line.starts_with("Authenticated to"))
}

/// Makes an error of what ssh said before it ended.
pub(super) fn judge(target: Option<&Target>, said: &[String], stage: Stage) -> Error {
    let place = target.map_or_else(|| "the SFTP server".to_owned(), |target| target.host.clone());
    let verb = match stage {
        Stage::Working => format!("the connection to {place} is lost"),
        _ => format!("cannot connect to {place}"),
    };
    let found = KNOWN
        .iter()
        .find(|(words, _, _)| said.iter().any(|line| line.contains(words)));
    let let_in = let_in(said);
    let (kind, what) = match found {
        // Whatever ends a connection that was good asks for another one.
        _ if stage == Stage::Working => (Kind::Transient, found.map(|(_, _, what)| *what)),
        Some((_, Kind::Transient, what)) if let_in && stage == Stage::OpeningAgain => (Kind::Failed, Some(*what)),
        Some((_, kind, what)) => (*kind, Some(*what)),
        None if let_in && stage == Stage::OpeningAgain => (Kind::Failed, None),
        None => (Kind::Transient, None),
    };
    let mut message = verb;
    if let Some(what) = what {
        message = format!("{message}: {what}");
    }
    if let Some(line) = cause(said, found.map(|(words, _, _)| *words)) {
        message = format!("{message} (ssh says: {line})");
    }
    let error = Error::new(kind, message);
    match hint(target, found.map(|(words, _, _)| *words), said, let_in, stage) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The line to show: the one that was recognised, else the last that is no chatter.
fn cause<'a>(said: &'a [String], words: Option<&str>) -> Option<&'a str> {
    let chatter = |line: &str| {
        line.starts_with("Authenticated to")
            || line.starts_with("Transferred:")
            || line.starts_with("Bytes per second")
            || line.starts_with("Warning: Permanently added")
    };
    let missing_key = said.iter().find(|line| line.contains("not accessible"));
    let recognised = words.and_then(|words| said.iter().find(|line| line.contains(words)));
    let last = said.iter().rev().find(|line| !chatter(line));
    let missing_key = missing_key.filter(|_| words.is_some_and(|words| words.starts_with("Permission denied")));
    missing_key
        .or(recognised)
        .or(last)
        .map(|line| line.trim_matches(|c: char| c == '@' || c.is_whitespace()))
}

fn hint(target: Option<&Target>, words: Option<&str>, said: &[String], let_in: bool, stage: Stage) -> Option<String> {
    let target = target?;
    let (host, name, port) = (target.bare_host(), target.known_name(), target.port_words());
    let known = known_hosts(said).unwrap_or("~/.ssh/known_hosts");
    let verify = "compare its fingerprint (ssh-keygen -lf FILE) with what `ssh-keygen -lf \
                  /etc/ssh/ssh_host_ed25519_key.pub` says on the server itself";
    Some(match words? {
        "REMOTE HOST IDENTIFICATION HAS CHANGED" => format!(
            "the server was installed anew, or somebody stands in between: get its key with `ssh-keyscan {port}{host} \
             >FILE` and {verify}; if they agree, remove the old one with `ssh-keygen -f {known} -R '{name}'` and append \
             FILE to {known}"
        ),
        "Host key verification failed" => format!(
            "get the key with `ssh-keyscan {port}{host} >FILE`, {verify}, and append FILE to {known} of the user that \
             runs this, or to /etc/ssh/ssh_known_hosts"
        ),
        "are too open" => match &target.key {
            Some(key) => format!("chmod 600 {}", key.display()),
            None => "the key may be readable by its owner only: chmod 600".to_owned(),
        },
        "Permission denied (" | "Too many authentication failures" => {
            let key = match &target.key {
                Some(key) => format!("is {} there and readable for this user, without a passphrase", key.display()),
                None => "is there a key, such as ssh_key = \"/etc/pgkeep/id_ed25519\"".to_owned(),
            };
            let user = target.user.as_deref().unwrap_or("the account");
            format!("{key}, its public half in authorized_keys of {user} on the server, and the account not locked?")
        }
        "Bad owner or permissions on" | "Bad configuration option" => "mend ~/.ssh/config or /etc/ssh/ssh_config".into(),
        "subsystem request failed" => "sshd_config of the server needs: Subsystem sftp internal-sftp".into(),
        "Could not resolve hostname" => "is the host in the url spelt right?".into(),
        "Connection refused" => "is sshd running there, on this port, and no firewall in between?".into(),
        "Connection timed out" | "Operation timed out" | "No route to host" | "Network is unreachable" => {
            "is the host up, and no firewall in between?".into()
        }
        _ if let_in && stage != Stage::Working => {
            "the login succeeded and the session did not: a ChrootDirectory and all directories above it must belong to \
             root and be writable by nobody else; the server's log (journalctl -u ssh) says which it is"
                .into()
        }
        _ => return None,
    })
}

/// The file that holds a key the server no longer has.
fn known_hosts(said: &[String]) -> Option<&str> {
    let line = said.iter().find(|line| line.starts_with("Offending "))?;
    let place = line.split(" key in ").nth(1)?;
    Some(place.rsplit_once(':').map_or(place, |(file, _)| file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn target() -> Target {
        Target {
            user: Some("backup".into()),
            host: "[fe80::1]".into(),
            port: Some(2222),
            key: Some("/etc/pgkeep/id_ed25519".into()),
        }
    }

    fn judged(said: &[&str], stage: Stage) -> Error {
        let said: Vec<String> = said.iter().map(|line| (*line).to_owned()).collect();
        judge(Some(&target()), &said, stage)
    }

    #[test]
    fn the_command_never_asks_and_never_loosens_host_keys() {
        let words = command(&target(), Duration::from_secs(15), Duration::from_secs(30));
        let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = words.join(" ");
        assert!(
            line.starts_with("ssh -x -a -T -o BatchMode=yes -o ConnectTimeout=15 "),
            "{line}"
        );
        assert!(
            line.contains("-o ServerAliveInterval=10 -o ServerAliveCountMax=3"),
            "{line}"
        );
        assert!(
            line.ends_with("-o IdentitiesOnly=yes -i /etc/pgkeep/id_ed25519 -p 2222 -l backup -s -- fe80::1 sftp"),
            "{line}"
        );
        assert!(
            !line.contains("StrictHostKeyChecking") && !line.contains("UserKnownHostsFile"),
            "{line}"
        );
        let plain = Target {
            user: None,
            host: "nas".into(),
            port: None,
            key: None,
        };
        let words = command(&plain, Duration::ZERO, Duration::ZERO);
        let line: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let line = line.join(" ");
        assert!(line.ends_with("LogLevel=VERBOSE -s -- nas sftp"), "{line}");
        assert!(
            line.contains("ConnectTimeout=1 ") && line.contains("ServerAliveInterval=1 "),
            "{line}"
        );
    }

    #[test]
    fn what_a_person_has_to_mend_is_not_tried_again() {
        let changed = [
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
            "Offending ED25519 key in /home/p/.ssh/known_hosts:3",
            "Host key verification failed.",
        ];
        let cases: [(&[&str], Kind, &str, &str); 6] = [
            (
                &changed,
                Kind::Refused,
                "has changed",
                "ssh-keygen -f /home/p/.ssh/known_hosts -R '[fe80::1]:2222'",
            ),
            (
                &["Host key verification failed."],
                Kind::Refused,
                "is not known",
                "ssh-keyscan -p 2222 fe80::1",
            ),
            (
                &["b@h: Permission denied (publickey)."],
                Kind::Failed,
                "refused the login",
                "authorized_keys of backup",
            ),
            (
                &["Permissions 0644 for 'k' are too open."],
                Kind::Failed,
                "can read",
                "chmod 600 /etc/pgkeep/id_ed25519",
            ),
            (
                &["Authenticated to h", "subsystem request failed on channel 0"],
                Kind::Failed,
                "no SFTP",
                "Subsystem sftp",
            ),
            (
                &["ssh: Could not resolve hostname x: Name or service not known"],
                Kind::Failed,
                "not known",
                "spelt",
            ),
        ];
        for (said, kind, message, hint) in cases {
            let error = judged(said, Stage::Opening);
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.to_string().contains(message), "{error:?}");
            assert!(error.nearest_hint().unwrap().contains(hint), "{error:?}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for said in [
            "ssh: connect to host h port 22: Connection refused",
            "ssh: connect to host h port 22: Connection timed out",
            "ssh: Could not resolve hostname h: Temporary failure in name resolution",
            "kex_exchange_identification: Connection closed by remote host",
            "Timeout, server h not responding.",
            "something that nobody has seen yet",
        ] {
            let error = judged(&[said], Stage::Opening);
            assert_eq!(error.kind(), Kind::Transient, "{error:?}");
            assert!(error.to_string().contains(said), "{error:?}");
        }
        assert_eq!(judged(&[], Stage::Opening).kind(), Kind::Transient);
        let lost = judged(&["Permission denied ("], Stage::Working);
        assert_eq!(
            lost.kind(),
            Kind::Transient,
            "a connection that was good is opened again"
        );
    }

    #[test]
    fn a_session_that_is_closed_after_the_login_twice_is_no_accident() {
        let said = [
            "Authenticated to h",
            "Connection to h closed by remote host.",
            "Transferred: sent 1",
        ];
        let first = judged(&said, Stage::Opening);
        assert_eq!(first.kind(), Kind::Transient);
        let second = judged(&said, Stage::OpeningAgain);
        assert_eq!(second.kind(), Kind::Failed);
        assert!(second.nearest_hint().unwrap().contains("ChrootDirectory"), "{second:?}");
        assert!(second.to_string().contains("closed by remote host"), "{second:?}");
    }

    #[test]
    fn a_key_that_is_not_there_is_named() {
        let said = [
            "Warning: Identity file /etc/pgkeep/id_ed25519 not accessible: No such file or directory.",
            "b@h: Permission denied (publickey).",
        ];
        let error = judged(&said, Stage::Opening);
        assert!(error.to_string().contains("not accessible: No such file"), "{error:?}");
    }
}
