//! Which files go in one run: the one PostgreSQL asked for, then those it is about to ask for. Pure.

use common::postgres::WalName;

/// Chooses up to `limit` files, `asked` first, then what `ready` names (`<name>.ready` of pg_wal/archive_status) in
/// PostgreSQL's own order: timeline histories first, then by name (`pgarch.c`, `pgarch_readyXlog`, 13 to 18).
pub fn choose(asked: WalName, ready: impl IntoIterator<Item = String>, limit: usize) -> Vec<WalName> {
    let mut others: Vec<WalName> = ready
        .into_iter()
        .filter_map(|file| WalName::parse(file.strip_suffix(".ready")?).ok())
        .filter(|name| *name != asked)
        .collect();
    others.sort_by_key(|name| (!matches!(name, WalName::History { .. }), name.to_string()));
    others.dedup();
    others.truncate(limit.saturating_sub(1));
    others.insert(0, asked);
    others
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(asked: &str, ready: &[&str], limit: usize) -> Vec<String> {
        let ready = ready.iter().map(|name| (*name).to_owned());
        choose(WalName::parse(asked).unwrap(), ready, limit)
            .iter()
            .map(WalName::to_string)
            .collect()
    }

    #[test]
    fn the_asked_for_file_comes_first_then_histories_then_the_oldest() {
        let ready = [
            "000000010000000000000007.ready",
            "000000010000000000000005.ready",
            "000000010000000000000006.done",
            "00000002.history.ready",
            "000000010000000000000004.ready",
            "garbage.ready",
        ];
        assert_eq!(
            names("000000010000000000000004", &ready, 3),
            [
                "000000010000000000000004",
                "00000002.history",
                "000000010000000000000005"
            ]
        );
    }

    #[test]
    fn a_limit_of_one_or_none_leaves_the_asked_for_file() {
        assert_eq!(
            names("000000010000000000000004", &["000000010000000000000005.ready"], 1).len(),
            1
        );
        assert_eq!(
            names("000000010000000000000004", &["000000010000000000000005.ready"], 0).len(),
            1
        );
    }
}
