//! Which objects a run reads, so that everything is read over some runs.

use std::path::{Path, PathBuf};

use common::digest::xxh3_128;
use common::durable;
use common::error::{Result, chain};
use common::storage::Key;

/// One part of all objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many parts there are.
    parts: u64,
    /// Which one is read now.
    turn: u64,
}

impl Share {
    /// The part that is `percent` of all, whose turn is number `turn`.
    pub fn new(percent: u8, turn: u64) -> Self {
        let parts = 100u64.div_ceil(u64::from(percent.clamp(1, 100)));
        Self {
            parts,
            turn: turn % parts,
        }
    }

    /// Whether an object belongs to it. New objects do not move old ones to another part.
    pub fn holds(&self, key: &Key) -> bool {
        let hash = xxh3_128(key.to_string().as_bytes()).0;
        hash % u128::from(self.parts) == u128::from(self.turn)
    }
}

/// The number of the next turn, remembered by repository.
pub struct Turns(PathBuf);

impl Turns {
    /// Below the state directory of a cluster.
    pub fn new(state: &Path, uuid: &str) -> Self {
        Self(state.join("verify").join(format!("{uuid}.turn")))
    }

    /// Whose turn it is.
    pub fn next(&self) -> u64 {
        std::fs::read_to_string(&self.0)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Remembers that a turn was taken.
    pub fn taken(&self, turn: u64) {
        let write = || -> Result<()> {
            if let Some(directory) = self.0.parent() {
                durable::create_dir_all(directory, 0o755)?;
            }
            durable::replace_unsynced(&self.0, format!("{}\n", turn.wrapping_add(1)).as_bytes(), 0o644)
        };
        if let Err(error) = write() {
            log::warn!("the next run reads the same share again: {}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn over_so_many_runs_each_object_is_read_once() {
        for percent in [1u8, 4, 30, 33, 34, 50, 99, 100] {
            let runs = 100u64.div_ceil(u64::from(percent));
            for number in 0..500 {
                let key = Key::parse(&format!("main/wal/7/x/{number}.zst")).unwrap();
                let reads = (10..10 + runs)
                    .filter(|turn| Share::new(percent, *turn).holds(&key))
                    .count();
                assert_eq!(reads, 1, "{percent} %, object {number}");
            }
        }
    }

    #[test]
    fn shares_are_about_equal() {
        let keys: Vec<Key> = (0..10_000)
            .map(|number| Key::parse(&format!("main/{number}")).unwrap())
            .collect();
        let share = Share::new(10, 3);
        let count = keys.iter().filter(|key| share.holds(key)).count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn a_turn_follows_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let turns = Turns::new(dir.path(), "uuid");
        assert_eq!(turns.next(), 0);
        turns.taken(0);
        assert_eq!(turns.next(), 1);
        turns.taken(u64::MAX);
        assert_eq!(turns.next(), 0);
    }
}
