#!/bin/bash
# Runs rings of tests, one after the other, and adds up what they say.
#
#   tests/stand/rings.sh RING...       lint | unit | system | boot | versions | faults | hosts
#
# A ring that fails does not keep the next ones from running, but it fails the whole. Test programs are told apart by
# where their source is: bins/*/tests and packaging/*/tests need no server, tests/tests does, and tests/hosts/tests boots hosts. Every ring builds the whole
# workspace, so that all share one build. Logs stay in target/rings.
# shellcheck disable=SC2317 # a ring is called by its name
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

logs=${CARGO_TARGET_DIR:-target}/rings
budget=${PGKEEP_BUDGET:-2400}
export PGKEEP_MUST_HAVE=${PGKEEP_MUST_HAVE-13,14,15,16,17,18}
export PGKEEP_SEED=${PGKEEP_SEED:-$(date +%Y%m%d)}
export CARGO_TERM_COLOR=never RUST_BACKTRACE=${RUST_BACKTRACE:-1}
# The tests choose their own.
unset PGDATA PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD PGPASSFILE PGSERVICE PGOPTIONS PGSSLMODE
unset PGKEEP_CONFIG PGKEEP_CLUSTER

# Prints `--test NAME` for every test program whose source is among the arguments.
programs() {
    local file
    for file in "$@"; do
        [[ -f $file ]] || continue
        [[ $file == */main.rs ]] && file=$(dirname "$file")
        printf -- '--test\n%s\n' "$(basename "$file" .rs)"
    done | awk 'NR % 2 == 0 && !seen[$0]++ { print "--test"; print }'
}

cargo_test() { cargo test --workspace --locked --no-fail-fast "$@"; }

# The tools themselves: tests run them as programs, and cargo test alone does not build all of them.
tools() { cargo build --workspace --bins --locked; }

# Waits for what is being installed meanwhile, and says what cannot be had: PGKEEP_INSTALL names the groups of install.sh.
stand() {
    [[ -z ${PGKEEP_INSTALL:-} ]] && return
    # shellcheck disable=SC2086 # they are words
    tests/stand/install.sh $PGKEEP_INSTALL || echo 'going on; the tests say what they miss'
}

# A ring without a test program passes nothing.
some() {
    (($#)) && return 0
    echo "no test program belongs to this ring"
    return 1
}

ring_lint() {
    local result=0 scripts
    cargo fmt --all --check || result=1
    cargo clippy --workspace --all-targets --locked -- -D warnings || result=1
    mapfile -t scripts < <(find . -path ./target -prune -o -name '*.sh' -print; echo .ci/run)
    if command -v shellcheck >/dev/null; then
        shellcheck -S warning "${scripts[@]}" || result=1
    else
        echo "SKIPPED: shellcheck is not installed"
    fi
    return "$result"
}

ring_unit() {
    local chosen result=0
    mapfile -t chosen < <(programs bins/*/tests/*.rs bins/*/tests/*/main.rs packaging/*/tests/*.rs)
    tools || return 1
    cargo_test --lib --bins "${chosen[@]}" || result=1
    cargo_test --doc || result=1
    return "$result"
}

# Stories wait for servers more than they compute: half as many again at a time as there are processors.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((($(nproc) * 3 + 1) / 2))}

# Of the versions between 15 and 18 and around a share, by the seed: `versions` runs all of them.
ring_system() {
    local chosen
    mapfile -t chosen < <(programs tests/tests/*.rs tests/tests/*/main.rs)
    stand
    some "${chosen[@]}" && tools && PGKEEP_SHARE=1 cargo_test "${chosen[@]}"
}

ring_versions() {
    local chosen
    mapfile -t chosen < <(programs tests/tests/*.rs tests/tests/*/main.rs)
    some "${chosen[@]}" && tools && cargo_test "${chosen[@]}" -- ::pg1
}

ring_faults() {
    local chosen
    mapfile -t chosen < <(programs tests/tests/fault*.rs tests/tests/fault*/main.rs)
    some "${chosen[@]}" && tools && cargo_test "${chosen[@]}"
}

# Of the hosts, one that boots: packages from a signed repository, units, upgrade, purge.
ring_boot() { tools && cargo_test --test host_packages -- bookworm; }

# Each test boots hosts of its own, and waits for them more than it computes.
ring_hosts() {
    local chosen
    mapfile -t chosen < <(programs tests/hosts/tests/*.rs)
    some "${chosen[@]}" && tools && RUST_TEST_THREADS=2 cargo_test "${chosen[@]}" -- --nocapture
}

# Prints "passed failed skipped" of a log. A test that skipped itself passed for cargo, but not for us.
count() {
    awk '
        /^test result: / { for (i = 2; i < NF; i++) {
            if ($(i + 1) ~ /^passed/) passed += $i
            if ($(i + 1) ~ /^failed/) failed += $i
            if ($(i + 1) ~ /^ignored/) ignored += $i } }
        /SKIPPED: / { skipped++ }
        END { print (passed > skipped ? passed - skipped : 0), failed + 0, ignored + skipped }' "$1"
}

run() {
    local ring=$1 log=$logs/$1.log from=$SECONDS left=$((budget - SECONDS)) status
    echo "== $ring"
    ((left > 0)) || left=1
    timeout --kill-after=30 "$left" "$BASH" "${BASH_SOURCE[0]}" --inside "$ring" </dev/null 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    local passed failed skipped
    read -r passed failed skipped < <(count "$log")
    if ((status == 124 || status == 137)); then
        echo "ring $ring: stopped, the $budget seconds are over" | tee -a "$log"
    fi
    # A ring that fails without a failed test (it did not build, or hung) is one failure.
    ((status != 0 && failed == 0)) && failed=1
    ((failed > 0)) && bad=1
    printf -v line '%-9s %5d s  %5d passed, %d failed, %d skipped' "$ring" $((SECONDS - from)) "$passed" "$failed" "$skipped"
    report+=("$line")
    mapfile -t -O "${#skips[@]}" skips < <(grep -o 'SKIPPED: .*' "$log" | sed "s/^SKIPPED:/$ring:/")
    all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed)) all_skipped=$((all_skipped + skipped))
}

if [[ ${1:-} == --inside ]]; then
    "ring_$2"
    exit
fi

for ring in "$@"; do
    declare -F "ring_$ring" >/dev/null || {
        echo "unknown ring: $ring" >&2
        exit 2
    }
done
mkdir -p "$logs" || exit 1
echo "PGKEEP_SEED=$PGKEEP_SEED PGKEEP_MUST_HAVE=$PGKEEP_MUST_HAVE"
bad=0 all_passed=0 all_failed=0 all_skipped=0 report=() skips=()
for ring in "$@"; do
    run "$ring"
done
echo
echo "== rings, seed $PGKEEP_SEED"
printf '%s\n' "${report[@]}"
if ((${#skips[@]})); then
    echo "== skipped"
    printf '%s\n' "${skips[@]}"
fi
((bad)) && echo "logs: $logs"
echo "$all_passed passed, $all_failed failed, $all_skipped skipped"
exit $bad
