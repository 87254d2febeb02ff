#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::storage::bucket::Service;

const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/pgkeep.toml"));

/// The example of the design, the age recipient included as it stands there.
const DESIGN: &str = r#"
    state_directory = "/var/lib/pgkeep"               # these are the defaults
    spool_directory = "/var/spool/pgkeep"
    metrics_directory = "/var/lib/prometheus/node-exporter"
    patience = "5m"
    standby_patience = "5s"
    jobs = 2
    compression_level = 2

    [cluster.main]
    data_directory = "/var/lib/postgresql/15/main"
    host = "/var/run/postgresql"
    port = 5432
    user = "postgres"
    extra_paths = ["/etc/postgresql/15/main"]
    patroni = "http://127.0.0.1:8008"
    primary = "host=10.0.0.1 user=postgres"
    full_interval = "7d"
    objectives = { rpo = "1m", rto = "30m" }
    wal_drop_limit = "0"

    [repository.local]
    url = "file:///var/backups/pgkeep"
    retention = { full = 4, incremental = "7d", wal = "14d", monthly = 12, dumps = "30d" }

    [repository.offsite]
    url = "s3://company-backups/postgres"
    endpoint = "https://s3.us-west-004.backblazeb2.com"
    region = "us-west-004"
    credentials_file = "/etc/pgkeep/s3.credentials"
    storage_class = { backup = "STANDARD_IA", wal = "STANDARD" }
    lock_horizon = "21d"
    bandwidth = "100MiB/s"
    encryption = { recipients = ["age1..."], identity_file = "/etc/pgkeep/identity.txt" }
    retention = { full = 4, incremental = "7d", wal = "14d", monthly = 12 }

    [repository.nas]
    url = "sftp://rcadmin@192.168.1.246/home/rcadmin/postgres-backups"
    ssh_key = "/etc/pgkeep/id_ed25519"
    required = false
"#;

