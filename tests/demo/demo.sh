#!/usr/bin/env bash
# The main job, once in clear and once encrypted: archive, back up under load, lose a table, get it back.
# Prints every command it runs, so that the output reads as a tutorial. Removes all it made.
# Usage: demo.sh DIRECTORY-WITH-THE-TOOLS   (as root, or as a user that may run PostgreSQL)
set -euo pipefail

tools=$(cd "${1:?usage: demo.sh DIRECTORY-WITH-THE-TOOLS}" && pwd)
pg_bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
owner=postgres
[ "$(id -u)" = 0 ] || owner=$(id -un)

scratch=$(mktemp -d /var/tmp/pgkeep-demo.XXXXXX)
bin=$scratch/bin
port=54329
started=$SECONDS

bold() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }

# Runs a command as the owner of the database, and shows it first. What the line shows is what runs.
run() {
    printf '\033[32m$ %s\033[0m\n' "$*" | sed "s#$scratch/##g"
    as_owner "$@"
}
as_owner() {
    if [ "$(id -u)" = 0 ]; then
        (cd "$scratch" && runuser -u "$owner" -- env PATH="$bin:$pg_bin:/usr/bin:/bin" PGHOST="$scratch/socket" PGPORT=$port PGDATABASE=postgres PGOPTIONS="-c statement_timeout=60s" "$@")
    else
        (cd "$scratch" && env PATH="$bin:$pg_bin:/usr/bin:/bin" PGHOST="$scratch/socket" PGPORT=$port PGDATABASE=postgres PGOPTIONS="-c statement_timeout=60s" "$@")
    fi
}
sql() { as_owner psql -XAtqc "$1"; }

stop_servers() {
    for data in "$scratch"/*/postmaster.pid; do
        [ -e "$data" ] && as_owner pg_ctl -D "$(dirname "$data")" stop -m immediate -s >/dev/null 2>&1 || true
    done
}
cleanup() {
    code=$?
    trap - EXIT
    stop_servers
    rm -rf "$scratch"
    [ $code = 0 ] || printf '\nthe demo failed with code %s\n' "$code" >&2
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Waits up to $1 seconds for the command that follows to succeed.
await() {
    local limit=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $limit ] || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.2
    done
}
answers() { [ "$(sql 'select 1' 2>/dev/null)" = 1 ]; }
paused() { [ "$(sql 'select pg_get_wal_replay_pause_state()' 2>/dev/null)" = paused ]; }
open_for_writing() { [ "$(sql 'select pg_is_in_recovery()' 2>/dev/null)" = f ]; }

mkdir -p "$bin" "$scratch/socket"
cp "$tools"/pgkeep-* "$bin"/ 2>/dev/null || { echo "no tools in $tools: build them first" >&2; exit 1; }
find "$bin" -name '*.d' -delete
chown -R "$owner" "$scratch"
chmod 755 "$scratch" "$bin"

one_round() {
    local kind=$1 data=$scratch/$1-data restored=$scratch/$1-restored repository=$scratch/$1-repository
    local config=$scratch/$1.toml recipients=""

    bold "$kind: a PostgreSQL server and a repository"
    as_owner initdb -D "$data" -A trust -U postgres --data-checksums >/dev/null
    as_owner mkdir -p "$repository" "$scratch/$kind-state" "$scratch/$kind-spool"
    if [ "$kind" = encrypted ]; then
        note "the secret key stays where restores run; the server needs the public one only"
        local public
        run pgkeep-init --generate-key "$scratch/identity.txt" | tee "$scratch/public.txt"
        public=$(tail -n 1 "$scratch/public.txt")
        recipients="encryption = { recipients = [\"$public\"], identity_file = \"$scratch/identity.txt\" }"
    fi
    as_owner tee "$config" >/dev/null <<EOF
state_directory = "$scratch/$kind-state"
spool_directory = "$scratch/$kind-spool"

[cluster.main]
data_directory = "$data"
host = "$scratch/socket"
port = $port

[repository.local]
url = "file://$repository"
retention = { full = 4, wal = "14d" }
$recipients
EOF
    export PGKEEP_CONFIG=$config
    note "pgkeep.toml:"
    sed "s#$scratch/##g; s/^/      /" "$config"
    cat >>"$data/postgresql.conf" <<EOF
listen_addresses = ''
unix_socket_directories = '$scratch/socket'
port = $port
fsync = off
wal_level = replica
archive_mode = on
archive_command = '$bin/pgkeep-archive-push --config $config %p'
archive_timeout = 60
EOF
    run pgkeep-init
    run pg_ctl -D "$data" -l "$scratch/$kind.log" -w -s start
    run pgkeep-init --check

    bold "$kind: a full backup while pgbench is writing"
    run pgbench -i -q -s 10
    printf '\033[32m$ %s\033[0m\n' "pgbench -n -c 2 -T 60 &"
    as_owner pgbench -n -c 2 -T 60 >/dev/null 2>&1 &
    local load=$!
    run pgkeep-base-backup
    sql "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbench'" >/dev/null
    wait $load || true

    bold "$kind: somebody drops a table"
    local rows before
    rows=$(sql 'select count(*) from pgbench_history')
    sql 'select pg_switch_wal()' >/dev/null
    before=$(sql "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    note "it is $before, and pgbench_history has $rows rows"
    run psql -Xqc 'drop table pgbench_history'
    sql 'select pg_switch_wal()' >/dev/null
    run pg_ctl -D "$data" -s stop -m fast
    run pgkeep-info

    bold "$kind: back to the moment before"
    run pgkeep-restore --to "$restored" --target-time "$before" --dry-run
    run pgkeep-restore --to "$restored" --target-time "$before"
    run pg_ctl -D "$restored" -l "$scratch/$kind-restored.log" -w -s start
    await 60 paused
    note "recovery has paused at the target; look around, then go on"
    run psql -XAtc 'select pg_last_xact_replay_timestamp()'
    run psql -XAtc 'select pg_wal_replay_resume()'
    await 60 open_for_writing
    run psql -XAtc 'select count(*) from pgbench_history'
    [ "$(sql 'select count(*) from pgbench_history')" = "$rows" ] || { echo "rows are missing" >&2; return 1; }
    note "the table is back, with all its $rows rows, and the server takes writes again"
    run pg_ctl -D "$restored" -s stop -m fast

    bold "$kind: the same backup, opened without pgkeep"
    local bundle
    bundle=$(cd "$scratch" && find "$kind-repository" -name '1.tar.zst*' | head -n 1)
    if [ "$kind" = encrypted ]; then
        run sh -c "age -d -i identity.txt $bundle | zstd -dc | tar t | head -n 5"
    else
        run sh -c "zstd -dc $bundle | tar t | head -n 5"
    fi
}

one_round clear
one_round encrypted
bold "done in $((SECONDS - started)) s"
