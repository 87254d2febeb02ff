# shellcheck shell=bash
# shellcheck disable=SC2154 # variables of install.sh
# Trees of Debian releases that boot as hosts, and Ansible to configure them. Read by install.sh, whose functions it uses.

ansible=2.19.14
ansible_lint=26.10.1

# What every tree has: a server with PostgreSQL as its owner would have it, and nothing of pgkeep.
tree_packages=(systemd systemd-sysv dbus udev iproute2 iputils-ping openssh-server sudo ca-certificates curl
    python3 python3-apt age zstd postgresql)
# A member of a cluster needs more; only this release has Patroni with etcd as they are wanted.
member_packages=(patroni python3-etcd etcd-server etcd-client prometheus prometheus-node-exporter)

# Runs a program in a tree, with what apt needs to reach the mirror.
in_tree() {
    local tree=$1
    shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$tree" "$@"
}

# make_tree RELEASE DIRECTORY
make_tree() {
    local release=$1 tree=$2/tree from names=("${tree_packages[@]}")
    from=$(mirror) && [[ -n $from ]] || return 1
    [[ $release == trixie ]] && names+=("${member_packages[@]}")
    debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$release" "$tree" "$from" || return 1
    # How this machine reaches the mirror: only for as long as the tree is made.
    cp -f /etc/resolv.conf "$tree/etc/resolv.conf"
    find /etc/apt/apt.conf.d -name '*proxy*' -exec cp -t "$tree/etc/apt/apt.conf.d" {} +
    # Nothing is started while it is made, and no cluster created.
    printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" && chmod 0755 "$tree/usr/sbin/policy-rc.d"
    mkdir -p "$tree/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$tree/etc/postgresql-common/createcluster.d/tree.conf"
    in_tree "$tree" apt-get update -q &&
        in_tree "$tree" apt-get install -y -q --no-install-recommends "${names[@]}" || return 1
    if [[ $release == trixie ]]; then
        mkdir "$2/consul" && other_release bullseye "$2/consul" &&
            unpack_packages "$2/consul" consul && cp "$2"/consul/debs/consul_*.deb "$tree/var/cache/consul.deb" &&
            in_tree "$tree" apt-get install -y -q --no-install-recommends /var/cache/consul.deb || return 1
        rm -rf "$2/consul"
    fi
    local unit
    for unit in patroni etcd prometheus prometheus-node-exporter consul postgresql; do
        in_tree "$tree" systemctl disable "$unit" || true
    done
    in_tree "$tree" systemctl enable systemd-networkd ssh || return 1
    # Each host makes its own when it boots first.
    : >"$tree/etc/machine-id"
    rm -f "$tree"/etc/ssh/ssh_host_* "$tree/usr/sbin/policy-rc.d" "$tree/etc/resolv.conf" "$tree"/var/cache/apt/archives/*.deb
    rm -f "$tree/etc/hostname" "$tree/var/lib/dbus/machine-id"
    # Hosts have no way out: packages come from where a test says.
    : >"$tree/etc/apt/sources.list"
}

make_ansible() { python3 -m venv "$1" && "$1/bin/python" -m pip install -q "ansible-core==$ansible" "ansible-lint==$ansible_lint"; }

# What makes hosts boot, and the trees of the releases that are named.
trees() {
    local release result=0
    packages debootstrap systemd-container iproute2 openssh-client gnupg apt-utils curl || return 1
    for release in "$@"; do
        beside "$stand/tree-$release-1" make_tree "$release" || result=1
    done
    return $result
}

playbooks() {
    packages python3-venv openssh-client || return 1
    beside "$stand/ansible-$ansible" make_ansible
}

hosts() {
    local result=0
    trees bookworm trixie || result=1
    playbooks || result=1
    return $result
}
