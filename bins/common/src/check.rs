//! One line for monitoring: a state, words, and performance data, as Nagios and Consul read it.
//!
//! Knows the Nagios plugin guidelines: `text | 'label'=value[UOM];[warn];[crit];[min];[max]`, one line, under 4 KiB (Consul cuts there).
//! Pure.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::Verdict;

/// Consul cuts what is longer.
const MOST_BYTES: usize = 4000;

/// What a check found, the worst last but for `Unknown`, which nothing hides but `Critical`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All is well.
    Ok,
    /// Somebody should look soon.
    Warning,
    /// Nobody could find out.
    Unknown,
    /// Somebody must look now.
    Critical,
}

impl State {
    /// The exit code: Nagios' and Consul's.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    /// The same, of something that work does not depend on: somebody should look, nobody need get up.
    #[must_use]
    pub fn unless_optional(self, required: bool) -> Self {
        if required { self } else { self.min(Self::Warning) }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A number to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Perf {
    label: String,
    value: f64,
    unit: &'static str,
    warning: Option<f64>,
    critical: Option<f64>,
}

impl Perf {
    /// A count.
    pub fn count(label: &str, value: u64) -> Self {
        Self::new(label, value as f64, "")
    }

    /// A time span.
    pub fn seconds(label: &str, value: Duration) -> Self {
        Self::new(label, value.as_secs_f64().round(), "s")
    }

    fn new(label: &str, value: f64, unit: &'static str) -> Self {
        Self {
            // Neither may be part of a label.
            label: label.replace(['\'', '=', '|', '\n'], "_"),
            value,
            unit,
            warning: None,
            critical: None,
        }
    }

    /// Above these it is a warning, or critical.
    #[must_use]
    pub fn limits(self, warning: f64, critical: f64) -> Self {
        Self {
            warning: Some(warning),
            critical: Some(critical),
            ..self
        }
    }
}

/// What a check has to say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Line {
    parts: Vec<(State, String)>,
    perf: Vec<Perf>,
}

impl Line {
    /// Adds a finding.
    pub fn add(&mut self, state: State, words: impl Into<String>) {
        self.parts.push((state, words.into()));
    }

    /// Adds a number.
    pub fn perf(&mut self, perf: Perf) {
        self.perf.push(perf);
    }

    /// The worst of what was found; nothing found means that nothing was found out.
    pub fn state(&self) -> State {
        self.parts
            .iter()
            .map(|(state, _)| *state)
            .max()
            .unwrap_or(State::Unknown)
    }

    /// The words, the worst first; what is well is left out where something is not.
    pub fn words(&self) -> String {
        let state = self.state();
        let mut parts: Vec<&(State, String)> = self.parts.iter().collect();
        parts.retain(|(part, _)| state == State::Ok || *part != State::Ok);
        parts.sort_by_key(|(part, _)| std::cmp::Reverse(*part));
        let words: Vec<&str> = parts.iter().map(|(_, words)| words.as_str()).collect();
        match words.is_empty() {
            true => "nothing was looked at".to_owned(),
            false => words.join("; "),
        }
    }

    /// The line.
    pub fn text(&self) -> String {
        let words: String = format!("{} - {}", self.state().word(), self.words())
            .chars()
            .map(|c| if c == '\n' || c == '|' { ' ' } else { c })
            .collect();
        let mut perf = String::new();
        for one in &self.perf {
            let bound = |bound: Option<f64>| bound.map(|bound| bound.to_string()).unwrap_or_default();
            let _ = write!(
                perf,
                " '{}'={}{};{};{};0",
                one.label,
                one.value,
                one.unit,
                bound(one.warning),
                bound(one.critical)
            );
        }
        let room = MOST_BYTES.saturating_sub(perf.len() + 3);
        let mut end = words.len().min(room);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        let words = words.get(..end).unwrap_or_default();
        match perf.is_empty() {
            true => format!("{words}\n"),
            false => format!("{words} |{perf}\n"),
        }
    }
}

impl Verdict for Line {
    fn code(&self) -> u8 {
        self.state().code()
    }
}

/// Where a number lies between what is well, worth a warning, and critical.
pub fn above<T: PartialOrd>(value: T, warning: T, critical: T) -> State {
    if value > critical {
        State::Critical
    } else if value > warning {
        State::Warning
    } else {
        State::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides_and_comes_first() {
        let mut line = Line::default();
        assert_eq!(
            (line.code(), line.text().as_str()),
            (3, "UNKNOWN - nothing was looked at\n")
        );
        line.add(State::Ok, "a is well");
        line.perf(Perf::seconds("age a", Duration::from_secs(90)).limits(60.0, 120.5));
        assert_eq!(line.text(), "OK - a is well | 'age a'=90s;60;120.5;0\n");
        line.add(State::Warning, "b is old");
        assert_eq!((line.code(), line.words().as_str()), (1, "b is old"));
        line.add(State::Unknown, "c is silent");
        assert_eq!((line.code(), line.words().as_str()), (3, "c is silent; b is old"));
        line.add(State::Critical, "d is gone\nfor | good");
        assert_eq!(line.code(), 2);
        assert!(
            line.text()
                .starts_with("CRITICAL - d is gone for   good; c is silent; b is old | ")
        );
    }

    #[test]
    fn a_line_stays_one_line_under_four_kibibytes() {
        let mut line = Line::default();
        line.add(State::Critical, "ü".repeat(9000));
        line.perf(Perf::count("it's=x", 7));
        let text = line.text();
        assert!(
            text.len() < 4096 && text.ends_with(" | 'it_s_x'=7;;;0\n"),
            "{}",
            text.len()
        );
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn limits_are_well_themselves() {
        assert_eq!(
            [above(5, 5, 9), above(6, 5, 9), above(9, 5, 9), above(10, 5, 9)].map(State::code),
            [0, 1, 1, 2]
        );
    }
}
