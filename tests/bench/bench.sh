#!/bin/bash
# Measures this project side by side with pg_basebackup, cp and Debian's pgbackrest: same data, same machine, same run.
#
#   tests/bench/bench.sh DIRECTORY-WITH-THE-TOOLS MEASURE RESULT.json
#
#   PGKEEP_BENCH_MB        size of each data set (1000); 60 for a quick look
#   PGKEEP_BENCH_ROUNDS    rounds, of which the median counts (5)
#   PGKEEP_BENCH_JOBS      workers, here and there (2)
#   PGKEEP_BENCH_SEGMENTS  WAL segments to archive, fetch and replay (48)
#   PGKEEP_BENCH_DATA      data sets: "pgbench realistic"
#   PGKEEP_BENCH_PARTS     parts: "backup restore incr push get recovery start", and "offsite" where root asks for it
#
# In a round every candidate runs once, in turn, so that what else the machine does hits all alike; a ratio is the median
# of the ratios within rounds. MEASURE is the harness's `measure`: wall, CPU of the process with its children, and the
# largest resident memory of one process. Beside MEASURE lies `elsewhere`, the servers of the part offsite. Nothing is kept but the result and the samples beside it.
set -euo pipefail

tools=$(cd "${1:?usage: bench.sh DIRECTORY-WITH-THE-TOOLS MEASURE RESULT.json}" && pwd)
measure=${2:?}
result=${3:?}
pg_bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
mb=${PGKEEP_BENCH_MB:-1000}
rounds=${PGKEEP_BENCH_ROUNDS:-5}
jobs=${PGKEEP_BENCH_JOBS:-2}
segments=${PGKEEP_BENCH_SEGMENTS:-48}
read -ra sets <<<"${PGKEEP_BENCH_DATA:-pgbench realistic}"
parts=" ${PGKEEP_BENCH_PARTS:-backup restore incr push get recovery start} "
port=54391
owner=postgres
((EUID == 0)) || owner=$(id -un)

# The name keeps sockets short enough; a data set has its own directory below.
scratch=$(mktemp -d "${PGKEEP_SCRATCH:-/var/tmp}/pgkeep-bench.XXXXXX")
samples=$scratch/samples.tsv

