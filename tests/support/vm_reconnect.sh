# SPDX-License-Identifier: MIT
# A file system in use for "seconds" while its server is restarted; "working" is when that may begin.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

now() {
    cut -d. -f1 /proc/uptime
}

connected() {
    for _ in $(seq 300); do
        ! grep -q 'nbd0: connected' /tmp/reconnect || return 0
        sleep 0.2
    done
    return 1
}

nobody_noticed() { # requests of the connection that ended are sent again when they time out
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)'
}

work() {
    round=0
    end=$(($(now) + seconds))
    while [ "$(now)" -lt "$end" ]; do
        from=/tree/large/$((round % 3))
        to=/mnt/round-$((round % 8))
        dd if="$from" of="$to" bs=64k conv=fsync && echo 3 > /proc/sys/vm/drop_caches && cmp "$from" "$to" || return 1
        round=$((round + 1))
    done
}

step attach attach -timeout 5
/bin/nbd-reconnect nbd0 10.0.2.2 "$port" "$export" 120 2>&1 | tee /tmp/reconnect &
step reconnect connected
step mkfs /usr/sbin/mke2fs -q -t ext4 /dev/nbd0
step mount /usr/bin/mount -t ext4 /dev/nbd0 /mnt
echo "working"
step work work
echo "rounds=$round"
step umount /usr/bin/umount /mnt
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step detach /usr/sbin/nbd-client -d /dev/nbd0
wait
step nobody_noticed nobody_noticed
