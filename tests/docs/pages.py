# SPDX-License-Identifier: MIT
"""What each page needs to have its commands run, and which of them are not run, and why."""

import sys
from dataclasses import dataclass, field

_INSTALLED = "`.venv` is the tests' own environment here; test_installing_it does this elsewhere"
_DEBIAN = "changes the machine; tests/run installs these packages"
_KERNEL = "needs a kernel of its own: test_kernel_commands runs it in a virtual machine"
_ALL_TESTS = "is what runs this test"
_PSK = "Python's ssl can do that from 3.13 on; tests/protocol/test_tls_psk.py tries it"
_NBDKIT = "Debian's nbdkit has Python 3.11; tests/e2e/test_nbdkit_plugin.py looks for its version"
_BUCKET = "is Amazon's; tests/integration/test_buckets.py does it on Swift's S3 API"
_DEMO = "swiftnbd-ctl -a file:disks setup demo --size 64M"


@dataclass(frozen=True, slots=True)
class Page:
    """One page with commands.

    ``before`` is shell text: what its reader has already. ``cloud`` is the real thing behind its
    addresses: nothing, a ``swift`` with tempauth, or a ``keystone`` with a Swift that asks it.
    ``not_run`` has the beginnings of commands that are not run, and ``replace`` words that are
    others here, each with the reason. ``first`` is shell text to run before a command that
    begins so. ``long`` pages are run by ``tox -e docs`` alone.
    """

    before: str = ""
    cloud: str = ""
    not_run: dict[str, str] = field(default_factory=dict)
    replace: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    long: bool = False


# without a network, and beside the tests' own environment instead of into it
_MYDISKS = (
    "pip install -q --no-index --no-deps --no-build-isolation --target there ./mydisks && "
    "export PYTHONPATH=$PWD/there"
)
_LOGINS = """
mkdir -p ~/.config/openstack /etc/swiftnbd
cat > openrc.sh << END
export OS_AUTH_URL=https://keystone.example.com:5000/v3 OS_USERNAME=alice OS_PASSWORD=secret
export OS_PROJECT_NAME=demo OS_USER_DOMAIN_NAME=Default OS_PROJECT_DOMAIN_NAME=Default
END
cat > ~/.config/openstack/clouds.yaml << END
clouds:
  mycloud:
    auth:
      auth_url: https://keystone.example.com:5000/v3
      username: alice
      password: secret
      project_name: demo
      user_domain_name: Default
      project_domain_name: Default
END
cat > /etc/swiftnbd/secrets.conf << END
[backups]
cloud = mycloud
END
"""

PAGES = {
    "README.md": Page(
        cloud="swift",
        not_run={
            "bash tests/run": _ALL_TESTS,
            "python3 -m venv /opt/swiftnbd": _INSTALLED,
            "modprobe": _KERNEL,
            "nbd-client": _KERNEL,
            "mkfs.ext4": _KERNEL,
            "mount": _KERNEL,
            "umount": _KERNEL,
        },
        replace={"python3 -m venv .venv && .venv/bin/pip install -q . && ": ""},  # _INSTALLED
        first={
            "swiftnbd-ctl -a https://swift.example.com/auth/v1.0 unlock":
                "swiftnbd-ctl -a https://swift.example.com/auth/v1.0 lock backups",
        },
    ),
    "docs/authentication.md": Page(
        before=_LOGINS,
        cloud="keystone",
        long=True,  # tests/integration/test_keystone.py is what each run does of it
        not_run={
            "openstack": "needs OpenStack's client; the test makes one through Keystone's API",
            "swiftnbd-server -a https://keystone.example.com:5000/v2.0": "today's Keystone has no "
            "version 2.0; tests/store/test_auth_plugins.py has a server that speaks it",
        },
        first={"swiftnbd-ctl --os-cloud mycloud setup": "rm /etc/swiftnbd/secrets.conf"},
        replace={"--os-cloud mycloud setup backups --size 100G":
                 "--os-cloud mycloud setup backups --size 100G --exist-ok"},  # it is there already
    ),
    "docs/commands.md": Page(
        before=_DEMO,
        first={"swiftnbd-server -a file:disks --default-export": "swiftnbd-ctl -a file:disks setup "
               "other --size 1M",
               "nbdcopy -- [": "swiftnbd-ctl -a file:disks delete other --yes && rm demo.img"},
    ),
    "docs/developing.md": Page(
        not_run={
            "bash tests/run": _ALL_TESTS,
            "python -m tests.support.swift_aio": "has no end; nearly all tests use it",
            "python -m swiftnbd.cli.manpages": "tests/unit/test_cli_manpages.py writes them",
            "python -m tests.docs.session": "tests/docs/test_session.py records it",
        },
    ),
    "docs/first-disk.md": Page(
        not_run={"python3 -m venv": _INSTALLED, ".venv/bin/pip install": _INSTALLED},
    ),
    "docs/kernel.md": Page(
        not_run={
            "apt-get": _DEBIAN, "modprobe": _KERNEL, "nbd-client": _KERNEL, "mkfs.ext4": _KERNEL,
            "mount": _KERNEL, "umount": _KERNEL, "fstrim": _KERNEL,
        },
    ),
    # tests/integration/test_migration.py is what each run does of it
    "docs/migration.md": Page(cloud="swift", long=True),
    "docs/monitoring.md": Page(before=_DEMO),
    "docs/object-stores.md": Page(
        not_run={"export AWS": _BUCKET, "swiftnbd-ctl -a s3:": _BUCKET,
                 "swiftnbd-server -f -a s3:": _BUCKET},
    ),
    "docs/operations.md": Page(before=_DEMO),
    "docs/nbdkit-python.md": Page(
        not_run={} if sys.version_info[:2] == (3, 11) else {"nbdkit -": _NBDKIT},
    ),
    "docs/plugin-reference.md": Page(),
    "docs/plugins.md": Page(
        not_run={"python3 -m venv": _INSTALLED, ".venv/bin/pip install": _INSTALLED},
        replace={"pip install -q ./mydisks": _MYDISKS},
    ),
    "docs/qemu.md": Page(
        before=_DEMO,
        not_run={"qemu-system-x86_64": "a guest without an end; tests/e2e/test_qemu.py and the VM "
                 "of tests/support/vm.py are what is tried of it"},
    ),
    "docs/tls.md": Page(
        before=f"{_DEMO} && truncate -s 1M disk.img",
        long=True,  # tests/protocol/test_tls_clients.py is what each run does of it
        not_run={} if sys.version_info >= (3, 13) else {
            "swiftnbd-server -a file:disks --tls require --tls-psk": _PSK,
            'nbdinfo "nbds://alice@localhost/demo?tls-psk': _PSK,
        },
    ),
}  # fmt: skip
