#!/bin/bash
# Puts packages into a repository for apt and signs it.
#
#   packaging/build-repository.sh REPOSITORY KEY PACKAGE.deb...
#
# REPOSITORY is a directory that any web server can serve; it is made if it is not there, and packages of earlier versions
# stay in it, so that hosts can go back. KEY names a secret key of gpg (GNUPGHOME decides where gpg looks). The same
# packages serve Debian 12 and 13: both suites list them all. Beside them lie pgkeep.asc, the key, and pgkeep.sources, which
# a host needs in /etc/apt/sources.list.d (with the address filled in: PGKEEP_APT_URL).
#
# The signature is good for PGKEEP_APT_VALID days (none if not said: it does not run out).
set -euo pipefail

(($# >= 3)) || {
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
repository=$1 key=$2
shift 2
suites=(bookworm trixie)
url=${PGKEEP_APT_URL:-https://apt.example.com/pgkeep}

fail() {
    echo "build-repository: $*" >&2
    exit 1
}

for program in apt-ftparchive gpg dpkg-deb; do
    command -v "$program" >/dev/null || fail "$program is missing: apt-get install apt-utils gnupg dpkg"
done
gpg --batch --list-secret-keys "$key" >/dev/null 2>&1 || fail "gpg has no secret key $key"

# A file that apt has seen never changes under its name.
pool=$repository/pool/main/p/pgkeep
mkdir -p "$pool"
for package in "$@"; do
    dpkg-deb --info "$package" >/dev/null || fail "$package is no package"
    name=$pool/$(basename "$package")
    if [[ -e $name ]]; then
        cmp -s "$package" "$name" || fail "$name is there with other content: raise the version"
    else
        cp "$package" "$name.new" && chmod 0644 "$name.new" && mv "$name.new" "$name"
    fi
done

cd "$repository"
valid=()
[[ -n ${PGKEEP_APT_VALID:-} ]] &&
    valid=(-o "APT::FTPArchive::Release::ValidTime=$((PGKEEP_APT_VALID * 86400))")
for suite in "${suites[@]}"; do
    # Beside its place, and renamed there: who fetches meanwhile sees the old lists or the new ones.
    new=dists/.$suite.new
    rm -rf "$new" && mkdir -p "$new/main/binary-amd64"
    apt-ftparchive --arch amd64 packages pool >"$new/main/binary-amd64/Packages"
    gzip -9nk "$new/main/binary-amd64/Packages"
    apt-ftparchive -o APT::FTPArchive::Release::Origin=pgkeep -o APT::FTPArchive::Release::Label=pgkeep \
        -o "APT::FTPArchive::Release::Suite=$suite" -o "APT::FTPArchive::Release::Codename=$suite" \
        -o APT::FTPArchive::Release::Architectures=amd64 -o APT::FTPArchive::Release::Components=main \
        "${valid[@]}" release "$new" >"dists/.$suite.Release"
    mv "dists/.$suite.Release" "$new/Release"
    gpg --batch --yes --local-user "$key" --clearsign --output "$new/InRelease" "$new/Release"
    gpg --batch --yes --local-user "$key" --armor --detach-sign --output "$new/Release.gpg" "$new/Release"
    [[ -e dists/$suite ]] && mv "dists/$suite" "dists/.$suite.old"
    mv "$new" "dists/$suite"
    rm -rf "dists/.$suite.old"
done

gpg --batch --armor --export "$key" >pgkeep.asc
cat >pgkeep.sources <<SOURCES
Types: deb
URIs: $url
Suites: SUITE
Components: main
Architectures: amd64
Signed-By: /etc/apt/keyrings/pgkeep.asc
SOURCES
echo "$repository: $(grep -c '^Package:' "dists/${suites[0]}/main/binary-amd64/Packages") packages for ${suites[*]}"
