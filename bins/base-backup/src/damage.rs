//! Which pages of a file are damaged, as runs of blocks.
//!
//! Promises bounded memory and a bounded line in the manifest, however much of a file is rubbish: beyond
//! [`MAX_RUNS`] runs that lie close together are joined, so the list may name good pages between bad ones, never
//! the other way round.

/// Runs that are kept for one file, at most.
const MAX_RUNS: usize = 1000;

/// Damaged pages of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    runs: Vec<(u32, u32)>,
    pages: u64,
}

impl Damage {
    /// Notes block `block` of the file; blocks come in ascending order.
    pub fn add(&mut self, block: u32) {
        self.pages += 1;
        match self.runs.last_mut() {
            Some((first, count)) if first.saturating_add(*count) == block => *count += 1,
            _ => self.runs.push((block, 1)),
        }
        let mut gap = 1;
        while self.runs.len() > MAX_RUNS {
            self.join(gap);
            gap *= 2;
        }
    }

    /// Joins runs with at most `gap` good pages between them.
    fn join(&mut self, gap: u32) {
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(self.runs.len());
        for (first, count) in self.runs.drain(..) {
            match joined.last_mut() {
                Some(last) if first <= last.0.saturating_add(last.1).saturating_add(gap) => {
                    last.1 = first.saturating_add(count).saturating_sub(last.0);
                }
                _ => joined.push((first, count)),
            }
        }
        self.runs = joined;
    }

    /// Adds what another look at other blocks of the same file found.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut runs = [self.runs, other.runs].concat();
        runs.sort_unstable();
        Self {
            runs,
            pages: self.pages.saturating_add(other.pages),
        }
    }

    /// How many pages were noted.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The runs: first block and how many.
    pub fn runs(&self) -> &[(u32, u32)] {
        &self.runs
    }

    /// The blocks for a reader: `5, 8-11, 40 and more`, at most `limit` runs.
    pub fn describe(&self, limit: usize) -> String {
        let one = |(first, count): &(u32, u32)| match count {
            1 => first.to_string(),
            _ => format!("{first}-{}", first.saturating_add(count.saturating_sub(1))),
        };
        let mut text = self.runs.iter().take(limit).map(one).collect::<Vec<_>>().join(", ");
        if self.runs.len() > limit {
            text += " and more";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn damage(blocks: impl IntoIterator<Item = u32>) -> Damage {
        let mut damage = Damage::default();
        blocks.into_iter().for_each(|block| damage.add(block));
        damage
    }

    #[test]
    fn neighbours_are_one_run() {
        let found = damage([3, 4, 5, 9, 11]);
        assert_eq!(found.runs(), [(3, 3), (9, 1), (11, 1)]);
        assert_eq!(found.pages(), 5);
        assert_eq!(found.describe(2), "3-5, 9 and more");
        assert_eq!(found.describe(3), "3-5, 9, 11");
    }

    #[test]
    fn a_file_full_of_scattered_damage_keeps_a_short_list_that_covers_it() {
        let blocks: Vec<u32> = (0..131_072).step_by(2).collect();
        let found = damage(blocks.iter().copied());
        assert_eq!(found.pages(), 65_536);
        assert!(found.runs().len() <= MAX_RUNS);
        let covered = |block: u32| {
            found
                .runs()
                .iter()
                .any(|(first, count)| (*first..first + count).contains(&block))
        };
        assert!(blocks.into_iter().step_by(97).all(covered));
    }

    #[test]
    fn the_last_possible_block_does_not_overflow() {
        assert_eq!(damage([u32::MAX - 1, u32::MAX]).runs(), [(u32::MAX - 1, 2)]);
    }
}
