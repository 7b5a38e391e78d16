# SPDX-License-Identifier: MIT
# What is on the file system is told, then files are replaced and removed until the power goes. What is
# about to be done is said before ("BEGIN name checksum"), and again once it is durable ("DURABLE ..."):
# a removed file's checksum is "none", that of one that may be any mixture "any".
# fresh=1: make the file system. connections=how many.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

files() {
    (cd /mnt && for name in slot-*; do [ ! -f "$name" ] || echo "$name $(sum "$name")"; done) > /tmp/files
}

sum() { # file
    sha256sum < "$1" | cut -c 1-32
}

replace() { # slot
    head -c $((RANDOM * 6)) /dev/urandom > "/mnt/new-$1" || return 1
    now=$(sum "/mnt/new-$1")
    echo "BEGIN $1 $now"
    sync "/mnt/new-$1" && mv "/mnt/new-$1" "/mnt/$1" && sync /mnt || return 1
    echo "DURABLE $1 $now"
}

overwrite() { # slot: a page of it, in place; until that is durable it may be any mixture
    [ -f "/mnt/$1" ] || return 0
    echo "BEGIN $1 any"
    dd if=/dev/urandom of="/mnt/$1" bs=4096 seek=1 count=1 conv=notrunc,fsync 2> /dev/null || return 1
    echo "DURABLE $1 $(sum "/mnt/$1")"
}

remove() { # slot
    echo "BEGIN $1 none"
    rm -f "/mnt/$1" && sync /mnt || return 1
    echo "DURABLE $1 none"
}

noise() { # in the background, not waited for
    while dd if=/dev/urandom of="/mnt/noise-$((RANDOM % 4))" bs=16k count=64 seek=$((RANDOM % 64)) conv=notrunc 2> /dev/null; do
        sleep 1
    done
}

step attach attach -C "$connections"
if [ "$fresh" = 1 ]; then
    step mkfs /usr/sbin/mke2fs -q -t ext4 /dev/nbd0
fi
step mount /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step files files
sed 's/^/FOUND /' /tmp/files
step umount /usr/bin/umount /mnt
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step mount_again /usr/bin/mount -t ext4 /dev/nbd0 /mnt
noise &
while true; do
    slot=slot-$((RANDOM % 24))
    case $((RANDOM % 8)) in
        0) remove $slot ;;
        1 | 2) overwrite $slot ;;
        *) replace $slot ;;
    esac || break
done
echo "FAIL writing"
end
