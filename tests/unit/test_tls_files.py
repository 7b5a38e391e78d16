# SPDX-License-Identifier: MIT
"""Certificates and keys from files: what cannot be used is said in one sentence."""

import ssl
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swiftnbd.errors import ConfigError
from swiftnbd.protocol.handshake import Tls
from swiftnbd.server import tls
from swiftnbd.server.config import TlsConfig
from swiftnbd.server.tls import load_psk_keys, server_tls
from tests.support.certificates import CLIENT, SERVER, Authority, write_private

KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def folder(authority: Authority, tmp_path: Path) -> Path:
    """A folder with everything a server needs."""
    authority.write(tmp_path)
    authority.issue("localhost", SERVER).write(tmp_path, "server")
    return tmp_path


def verifying(folder: Path) -> TlsConfig:
    return TlsConfig(certificates=folder, verify_peer=True)


@pytest.mark.parametrize(("required", "mode"), [(False, Tls.OFFERED), (True, Tls.REQUIRED)])
def test_context_is_modern_and_resumes_nothing(folder: Path, required: bool, mode: Tls) -> None:
    found = server_tls(TlsConfig(required, folder))
    assert found.mode is mode
    assert found.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert found.context.verify_mode == ssl.CERT_NONE
    assert found.context.num_tickets == 0
    assert found.context.options & ssl.OP_NO_TICKET
    assert found.context.options & ssl.OP_NO_RENEGOTIATION


def test_clients_are_verified_if_asked_for(folder: Path) -> None:
    context = server_tls(verifying(folder)).context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert not context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def test_revocation_list_is_used_if_there(folder: Path, authority: Authority) -> None:
    authority.revoke(folder)
    assert server_tls(verifying(folder)).context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


Damage = Callable[[Path, Authority], object]


def replace_server(authority: Authority, folder: Path, **validity: int) -> None:
    authority.issue("localhost", SERVER, **validity).write(folder, "server")  # type: ignore[arg-type]


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no certificate": (
        lambda folder, authority: (folder / "server-cert.pem").unlink(),
        "cannot read {folder}/server-cert.pem: No such file or directory",
    ),
    "no key": (
        lambda folder, authority: (folder / "server-key.pem").unlink(),
        "cannot read {folder}/server-key.pem: No such file or directory",
    ),
    "no authority": (
        lambda folder, authority: (folder / "ca-cert.pem").unlink(),
        "cannot read {folder}/ca-cert.pem: No such file or directory",
    ),
    "another key": (
        lambda folder, authority: write_private(
            folder / "server-key.pem", authority.issue("other", SERVER).key_bytes()
        ),
        "{folder}/server-key.pem is not the key of {folder}/server-cert.pem",
    ),
    "encrypted key": (
        lambda folder, authority: write_private(
            folder / "server-key.pem", authority.issue("other", SERVER).key_bytes(b"word")
        ),
        "{folder}/server-cert.pem or {folder}/server-key.pem cannot be used",
    ),
    "no PEM": (
        lambda folder, authority: (folder / "server-cert.pem").write_bytes(b"\x30\x82"),
        "{folder}/server-cert.pem or {folder}/server-key.pem cannot be used",
    ),
    "folder": (
        lambda folder, authority: replace_by_folder(folder / "server-key.pem"),
        "cannot read {folder}/server-key.pem: Is a directory",
    ),
    "endless": (
        lambda folder, authority: replace_by_zeros(folder / "ca-cert.pem"),
        "{folder}/ca-cert.pem is not an ordinary file",
    ),
    "expired": (
        lambda folder, authority: replace_server(authority, folder, last_day=-1),
        "{folder}/server-cert.pem is of no use: certificate has expired",
    ),
    "not valid yet": (
        lambda folder, authority: replace_server(authority, folder, first_day=3),
        "{folder}/server-cert.pem is of no use: certificate is not yet valid",
    ),
    "a client's": (
        lambda folder, authority: authority.issue("x", CLIENT).write(folder, "server"),
        "{folder}/server-cert.pem is of no use: unsuitable certificate purpose",
    ),
    "authority without PEM": (
        lambda folder, authority: (folder / "ca-cert.pem").write_text("nothing"),
        "{folder}/ca-cert.pem cannot be used: ",
    ),
    "revocations without PEM": (
        lambda folder, authority: (folder / "ca-crl.pem").write_text("nothing"),
        "{folder}/ca-crl.pem cannot be used: ",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_unusable_files_are_one_sentence(folder: Path, authority: Authority, kind: str) -> None:
    damage, sentence = DAMAGES[kind]
    damage(folder, authority)
    with pytest.raises(ConfigError) as error:
        server_tls(verifying(folder))
    assert str(error.value).startswith(sentence.format(folder=folder))
    assert "\n" not in str(error.value)


@pytest.mark.expects_log("server-key.pem holds a secret key and everybody can read it: chmod 600")
def test_key_that_everybody_can_read_is_warned_of(folder: Path) -> None:
    (folder / "server-key.pem").chmod(0o644)
    server_tls(TlsConfig(certificates=folder))


def test_chain_of_certificates_is_fine(folder: Path, authority: Authority) -> None:
    chain = (folder / "server-cert.pem").read_bytes() + (folder / "ca-cert.pem").read_bytes()
    (folder / "server-cert.pem").write_bytes(chain)
    server_tls(TlsConfig(certificates=folder))


# Pre-shared keys


def keys_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "keys.psk"
    write_private(path, text if isinstance(text, bytes) else text.encode())
    return path


def test_keys_are_read_by_username(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f"alice:{KEY}\n\nb:ob:{KEY.upper()}{KEY}\n")
    key = bytes.fromhex(KEY)
    assert load_psk_keys(path) == {"alice": key, "b:ob": key + key}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", " holds no key: make one with psktool -u USERNAME -p "),
        ("\n\n", " holds no key"),
        (KEY, ", line 1 is not USERNAME:KEY in hexadecimal"),
        (f":{KEY}", ", line 1 is not USERNAME:KEY"),
        (f"#616c:{KEY}", ", line 1 is not USERNAME:KEY"),
        (f"alice:{KEY}\nbob:{KEY}x", ", line 2 is not USERNAME:KEY"),
        (b"\xff:" + KEY.encode(), ", line 1 is not USERNAME:KEY"),
        (f"alice:{KEY}\nalice:{KEY}", ", line 2: 'alice' has a key already"),
        (f"alice:{KEY[2:]}", ", line 1: a key has to have at least 16 bytes"),
        ("alice:", ", line 1: a key has to have at least 16 bytes"),
    ],
)
def test_bad_keys_are_one_sentence_without_them(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    path = keys_file(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_psk_keys(path)
    assert str(error.value).startswith(f"{path}{sentence}")
    assert KEY[2:] not in str(error.value)


def test_endless_file_of_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "PSK_BYTES_MAX", 100)
    with pytest.raises(ConfigError, match="too large"):
        load_psk_keys(keys_file(tmp_path, f"alice:{KEY}\n" * 4))


@pytest.mark.expects_log("keys.psk holds a secret key and everybody can read it: chmod 600")
def test_keys_that_everybody_can_read_are_warned_of(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f"alice:{KEY}")
    path.chmod(path.stat().st_mode | stat.S_IROTH)
    load_psk_keys(path)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has pre-shared keys")
def test_pre_shared_keys_need_python_3_13(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f"alice:{KEY}")
    with pytest.raises(ConfigError, match=r"--tls-psk needs Python 3\.13 or newer, this is 3\."):
        server_tls(TlsConfig(psk_file=path))
