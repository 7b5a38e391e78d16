# SPDX-License-Identifier: MIT
# After vm_powercut.sh: the journal is replayed, and what was durable is all there.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

step attach attach
step replay /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step compare same_tree /tmp/tree.sums /mnt/tree
step umount /usr/bin/umount /mnt
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step detach /usr/sbin/nbd-client -d /dev/nbd0
step no_errors no_errors
