# SPDX-License-Identifier: MIT
import pytest

from swiftnbd.server.listeners import Place


@pytest.mark.parametrize(
    ("host", "name", "uri"),
    [
        ("127.0.0.1", "disk", "nbd://127.0.0.1:7/disk"),
        ("0.0.0.0", "a b/c", "nbd://127.0.0.1:7/a%20b%2Fc"),
        ("::", "größe", "nbd://[::1]:7/gr%C3%B6%C3%9Fe"),
        ("2001:db8::1", "x", "nbd://[2001:db8::1]:7/x"),
        ("fe80::1%eth0", "", "nbd://[fe80::1]:7/"),
    ],
)
def test_uri_of_an_export_at_an_address(host: str, name: str, uri: str) -> None:
    assert Place(host, 7).uri(name) == uri
    assert Place(host, 7).uri(name, encrypted=True) == uri.replace("nbd", "nbds", 1)


@pytest.mark.parametrize(
    ("path", "name", "uri"),
    [
        ("/run/nbd.sock", "disk", "nbd+unix:///disk?socket=/run/nbd.sock"),
        ("/a b&c=d#e", "x/y", "nbd+unix:///x%2Fy?socket=/a%20b%26c%3Dd%23e"),
        ("/gr\udcf6\xdfe", "", "nbd+unix:///?socket=/gr%F6%C3%9Fe"),
    ],
)
def test_uri_of_an_export_at_a_unix_socket(path: str, name: str, uri: str) -> None:
    assert Place(path=path).uri(name) == uri
    assert Place(path=path).uri(name, encrypted=True) == uri.replace("nbd", "nbds", 1)
