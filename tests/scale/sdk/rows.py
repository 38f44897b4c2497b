"""The rows: each number is the median CPU time of processes that are started in turn, so that noise meets all alike."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scale.report import Row, percentile
from scale.sdk import modules
from scale.sizes import Sizes

REPEAT = 7
HEAVY = ("pydantic", "numpy", "yaml", "importlib.metadata", "torch", "transformers", "onnx", "httpx2", "redis")
_IMPORT = """
import sys, time
before, began = set(sys.modules), time.process_time()
import rm_abstract
took = time.process_time() - began
loaded = sorted(set(sys.modules) - before)
import json
print(json.dumps({"ms": 1000 * took, "modules": loaded}))
"""


async def run(_sizes: Sizes) -> Sequence[Row]:
    """As a part of ``make scale``."""
    return measure(REPEAT)


def measure(repeat: int) -> list[Row]:
    """Write the modules, measure, and clean up."""
    with tempfile.TemporaryDirectory(prefix="rma-sdk-") as name:
        directory = Path(name) / "site"
        directory.mkdir()
        modules.write(directory)
        modules.let_settle(directory)
        bench = _Bench(directory, Path(name) / "cache", repeat)
        return [*bench.imports(), *bench.scans(), *bench.warm(), *bench.memory(), *bench.rivals()]


class _Bench:
    def __init__(self, directory: Path, cache: Path, repeat: int) -> None:
        self._directory, self._cache, self._repeat = directory, cache, repeat

    def _child(self, name: str) -> dict[str, Any]:
        environ = os.environ | {
            "XDG_CACHE_HOME": str(self._cache),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONSAFEPATH": "1",
        }
        argv = [sys.executable, "-m", "scale.sdk.child", name, str(self._directory)]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _forget(self, *, bytecode: bool = False) -> None:
        """As if nothing had been looked at before; with ``bytecode`` as if nothing had been imported either."""
        shutil.rmtree(self._cache, ignore_errors=True)
        if bytecode:
            for path in list((self._directory / modules.PACKAGE).rglob("__pycache__")):
                shutil.rmtree(path)

    def imports(self) -> list[Row]:
        """``import rm_abstract`` in a process that has imported nothing else."""
        argv = [sys.executable, "-c", _IMPORT]
        runs = [json.loads(subprocess.run(argv, capture_output=True, check=True).stdout) for _ in range(self._repeat)]
        loaded = [name for name in runs[0]["modules"] if name.startswith("rm_")]
        heavy = [name for name in HEAVY if name in runs[0]["modules"]]
        return [
            Row("sdk", "import rm_abstract", _median(runs, "ms"), "ms", "<=", 100,
                f"{len(runs[0]['modules'])} modules, of ours {', '.join(loaded)}"),
            Row("sdk", "heavy modules that it loads", len(heavy), "", "<=", 0, ", ".join(heavy)),
        ]  # fmt: skip

    def scans(self) -> list[Row]:
        """First scans and discoveries from the index against bare imports, in turn."""
        found: dict[str, list[Mapping[str, Any]]] = {
            name: [] for name in ("first", "bare", "first, bytecode", "bare, bytecode", "index", "blueprint")
        }
        for _ in range(self._repeat):
            self._forget(bytecode=True)
            found["first"].append(self._child("scan"))
            self._forget(bytecode=True)
            found["bare"].append(self._child("bare"))
            found["bare, bytecode"].append(self._child("bare"))
            self._forget()
            found["first, bytecode"].append(self._child("scan"))
            found["index"].append(self._child("scan"))
            found["blueprint"].append(self._child("blueprint"))
            found["blueprint"][-1] = self._child("blueprint")
        took = {name: _median(runs, "ms") for name, runs in found.items()}
        imported = max(run["imported"] for runs in (found["first"], found["index"]) for run in runs)
        many = f"{modules.COUNT} modules"
        return [
            Row("sdk", "first scan against bare imports", took["first"] / took["bare"], "×", "<=", 1.2,
                f"{took['first']:.0f} against {took['bare']:.0f} ms, without bytecode"),
            Row("sdk", "first scan against imports from bytecode",
                took["first, bytecode"] / took["bare, bytecode"], "×", "<=", 1.2,
                f"{took['first, bytecode']:.0f} against {took['bare, bytecode']:.0f} ms"),
            Row("sdk", "full discovery from the index, new process", took["index"], "ms", "<=", 10,
                f"{many}, QONNX and what is installed; the worst {max(r['ms'] for r in found['index']):.1f} ms"),
            Row("sdk", "modules imported by these", imported, "", "<=", 0),
            Row("sdk", "blueprint of 21 plugins, new process", took["blueprint"], "ms", note="all files are looked at"),
        ]  # fmt: skip

    def warm(self) -> list[Row]:
        """A process that goes on."""
        runs = [self._child("warm") for _ in range(3)]
        hits, looks, blueprints, same = (
            [value for run in runs for value in run[name]] for name in ("hits", "looks", "blueprints", "same")
        )
        return [
            Row("sdk", "cache hit", percentile(hits, 50), "ms", "<=", 0.05,
                f"P99 {percentile(hits, 99):.3f} ms; the first begins a watch: {_median(runs, 'first_hit'):.1f}"),
            Row("sdk", "full discovery, all files looked at again", percentile(looks, 50), "ms", "<=", 10),
            Row("sdk", "blueprint of 21 plugins", percentile(blueprints, 50), "ms", "<=", 1,
                f"P99 {percentile(blueprints, 99):.2f} ms; its file is read and resolved each time"),
            Row("sdk", "blueprint that has not changed", percentile(same, 50), "ms", "<=", 0.05),
        ]  # fmt: skip

    def memory(self) -> list[Row]:
        """What a process grows by."""
        runs = [self._child("memory") for _ in range(3)]
        return [
            Row("sdk", "memory of all plugins, found", _median(runs, "found"), "MB", "<=", 30,
                "with the modules of discovery"),
            Row("sdk", "memory of all plugins, imported, an instance each", _median(runs, "loaded"), "MB", "<=", 30),
        ]  # fmt: skip

    def rivals(self) -> list[Row]:
        """The same modules as entry points of a distribution."""
        self._forget()
        runs: dict[str, list[Mapping[str, Any]]] = {"first": [], "again": [], "one": [], "pluggy": []}
        for _ in range(self._repeat):
            self._forget()
            runs["first"].append(self._child("stevedore_all"))
            runs["again"].append(self._child("stevedore_all"))
            runs["one"].append(self._child("stevedore"))
            runs["pluggy"].append(self._child("pluggy"))
        return [
            Row("rivals", "stevedore, first process", _median(runs["first"], "ms"), "ms", note="imports all"),
            Row("rivals", "stevedore, new process with its cache", _median(runs["again"], "ms"), "ms",
                note="imports all"),
            Row("rivals", "stevedore, one by name with its cache", _median(runs["one"], "one"), "ms"),
            Row("rivals", "pluggy, new process", _median(runs["pluggy"], "ms"), "ms", note="imports all"),
        ]  # fmt: skip


def _median(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(median(run[name] for run in runs))
