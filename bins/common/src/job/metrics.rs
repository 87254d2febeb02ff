//! The text that node_exporter's textfile collector reads. Names are an interface (alert rules use them).

use std::fmt::Write;

use serde_json::Value;

use super::{Outcome, Status};

/// A metric with a name of its own, such as `pgkeep_repository_bytes{repository="local"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: String,
    help: &'static str,
}

impl Sample {
    /// A gauge, or a counter where the name ends in `_total`. The label `cluster` comes by itself.
    pub fn new(name: &str, value: f64, help: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            labels: Vec::new(),
            value: number(value),
            help,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    fn of_job(status: &Status, name: &str, value: String, help: &'static str) -> Self {
        Self {
            name: format!("pgkeep_{}_{name}", status.tool.replace('-', "_")),
            labels: Vec::new(),
            value,
            help,
        }
    }
}

/// All metrics of a job after a run, the job's own and the extra ones.
pub(super) fn render(status: &Status, extra: &[Sample]) -> String {
    let mut samples = own(status);
    samples.extend_from_slice(extra);
    samples.retain(|sample| is_name(&sample.name));
    // Samples of one name stand together under one heading.
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    let mut previous = "";
    for sample in &samples {
        if sample.name != previous {
            let kind = if sample.name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            let _ = writeln!(text, "# HELP {0} {1}\n# TYPE {0} {kind}", sample.name, sample.help);
            previous = &sample.name;
        }
        let _ = write!(text, "{}{{cluster=\"{}\"", sample.name, escaped(&status.cluster));
        for (name, value) in &sample.labels {
            let _ = write!(text, ",{name}=\"{}\"", escaped(value));
        }
        let _ = writeln!(text, "}} {}", sample.value);
    }
    text
}

fn own(status: &Status) -> Vec<Sample> {
    let of_job = |name: &str, value: String, help| Sample::of_job(status, name, value, help);
    let success = matches!(status.result, Outcome::Ok | Outcome::Skipped);
    let seconds = status.finished.since(status.started).as_secs_f64();
    let mut samples = vec![
        of_job(
            "success",
            u8::from(success).to_string(),
            "Whether the last run ended well.",
        ),
        of_job("duration_seconds", number(seconds), "How long the last run took."),
        of_job(
            "last_run_timestamp_seconds",
            status.finished.unix_seconds().to_string(),
            "When the last run ended.",
        ),
    ];
    // Never is an absent sample: 0 would be read as 1970.
    if let Some(time) = status.last_success {
        let help = "When a run last succeeded.";
        samples.push(of_job(
            "last_success_timestamp_seconds",
            time.unix_seconds().to_string(),
            help,
        ));
    }
    // A failed run has no size; what the last good one had stays comparable.
    let mut fields = status.last_success_fields.clone();
    fields.extend(status.fields.clone());
    let help = "As the last run reported it, or else the last successful one.";
    for (name, value) in &fields {
        let Value::Number(value) = value else { continue };
        let sample = of_job(name, value.to_string(), help);
        if !samples.iter().any(|own| own.name == sample.name) {
            samples.push(sample);
        }
    }
    samples
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

/// A field with a name that Prometheus would not take must not cost the whole file.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
