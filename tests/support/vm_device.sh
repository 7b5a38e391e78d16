# SPDX-License-Identifier: MIT
# The export as a block device: its limits, discarding, writing zeros, holes of files; read-only, from
# another server on the same store at read_only_port; and inside TLS, with the certificates in /files.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

limits() {
    cd /sys/block/nbd0/queue || return 1
    grep -H . logical_block_size minimum_io_size write_cache fua rotational discard_max_bytes
    [ "$(blockdev --getsize64 /dev/nbd0)" = "$size" ] && [ "$(blockdev --getro /dev/nbd0)" = 0 ] \
        && [ "$(cat logical_block_size)" = 512 ] && [ "$(cat minimum_io_size)" = 512 ] \
        && [ "$(cat write_cache)" = "write back" ] && [ "$(cat fua)" = 1 ] \
        && [ "$(cat rotational)" = 0 ] && [ "$(cat discard_max_bytes)" != 0 ]
}

udevd() { # it is udevadm by another name
    [ "$(cat /sys/block/nbd0/queue/max_sectors_kb)" = 128 ] || return 1
    mkdir /run && ln -s /usr/bin/udevadm /tmp/systemd-udevd && /tmp/systemd-udevd --daemon
}

larger_requests() { # of the device that was just attached, by docs/systemd/60-nbd.rules
    /usr/bin/udevadm settle && [ "$(cat /sys/block/nbd0/queue/max_sectors_kb)" = 4096 ]
}

larger_blocks() {
    [ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 4096 ]
}

fill() { # 2 MiB of the device, and a copy of them
    head -c 2097152 /dev/urandom > /tmp/data && dd if=/tmp/data of=/dev/nbd0 bs=64k conv=fsync
}

zeros_at() { # which 256 KiB of the copy
    dd if=/dev/zero of=/tmp/data bs=256k seek="$1" count=1 conv=notrunc
}

same_as_copy() {
    echo 3 > /proc/sys/vm/drop_caches
    head -c 2097152 /dev/nbd0 | cmp - /tmp/data
}

discard() {
    /usr/sbin/blkdiscard -o 512K -l 256K /dev/nbd0 && zeros_at 2 && same_as_copy
}

zeroes() {
    /usr/sbin/blkdiscard -z -o 1280K -l 256K /dev/nbd0 && zeros_at 5 && sync && same_as_copy
}

punch() { # holes in a file, at places that are no blocks, too
    cp /tmp/data /mnt/file && sync \
        && /usr/bin/fallocate -p -o 1536K -l 256K /mnt/file && zeros_at 6 \
        && /usr/bin/fallocate -p -o 1000 -l 300000 /mnt/file \
        && dd if=/dev/zero of=/tmp/data bs=1000 seek=1 count=300 conv=notrunc && sync
}

same_file() {
    echo 3 > /proc/sys/vm/drop_caches
    cmp "/mnt/${1:-file}" /tmp/data
}

refuses_writes() {
    [ "$(blockdev --getro /dev/nbd1)" = 1 ] && ! dd if=/dev/zero of=/dev/nbd1 bs=512 count=1
}

attach_tls() {
    /usr/sbin/nbd-client -N "$export" 10.0.2.2 "$port" /dev/nbd2 -C 4 -tlshostname localhost \
        -cacertfile /files/ca-cert.pem -certfile /files/client-cert.pem -keyfile /files/client-key.pem
}

step attach attach -C 4
step limits limits
step fill fill
step discard discard
step zeroes zeroes
step mkfs /usr/sbin/mke2fs -q -t ext4 -b 4096 /dev/nbd0
step mount /usr/bin/mount -t ext4 -o discard /dev/nbd0 /mnt
step punch punch
step hole same_file
step umount /usr/bin/umount /mnt
step detach /usr/sbin/nbd-client -d /dev/nbd0

step attach_read_only /usr/sbin/nbd-client -N "$export" 10.0.2.2 "$read_only_port" /dev/nbd1
step refuses_writes refuses_writes
step mount_read_only /usr/bin/mount -t ext4 -o ro /dev/nbd1 /mnt
step compare_read_only same_file
step umount_read_only /usr/bin/umount /mnt
step detach_read_only /usr/sbin/nbd-client -d /dev/nbd1

step attach_tls attach_tls
step mount_tls /usr/bin/mount -t ext4 /dev/nbd2 /mnt
step compare_tls same_file
step copy_tls cp /mnt/file /mnt/copy
step umount_tls /usr/bin/umount /mnt
step detach_tls /usr/sbin/nbd-client -d /dev/nbd2

step udevd udevd
step attach_blocks attach -b 4096
step larger_requests larger_requests
step larger_blocks larger_blocks
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step mount_blocks /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step compare_blocks same_file copy
step umount_blocks /usr/bin/umount /mnt
step detach_blocks /usr/sbin/nbd-client -d /dev/nbd0
