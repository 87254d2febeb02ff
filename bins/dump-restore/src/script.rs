//! The SQL around what pg_restore writes: one transaction, what is there put aside or dropped, names changed.

use common::postgres::sql::{identifier, literal};

use crate::select::Wanted;

/// What frames the SQL of a tenant or of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Goes before.
    pub before: String,
    /// Goes after; without it nothing has happened.
    pub after: String,
}

/// The frame. `aside` is a name that no schema has: while a tenant comes back under another name, the one that is there carries it, and
/// nobody else sees that, for the transaction ends with the old names.
pub fn frame(wanted: &Wanted, rename: Option<&str>, clean: bool, aside: &str, extensions: &[String]) -> Frame {
    let mut before = "BEGIN;\n".to_owned();
    let mut after = String::new();
    match (wanted, rename) {
        (Wanted::Tenant(schema), Some(new)) => {
            before += &rename_if_there(schema, aside);
            after += &format!("ALTER SCHEMA {} RENAME TO {};\n", identifier(schema), identifier(new));
            after += &rename_if_there(aside, schema);
        }
        (Wanted::Tenant(schema), None) if clean => {
            before += &format!("DROP SCHEMA IF EXISTS {} CASCADE;\n", identifier(schema));
        }
        (Wanted::Tables(tables), _) if clean => {
            for (schema, table) in tables {
                before += &format!("DROP TABLE IF EXISTS {}.{};\n", identifier(schema), identifier(table));
            }
        }
        _ => {}
    }
    for extension in extensions {
        before += &format!("CREATE EXTENSION IF NOT EXISTS {};\n", identifier(extension));
    }
    after += "COMMIT;\n";
    Frame { before, after }
}

fn rename_if_there(from: &str, to: &str) -> String {
    format!(
        "DO $pgkeep$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {}) THEN ALTER SCHEMA {} RENAME TO {}; END IF; \
         END $pgkeep$;\n",
        literal(from),
        identifier(from),
        identifier(to)
    )
}

/// Whether a server of this major version does not know a line that newer programs write at the head of a script
/// (`src/bin/pg_dump/pg_backup_archiver.c`, `_doSetFixedOutputState`): `transaction_timeout` came with 17.
pub fn unknown_to(line: &str, server: u32) -> bool {
    server < 17 && line.starts_with("SET transaction_timeout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_under_another_name_leaves_the_one_that_is_there() {
        let made = frame(
            &Wanted::Tenant("a".into()),
            Some("a_old"),
            false,
            "aside_1",
            &["citext".into()],
        );
        assert!(made.before.starts_with("BEGIN;\nDO $pgkeep$"));
        assert!(made.before.ends_with("CREATE EXTENSION IF NOT EXISTS \"citext\";\n"));
        let back = made.after.find("\"aside_1\" RENAME TO \"a\"").unwrap_or_default();
        assert!(
            made.after.starts_with("ALTER SCHEMA \"a\" RENAME TO \"a_old\";\n") && back > 0,
            "{}",
            made.after
        );
        assert!(made.after.ends_with("COMMIT;\n"));
    }

    #[test]
    fn what_is_there_is_dropped_only_when_told() {
        let tenant = Wanted::Tenant("we\"ird".into());
        assert!(!frame(&tenant, None, false, "x", &[]).before.contains("DROP"));
        assert!(
            frame(&tenant, None, true, "x", &[])
                .before
                .contains("DROP SCHEMA IF EXISTS \"we\"\"ird\" CASCADE")
        );
        let tables = Wanted::Tables(vec![("a".into(), "t".into())]);
        assert!(
            frame(&tables, None, true, "x", &[])
                .before
                .contains("DROP TABLE IF EXISTS \"a\".\"t\";")
        );
    }

    #[test]
    fn settings_of_newer_servers_are_known() {
        assert!(unknown_to("SET transaction_timeout = 0;", 16) && !unknown_to("SET transaction_timeout = 0;", 17));
    }
}
