"""A process is known by its start time, so that an id used again is not mistaken for it."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rm_local_cluster.process import Process, wait_until


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def identified(pid: int) -> Process:
    process = Process.of(pid)
    assert process is not None
    return process


def test_a_running_process_is_alive_until_it_ends(child: "subprocess.Popen[bytes]") -> None:
    process = identified(child.pid)
    assert process.alive
    process.signal(signal.SIGKILL)
    # Nobody has waited for it: it is a zombie, and that is not alive.
    assert wait_until(lambda: not process.alive, 10)
    assert Path(f"/proc/{child.pid}").exists()
    assert Process.of(child.pid) is None


@pytest.mark.parametrize("changes", [{"started": 1}, {"boot": "another"}])
def test_another_process_with_the_same_id_is_not_it_and_gets_no_signal(
    child: "subprocess.Popen[bytes]", changes: dict[str, object]
) -> None:
    stranger = dataclasses.replace(identified(child.pid), **changes)  # type: ignore[arg-type]
    assert not stranger.alive
    stranger.signal(signal.SIGKILL)
    assert child.poll() is None


def test_it_is_found_again_from_its_file(tmp_path: Path) -> None:
    process = identified(os.getpid())
    (tmp_path / "owner").write_text(process.to_json())
    assert Process.from_file(tmp_path / "owner") == process


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_a_file_that_was_cut_short_names_no_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "owner").write_text(content)
    assert Process.from_file(tmp_path / "owner") is None


def test_no_file_names_no_process(tmp_path: Path) -> None:
    assert Process.from_file(tmp_path / "owner") is None


def test_a_name_with_parentheses_and_spaces_does_not_confuse(tmp_path: Path) -> None:
    odd = tmp_path / "a ) R 1 (b"
    odd.write_bytes(Path("/bin/sleep").read_bytes())
    odd.chmod(0o755)
    with subprocess.Popen([odd, "60"]) as process:
        assert identified(process.pid).alive
        process.kill()