fn environment(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("5433".to_owned()),
        "DIR" => Some("/srv/backup".to_owned()),
        "YES" => Some("true".to_owned()),
        "FULL" => Some("6".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config> {
    Config::parse(Path::new("/etc/x.toml"), text, &environment)
}

/// The whole complaint as the user sees it.
fn complaint(text: &str) -> String {
    let error = parse(text).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    match error.nearest_hint() {
        Some(hint) => format!("{} ({hint})", crate::error::chain(&error)),
        None => crate::error::chain(&error),
    }
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

#[test]
fn the_example_of_the_design_means_what_it_says() {
    let config = parse(DESIGN).unwrap();
    assert_eq!(
        (config.patience, config.standby_patience),
        (Duration::from_secs(300), Duration::from_secs(5))
    );
    let main = config.cluster(None).unwrap();
    assert_eq!(main.data_directory().unwrap(), Path::new("/var/lib/postgresql/15/main"));
    assert_eq!(
        (main.host.as_deref(), main.port, main.dbname.as_deref()),
        (Some("/var/run/postgresql"), Some(5432), None)
    );
    assert_eq!(main.extra_paths, [PathBuf::from("/etc/postgresql/15/main")]);
    assert_eq!(main.full_interval, days(7));
    assert_eq!(main.objectives.rpo, Some(Duration::from_secs(60)));
    assert_eq!(config.state_of(main), Path::new("/var/lib/pgkeep/main"));

    let [local, offsite, nas] = config.repositories.as_slice() else {
        panic!("three repositories")
    };
    let retention = local.retention.as_ref().unwrap();
    assert_eq!(
        (retention.full, retention.dumps),
        (Some(Keep::Count(4)), Some(Keep::Age(days(30))))
    );
    assert_eq!(
        (retention.incremental, retention.wal, retention.diff),
        (Some(days(7)), Some(days(14)), None)
    );
    assert_eq!((retention.monthly, retention.weekly, retention.minimum), (12, 0, 1));
    assert!(local.required && local.encryption.is_none() && local.bandwidth.is_none());

    let encryption = offsite.encryption.as_ref().unwrap();
    assert_eq!(encryption.recipients, ["age1..."]);
    assert_eq!(encryption.metadata_recipients, encryption.recipients);
    assert_eq!(offsite.bandwidth, Some(ByteSize(100 << 20)));
    let bucket = offsite.bucket.as_ref().unwrap();
    let Service::S3 { region, lock, .. } = &bucket.service else {
        panic!("it is S3")
    };
    assert_eq!((region.as_deref(), *lock), (Some("us-west-004"), Some(days(21))));
    assert_eq!(bucket.classes.backup.as_deref(), Some("STANDARD_IA"));
    assert!(!nas.required);
    assert_eq!(nas.ssh_key.as_deref(), Some(Path::new("/etc/pgkeep/id_ed25519")));
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_design() {
    let text = DESIGN.split("[cluster.main]").nth(1).unwrap();
    assert_eq!(parse(&format!("[cluster.main]{text}")).unwrap(), parse(DESIGN).unwrap());
    let config = parse("[cluster.a]").unwrap();
    assert_eq!((config.prefetch_limit, config.push_batch), (ByteSize(256 << 20), 16));
    let cluster = config.cluster(None).unwrap();
    assert_eq!(
        (cluster.full_interval, cluster.archive_wait),
        (days(7), Duration::from_secs(600))
    );
    assert_eq!(cluster.wal_drop_limit, ByteSize(0));
    assert_eq!(cluster.data_directory().unwrap_err().kind(), Kind::Config);
}

#[test]
fn the_packaged_example_is_valid_as_it_is_and_with_everything_switched_on() {
    parse(EXAMPLE).unwrap();
    let all = switched_on(EXAMPLE);
    let config = parse(&all).unwrap_or_else(|error| panic!("{error:?}\n{all}"));
    assert_eq!(config.repositories.len(), 3);
}

#[test]
fn the_packaged_example_shows_the_defaults_it_claims() {
    let plain = parse(EXAMPLE).unwrap();
    let defaults = EXAMPLE
        .lines()
        .take_while(|line| !line.contains("[repository.local]"))
        .filter(|line| !line.contains("# example"))
        .collect::<Vec<_>>()
        .join("\n");
    let all = parse(&switched_on(&defaults)).unwrap();
    assert_eq!(all.clusters, plain.clusters);
    let top = |config: &Config| Config {
        clusters: Vec::new(),
        repositories: Vec::new(),
        ..config.clone()
    };
    assert_eq!(top(&all), top(&plain));
}

#[test]
fn the_packaged_example_shows_every_key() {
    let sources = [
        include_str!("mod.rs"),
        include_str!("cluster.rs"),
        include_str!("repository.rs"),
        include_str!("retention.rs"),
        include_str!("restore_test.rs"),
        include_str!("notify.rs"),
    ];
    let keys: Vec<String> = sources.iter().flat_map(|source| keys_read(source)).collect();
    for key in ["state_directory", "yearly", "metadata_recipients", "archive_wait"] {
        assert!(keys.iter().any(|read| read == key), "{key} is not among {keys:?}");
    }
    for key in keys {
        let shown = EXAMPLE.contains(&format!("{key} = ")) || EXAMPLE.contains(&format!("\n[{key}."));
        assert!(shown, "packaging/pgkeep.toml does not show \"{key}\"");
    }
}

/// The keys that this source reads: `table.path("key")`, `age(&mut table, "key")`.
fn keys_read(source: &str) -> Vec<String> {
    let source: String = source.split_whitespace().collect();
    let argument = |rest: &str| {
        if rest.starts_with(".error(") {
            return None;
        }
        let call = rest
            .strip_prefix('.')
            .map(|call| call.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_'));
        let argument = call
            .and_then(|call| call.strip_prefix("(\""))
            .or_else(|| rest.strip_prefix(",\""))?;
        argument.split_once('"').map(|(key, _)| key.to_owned())
    };
    let is_key = |key: &String| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    source.split("table").filter_map(argument).filter(is_key).collect()
}

/// Every commented option uncommented: lines such as `# jobs = 2` and `# [repository.nas]`.
fn switched_on(text: &str) -> String {
    let option = |line: &str| {
        let code = line.strip_prefix("# ")?;
        let key = code.split(" = ").next()?;
        let is_key = code.contains(" = ") && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        (is_key || code.starts_with('[')).then(|| code.to_owned())
    };
    text.lines()
        .map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect()
}

#[test]
fn an_unknown_key_names_itself_its_table_its_line_and_the_nearest() {
    let cases = [
        (
            "patiense = \"5m\"",
            "/etc/x.toml:1: unknown key \"patiense\" (did you mean \"patience\"?)",
        ),
        (
            "[repository.a]\nulr = \"file:///a\"",
            "/etc/x.toml:2: unknown key \"ulr\" in [repository.a] (did you mean \"url\"?)",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nretention = { ful = 3 }",
            "/etc/x.toml:3: unknown key \"ful\" in [repository.a.retention] (did you mean \"full\"?)",
        ),
        (
            "[cluster.main]\njobs = 3",
            "/etc/x.toml:2: unknown key \"jobs\" in [cluster.main] (\"jobs\" belongs to the top of the file, before the first [table])",
        ),
        (
            "[clusters.main]",
            "/etc/x.toml:1: unknown key \"clusters\" (did you mean \"cluster\"?)",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(complaint(text), expected);
    }
    assert!(complaint("[dump]\nx = 1").starts_with("/etc/x.toml:1: unknown key \"dump\""));
    assert!(complaint("[cluster.a.objectives]\ncolour = 1").contains("known here: rpo, rto"));
}

#[test]
fn bad_values_are_refused_with_line_and_reason() {
    let cases = [
        ("jobs = \"many\"", "\"jobs\" must be a whole number, not a string"),
        ("jobs = \"2\"", "\"jobs\" must be a whole number, not a string"),
        ("jobs = 0", "\"jobs\" must be a whole number from 1 to 256"),
        (
            "jobs = 2.5",
            "\"jobs\" must be a whole number, not a number with a fraction",
        ),
        ("patience = 5", "\"patience\" must be a string, not a whole number"),
        (
            "patience = \"5\"",
            "\"patience\" is not valid: invalid span of time \"5\"",
        ),
        ("patience = \"\"", "\"patience\" is empty"),
        ("prefetch_limit = \"1 lot\"", "invalid size \"1 lot\""),
        ("compression_level = 20", "from -7 to 19"),
        ("state_directory = \"lib\"", "path \"lib\" is relative"),
        (
            "[cluster.a]\nport = 70000",
            "/etc/x.toml:2: \"port\" in [cluster.a] must be",
        ),
        ("[cluster.a]\nsslmode = \"on\"", "invalid sslmode \"on\""),
        (
            "[cluster.a]\npatroni = \"127.0.0.1:8008\"",
            "not an http:// or https:// URL",
        ),
        ("[cluster.a]\nprimary = \"user=postgres\"", "no host is named"),
        (
            "[cluster.a]\nprimary = \"host=a nonsense=1\"",
            "\"nonsense\", which is not supported",
        ),
        (
            "[cluster.a]\nextra_paths = \"/etc\"",
            "\"extra_paths\" in [cluster.a] must be a list",
        ),
        (
            "[cluster.a]\nextra_paths = [\n\"/a\",\n\"b\"]",
            "/etc/x.toml:4: \"extra_paths\" in [cluster.a] is not valid: path \"b\" is relative",
        ),
        (
            "[cluster.a]\nextra_paths = [\"/a\"]\nextra_excludes = [\"/b/c\"]",
            "lies below none of extra_paths",
        ),
        ("[cluster.\"a/b\"]", "invalid name \"a/b\""),
        (
            "[cluster]\na = 1",
            "\"a\" in [cluster] must be a table, not a whole number",
        ),
        ("[repository.a]", "/etc/x.toml:1: \"url\" is missing in [repository.a]"),
        ("[repository.a]\nurl = \"/backups\"", "the URL is not a URL"),
        (
            "[repository.a]\nurl = \"file:///a\"\nregion = \"x\"",
            "is for s3:// only, and this repository is file://",
        ),
        (
            "[repository.a]\nurl = \"s3://b\"\nssh_key = \"/k\"",
            "is for sftp:// only, and this repository is s3://",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nrequired = 1",
            "must be true or false, not a whole number",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nbandwidth = \"0\"",
            "a bandwidth of nothing",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nretention = { full = 0 }",
            "from 1 to 100000",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nretention = { wal = 14 }",
            "must be a string, not a whole number",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nretention = { wal = \"0d\" }",
            "must be longer than nothing",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nretention = { monthly = \"1d\" }",
            "must be a whole number",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nencryption = { recipients = [] }",
            "\"recipients\" is missing or empty",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\nencryption = { identity_file = \"/i\" }",
            "\"recipients\" is missing or empty",
        ),
        (
            "[repository.a]\nurl = \"file:///a\"\n[repository.b]\nurl = \"file:///a/\"",
            "/etc/x.toml:3: the same url as in another repository",
        ),
        ("jobs = ", "/etc/x.toml:1: "),
        ("jobs = 1\njobs = 2", "/etc/x.toml:2: duplicate key"),
    ];
    for (text, expected) in cases {
        let complaint = complaint(text);
        assert!(complaint.contains(expected), "{text}\n{complaint}\n{expected}");
    }
}

#[test]
fn any_value_may_come_from_the_environment() {
    let config = parse(
        r#"
        jobs = "${FULL}"
        [cluster.a]
        port = "${PORT}"
        [repository.r]
        url = "file://${DIR}/pgkeep"
        required = "${YES}"
        retention = { full = "${FULL}" }
        "#,
    )
    .unwrap();
    assert_eq!((config.jobs, config.cluster(None).unwrap().port), (6, Some(5433)));
    let repository = &config.repositories[0];
    assert_eq!(repository.location.to_string(), "file:///srv/backup/pgkeep");
    assert_eq!(repository.retention.as_ref().unwrap().full, Some(Keep::Count(6)));
    assert_eq!(
        complaint("[cluster.a]\nhost = \"${NOT_SET}\""),
        "/etc/x.toml:2: \"host\" in [cluster.a] cannot be expanded: environment variable \"NOT_SET\" is not set"
    );
    assert!(complaint("jobs = \"${DIR}\"").contains("must be a whole number from 1"));
}

#[test]
fn the_only_cluster_needs_no_name_and_several_are_listed() {
    let two = parse("[cluster.main]\n[cluster.other]").unwrap();
    let error = two.cluster(None).unwrap_err();
    assert_eq!(error.to_string(), "several clusters are configured: main, other");
    assert_eq!(two.cluster(Some("other")).unwrap().name, "other");
    let error = two.cluster(Some("mian")).unwrap_err();
    assert_eq!(
        error.nearest_hint(),
        Some("did you mean \"main\"? configured: main, other")
    );
    assert_eq!(
        two.cluster(Some("x")).unwrap_err().nearest_hint(),
        Some("configured: main, other")
    );
    let none = parse("").unwrap();
    assert_eq!(
        none.cluster(None).unwrap_err().to_string(),
        "no cluster is configured in /etc/x.toml"
    );
    let error = none.cluster(Some("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert_eq!(error.nearest_hint(), Some("none is; add a table such as [cluster.a]"));
}

#[test]
fn repositories_are_chosen_by_name_in_the_order_of_the_file() {
    let config = parse(DESIGN).unwrap();
    let names = |only: &[&str]| -> Result<Vec<String>> {
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        Ok(config
            .repositories(&only)?
            .iter()
            .map(|repository| repository.name.clone())
            .collect())
    };
    assert_eq!(names(&[]).unwrap(), ["local", "offsite", "nas"]);
    assert_eq!(names(&["nas", "local"]).unwrap(), ["local", "nas"]);
    assert_eq!(
        names(&["locla"]).unwrap_err().nearest_hint(),
        Some("did you mean \"local\"? configured: local, offsite, nas")
    );
    assert_eq!(parse("").unwrap().repositories(&[]).unwrap_err().kind(), Kind::Config);
}

#[test]
fn a_file_that_cannot_be_trusted_or_read_is_a_matter_of_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgkeep.toml");
    let missing = Config::load(&file, &environment).unwrap_err();
    assert_eq!(missing.kind(), Kind::Config);
    assert!(missing.nearest_hint().unwrap().contains("--config"));

    std::fs::write(&file, "[cluster.main]").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(Config::load(&file, &environment).unwrap().file, file);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o646)).unwrap();
    let open = Config::load(&file, &environment).unwrap_err();
    assert_eq!(open.kind(), Kind::Config);
    assert!(open.to_string().contains("can be written by everybody"), "{open}");

    assert_eq!(
        Config::load(directory.path(), &environment).unwrap_err().kind(),
        Kind::Config
    );
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(Config::load(&file, &environment).unwrap_err().kind(), Kind::Config);
}

proptest::proptest! {
    #[test]
    fn odd_files_never_panic(text in "[a-z\\[\\]{}.=\"$ \n0-9]{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn odd_values_never_panic(key in "(url|required|retention|encryption|bandwidth|storage_class)", value in ".{0,20}") {
        let _ = parse(&format!("[repository.a]\n{key} = {value}"));
        let _ = parse(&format!("[repository.a]\n{key} = \"{value}\""));
    }
}

#[test]
fn the_primary_is_reached_as_the_server_is_but_for_what_is_said() {
    let read = |primary: &str| {
        let text =
            format!("[cluster.a]\nhost = \"/run\"\nport = 5999\nuser = \"backup\"\npassfile = \"/p\"\n{primary}");
        let config = Config::parse(Path::new("/etc/x.toml"), &text, &|_| None).unwrap();
        config.clusters[0].primary_connection(&|_| None).unwrap()
    };
    assert!(read("").is_none());
    let settings = read("primary = \"host=10.0.0.1,10.0.0.2\"").unwrap();
    assert_eq!(settings.host.as_deref(), Some("10.0.0.1,10.0.0.2"));
    assert_eq!((settings.port, settings.user.as_deref()), (Some(5432), Some("backup")));
    assert_eq!(settings.passfile.as_deref(), Some(Path::new("/p")));
    assert!(settings.primary_only);
    let settings = read("primary = \"host=a port=6000 user=other\"").unwrap();
    assert_eq!((settings.port, settings.user.as_deref()), (Some(6000), Some("other")));
}
