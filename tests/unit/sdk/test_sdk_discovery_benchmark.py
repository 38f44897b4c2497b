"""The benchmark of the SDK measures what it says: no times are judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scale.sdk import modules
from scale.sdk.child import FOUND

TESTS = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    modules.write(directory)
    return directory


def child(name: str, site: Path) -> dict[str, Any]:
    environ = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONSAFEPATH": "1"}
    argv = [sys.executable, "-m", "scale.sdk.child", name, str(site)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_three_hundred_modules_are_found_and_none_is_imported(site: Path) -> None:
    assert len(modules.module_names()) == 300
    assert FOUND == 360, "thirty of the modules have two backends besides"
    for _ in range(2):
        assert child("scan", site)["imported"] == 0
    assert child("blueprint", site)["ms"] > 0


def test_the_rivals_find_the_same_modules(site: Path) -> None:
    for name in ("bare", "stevedore_all", "pluggy"):
        assert child(name, site)["ms"] > 0
