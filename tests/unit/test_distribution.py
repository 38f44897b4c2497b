"""One run of all tiers, spread over processes: what stays together, what begins first, and who steps back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import distribution
import pytest

# In each tier that is named here, as many files with as many tests.
TIERS = {"api": (2, 3), "cluster": (2, 3), "contract": (2, 3), "later": (1, 1), "unit": (4, 3)}
TURNS = ("cluster", "api", "contract", "later", "unit")
RECORD = """
import os, pytest

@pytest.mark.parametrize("number", range({tests}))
def test_it(number, request, record_property):
    record_property("ran", [os.getpid(), os.getpriority(os.PRIO_PROCESS, 0)])
"""
CONFTEST = """
import json, pathlib
import distribution

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(distribution.Worker())
    else:
        config.pluginmanager.register(distribution.Controller())

def pytest_runtest_logreport(report):
    if report.when == "call" and hasattr(report, "node"):
        with pathlib.Path("ran.jsonl").open("a") as out:
            out.write(json.dumps([report.nodeid, *dict(report.user_properties)["ran"]]) + "\\n")
"""


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/cluster/test_builds.py::test_a", "cluster"),
        ("tests/cluster/test_engines.py::test_a[b::c]", "cluster"),
        ("tests/api/test_rights.py::test_a", "api"),
        ("tests/contract/dra/test_dra_slices.py::test_a", "tests/contract/dra/test_dra_slices.py"),
        ("tests/unit/test_images.py::TestIt::test_a", "tests/unit/test_images.py"),
    ],
)
def test_what_runs_one_after_the_other(nodeid: str, scope: str) -> None:
    assert distribution.scope(nodeid) == scope


def run(project: Path, tests: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """pytest over these files, distributed as ours are."""
    shared = {"distribution.py": Path(distribution.__file__).read_text(), "conftest.py": CONFTEST}
    for name, text in {**shared, **tests}.items():
        path = project / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (project / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env={**environment, "RM_LOCAL_CLUSTER_NAME": "rmnone"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ran, in this order: the tests of a small project in three processes."""
    project = tmp_path_factory.mktemp("project")
    tests = {
        f"{tier}/test_{tier}_{number}.py": RECORD.format(tests=count)
        for tier, (files, count) in TIERS.items()
        for number in range(files)
    }
    done = run(project, tests, "-n", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in (project / "ran.jsonl").read_text().splitlines()]
    return [{"file": nodeid.split("::")[0], "process": pid, "nice": nice} for nodeid, pid, nice in found]


def test_tiers_have_their_turns(ran: list[dict[str, Any]]) -> None:
    assert len(ran) == sum(files * tests for files, tests in TIERS.values())
    processes: dict[str, set[int]] = {}
    for each in ran:
        processes.setdefault(distribution.scope(each["file"]), set()).add(each["process"])
    assert all(len(found) == 1 for found in processes.values()), "a scope is not divided"
    assert len(set.union(*processes.values())) == 3
    assert processes["cluster"] != processes["api"]
    order = [each["file"] for each in ran if each["process"] in processes["cluster"]]
    assert order[:6] == [f"tests/cluster/test_cluster_{file}.py" for file in (0, 1) for _ in range(3)]
    for process in set.union(*processes.values()):
        turns = [each["file"].split("/")[1] for each in ran if each["process"] == process]
        assert list(dict.fromkeys(turns)) == [tier for tier in TURNS if tier in turns]


def test_only_the_clusters_tests_do_not_step_back(ran: list[dict[str, Any]]) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for each in ran:
        expected = before if each["file"].startswith("tests/cluster/") else min(19, before + distribution.STEP_BACK)
        assert each["nice"] == expected, each["file"]


def test_there_is_one_more_process_than_processors_and_not_too_many() -> None:
    assert 2 <= distribution.processes() <= distribution.MOST_PROCESSES + 1


LEAVES_SOMETHING = """
import os, subprocess

def test_it():
    print(subprocess.Popen(["sleep", "3600"], start_new_session=True).pid, file=open("pid", "w"), flush=True)
    os._exit(1)
"""


def test_what_a_process_leaves_that_dies_is_ended(tmp_path: Path) -> None:
    done = run(tmp_path, {"unit/test_it.py": LEAVES_SOMETHING}, "-n", "1", "--max-worker-restart=0")
    assert done.returncode == 1
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
