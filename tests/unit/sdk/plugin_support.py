"""Plugins that run anywhere, and whose every step a test can hold up and read."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import Resource, ResourceType

PATIENCE = 120
"""Seconds after which a test that waits for another thread has failed, however slow the machine is."""


class Gate:
    """Holds whoever comes, until it is opened; tells when somebody has come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._come = threading.Semaphore(0)
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self._come.release()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def await_somebody(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._come.acquire(timeout=PATIENCE), "nobody came to the gate"


class Journal:
    """What happened, in order; safe to write from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []

    def write(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def count(self, line: str) -> int:
        return self.lines.count(line)


class WordPlugin(Plugin):
    """Puts a word before its input. What ``word_plugin`` makes has a word and a journal."""

    word: ClassVar[str]
    about: ClassVar[PluginMetadata]
    journal: ClassVar[Journal]
    running: ClassVar[Gate]
    preparing: ClassVar[Gate]
    fails: ClassVar[set[str]]
    devices: ClassVar[int]

    def __init__(self) -> None:
        self.chosen: list[Resource] = []
        self.alive = False

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return cls.about

    def _do(self, what: str) -> None:
        self.journal.write(f"{self.word} {what}")
        if what in self.fails:
            raise RuntimeError(f"{what} of {self.word}")

    def is_available(self) -> bool:
        if "is_available" in self.fails:
            raise RuntimeError("the driver is a stub")
        return "available" not in self.fails

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        if "probe" in self.fails:
            raise RuntimeError("the device does not answer")
        found = [Resource(f"{self.word}{index}", ResourceType.NPU) for index in range(self.devices)]
        self.chosen = [one for one in found if not resources or one in resources]
        return self.chosen

    def initialize(self) -> None:
        self._do("initialize")
        self.alive = True

    def prepare_resource(self, resource: Any, config: BackendConfig | None = None) -> Any:
        self.preparing.pass_through()
        self._do("prepare")
        return {"resource": resource, "config": config, "freed": False}

    def release_resource(self, resource: Any) -> None:
        self._do("release")
        resource["freed"] = True

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        self.running.pass_through()
        assert self.alive, "executed after cleanup"
        assert not resource["freed"], "executed on what was freed"
        self._do("execute")
        return f"{self.word} {resource['resource']} {inputs}"

    def cleanup(self) -> None:
        self._do("cleanup")
        self.alive = False


def word_plugin(
    word: str,
    journal: Journal | None = None,
    *,
    base: type[WordPlugin] = WordPlugin,
    priority: PluginPriority = PluginPriority.NORMAL,
    devices: int = 1,
    fails: Sequence[str] = (),
    version: str = "1.0.0",
    depends_on: Sequence[str] = (),
    **about: Any,
) -> type[WordPlugin]:
    """A plugin class named ``word``."""
    members = {
        "word": word,
        "about": PluginMetadata(
            word, word.title(), version, priority=priority, device_types=("npu",), depends_on=depends_on, **about
        ),
        "journal": journal or Journal(),
        "running": Gate(),
        "preparing": Gate(),
        "fails": set(fails),
        "devices": devices,
    }
    return type(f"{word.title()}Plugin", (base,), members)


@contextmanager
def threads(count: int = 8) -> Iterator[Callable[..., Future[Any]]]:
    """Starts functions on threads; at the end, all of them have ended."""
    with ThreadPoolExecutor(count) as pool:
        yield pool.submit
