"""``rma-launch copy``: what it brings out of an image, and what it refuses."""

import os
from pathlib import Path

import pytest
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import Launch


@pytest.fixture
def image(launch: Launch) -> Path:
    """A library as vendors install it, with its data."""
    root = launch.directory / "image"
    (root / "lib" / "tables").mkdir(parents=True)
    (root / "lib" / "libnpu.so.2.1").write_bytes(b"\x7fELF" + bytes(100))
    (root / "lib" / "libnpu.so.2.1").chmod(0o755)
    (root / "lib" / "libnpu.so").symlink_to("libnpu.so.2.1")
    (root / "lib" / "tables" / "a").write_text("a")
    (root / "lib" / "tables" / "up").symlink_to("../libnpu.so.2.1")
    (root / "lib" / "absolute").symlink_to(root / "lib" / "tables" / "a")
    (root / "lib" / "licence").symlink_to(root / "LICENCE")
    (root / "LICENCE").write_text("closed")
    (root / "lib" / "gone").symlink_to("/no/such/file")
    os.mkfifo(root / "lib" / "fifo")
    return root


@pytest.fixture
def target(launch: Launch) -> Path:
    return launch.directory / "work" / ".library"


def test_a_file_is_copied_under_its_name_as_what_it_points_at(launch: Launch, image: Path, target: Path) -> None:
    for _ in range(2):  # a pod's init container may run twice
        ended = launch("copy", "${WORK}/lib/libnpu.so", str(target), env={"WORK": str(image)})
        assert (ended.code, ended.report.reason) == (0, Reason.READY), ended.stderr
    (copied,) = target.iterdir()
    assert copied == target / "libnpu.so"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (image / "lib" / "libnpu.so").read_bytes()
    assert os.access(copied, os.X_OK)
    assert "1 files of 104 bytes" in ended.report.message


def test_a_directory_is_copied_whole(launch: Launch, image: Path, target: Path) -> None:
    ended = launch("copy", f"{image}/lib/", str(target))
    assert ended.code == 0, ended.stderr
    lib = target / "lib"
    assert {str(path.relative_to(lib)) for path in lib.rglob("*")} == {
        "libnpu.so.2.1", "libnpu.so", "tables", "tables/a", "tables/up", "absolute", "licence",
    }  # fmt: skip
    # Links stay links where what they point at comes along, wherever the copy is then.
    moved = lib.rename(target / "elsewhere")
    assert (moved / "libnpu.so").resolve() == moved / "libnpu.so.2.1"
    assert (moved / "tables" / "up").resolve() == moved / "libnpu.so.2.1"
    assert (moved / "absolute").resolve() == moved / "tables" / "a"
    assert not (moved / "licence").is_symlink()
    assert (moved / "licence").read_text() == "closed"
    assert "lib/gone" in ended.stderr
    assert "lib/fifo" in ended.stderr


def test_it_replaces_what_a_container_before_left(launch: Launch, image: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "libnpu.so").write_text("half")
    (target / "libnpu.so").chmod(0o444)
    assert launch("copy", f"{image}/lib/libnpu.so", str(target)).code == 0
    assert (target / "libnpu.so").read_bytes() == (image / "lib" / "libnpu.so").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "rma-launch copy PATH DIR"),
        (["/a"], "rma-launch copy PATH DIR"),
        (["/a", "/b", "/c"], "rma-launch copy PATH DIR"),
        (["--all", "/b"], "rma-launch copy PATH DIR"),
        (["/no/such/library.so", "{target}"], "it is not in this image"),
        (["{image}/lib/gone", "{target}"], "it is not in this image"),
        (["{image}/lib/fifo", "{target}"], "neither a file nor a directory"),
        (["/", "{target}"], "names no file"),
        (["..", "{target}"], "names no file"),
        (["{image}/lib", "{image}/lib/tables"], "cannot be copied there"),
        (["{image}", "{image}/.."], "cannot be copied there"),
        (["${{HOME}}/x", "{target}"], "${HOME}"),
    ],
)
def test_what_is_refused(launch: Launch, image: Path, target: Path, arguments: list[str], complaint: str) -> None:
    given = [argument.format(image=image, target=target) for argument in arguments]
    launch("copy", *given).failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)
    assert (image / "lib" / "libnpu.so.2.1").stat().st_size == 104


def test_a_link_to_a_directory_outside_is_refused(launch: Launch, image: Path, target: Path) -> None:
    (image / "lib" / "share").symlink_to("/usr/share")
    ended = launch("copy", f"{image}/lib", str(target))
    ended.failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, "lib/share points at /usr/share")
