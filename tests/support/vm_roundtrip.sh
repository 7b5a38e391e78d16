# SPDX-License-Identifier: MIT
# A file system on the export, used the way people use one, and again after detaching.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

step attach attach
step mkfs /usr/sbin/mke2fs -q -t ext4 /dev/nbd0
step mount /usr/bin/mount -t ext4 /dev/nbd0 /mnt
step copy /usr/bin/rsync -aH /tree/ /mnt/tree/
step delete rm -r /mnt/tree/doomed
step fsync dd if=/tree/large/0 of=/mnt/tree/large/0 bs=64k conv=fsync,notrunc
step trim fstrim /mnt
step umount /usr/bin/umount /mnt
step fsck /usr/sbin/e2fsck -fn /dev/nbd0
step detach /usr/sbin/nbd-client -d /dev/nbd0

step attach_again attach -C 4
step fsck_again /usr/sbin/e2fsck -fn /dev/nbd0
step mount_again /usr/bin/mount -t ext4 /dev/nbd0 /mnt
rm -r /tree/doomed
checksums /tree > /tmp/tree.sums
step compare same_tree /tmp/tree.sums /mnt/tree
step umount_again /usr/bin/umount /mnt
step detach_again /usr/sbin/nbd-client -d /dev/nbd0
step no_errors no_errors
