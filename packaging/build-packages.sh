#!/bin/bash
# Makes Debian packages of programs that are built already.
#
#   packaging/build-packages.sh PROGRAMS PAGES [VERSION]
#
# PROGRAMS is the directory with the executables, such as target/release; PAGES the one that `pages` has filled. The packages
# go to target/debian (or PGKEEP_DEBIAN). The version is that of Cargo.toml unless it is given. Two builds of the same
# commit and programs give the same bytes: times are those of the last commit, or SOURCE_DATE_EPOCH.
set -euo pipefail

cd "$(dirname "$0")/.."
(($# >= 2)) || {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
programs=$(realpath "$1") pages=$(realpath "$2")
version=${3:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
out=$(realpath -m "${PGKEEP_DEBIAN:-target/debian}")
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}

# debhelper wants a source tree with the packages' definition beside what they hold.
staging=$out/staging
rm -rf "$staging"
mkdir -p "$staging/bin" "$staging/pages" "$staging/examples"
for program in "$programs"/pgkeep-*; do
    [[ -x $program && -f $program ]] && install -m 0755 "$program" "$staging/bin/"
done
cp -R "$pages/." "$staging/pages/"
cp -R packaging/debian "$staging/debian"
cp -R packaging/systemd packaging/consul packaging/prometheus packaging/grafana docs README.md "$staging/"
cp packaging/pgkeep.toml "$staging/examples/pgkeep.toml"
cp bins/common/FORMAT.md bins/common/src/postgres/WALMAP.md CONTRIBUTING.md "$staging/"
# Beside the others it would be taken for that of the package.
cp CHANGELOG.md "$staging/docs/"
# Documents link to each other, and to files that lie elsewhere once they are installed.
mkdir "$staging/ansible"
cp ansible/README.md "$staging/ansible/"
cp -R packaging/examples/. "$staging/examples/"
sed -i 's|](\(\.\./\)*LICENSE-[A-Z]*)|](copyright)|g
    s|bins/common/FORMAT\.md|FORMAT.md|g
    s|src/postgres/WALMAP\.md|WALMAP.md|g
    s|packaging/pgkeep\.toml|examples/pgkeep.toml|g
    s|packaging/examples/|examples/|g
    s,](\(\.\./\)*packaging/\(prometheus\|grafana\|consul\)/,](/usr/share/pgkeep/\2/,g' \
    "$staging"/{README,FORMAT,CONTRIBUTING}.md "$staging"/{docs,ansible}/*.md
sed -i 's|](CHANGELOG|](docs/CHANGELOG|g' "$staging"/{README,CONTRIBUTING}.md
sed -i 's|](\.\./CHANGELOG|](CHANGELOG|g' "$staging"/docs/*.md
sed -i 's|](docs/|](|g; s|](ansible/|](../ansible/|g' "$staging/docs/CHANGELOG.md"
sed -i 's|](\.\./\.\./\.\./docs/|](../../docs/|g' "$staging"/examples/*/README.md
mv "$staging/debian/pgkeep.toml" "$staging/pgkeep.toml"
find "$staging" -exec chmod u+w,go-w {} +
cat >"$staging/debian/changelog" <<END
pgkeep ($version) unstable; urgency=medium

  * Version $version: see CHANGELOG.md.

 -- pgkeep maintainers <maintainers@pgkeep.example>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END

(cd "$staging" && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps >"$out/build.log" 2>&1) || {
    tail -n 30 "$out/build.log" >&2
    exit 1
}
rm -rf "$staging"
printf '%s\n' "$out"/*_"$version"_*.deb
