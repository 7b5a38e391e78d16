# SPDX-License-Identifier: MIT
import shutil
from ipaddress import ip_network
from pathlib import Path

from swiftnbd.cli.devices import Wanted
from swiftnbd.cli.login import LoginKeys
from swiftnbd.cli.secrets import load_secrets
from swiftnbd.cli.sources import login_of
from swiftnbd.export.settings import CacheMode, OnOutage
from swiftnbd.server.access import Access, Family
from swiftnbd.server.config import ExportConfig

MIB = 1024 * 1024
EXAMPLE = Path(__file__).parents[2] / "secrets.conf.example"


def test_example_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "secrets.conf"
    shutil.copyfile(EXAMPLE, path)
    path.chmod(0o600)
    (section,) = load_secrets(str(path))
    assert section.export == ExportConfig("container_name")
    assert section.login.values == {"username": "account:user", "password": "secret"}
    uncommented = "\n".join(
        line.removeprefix("#") if line[1:2].isalpha() or line[1:2] == "[" else line
        for line in EXAMPLE.read_text().splitlines()
    )
    path.write_text(uncommented)
    access = Access((ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")), (frozenset(Family),))
    first, *others, scratch = load_secrets(str(path))
    assert scratch.wanted == Wanted("memory", ("through",), (("size", "1G"),))
    assert first.export == ExportConfig(
        "container_name",
        read_only=True,
        multi_conn=False,
        access=access,
        tls_only=True,
        cache={
            "cache_bytes": 256 * MIB,
            "mode": CacheMode.WRITETHROUGH,
            "dirty_bytes": 64 * MIB,
            "dirty_seconds": 5.0,
            "read_ahead_bytes": 8 * MIB,
            "requests": 16,
            "disk_directory": Path("/var/cache/swiftnbd"),
            "disk_bytes": 4096 * MIB,
        },
        outages={"policy": OnOutage.WAIT, "seconds": 60.0},
    )
    methods = [
        login_of(section.login, LoginKeys(), {}).method
        for section in others
        if "cloud" not in section.login.values
    ]
    assert methods == ["v3password", "v3applicationcredential", "v2password", "s3"]