say() { printf 'bench: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
wanted() { [[ $parts == *" $1 "* ]]; }

as_owner() {
    local run=()
    ((EUID == 0)) && run=(runuser -u "$owner" --)
    (cd "${cwd:-$scratch}" && "${run[@]}" env -i PATH="$scratch/bin:$pg_bin:/usr/bin:/bin" LC_ALL=C.UTF-8 \
        PGHOST="$scratch" PGPORT=$port PGUSER=postgres PGDATABASE=postgres "$@")
}
sql() { as_owner psql -XAtqc "$1"; }

running=
stop_server() {
    [[ -n $running ]] || return 0
    as_owner pg_ctl -D "$running" stop -m "${1:-fast}" -w -s -t 300
    running=
}
start_server() {
    as_owner pg_ctl -D "$1" -l "$1.log" -w -s -t 300 start || { tail -n 20 "$1.log" >&2; die "the server does not start"; }
    running=$1
}
# Servers of S3 and SFTP, as long as a pipe is open.
elsewhere_pid='' elsewhere='' s3_endpoint='' s3_authority='' s3_credentials='' s3_key='' s3_secret=''
sftp_url='' sftp_key='' sftp_program='' sftp_objects=''
start_elsewhere() {
    local wait
    mkdir -p "$scratch/elsewhere" && mkfifo "$scratch/elsewhere/open"
    "$(dirname "$measure")/elsewhere" "$scratch/elsewhere" <"$scratch/elsewhere/open" >"$scratch/elsewhere/says" &
    elsewhere_pid=$!
    exec {elsewhere_open}>"$scratch/elsewhere/open"
    for ((wait = 0; wait < 100; wait++)); do
        grep -q ready "$scratch/elsewhere/says" && break
        sleep 0.1
    done
    # shellcheck source=/dev/null
    . "$scratch/elsewhere/says"
    [[ ${elsewhere:-} == ready && -n ${sftp_url:-} ]] || die 'the servers of S3 and SFTP do not start'
    chown -R "$owner" "$scratch/elsewhere"
    chmod 755 "$scratch/elsewhere"
    install -m 755 "$sftp_program" "$scratch/bin/ssh"
}
stop_elsewhere() {
    [[ -n $elsewhere_pid ]] || return 0
    exec {elsewhere_open}>&-
    wait "$elsewhere_pid"
    elsewhere_pid=
}
cleanup() {
    local code=$?
    trap - EXIT
    stop_server immediate || true
    stop_elsewhere || true
    [[ -n ${PGKEEP_KEEP:-} ]] && say "kept $scratch" || rm -rf "$scratch"
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# take TASK CANDIDATE ROUND COMMAND...: runs it and notes wall, CPU (microseconds) and memory (KiB).
take() {
    local task=$1 candidate=$2 round=$3 line code wall cpu rss
    shift 3
    as_owner measure "$scratch/took" "$@" >"$scratch/out" 2>&1 || true
    line=$(cat "$scratch/took" 2>/dev/null) && rm -f "$scratch/took"
    read -r code _ wall cpu rss <<<"$line"
    if [[ $code != 0 ]]; then
        tail -n 20 "$scratch/out" >&2
        die "$task by $candidate failed with ${code:-nothing}: $*"
    fi
    note "$task" "$candidate" "$round" "$wall" "$cpu" "$rss"
}
note() { printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$set" "$1" "$2" "$3" "$4" "${5:--}" "${6:--}" "${7:--}" >>"$samples"; }
# Adds the size in bytes of what lies at these places to the last sample.
sized() {
    local bytes
    bytes=$(du -sbc "$@" | tail -n 1 | cut -f 1)
    sed -i "\$s/[^\t]*\$/$bytes/" "$samples"
}

## Data and candidates

ours=(default level3)
declare -A level=([default]=2 [level3]=3)
peers=(pgbackrest pgbackrest-bundle)

write_pgkeep() { # CANDIDATE [SUFFIX LINE...]: a configuration; with a suffix a variant of it
    local one=$1 suffix=${2:-} place=$base/$1
    shift $(($# < 2 ? $# : 2))
    as_owner mkdir -p "$place"/{repository,state,spool}
    as_owner tee "$place$suffix.toml" >/dev/null <<EOF
state_directory = "$place/state"
spool_directory = "$place/spool"
metrics_directory = "$place/metrics"
jobs = $jobs
compression_level = ${level[$one]}
$(printf '%s\n' "$@")

[cluster.main]
data_directory = "$data"
host = "$scratch"
port = $port

[repository.local]
url = "file://$place/repository"
EOF
}
pgkeep() { echo "$base/$1.toml"; }

write_pgbackrest() { # CANDIDATE LINE...
    local one=$1 place=$base/$1
    shift
    as_owner mkdir -p "$place"/{repository,spool,lock,log}
    as_owner tee "$place.conf" >/dev/null <<EOF
[global]
repo1-path=$place/repository
repo1-retention-full=99
compress-type=zst
compress-level=3
process-max=$jobs
start-fast=y
log-level-console=error
log-level-file=off
lock-path=$place/lock
log-path=$place/log
spool-path=$place/spool
archive-get-queue-max=1GiB
$(printf '%s\n' "$@")

[main]
pg1-path=$data
pg1-socket-path=$scratch
pg1-port=$port
pg1-user=postgres
EOF
}
pgbackrest() { as_owner pgbackrest --config="$base/$1.conf" --stanza=main "${@:2}"; }

fill_pgbench() {
    as_owner pgbench -i -q -s $((mb / 16 + 1)) >/dev/null 2>&1
    as_owner pgbench -n -c 4 -t 500 >/dev/null 2>&1
}
# A row on about every hundredth page.
change_pgbench() { sql "update pgbench_accounts set abalance = abalance + 1 where aid % 6100 = $1"; }
change_realistic() { sql "update people set balance = balance + 1 where id % 1000 = $1"; }
write_pgbench() { as_owner pgbench -n -c 4 -t 2000 >/dev/null 2>&1; }

# Rows as applications have them: names, addresses, times, amounts, documents.
fill_realistic() {
    sql "create table people (id bigint primary key, name text, email text, born date, created timestamptz, seen timestamptz,
             balance numeric(12,2), token uuid, profile jsonb);
         create index on people (email); create index on people (created); create sequence ids"
    while (($(sql "select pg_database_size('postgres') / 1000000") < mb)); do
        sql "insert into people
             select id, first || ' ' || last, lower(first) || '.' || lower(last) || id || '@example.org',
                 date '1940-01-01' + (random() * 25000)::int, timestamptz '2020-01-01' + random() * interval '6 years',
                 now() - random() * interval '90 days', (random() * 100000)::numeric(12,2), gen_random_uuid(),
                 jsonb_build_object('city', (array['Berlin','Lyon','Porto','Gdansk','Turku','Graz','Leeds'])[1 + (random() * 6)::int],
                     'street', first || 'strasse ' || (random() * 200)::int, 'visits', (random() * 1000)::int,
                     'tags', jsonb_build_array(md5(random()::text), 'customer', last), 'newsletter', random() < 0.3)
             from (select nextval('ids') as id,
                 (array['Anna','Ben','Clara','David','Emma','Felix','Greta','Hugo','Ida','Jonas','Klara','Leon'])[1 + (random() * 11)::int] as first,
                 (array['Schmidt','Martin','Silva','Nowak','Virtanen','Gruber','Taylor','Rossi','Larsen','Novak'])[1 + (random() * 9)::int] as last
                 from generate_series(1, least(100000, $mb * 1000))) as names"
    done
    sql "vacuum analyze people"
}
turn=0
write_realistic() {
    turn=$((turn + 1))
    sql "update people set seen = now(), balance = balance + 1, profile = profile || jsonb_build_object('visits', $turn)
         where id % 7 = $turn % 7"
}

# (pgbackrest wants to find its name in archive_command.)
# PostgreSQL archives to whoever's turn it is; its own CPU time and that of the archiver count for nobody.
write_archiver() {
    as_owner tee "$base/pgkeep-or-pgbackrest.sh" >/dev/null <<EOF
turn=\$(cat $base/archiver)
case \$turn in
default+*) pgkeep-archive-push --config $(pgkeep default) "\$1" || exit 1 ;;
esac
case \${turn#default+} in
s3) exec pgkeep-archive-push --config $(pgkeep s3) "\$1" ;;
sftp) exec pgkeep-archive-push --config $(pgkeep sftp) "\$1" ;;
default) exec pgkeep-archive-push --config $(pgkeep default) "\$1" ;;
level3) exec pgkeep-archive-push --config $(pgkeep level3) "\$1" ;;
plain) exec cp "\$1" $base/plain/"\$2" ;;
*) exec pgbackrest --config=$base/\${turn#default+}.conf --stanza=main archive-push "\$1" ;;
esac
EOF
}
archive_to() { as_owner sh -c "echo $1 >$base/archiver"; }

