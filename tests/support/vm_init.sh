#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# First process of the test VM (tests/support/vm.py). One line per step that passed: "PASS step".
# The first step that fails is the last: "FAIL step", and the machine goes down.
# From the kernel's command line: port=TCP port of the server on the host, export=name,
# script=name of the script to run, and what else a script wants.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
# Busybox has a mke2fs, mount and nbd-client of its own: it goes last in the path, and the
# scripts call the real ones by their full path.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /applets
/bin/busybox --install -s /applets
PATH=$PATH:/applets

end() {
    sync
    poweroff -f
}

step() { # name command...
    name=$1
    shift
    if "$@" > /tmp/output 2>&1; then
        echo "PASS $name"
    else
        code=$?
        cat /tmp/output
        echo "FAIL $name: $code"
        end
    fi
}

attach() { # extra arguments of nbd-client...
    /usr/sbin/nbd-client -N "$export" 10.0.2.2 "$port" /dev/nbd0 "$@"
}

checksums() { # directory
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum && find . -type l -exec readlink {} \;)
}

same_tree() { # checksums of the original, directory
    checksums "$2" > /tmp/found
    cmp "$1" /tmp/found
}

no_errors() {
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|Connection timed out'
}

setup() {
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    for word in $(cat /proc/cmdline); do
        case $word in
            port=* | read_only_port=* | export=* | size=* | seconds=* | script=*) eval "$word" ;;
            fresh=* | connections=*) eval "$word" ;;
        esac
    done
    while read -r module; do
        insmod "/modules/$module" || return 1
    done < /modules/order
    ip link set lo up && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0
    checksums /tree > /tmp/tree.sums
}

step boot setup
. "/scripts/$script"
echo "PASS end"
end
