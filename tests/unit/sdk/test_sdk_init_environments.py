"""Environments with real engines: made once, whole or not at all, and refused in a sentence."""

import threading
from pathlib import Path

import pytest
from rm_local_cluster import environments
from rm_local_cluster.errors import LocalClusterError

NAME = "pytorch-openvino"
NOTHING = "# Nothing at all.\n"
UNREACHABLE = f"tomlkit==0.13.2 --hash=sha256:{'0' * 64}\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    (tmp_path / "requirements").mkdir()
    _lock(tmp_path, NOTHING)
    return tmp_path


def _lock(root: Path, text: str) -> None:
    (root / "requirements" / f"engine-{NAME}.txt").write_text(text)


def _left(root: Path) -> list[str]:
    directory = root / "cache" / "rm-abstract" / "environments"
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_an_environment_is_made_once_and_found_again(checkout: Path) -> None:
    said: list[str] = []
    made = environments.ensure(NAME, said.append, checkout)
    (made / "kept").touch()
    assert environments.ensure(NAME, said.append, checkout) == made
    assert (made / "kept").exists()
    assert (made / "bin" / "python").exists()
    assert len(said) == 1


def test_several_that_ask_at_once_get_one_environment(checkout: Path) -> None:
    said: list[str] = []
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(environments.ensure(NAME, said.append, checkout)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    assert found == [found[0]] * 4


def test_another_lock_file_is_another_environment_and_one_old_one_stays(checkout: Path) -> None:
    made = []
    for number in range(3):
        _lock(checkout, f"{NOTHING}# {number}\n")
        made.append(environments.ensure(NAME, print, checkout).name)
    assert _left(checkout) == sorted(made[1:])


def test_what_cannot_be_installed_leaves_nothing_and_says_what_uv_said(checkout: Path) -> None:
    _lock(checkout, UNREACHABLE)
    with pytest.raises(LocalClusterError, match=r"(?s)tomlkit.*check that it answers"):
        environments.ensure(NAME, print, checkout)
    assert _left(checkout) == []


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(LocalClusterError, match="there is no environment named gpu; there are pytorch-openvino, vllm"):
        environments.lock_file("gpu")
