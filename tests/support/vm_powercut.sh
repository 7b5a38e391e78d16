# SPDX-License-Identifier: MIT
# A tree made durable, then writes without end, until the power goes.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

step attach attach
step mkfs /usr/sbin/mke2fs -q -t ext4 /dev/nbd0
step mount /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step copy /usr/bin/rsync -aH /tree/ /mnt/tree/
step durable sync
round=0
while true; do
    dd if=/dev/urandom of=/mnt/noise-$((round % 8)) bs=64k count=8 conv=fsync 2> /dev/null
    round=$((round + 1))
    echo "round $round"
done
