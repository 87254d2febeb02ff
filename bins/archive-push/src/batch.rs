//! Which files go in one run: the one PostgreSQL asked for, then those it is about to ask for. Pure.

use common::postgres::WalName;

/// Chooses up to `limit` files to store after `asked`, from what `ready` names (`<name>.ready` of
/// pg_wal/archive_status), without those that `is_done` knows, in PostgreSQL's own order: timeline histories first, then
/// by name (`pgarch.c`, `pgarch_readyXlog`, 13 to 18).
pub fn choose(
    asked: WalName,
    ready: impl IntoIterator<Item = String>,
    limit: usize,
    is_done: impl Fn(&WalName) -> bool,
) -> Vec<WalName> {
    let mut others: Vec<WalName> = ready
        .into_iter()
        .filter_map(|file| WalName::parse(file.strip_suffix(".ready")?).ok())
        .filter(|name| *name != asked)
        .collect();
    others.sort_by_cached_key(|name| (!matches!(name, WalName::History { .. }), name.to_string()));
    others.into_iter().filter(|name| !is_done(name)).take(limit).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(asked: &str, ready: &[&str], limit: usize) -> Vec<String> {
        let ready = ready.iter().map(|name| (*name).to_owned());
        choose(WalName::parse(asked).unwrap(), ready, limit, |name| {
            name.to_string().ends_with('6')
        })
        .iter()
        .map(WalName::to_string)
        .collect()
    }

    #[test]
    fn histories_come_first_then_the_oldest_and_never_what_is_done_or_was_asked_for() {
        let ready = [
            "000000010000000000000007.ready",
            "000000010000000000000005.ready",
            "000000010000000000000006.ready",
            "000000010000000000000003.done",
            "00000002.history.ready",
            "000000010000000000000004.ready",
            "garbage.ready",
        ];
        let expected = [
            "00000002.history",
            "000000010000000000000005",
            "000000010000000000000007",
        ];
        assert_eq!(names("000000010000000000000004", &ready, 9), expected);
        assert_eq!(names("000000010000000000000004", &ready, 2), expected[..2]);
        assert!(names("000000010000000000000004", &ready, 0).is_empty());
    }
}
