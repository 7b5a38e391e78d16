# SPDX-License-Identifier: MIT
import errno
import os
from contextlib import suppress
from pathlib import Path
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.cli.image import ImageFile, data_runs
from swiftnbd.errors import SwiftnbdError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_image_appears_whole_and_part_is_gone(tmp_path: Path) -> None:
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        file.set_size(10_000)
        file.write(9_998, b"ab")
        assert names(tmp_path) == ["i.part", "i.part.from"]
        file.commit()
    assert names(tmp_path) == ["i"]
    assert (tmp_path / "i").read_bytes() == bytes(9_998) + b"ab"


def test_what_is_zeros_takes_no_space(tmp_path: Path) -> None:
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        file.set_size(100 << 20)
        file.write(50 << 20, bytes(1 << 20) + b"x" + bytes(1 << 20))
        file.commit()
    status = (tmp_path / "i").stat()
    assert status.st_size == 100 << 20
    assert status.st_blocks * 512 <= 64 * 1024


def in_memory(descriptor: int, size: int) -> int:
    """How many bytes of a file, looked at MiB by MiB, the kernel has without asking the disk."""
    found, buffer = 0, bytearray(1 << 20)
    for start in range(0, size, len(buffer)):
        with suppress(BlockingIOError):
            found += os.preadv(descriptor, [buffer], start, os.RWF_NOWAIT)
    return found


def test_image_of_any_size_leaves_the_memory_to_others(tmp_path: Path) -> None:
    size = 8 << 20
    if _cannot_tell(tmp_path):
        pytest.skip("a file system whose files are always in memory, or that cannot say so")
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        file.set_size(size)
        file.write(0, os.urandom(size))
        before = in_memory(file._descriptor, size)
        file.sync()
        after = in_memory(file._descriptor, size)
    assert before == size
    assert after == 0


def _cannot_tell(folder: Path) -> bool:
    said = run(["stat", "-f", "-c", "%T", folder], check=True, capture_output=True, text=True)
    return said.stdout.strip() not in ("ext2/ext3", "xfs", "btrfs")


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        file.set_size(10)
    assert names(tmp_path) == []


@pytest.mark.parametrize("existing", ["i", "i.part"])
def test_existing_file_is_refused_and_kept_unless_forced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with (
        pytest.raises(SwiftnbdError, match=rf"{existing} exists.* to replace it, use --force"),
        ImageFile(str(tmp_path / "i"), force=False),
    ):
        pass
    assert (tmp_path / existing).read_text() == "precious"
    with ImageFile(str(tmp_path / "i"), force=True) as file:
        file.set_size(1)
        file.commit()
    assert names(tmp_path) == ["i"]
    assert (tmp_path / "i").read_bytes() == b"\0"


def test_failed_forced_download_keeps_the_old_image(tmp_path: Path) -> None:
    (tmp_path / "i").write_text("precious")
    with ImageFile(str(tmp_path / "i"), force=True) as file:
        file.set_size(1)
    assert names(tmp_path) == ["i"]
    assert (tmp_path / "i").read_text() == "precious"


def test_image_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        (tmp_path / "i").write_text("precious")
        with pytest.raises(SwiftnbdError, match="i exists"):
            file.commit()
    assert names(tmp_path) == ["i"]
    assert (tmp_path / "i").read_text() == "precious"


def test_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    with ImageFile(str(tmp_path / "link"), force=True) as file:
        file.set_size(3)
        file.commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == bytes(3)


@pytest.mark.parametrize("force", [True, False])
def test_device_is_never_replaced_by_a_file(force: bool) -> None:
    with (
        pytest.raises(SwiftnbdError, match="/dev/null is neither a regular"),
        ImageFile("/dev/null", force=force),
    ):
        pass


def test_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(SwiftnbdError, match=r"cannot create \S+/no/i.part: No such file or dir"),
        ImageFile(str(tmp_path / "no" / "i"), force=False),
    ):
        pass


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(SwiftnbdError, match=r"cannot write \S+/i.part: No space left on device"),
        ImageFile(str(tmp_path / "i"), force=False) as file,
    ):
        file.write(0, b"x")
    assert names(tmp_path) == []


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    with ImageFile(str(tmp_path / "i"), force=False) as file:
        file.write(0, b"0123456789")
        file.commit()
    assert (tmp_path / "i").read_bytes() == b"0123456789"


@given(
    st.lists(st.tuples(st.sampled_from([b"\0", b"x"]), st.integers(1, 9000)), max_size=6).map(
        lambda runs: b"".join(byte * count for byte, count in runs)
    )
)
def test_runs_leave_out_zeros_only_and_whole_holes_always(data: bytes) -> None:
    rebuilt = bytearray(len(data))
    end_before = -1
    for start, end in data_runs(data):
        assert end_before < start < end  # apart: touching runs would be one write
        rebuilt[start:end] = data[start:end]
        end_before = end
        for at in range(start, end, 4096):
            assert any(data[at : at + 4096])
    assert rebuilt == data
