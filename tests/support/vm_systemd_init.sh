#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# First process of the VM with systemd (tests/support/systemd_vm.py): makes a root file system in memory
# with /usr, Python, its packages and our code of the host, read-only, and lets systemd begin.

/bin/busybox mkdir -p /proc /sys /dev /sysroot /applets /usr/host /usr/more
/bin/busybox --install -s /applets
PATH=/applets
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module"
done < /modules/order

share() { # tag, where, options
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2" || echo "FAIL share $1"
}

mount -t tmpfs -o mode=755 none /sysroot
cp -a /skeleton/. /sysroot/
share usr /usr/host cache=loose,ro
mount -t tmpfs none /usr/more
mkdir -p /usr/more/lib/modules /usr/more/local/sbin
cp /skeleton/opt/nbd-reconnect.py /usr/more/local/sbin/
mount -t overlay -o ro,lowerdir=/usr/more:/usr/host none /sysroot/usr
share modules /sysroot/usr/lib/modules cache=loose,ro
share python /sysroot/opt/python cache=loose,ro
share packages /sysroot/opt/packages cache=loose,ro
share code /sysroot/opt/code cache=loose,ro
share store /sysroot/var/lib/swiftnbd cache=none
umount /proc /sys
mount -o move /dev /sysroot/dev
exec switch_root /sysroot /lib/systemd/systemd