prepare() {
    base=$scratch/$set data=$scratch/$set/data
    as_owner mkdir -p "$base/plain"
    say "$set: filling about $mb MB"
    as_owner initdb -D "$data" -A trust -U postgres -E UTF8 --locale=C --data-checksums -N >/dev/null
    as_owner tee -a "$data/postgresql.conf" >/dev/null <<EOF
listen_addresses = ''
unix_socket_directories = '$scratch'
port = $port
fsync = off
shared_buffers = 256MB
max_wal_size = 4GB
checkpoint_timeout = 1h
autovacuum = off
archive_mode = on
archive_command = 'sh $base/pgkeep-or-pgbackrest.sh %p %f'
log_line_prefix = '%n '
EOF
    local one
    for one in "${ours[@]}"; do
        write_pgkeep "$one"
        write_pgkeep "$one" -alone 'prefetch_limit = "0"' 'push_batch = 1'
    done
    write_pgbackrest pgbackrest
    write_pgbackrest pgbackrest-bundle repo1-bundle=y
    write_archiver
    as_owner sh -c "exec sed 's/^spool-path/archive-async=y\n&/' $base/pgbackrest.conf >$base/pgbackrest-async.conf"
    archive_to plain
    start_server "$data"
    "fill_$set"
    sql 'checkpoint'
    for one in "${ours[@]}"; do as_owner pgkeep-init --config "$(pgkeep "$one")" >/dev/null 2>&1; done
    for one in "${peers[@]}"; do pgbackrest "$one" stanza-create; done
}

## Parts

