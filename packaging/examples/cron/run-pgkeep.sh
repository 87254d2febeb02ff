#!/bin/bash
# Runs a job of pgkeep as its systemd unit would, where there is no systemd.
#
#   run-pgkeep JOB PROGRAM [ARGUMENT]...      run-pgkeep base-backup pgkeep-base-backup --quiet
#
# JOB is the unit's name without pgkeep-: full-backup, base-backup, prune, verify, restore-test, dump, sync, check. The
# cluster is PGKEEP_CLUSTER. A run that may succeed the next time (exit code 75, or killed, as by the kernel when memory
# is short) is repeated; then pgkeep-notify is told how the last one has ended. The exit code is that of the last run.
#
#   JOB_TRIES=6      how often a job runs at most
#   JOB_PAUSE=600    seconds between two runs
#   JOB_LOG=syslog   what is said goes to the system's log instead of stdout and stderr
set -u

if (($# < 2)) || [[ -z ${PGKEEP_CLUSTER:-} ]]; then
    echo 'usage: PGKEEP_CLUSTER=NAME run-pgkeep JOB PROGRAM [ARGUMENT]...' >&2
    exit 2
fi
job=$1
shift
[[ ${JOB_LOG:-} == syslog ]] && exec > >(logger --tag "pgkeep-$job") 2>&1

# Who stops a container or a shell means this script, too: the job ends as it is asked to, and is not run again.
asked=0 child=
stop() {
    asked=1
    [[ -n $child ]] && kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

# Waits for the last child, also when a signal came between. A pause is no job: its end says nothing.
await() {
    local code
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        code=$?
    done
    child=
    return "$code"
}

for ((try = 1; ; try++)); do
    "$@" &
    child=$!
    await
    code=$?
    # What the timer of the next minute does anyway is not repeated here, nor told.
    [[ $job == sync && $code == 75 ]] && exit 0
    ((asked || try >= ${JOB_TRIES:-6})) && break
    [[ $code == 75 || $code == 137 ]] || break
    echo "pgkeep-$job: ended with $code, and runs again in ${JOB_PAUSE:-600} s" >&2
    sleep "${JOB_PAUSE:-600}" &
    child=$!
    await
    ((asked)) && break
done

# A warning of a check is told by the metrics; critical and unknown fail.
[[ $job == check && $code == 1 ]] && code=0
ended=(success exited "$code")
if ((code > 128)); then
    ended=(signal killed $((code - 128)))
elif ((code)); then
    ended=(exit-code exited "$code")
fi
# A job's own word, its status file, comes first; this is what it cannot say itself. systemd's variables, systemd.exec(5).
# The unit names the cluster, which must not be said twice.
env -u PGKEEP_CLUSTER MONITOR_SERVICE_RESULT="${ended[0]}" MONITOR_EXIT_CODE="${ended[1]}" MONITOR_EXIT_STATUS="${ended[2]}" \
    pgkeep-notify --quiet --unit "pgkeep-$job@$PGKEEP_CLUSTER.service"
exit "$code"
