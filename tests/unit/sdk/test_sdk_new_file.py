"""Files on their way to the disk while they are written: what the kernel is told, and that nothing depends on it."""

import errno
import os
from pathlib import Path

import pytest
from rm_abstract.store import new_file
from rm_abstract.store.new_file import AHEAD, STRIDE, NewFile

MIB = 1 << 20
CALLS = ("_sync_file_range", "_fallocate")


def write(path: Path, pieces: list[int], size: int | None = None) -> bytes:
    """A file of random pieces of these sizes; its bytes."""
    data = [os.urandom(count) for count in pieces]
    with NewFile(path, sum(pieces) if size is None else size, 0o640) as file:
        for piece in data:
            file.write(memoryview(piece))
    return b"".join(data)


@pytest.mark.parametrize(
    ("pieces", "begun", "allocated"),
    [
        ([], [], []),
        ([5], [(0, 5)], []),
        ([MIB], [(0, MIB)], [(0, MIB)]),
        ([STRIDE - 1, 1, 3], [(0, STRIDE), (STRIDE, 3)], [(0, STRIDE + 3)]),
        ([3 * STRIDE], [(0, 3 * STRIDE)], [(0, 3 * STRIDE)]),
        ([STRIDE // 2] * 3, [(0, STRIDE), (STRIDE, STRIDE // 2)], [(0, 3 * STRIDE // 2)]),
        ([AHEAD, 2 * MIB], [(0, AHEAD), (AHEAD, 2 * MIB)], [(0, AHEAD), (AHEAD, 2 * MIB)]),
        ([AHEAD, 7], [(0, AHEAD), (AHEAD, 7)], [(0, AHEAD)]),
    ],
)
def test_every_byte_is_told_of_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pieces: list[int],
    begun: list[tuple[int, int]],
    allocated: list[tuple[int, int]],
) -> None:
    told: dict[str, list[tuple[int, int]]] = {call: [] for call in CALLS}
    monkeypatch.setattr(
        new_file, "_sync_file_range", lambda _, start, count, how: told["_sync_file_range"].append((start, count))
    )
    monkeypatch.setattr(new_file, "_fallocate", lambda _, how, start, count: told["_fallocate"].append((start, count)))
    written = write(tmp_path / "file", pieces)
    assert told == {"_sync_file_range": begun, "_fallocate": allocated}
    assert (tmp_path / "file").read_bytes() == written


@pytest.mark.parametrize("call", CALLS)
def test_here_the_kernel_knows_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str) -> None:
    real, answers = getattr(new_file, call), []
    monkeypatch.setattr(new_file, call, lambda *arguments: answers.append(real(*arguments)))
    write(tmp_path / "file", [2 * MIB])
    assert answers == [0]


@pytest.mark.parametrize("why", ["there is no such call", "it is refused"])
def test_a_file_is_the_same_where_it_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    for call in CALLS:
        monkeypatch.setattr(new_file, call, None if why == "there is no such call" else lambda *_: -1)
    umask = os.umask(0o077)
    try:
        written = write(tmp_path / "file", [STRIDE, STRIDE, 5])
    finally:
        os.umask(umask)
    assert (tmp_path / "file").read_bytes() == written
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_what_is_said_to_come_takes_little_room_until_it_does(tmp_path: Path) -> None:
    write(tmp_path / "file", [MIB], size=1 << 50)
    assert (tmp_path / "file").stat().st_blocks * 512 <= AHEAD


def test_nothing_is_written_to_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link"):
        with pytest.raises(OSError, match=os.strerror(errno.EEXIST)):
            NewFile(tmp_path / name, 1, 0o644)
    assert (tmp_path / "there").read_text() == "kept"
