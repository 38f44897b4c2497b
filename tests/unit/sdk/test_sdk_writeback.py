"""Files on their way to the disk while they are written: what the kernel is told, and that nothing depends on it."""

import os
from pathlib import Path

import pytest
from rm_abstract.store import writeback
from rm_abstract.store.layers import Unpacking, pack
from rm_abstract.store.writeback import STRIDE, Writeback


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([], []),
        ([5], [(0, 5)]),
        ([STRIDE - 1, 1, 3], [(0, STRIDE), (STRIDE, 3)]),
        ([3 * STRIDE], [(0, 3 * STRIDE)]),
        ([STRIDE // 2] * 3, [(0, STRIDE), (STRIDE, STRIDE // 2)]),
    ],
)
def test_every_byte_is_told_of_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, pieces: list[int], told: list[tuple[int, int]]
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(
        writeback, "_sync_file_range", lambda _, start, count, flags: found.append((start, count)) or flags - 2
    )
    started = Writeback(1)
    for count in pieces:
        started.wrote(count)
    started.begin()
    started.begin()
    assert found == told


def test_here_the_kernel_knows_how(tmp_path: Path) -> None:
    assert writeback._sync_file_range is not None
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"x" * 4096)
        assert writeback._sync_file_range(file.fileno(), 0, 4096, 2) == 0


@pytest.mark.parametrize("knows", [True, False])
def test_a_tree_is_unpacked_where_it_does_and_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knows: bool
) -> None:
    if not knows:
        monkeypatch.setattr(writeback, "_sync_file_range", None)
    tree, there = tmp_path / "tree", tmp_path / "there"
    tree.mkdir()
    there.mkdir()
    large = os.urandom(1 << 20) * 9
    (tree / "large").write_bytes(large)
    (tree / "empty").touch()
    unpacking = Unpacking({"": there})
    for layer in pack(tree):
        unpacking.layer(layer.content())
    assert (there / "large").read_bytes() == large
    assert (there / "empty").read_bytes() == b""


def test_what_cannot_be_hurried_is_left_alone() -> None:
    reader, writer = os.pipe()
    try:
        hint = Writeback(writer)
        hint.wrote(STRIDE)
    finally:
        os.close(reader)
        os.close(writer)
