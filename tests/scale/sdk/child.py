"""One measurement in a process of its own: ``python -m scale.sdk.child NAME DIRECTORY`` prints JSON."""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from scale.sdk.modules import COUNT, GROUP, PACKAGE, module_names

FOUND = COUNT + 2 * COUNT // 10
"""Plugins in the modules: each has one, and those with a kernel two backends besides."""


def _milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time: on a machine that does something else as well, the time of a clock tells of that."""
    began = time.process_time()
    result = work()
    return 1000 * (time.process_time() - began), result


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _manager(directory: str) -> Any:
    from rm_abstract.discovery.config import DiscoveryConfig
    from rm_abstract.discovery.manager import PluginManager

    return PluginManager(DiscoveryConfig(packages=(PACKAGE,)))


def bare(_directory: str) -> dict[str, Any]:
    """Import all modules; what the decorators need is there."""
    import rm_abstract.discovery.decorators  # noqa: F401

    took, _ = _milliseconds(lambda: [import_module(name) for name in module_names()])
    return {"ms": took}


def scan(directory: str) -> dict[str, Any]:
    """Full discovery: the first one, or from the index, as the directory is."""
    import rm_abstract.discovery.manager  # noqa: F401

    before = _resident()
    took, found = _milliseconds(lambda: _manager(directory).discover_plugins(["full"]))
    grown = _resident() - before
    ours = [entry for entry in found if entry.file.startswith(directory)]
    assert len(ours) == FOUND, len(ours)
    assert not found.problems, found.problems
    return {"ms": took, "grown": grown, "imported": sum(name.startswith(PACKAGE) for name in sys.modules)}


def warm(directory: str) -> dict[str, Any]:
    """A process that has discovered: cache hits, looking again, blueprints."""
    manager = _manager(directory)
    manager.discover_plugins(["full"])
    first_hit, _ = _milliseconds(manager.discover_plugins)
    hits = [_milliseconds(manager.discover_plugins)[0] for _ in range(2000)]
    assert manager.get_performance_stats()["cache_misses"] == 1

    def again() -> Any:
        manager.clear_cache()
        return manager.discover_plugins(["full"])

    looks = [_milliseconds(again)[0] for _ in range(20)]
    manager.discover_plugins(["full"])
    path = f"{directory}/blueprint.yaml"

    def blueprint() -> Any:
        # Its file has changed, as far as the manager can tell: it is read, understood and resolved.
        os.utime(path)
        return _milliseconds(lambda: manager.load_blueprint(path))

    blueprints = [blueprint() for _ in range(50)]
    assert len(blueprints[0][1].entries) == 21, len(blueprints[0][1].entries)
    same = [_milliseconds(lambda: manager.load_blueprint(path))[0] for _ in range(200)]
    return {
        "first_hit": first_hit, "hits": hits, "looks": looks, "blueprints": [each[0] for each in blueprints],
        "same": same,
    }  # fmt: skip


def blueprint(directory: str) -> dict[str, Any]:
    """A blueprint in a process that has discovered nothing."""
    import rm_abstract.discovery.manager  # noqa: F401

    took, plugins = _milliseconds(lambda: _manager(directory).load_blueprint(f"{directory}/blueprint.yaml"))
    assert len(plugins.entries) == 21, len(plugins.entries)
    return {"ms": took}


def memory(directory: str) -> dict[str, Any]:
    """All plugins found, and all imported with an instance of each."""
    from rm_abstract.core.registry import get_registry

    before = _resident()
    manager = _manager(directory)
    ours = [entry for entry in manager.discover_plugins(["full"]) if entry.file.startswith(directory)]
    found = _resident() - before
    held = [manager.get_instance(entry.type, entry.name) for entry in ours]
    assert len(held) == FOUND
    assert len(get_registry().entries()) >= FOUND
    return {"found": found, "loaded": _resident() - before}


def stevedore(_directory: str) -> dict[str, Any]:
    """What stevedore takes to find and load all of them, and one by its name."""
    from stevedore import DriverManager, ExtensionManager

    one, _ = _milliseconds(lambda: DriverManager(GROUP, "plugin7"))
    took, found = _milliseconds(lambda: ExtensionManager(GROUP))
    assert len(found.names()) == COUNT
    return {"ms": took, "one": one}


def stevedore_all(_directory: str) -> dict[str, Any]:
    """What stevedore takes to find and load all of them."""
    from stevedore import ExtensionManager

    took, found = _milliseconds(lambda: ExtensionManager(GROUP))
    assert len(found.names()) == COUNT
    return {"ms": took}


def pluggy(_directory: str) -> dict[str, Any]:
    """What pluggy takes to find and register all of them."""
    import pluggy

    manager = pluggy.PluginManager("bench")
    took, found = _milliseconds(lambda: manager.load_setuptools_entrypoints(GROUP))
    assert found == COUNT
    return {"ms": took}


MEASUREMENTS = {each.__name__: each for each in (bare, scan, warm, blueprint, memory, stevedore, stevedore_all, pluggy)}

if __name__ == "__main__":
    _, name, directory = sys.argv
    sys.path.insert(0, directory)
    print(json.dumps(MEASUREMENTS[name](directory)))
