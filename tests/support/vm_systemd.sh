#!/bin/bash
# SPDX-License-Identifier: MIT
# test.service of the VM with systemd: the server is restarted twice under a file system in use, and the
# machine goes down. One line per step that passed: "PASS step".

units=(swiftnbd.service swiftnbd-attach@nbd0.service swiftnbd-reconnect@nbd0.service mnt-disk.mount)

step() { # name command...
    name=$1
    shift
    if "$@" > /run/output 2>&1; then
        echo "PASS $name"
    else
        echo "FAIL $name: $?"
        cat /run/output
        systemctl --no-pager --failed
        journalctl -b --no-pager -o cat -u 'swiftnbd*' -u mnt-disk.mount | tail -40
        systemctl --no-block poweroff --force
        exit 1
    fi
}

entered() { # when a unit became what it is
    systemctl show -p ActiveEnterTimestampMonotonic --value "$1"
}

work() { # writes files and reads them back until it is told to end
    while [ ! -e /run/end ]; do
        file=/mnt/disk/round-$((rounds % 8))
        head -c 300000 /dev/urandom > /run/data
        cp /run/data $file && sync $file && echo 3 > /proc/sys/vm/drop_caches && cmp /run/data $file || return 1
        rounds=$((rounds + 1))
        echo $rounds > /run/rounds
    done
}

goes_on() { # a few rounds more, within some minutes
    before=$(cat /run/rounds 2> /dev/null || echo 0)
    for _ in $(seq 240); do
        [ "$(cat /run/rounds 2> /dev/null || echo 0)" -le $((before + 2)) ] || return 0
        sleep 1
    done
    return 1
}

restart() {
    pid=$(systemctl show -p MainPID --value swiftnbd)
    systemctl restart swiftnbd && [ "$(systemctl show -p MainPID --value swiftnbd)" != "$pid" ] && goes_on
}

others_stayed() { # neither ended nor started again, but for the server
    systemctl is-active "${units[@]}" && for unit in "${units[@]:1}"; do
        [ "$(entered "$unit")" = "${since[$unit]}" ] || return 1
    done
}

nobody_noticed() {
    findmnt /mnt/disk && ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)'
}

step started systemctl is-active "${units[@]}"
step content cmp /mnt/disk/hello /opt/hello
declare -A since
for unit in "${units[@]}"; do
    since[$unit]=$(entered "$unit")
done
work &
worker=$!
step work goes_on
step restart restart
step restart_again restart
step others_stayed others_stayed
touch /run/end
step worker wait $worker
step nobody_noticed nobody_noticed
echo "checksums $(cd /mnt/disk && cat round-* | sha256sum)"
echo "PASS end"
systemctl --no-block poweroff