part_backup() {
    local round one last times=$rounds
    # Somebody who only restores needs one.
    wanted backup || times=1
    say "$set: full backup"
    for ((round = 1; round <= times; round++)); do
        for one in "${ours[@]}"; do
            archive_to "$one"
            rm -rf "$base/$one"/repository/main/backup/*
            take backup "$one" "$round" pgkeep-base-backup --config "$(pgkeep "$one")" --type full -q
            sized "$base/$one"/repository/main/backup
        done
        for one in "${peers[@]}"; do
            archive_to "$one"
            take backup "$one" "$round" pgbackrest --config="$base/$one.conf" --stanza=main --type=full backup
            pgbackrest "$one" expire --repo1-retention-full=1
            last=$(readlink -f "$base/$one"/repository/backup/main/latest)
            sized "$last"
        done
        archive_to plain
        take backup pg_basebackup "$round" pg_basebackup -D "$base/tar" -Ft -X none -c fast -Z "client-zstd:level=3" --no-manifest
        sized "$base/tar"
        rm -rf "$base/tar"
        take backup cp "$round" sh -c "cp -a $data $base/copy && sync -f $base/copy"
        sized "$base/copy"
        rm -rf "$base/copy"
    done
}

part_restore() {
    local round one
    say "$set: restore"
    for ((round = 1; round <= rounds; round++)); do
        for one in "${ours[@]}"; do
            take restore "$one" "$round" pgkeep-restore --config "$(pgkeep "$one")" --to "$base/restored" --target-immediate -q
            sized "$base/restored"
            rm -rf "$base/restored"
        done
        for one in "${peers[@]}"; do
            as_owner mkdir -m 700 "$base/restored"
            take restore "$one" "$round" pgbackrest --config="$base/$one.conf" --stanza=main --pg1-path="$base/restored" \
                --type=immediate restore
            sized "$base/restored"
            rm -rf "$base/restored"
        done
        take restore cp "$round" sh -c "cp -a $data $base/restored && sync -f $base/restored"
        sized "$base/restored"
        rm -rf "$base/restored"
    done
}

# A chain on the last full backup: each link after a hundredth of the pages changed, and another one after nothing did. Then the last
# link and the full backup are restored.
part_incr() {
    local round one full
    say "$set: incremental backup"
    # From here on all WAL goes to pgkeep's repository, whoever's turn it is: with a gap it would read everything.
    archive_to default
    as_owner pgkeep-base-backup --config "$(pgkeep default)" --type full -q
    full=$(basename "$(ls -d "$base"/default/repository/main/backup/*-full-* | tail -n 1)")
    for ((round = 1; round <= rounds; round++)); do
        "change_$set" "$round"
        for one in default "${peers[@]}"; do
            [[ $one == default ]] && archive_to default || archive_to "default+$one"
            for task in incr incr-idle; do
                if [[ $one == default ]]; then
                    take $task "$one" "$round" pgkeep-base-backup --config "$(pgkeep "$one")" --type incr -q
                    sized "$(ls -d "$base/$one"/repository/main/backup/* | tail -n 1)"
                else
                    take $task "$one" "$round" pgbackrest --config="$base/$one.conf" --stanza=main --type=incr backup
                    sized "$(readlink -f "$base/$one"/repository/backup/main/latest)"
                fi
            done
        done
    done
    for ((round = 1; round <= rounds; round++)); do
        for one in restore-full restore-incr; do
            [[ $one == restore-full ]] && which=(--backup "$full") || which=()
            take $one default "$round" pgkeep-restore --config "$(pgkeep default)" --to "$base/restored" --target-immediate -q "${which[@]}"
            sized "$base/restored"
            rm -rf "$base/restored"
        done
    done
    archive_to plain
}

# What goes over the wire: to servers of this machine, so that it is their and our work that counts, not a network's.
write_elsewhere() {
    local one
    for one in s3 sftp; do
        as_owner mkdir -p "$base/$one"/{state,spool}
        as_owner sh -c "sed -e 's#$base/default#$base/$one#' -e '/^\[repository/,\$d' $base/default.toml >$base/$one.toml"
    done
    as_owner tee -a "$base/s3.toml" >/dev/null <<EOF
[repository.offsite]
url = "s3://backups/$set"
endpoint = "$s3_endpoint"
ca_file = "$s3_authority"
credentials_file = "$s3_credentials"
EOF
    as_owner tee -a "$base/sftp.toml" >/dev/null <<EOF
[repository.offsite]
url = "$sftp_url"
ssh_key = "$sftp_key"
EOF
    write_pgbackrest pgbackrest-s3 repo1-type=s3 repo1-s3-bucket=backups repo1-s3-region=us-east-1 repo1-s3-uri-style=path \
        "repo1-s3-endpoint=$s3_endpoint" repo1-storage-verify-tls=n "repo1-s3-key=$s3_key" "repo1-s3-key-secret=$s3_secret"
    as_owner sed -i "s#^repo1-path=.*#repo1-path=/pgbackrest-$set#" "$base/pgbackrest-s3.conf"
    as_owner sh -c "sed 's/^spool-path/archive-async=y\n&/' $base/pgbackrest-s3.conf >$base/pgbackrest-s3-async.conf"
    for one in s3 sftp; do as_owner pgkeep-init --config "$(pgkeep "$one")" >/dev/null; done
    pgbackrest pgbackrest-s3 stanza-create
}

part_offsite() {
    local round one
    say "$set: backup and restore over S3 and SFTP"
    for ((round = 1; round <= rounds; round++)); do
        for one in s3 sftp; do
            archive_to "$one"
            take offsite-backup "$one" "$round" pgkeep-base-backup --config "$(pgkeep "$one")" --type full -q
        done
        archive_to pgbackrest-s3
        take offsite-backup pgbackrest-s3 "$round" pgbackrest --config="$base/pgbackrest-s3.conf" --stanza=main --type=full backup
    done
    archive_to plain
    for ((round = 1; round <= rounds; round++)); do
        for one in s3 sftp; do
            take offsite-restore "$one" "$round" pgkeep-restore --config "$(pgkeep "$one")" --to "$base/restored" --target-immediate -q
            sized "$base/restored"
            rm -rf "$base/restored"
        done
        as_owner mkdir -m 700 "$base/restored"
        take offsite-restore pgbackrest-s3 "$round" pgbackrest --config="$base/pgbackrest-s3.conf" --stanza=main \
            --pg1-path="$base/restored" --type=immediate restore
        sized "$base/restored"
        rm -rf "$base/restored"
    done
}

# Every waiting segment, one call after the other, as PostgreSQL makes them; the first ones take others along.
drain() { # CALL
    echo "for one in ${wal[*]}; do $1 pg_wal/\$one || exit; rm -f pg_wal/archive_status/\$one.ready; done"
}
forget_elsewhere() { # PLACE
    find "$1" -regextype posix-extended -regex '.*/[0-9A-F]{24}[.-][^/]*' -delete
    empty_of_files "$base"/{s3,sftp,pgbackrest-s3}/spool
}
part_drain() {
    local round one
    say "$set: ${#wal[@]} waiting segments to S3 and SFTP"
    cwd=$pushing
    for ((round = 1; round <= rounds; round++)); do
        for one in s3 sftp; do
            forget_elsewhere "$scratch/elsewhere/s3" && forget_elsewhere "$sftp_objects"
            ready "${wal[@]}"
            take drain "$one" "$round" sh -c "$(drain "pgkeep-archive-push --config $(pgkeep "$one")")"
        done
        forget_elsewhere "$scratch/elsewhere/s3"
        ready "${wal[@]}"
        take drain pgbackrest-s3 "$round" sh -c "$(drain "pgbackrest --config=$base/pgbackrest-s3-async.conf --stanza=main --pg1-path=$pushing archive-push")"
        unready
    done
    unset cwd
}

