//! The runbooks: a cluster whose jobs have all run once.

use host_tests::Reader;
use host_tests::reader::DATA;
use host_tests::typed::Block;

use super::{TWO, metrics};

pub fn begin(reader: &mut Reader) {
    reader.installs();
    reader.works(TWO);
    // WAL that is archived stays in pg_wal for a while, as on a server that is busy.
    reader.sets("wal_keep_size", "1GB");
    reader.host.run(
        "systemctl enable -q --now pgkeep-full-backup@main.timer pgkeep-base-backup@main.timer pgkeep-prune@main.timer pgkeep-check@main.timer
        systemctl start pgkeep-base-backup@main.service pgkeep-prune@main.service pgkeep-verify@main.service
        systemctl start pgkeep-sync@main.service pgkeep-restore-test@main.service",
    );
}

pub fn before(reader: &mut Reader, block: &Block, command: &str) {
    match (block.section.as_str(), block.number) {
        // A backup has to have something new.
        (_, _) if command.starts_with("systemctl start pgkeep-base-backup@") => reader.orders(),
        ("PgkeepBackupAbsent", 1) if command == "pgkeep-info" => metrics(reader),
        ("PgkeepWalGap", 1) if command == "pgkeep-info" => {
            reader.orders();
            reader.archived();
            let lost = reader.host.sql("SELECT last_archived_wal FROM pg_stat_archiver");
            reader.orders();
            reader.archived();
            reader.host.run(&format!(
                "find /var/backups/pgkeep/main/wal -name '{lost}*' -delete; test -e {DATA}/pg_wal/{lost}"
            ));
            reader.say("a segment", format!("/pg_wal/{lost}"));
        }
        ("PgkeepErasurePending", 1) => {
            reader
                .host
                .run("pgkeep-prune --erase-tenant acme --database shop --reason 'they asked'");
        }
        ("PgkeepSyncFailed", 1) if command.starts_with("cat") => {
            reader.host.run("pgkeep-dump-restore --apply-erasures --into shop");
        }
        _ => {}
    }
}
