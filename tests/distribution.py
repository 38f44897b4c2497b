"""How one run of all tiers is spread over processes (`pytest -n auto`), so that what waits and what computes overlap.

Tests of a file stay together and in order, and so do all of a tier that has one server for the session. The cluster's
tests take longest and mostly wait: they begin first, and whoever runs others steps back for them.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import rm_local_cluster
from xdist.scheduler import LoadScopeScheduling

LONGEST_FIRST = ("cluster", "api", "sdk_devices", "contract")
"""The tiers in the order of their turns; then come the others, whose small files fill what remains at the end."""
HAS_ONE_SERVER = ("cluster", "api")
MOST_PROCESSES = 8
STEP_BACK = 10
"""Added to the niceness: to the kernel, all pods together weigh no more than one process that does not step back."""

CLUSTER = "rmatest"
"""The cluster of the tests is not the one of `make demo`."""
_TESTS = Path(__file__).parent


def processes() -> int:
    """One for each processor, and one that waits for the cluster."""
    return min(os.cpu_count() or 1, MOST_PROCESSES) + 1


def scope(nodeid: str) -> str:
    """What runs in one process, one test after the other: the tests of a file, or of a tier."""
    file = nodeid.split("::", 1)[0]
    _, tier, *_ = file.split("/")
    return tier if tier in HAS_ONE_SERVER else file


class _Scheduling(LoadScopeScheduling):
    """Hands out scopes in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


class Controller:
    """The process that was called, of which the others are children."""

    def __init__(self) -> None:
        self._makes_cluster = False
        self._run = ""

    def pytest_configure_node(self, node: Any) -> None:
        """Remembers the name of the run, which all that it starts has in its environment."""
        self._run = node.workerinput["testrunuid"]

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> object | None:
        """Ours, unless another is asked for by --dist."""
        if config.option.dist != "load":
            return None
        config.option.loadscopereorder = False
        return _Scheduling(config, log)

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Looks whether there is a cluster, before the first test may make one."""
        if any(scope(each) == "cluster" for each in ids):
            self._makes_cluster = rm_local_cluster.status(name=cluster_name()).phase == "Absent"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Ends what is left of processes that were interrupted, or died, before they could do it."""
        if keeps_cluster():
            return
        if self._makes_cluster:
            rm_local_cluster.down(name=cluster_name())
        for pid in _processes_with("PYTEST_XDIST_TESTRUNUID", self._run):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Worker:
    """A process that runs tests."""

    def __init__(self) -> None:
        self._has_stepped_back = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Puts the tiers in their order."""
        turns = {tier: turn for turn, tier in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: turns.get(_tier(item), len(turns)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Steps back, once and for good: from its first test on that is not the cluster's."""
        if not self._has_stepped_back and _tier(item) != "cluster":
            os.nice(STEP_BACK)
            self._has_stepped_back = True


def cluster_name() -> str:
    """Of the cluster that the tests use."""
    return os.environ.get("RM_LOCAL_CLUSTER_NAME", CLUSTER)


def keeps_cluster() -> bool:
    """Whether a cluster that was started for the tests stays when they are over."""
    return "RM_KEEP_CLUSTER" in os.environ


def _processes_with(variable: str, value: str) -> list[int]:
    wanted = f"{variable}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _tier(item: pytest.Item) -> str:
    return item.path.relative_to(_TESTS).parts[0]