# A copy of the stopped cluster to recover from, then WAL, archived to a plain directory; then a directory that looks like
# a data directory with that WAL in it, so that pushes need no server.
make_wal() {
    local name
    say "$set: writing $segments segments of WAL"
    stop_server
    rm -f "$base"/plain/*
    as_owner cp -a "$data" "$base/old"
    archive_to plain
    start_server "$data"
    while (($(find "$base/plain" -name '????????????????????????' | wc -l) < segments)); do
        "write_$set"
    done
    stop_server
    mapfile -t wal < <(find "$base/plain" -name '????????????????????????' -printf '%f\n' | sort)
    wal=("${wal[@]:0:segments}")
    ((${#wal[@]} > 8)) || die 'too few segments to measure with'
    pushing=$base/pushing
    as_owner mkdir -p "$pushing"/{global,pg_wal/archive_status}
    as_owner cp "$data/global/pg_control" "$pushing/global/"
    as_owner cp "$data/PG_VERSION" "$pushing/"
    for name in "${wal[@]}"; do as_owner cp "$base/plain/$name" "$pushing/pg_wal/"; done
}

# What works in the background may remove a file first.
empty_of_files() { find "$@" -ignore_readdir_race -type f -delete; }
forget_wal() { # CANDIDATE
    find "$base/$1/repository" -regextype posix-extended -regex '.*/[0-9A-F]{24}[.-][^/]*' -delete
    empty_of_files "$base/$1/spool"
}
ready() { as_owner sh -c "for one in $*; do : >$pushing/pg_wal/archive_status/\$one.ready; done"; }
unready() { rm -f "$pushing"/pg_wal/archive_status/*; }

part_push() {
    local round one at
    say "$set: archive-push"
    cwd=$pushing
    # One segment, one process, nothing else waiting.
    for one in "${ours[@]}" pgbackrest; do forget_wal "$one"; done
    for ((round = 1; round <= rounds * 3; round++)); do
        at=${wal[$((round % ${#wal[@]}))]}
        for one in "${ours[@]}"; do
            forget_wal "$one"
            take push-cold "$one" "$round" pgkeep-archive-push --config "$base/$one-alone.toml" "pg_wal/$at"
            sized "$base/$one"/repository/main/wal
        done
        forget_wal pgbackrest
        take push-cold pgbackrest "$round" pgbackrest --config="$base/pgbackrest.conf" --stanza=main --pg1-path="$pushing" \
            archive-push "pg_wal/$at"
        sized "$base/pgbackrest"/repository/archive
    done
    # Many waiting: the first call takes the others along, later calls find them stored.
    for ((round = 1; round <= rounds; round++)); do
        forget_wal default
        forget_wal pgbackrest
        ready "${wal[@]:0:8}"
        take push-batch default "$round" pgkeep-archive-push --config "$(pgkeep default)" "pg_wal/${wal[0]}"
        take push-batch pgbackrest "$round" sh -c "for one in ${wal[*]:0:8}; do
            pgbackrest --config=$base/pgbackrest.conf --stanza=main --pg1-path=$pushing archive-push pg_wal/\$one || exit; done"
        forget_wal pgbackrest
        pushed_ahead pgbackrest-async
        for at in "${wal[@]:1:6}"; do
            take push-warm true "$round.$at" /bin/true
            take push-warm default "$round.$at" pgkeep-archive-push --config "$(pgkeep default)" "pg_wal/$at"
            take push-warm pgbackrest-async "$round.$at" pgbackrest --config="$base/pgbackrest-async.conf" --stanza=main \
                --pg1-path="$pushing" archive-push "pg_wal/$at"
        done
        unready
    done
    unset cwd
}

# The first call starts the process that pushes what is ready; wait until it has.
pushed_ahead() {
    local wait
    as_owner pgbackrest --config="$base/$1.conf" --stanza=main --pg1-path="$pushing" archive-push "pg_wal/${wal[0]}"
    for ((wait = 0; wait < 300; wait++)); do
        [[ -e $base/pgbackrest/spool/archive/main/out/${wal[7]}.ok ]] && return
        sleep 0.1
    done
    die 'pgbackrest pushed nothing ahead'
}

push_everything() {
    local one name
    cwd=$pushing
    for one in default pgbackrest; do forget_wal "$one"; done
    for name in "${wal[@]}"; do
        as_owner pgkeep-archive-push --config "$base/default-alone.toml" "pg_wal/$name"
        pgbackrest pgbackrest --pg1-path="$pushing" archive-push "pg_wal/$name"
    done
    unset cwd
}

get_ours() { echo "pgkeep-archive-get --config $1 $2 $3"; }
get_peer() { echo "pgbackrest --config=$1 --stanza=main --pg1-path=$pushing archive-get $2 $3"; }
spooled() { find "$1" -name "$2*" -not -name '*.part' -not -name '*.tmp' | grep -q .; }
fetched_ahead() { # SPOOL
    local wait
    for ((wait = 0; wait < 300; wait++)); do
        spooled "$1" "${wal[8]}" && return
        sleep 0.1
    done
    die "nothing was fetched ahead in $1"
}

part_get() {
    local round at to=$pushing/got
    say "$set: archive-get"
    cwd=$pushing
    # shellcheck disable=SC2046 # a command line of our own
    for ((round = 1; round <= rounds * 3; round++)); do
        at=${wal[$((round % ${#wal[@]}))]}
        take get-cold default "$round" $(get_ours "$base/default-alone.toml" "$at" "$to")
        rm -f "$to"
        take get-cold pgbackrest "$round" $(get_peer "$base/pgbackrest.conf" "$at" "$to")
        rm -f "$to"
        take get-cold cp "$round" cp "$base/plain/$at" "$to"
        rm -f "$to"
    done
    # shellcheck disable=SC2046
    for ((round = 1; round <= rounds; round++)); do
        empty_of_files "$base/default/spool" "$base/pgbackrest/spool"
        as_owner $(get_ours "$(pgkeep default)" "${wal[0]}" "$to")
        fetched_ahead "$base/default/spool"
        as_owner $(get_peer "$base/pgbackrest-async.conf" "${wal[0]}" "$to")
        fetched_ahead "$base/pgbackrest/spool"
        for at in "${wal[@]:1:6}"; do
            take get-ahead true "$round.$at" /bin/true
            # PostgreSQL removes what stands at the destination before it asks (xlogarchive.c).
            rm -f "$to"
            take get-ahead default "$round.$at" $(get_ours "$(pgkeep default)" "$at" "$to")
            cmp -s "$to" "$base/plain/$at" || die "fetched something else than $at"
            rm -f "$to"
            take get-ahead pgbackrest-async "$round.$at" $(get_peer "$base/pgbackrest-async.conf" "$at" "$to")
        done
    done
    unset cwd
}

# Replays all segments from a copy of the old cluster and notes the time between the first and the last that it asked for.
recover() { # CANDIDATE ROUND RESTORE_COMMAND
    local span again=$base/again
    empty_of_files "$base"/{default,pgbackrest}/spool
    as_owner cp -a "$base/old" "$again"
    as_owner touch "$again/recovery.signal"
    as_owner tee -a "$again/postgresql.conf" >/dev/null <<EOF
restore_command = '${3//@DATA@/$again}'
archive_mode = off
EOF
    running=$again
    as_owner pg_ctl -D "$again" -l "$again.log" -w -s -t 900 start || die 'recovery failed'
    for ((round_wait = 0; round_wait < 3000; round_wait++)); do
        [[ $(sql 'select pg_is_in_recovery()' 2>/dev/null) == f ]] && break
        sleep 0.1
    done
    stop_server immediate
    # Seconds since 1970 begin each line (%n).
    span=$(awk '/restored log file/ { if (!first) first = $1; last = $1; n++ } END { printf "%d %d", n, (last - first) * 1e6 }' \
        "$again.log")
    read -r n span <<<"$span"
    ((n >= ${#wal[@]} - 1)) || { tail -n 5 "$again.log" >&2; die "only $n segments were replayed with $1"; }
    note recovery "$1" "$2" $((span / (n - 1)))
    rm -rf "$again" "$again.log"
}

part_recovery() {
    local round
    say "$set: recovery"
    for ((round = 1; round <= rounds; round++)); do
        recover cp "$round" "cp $base/plain/%f %p"
        recover default "$round" "pgkeep-archive-get --config $(pgkeep default) %f %p"
        recover pgbackrest "$round" "pgbackrest --config=$base/pgbackrest.conf --stanza=main --pg1-path=@DATA@ archive-get %f \"%p\""
        recover pgbackrest-async "$round" \
            "pgbackrest --config=$base/pgbackrest-async.conf --stanza=main --pg1-path=@DATA@ archive-get %f \"%p\""
    done
}

# Instructions are the same whatever else the machine does.
part_start() {
    command -v valgrind >/dev/null || { say 'no valgrind: instructions are not counted'; return 0; }
    cwd=$pushing
    forget_wal default
    ready "${wal[@]:0:4}"
    as_owner pgkeep-archive-push --config "$(pgkeep default)" "pg_wal/${wal[0]}"
    count() {
        as_owner valgrind --tool=callgrind --callgrind-out-file=/dev/null "${@:2}" 2>&1 |
            awk -v what="$1" '/Collected/ { print what "\t" $NF }' >>"$scratch/instructions.tsv"
    }
    count 'archive-push, warm' pgkeep-archive-push --config "$(pgkeep default)" "pg_wal/${wal[1]}"
    count 'archive-push --version' pgkeep-archive-push --version
    count '/bin/true' /bin/true
    unready
    unset cwd
}

## Result

median='function median(list, n,   i, j, t) {
    for (i = 2; i <= n; i++) { t = list[i]; for (j = i - 1; j > 0 && list[j] > t; j--) list[j + 1] = list[j]; list[j + 1] = t }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2 }'

# One line for each data set, task and candidate: medians, and ratios to the reference, whose rounds are compared one by one.
summary() {
    awk -F '\t' -v OFS='\t' "$median"'
        function reference(task) { return task == "recovery" ? "cp" : task ~ /warm|ahead/ ? "true" : task ~ /offsite|drain/ ? "pgbackrest-s3" : "pgbackrest" }
        { key = $1 OFS $2 OFS $3
          if (!(key in count)) order[++keys] = key
          count[key]++
          for (f = 5; f <= 8; f++) { value[key, f, count[key]] = $f; by_round[key, f, $4] = $f }
          round[key, count[key]] = $4 }
        END { for (k = 1; k <= keys; k++) {
            key = order[k]; split(key, part, OFS); other = part[1] OFS part[2] OFS reference(part[2]); line = key OFS reference(part[2]) OFS count[key]
            for (f = 5; f <= 8; f++) {
                delete list; n = 0
                for (i = 1; i <= count[key]; i++) if (value[key, f, i] != "-") list[++n] = value[key, f, i]
                line = line OFS (n ? median(list, n) : "-") }
            for (f = 5; f <= 8; f++) {
                delete list; n = 0
                for (i = 1; i <= count[key]; i++) {
                    theirs = by_round[other, f, round[key, i]]
                    if (value[key, f, i] != "-" && theirs != "-" && theirs > 0) list[++n] = value[key, f, i] / theirs }
                line = line OFS (n ? median(list, n) : "-") }
            print line } }' "$samples"
}
table() {
    awk -F '\t' '
        function ms(us) { return us == "-" ? "-" : us < 20000 ? sprintf("%.1f ms", us / 1e3) : us < 1e6 ? sprintf("%.0f ms", us / 1e3) : sprintf("%.2f s", us / 1e6) }
        function mb(b) { return b == "-" ? "-" : sprintf("%.1f", b / 1e6) }
        function ratio(r) { return r == "-" ? "-" : sprintf("%.2f", r) }
        BEGIN { f = "| %-9s | %-10s | %-17s | %9s | %9s | %8s | %9s | %6s | %6s | %6s |\n"
            printf f, "data", "task", "candidate", "wall", "CPU", "MiB RSS", "MB stored", "wall", "CPU", "size"
            printf f, "---", "---", "---", "---", "---", "---", "---", "---", "---", "---" }
        { if ($2 == "recovery") wall = $6 > 0 ? sprintf("%.1f/s", 1e6 / $6) : "-"; else wall = ms($6)
          printf f, $1, $2, $3, wall, ms($7), ($8 == "-" ? "-" : sprintf("%.0f", $8 / 1024)), mb($9), ratio($10), ratio($11), ratio($13) }' "$1"
}
json() {
    printf '{\n  "date": "%s",\n  "machine": {"processor": "%s", "cores": %s, "sha_ni": %s, "kernel": "%s", "load_before": %s},\n' \
        "$(date -u +%FT%TZ)" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" \
        "$(grep -qw sha_ni /proc/cpuinfo && echo true || echo false)" "$(uname -r)" "$load_before"
    printf '  "versions": {"pgkeep": "%s", "pgbackrest": "%s", "postgresql": "%s"},\n' \
        "$("$tools/pgkeep-archive-push" --version)" "$(command pgbackrest version)" "$("$pg_bin/postgres" --version)"
    printf '  "settings": {"megabytes": %s, "rounds": %s, "jobs": %s, "segments": %s, "profile": "%s"},\n' \
        "$mb" "$rounds" "$jobs" "$segments" "${PGKEEP_BENCH_PROFILE:-release}"
    printf '  "instructions": {'
    [[ ! -e $scratch/instructions.tsv ]] || awk -F '\t' '{ printf "%s\"%s\": %s", (NR > 1 ? ", " : ""), $1, $2 }' "$scratch/instructions.tsv"
    printf '},\n  "results": [\n'
    awk -F '\t' 'function num(v) { return v == "-" ? "null" : v + 0 }
        { printf "%s    {\"data\": \"%s\", \"task\": \"%s\", \"candidate\": \"%s\", \"reference\": \"%s\", \"samples\": %d, ", (NR > 1 ? ",\n" : ""), $1, $2, $3, $4, $5
          printf "\"wall_us\": %s, \"cpu_us\": %s, \"rss_kib\": %s, \"stored_bytes\": %s, ", num($6), num($7), num($8), num($9)
          printf "\"ratio\": {\"wall\": %s, \"cpu\": %s, \"rss\": %s, \"stored\": %s}}", num($10), num($11), num($12), num($13) }
        END { print "" }' "$1"
    printf '  ]\n}\n'
}

report() {
    summary >"$scratch/summary.tsv"
    mkdir -p "$(dirname "$result")"
    json "$scratch/summary.tsv" >"$result"
    cp "$samples" "${result%.json}.tsv"
    echo "The three columns on the right are ratios: to pgbackrest (zst level 3), recovery to plain cp, warm calls to /bin/true."
    table "$scratch/summary.tsv"
    [[ ! -e $scratch/instructions.tsv ]] || { echo; awk -F '\t' '{ printf "%s: %.1f million instructions\n", $1, $2 / 1e6 }' "$scratch/instructions.tsv"; }
    echo "written to $result"
}

type -P pgbackrest >/dev/null || die 'no pgbackrest: tests/stand/install.sh peers'
mkdir "$scratch/bin"
cp "$tools"/pgkeep-{archive-get,archive-push,base-backup,init,restore} "$measure" "$scratch/bin/"
chown -R "$owner" "$scratch"
chmod 755 "$scratch" "$scratch/bin"
: >"$samples"
load_before=$(cut -d ' ' -f 1 /proc/loadavg)
say "pgbackrest: $(command pgbackrest version), $(nproc) cores, load $load_before"

for set in "${sets[@]}"; do
    prepare
    wanted backup || wanted restore || wanted incr && part_backup
    wanted restore && part_restore
    wanted incr && part_incr
    if wanted offsite; then
        start_elsewhere
        write_elsewhere
        part_offsite
    fi
    if wanted push || wanted get || wanted recovery || wanted start || wanted offsite; then
        make_wal
        wanted offsite && part_drain
        wanted push && part_push
        wanted start && [[ ! -e $scratch/instructions.tsv ]] && part_start
        wanted get || wanted recovery && push_everything
        wanted get && part_get
        wanted recovery && part_recovery
    fi
    stop_server
    stop_elsewhere
    [[ -n ${PGKEEP_KEEP:-} ]] || rm -rf "$base"
done
report
