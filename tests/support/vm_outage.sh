# SPDX-License-Identifier: MIT
# Files written, made durable, read from the disk and compared for "seconds", whatever happens to it.
# "longest=" is the longest round in seconds.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

now() {
    cut -d. -f1 /proc/uptime
}

one_round() { # source target
    dd if="$1" of="$2" bs=64k conv=fsync && echo 3 > /proc/sys/vm/drop_caches && cmp "$1" "$2"
}

rounds() {
    round=0
    longest=0
    end=$(($(now) + seconds))
    while [ "$(now)" -lt "$end" ]; do
        begin=$(now)
        one_round "/tree/large/$((round % 3))" "/mnt/round-$((round % 16))" || return 1
        took=$(($(now) - begin))
        [ "$took" -le "$longest" ] || longest=$took
        round=$((round + 1))
    done
}

step attach attach
step mkfs /usr/sbin/mke2fs -q -t ext4 /dev/nbd0
step mount /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step copy /usr/bin/rsync -aH /tree/ /mnt/tree/
echo "working"
step rounds rounds
echo "rounds=$round longest=$longest"
step compare same_tree /tmp/tree.sums /mnt/tree
step umount /usr/bin/umount /mnt
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step detach /usr/sbin/nbd-client -d /dev/nbd0
step no_errors no_errors
