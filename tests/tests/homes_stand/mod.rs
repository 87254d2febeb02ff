//! The examples below `packaging/examples` as data: crontabs, YAML, and the jobs that are in them.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};
use system_tests::project;
use yaml_rust2::{Yaml, YamlLoader};

/// A file of the examples.
pub fn example(below: &str) -> PathBuf {
    project("packaging/examples").join(below)
}

/// Its text.
pub fn text(below: &str) -> String {
    let path = example(below);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is commented out for a second repository, taken.
pub fn with_second_repository(text: &str) -> String {
    let taken = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|first: char| "*[".contains(first) || first.is_ascii_alphanumeric()) => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(taken).collect::<Vec<_>>().join("\n")
}

/// When something runs, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Five fields, one space between them.
    pub schedule: String,
    /// For a shell.
    pub command: String,
}

/// The lines of a crontab and the variables that it sets. With users, as /etc/cron.d has them, each has to be postgres.
pub fn crontab(text: &str, users: bool) -> (Vec<Line>, Vec<(String, String)>) {
    let (mut lines, mut variables) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some((name, value)) = line.split_once('=')
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        {
            variables.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let mut rest = line;
        let mut field = || {
            let (one, after) = rest.trim_start().split_once(' ').unwrap();
            rest = after.trim_start();
            one.to_owned()
        };
        let schedule: Vec<String> = (0..5).map(|_| field()).collect();
        let plain = |field: &String| {
            field
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b"*/-".contains(&byte))
        };
        assert!(schedule.iter().all(plain), "{line}");
        if users {
            assert_eq!(field(), "postgres", "{line}");
        }
        // Cron takes it for the end of the line.
        assert!(!rest.contains('%'), "{line}");
        lines.push(Line {
            schedule: schedule.join(" "),
            command: rest.to_owned(),
        });
    }
    (lines, variables)
}

/// What one run-pgkeep, or the shell itself, is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// The name that run-pgkeep is given.
    pub name: Option<String>,
    /// Programs of pgkeep with their arguments.
    pub calls: Vec<Vec<String>>,
}

/// The jobs in a command for a shell.
pub fn jobs(command: &str) -> Vec<Job> {
    let words = command.replace(['\'', '"'], " ").replace(';', " ; ");
    let mut words = words.split_whitespace();
    let mut jobs: Vec<Job> = Vec::new();
    let mut open = false;
    while let Some(word) = words.next() {
        if word == "run-pgkeep" {
            jobs.push(Job {
                name: words.next().map(str::to_owned),
                ..Job::default()
            });
            open = false;
        } else if word.starts_with("pgkeep-") {
            if jobs.last().is_none_or(|job| job.name.is_none()) {
                jobs.push(Job::default());
            }
            jobs.last_mut().unwrap().calls.push(vec![word.to_owned()]);
            open = true;
        } else if ["&&", "||", "|", ";"].contains(&word) || word.contains('>') {
            open = false;
        } else if open {
            let call = jobs.last_mut().and_then(|job| job.calls.last_mut());
            call.unwrap().push(word.to_owned());
        }
    }
    jobs
}

/// The documents of a YAML file; items of a list are documents of their own.
pub fn yaml(below: &str) -> Vec<Value> {
    let path = example(below);
    let parsed = YamlLoader::load_from_str(&text(below)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documents = parsed.iter().map(value);
    documents
        .flat_map(|document| match &document["kind"] {
            Value::String(kind) if kind == "List" => document["items"].as_array().unwrap().clone(),
            _ => vec![document],
        })
        .collect()
}

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::String(text) | Yaml::Real(text) => Value::String(text.clone()),
        // Kubernetes reads modes as YAML 1.1 does, where 0440 is octal.
        Yaml::Integer(440) => Value::from(0o440),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::Boolean(is) => Value::Bool(*is),
        Yaml::Array(items) => items.iter().map(value).collect(),
        Yaml::Hash(entries) => {
            let mut map = Map::new();
            for (key, entry) in entries {
                match key.as_str().expect("a key is a word") {
                    // What is written here comes before what is merged.
                    "<<" => {
                        for (key, entry) in value(entry).as_object().unwrap() {
                            map.entry(key.clone()).or_insert_with(|| entry.clone());
                        }
                    }
                    key => _ = map.insert(key.to_owned(), value(entry)),
                }
            }
            Value::Object(map)
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("{yaml:?}"),
    }
}

/// The words of an array.
pub fn words(array: &Value) -> Vec<String> {
    let array = array.as_array().into_iter().flatten();
    array.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The CronJobs: name, and what runs when. A command line is quoted for a shell.
pub fn cron_jobs() -> Vec<(String, Line, Value)> {
    let all = yaml("kubernetes/cronjobs.yaml").into_iter();
    all.map(|manifest| {
        let pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"].clone();
        let container = &pod["containers"][0];
        let command = [words(&container["command"]), words(&container["args"])].concat();
        let quoted = command.iter().map(|word| match word.contains(' ') {
            true => format!("'{word}'"),
            false => word.clone(),
        });
        let line = Line {
            schedule: manifest["spec"]["schedule"].as_str().unwrap().to_owned(),
            command: quoted.collect::<Vec<_>>().join(" "),
        };
        (manifest["metadata"]["name"].as_str().unwrap().to_owned(), line, pod)
    })
    .collect()
}
