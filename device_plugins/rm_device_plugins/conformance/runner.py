"""Runs cases: those that only call beside each other, those that inject faults one after the other."""

import asyncio
import fnmatch
import functools
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from rm_device_plugins.conformance import cases as _definitions
from rm_device_plugins.conformance.bench import Bench, Plugin, Refused
from rm_device_plugins.conformance.cases.health import RECOVERS
from rm_device_plugins.conformance.cases.registration import GATE
from rm_device_plugins.conformance.faults import Hook
from rm_device_plugins.conformance.launch import Launcher
from rm_device_plugins.conformance.model import (
    CASES,
    GOOD,
    CannotJudge,
    CannotRun,
    Case,
    Lane,
    NotApplicable,
    Result,
    Timing,
    Verdict,
    Violation,
)
from rm_device_plugins.sockets import MAX_PATH_BYTES, identity

assert _definitions  # its import defines the cases

DEFAULT_JOBS = 4
_LONGEST_TMPDIR = 40
"""Leaves a plugin some forty characters for the name of its socket."""


@dataclass(frozen=True)
class Target:
    """What is tested: a plugin that ``launcher`` starts, or one that listens on ``socket`` already."""

    launcher: Launcher | None = None
    socket: Path | None = None
    inject: Sequence[str] | None = None
    """The fault hook's command, with placeholders."""
    resource: str = ""
    """The resource that must be registered; the first that is, where empty."""
    siblings: Callable[[str], str] | None = None
    """The hardware behind an ID."""


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order of the cases' definition."""

    results: tuple[Result, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if the plugin conforms, as far as could be tried."""
        return all(result.verdict in GOOD for result in self.results)

    def count(self, verdict: Verdict) -> int:
        """How many cases ended so."""
        return sum(result.verdict == verdict for result in self.results)


def select(patterns: Sequence[str]) -> list[Case]:
    """The cases whose IDs match one of the shell patterns; all for none. Raises CannotRun for a pattern of nothing."""
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise CannotRun(f"no case is called {pattern!r}; there are {', '.join(CASES)}")
    return [case for case in CASES.values() if not patterns or any(fnmatch.fnmatch(case.id, p) for p in patterns)]


async def run(
    target: Target,
    chosen: Sequence[Case] | None = None,
    timing: Timing | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    timings: Mapping[str, Timing] | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Runs the chosen cases (all, without them) and what they build on. ``timings`` are for single cases.

    ``jobs`` plugins run at a time. Raises CannotRun where there is nothing to test.
    """
    started = time.monotonic()
    _keep_grpc()
    if target.launcher is not None:
        await target.launcher.check()
    elif target.socket is None or identity(target.socket) is None:
        raise CannotRun(f"--socket: {target.socket} is no unix socket; name the one that the plugin listens on")
    wanted = list(CASES.values()) if chosen is None else list(chosen)
    place = _place()
    suite = _Suite(target, timing or Timing(), timings or {}, jobs, place, progress)
    try:
        results = await suite.run(_with_required(wanted))
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
    return Report(tuple(results[case.id] for case in CASES.values() if case.id in results), time.monotonic() - started)


def _place() -> Path:
    """A directory for the run. Raises CannotRun where plugins could not have sockets in it."""
    within = tempfile.gettempdir()
    if len(os.fsencode(within)) > _LONGEST_TMPDIR:
        raise CannotRun(
            f"TMPDIR is {within}, too long for the sockets in it (the kernel takes paths of {MAX_PATH_BYTES} bytes); "
            f"name a directory of at most {_LONGEST_TMPDIR} characters"
        )
    return Path(tempfile.mkdtemp(prefix="rma-cf-"))


@functools.cache
def _keep_grpc() -> None:
    """Keeps grpc's thread for good: it ends with the last server and channel, and waiting for that may never end."""
    grpc.aio.init_grpc_aio()


def _with_required(wanted: Sequence[Case]) -> list[Case]:
    needed = {case.id for case in wanted} | {GATE}
    for case in reversed(CASES.values()):  # a case is defined after what it requires
        if case.id in needed:
            needed.update(case.requires)
    return [case for case in CASES.values() if case.id in needed]


@dataclass(eq=False)
class _Suite:
    target: Target
    timing: Timing
    timings: Mapping[str, Timing]
    jobs: int
    place: Path
    progress: Callable[[Result], None]
    results: dict[str, "asyncio.Future[Result]"] = field(default_factory=dict)
    benches: int = 0

    async def run(self, chosen: Sequence[Case]) -> dict[str, Result]:
        loop = asyncio.get_running_loop()
        self.results = {case.id: loop.create_future() for case in chosen}
        gate, *others = chosen
        if self.target.launcher is None:
            await self._gate_of_socket(gate)
        else:
            await self._alone(gate)
        slots = asyncio.Semaphore(self.jobs)
        fresh = [case for case in others if case.lane is Lane.FRESH]
        fresh.sort(key=lambda case: not case.lasts_long)
        async with asyncio.TaskGroup() as steady:
            steady.create_task(self._shared([case for case in others if case.lane is Lane.SHARED], slots))
            for case in fresh:
                steady.create_task(self._alone(case, slots))
        await self._faults([case for case in others if case.lane.needs_faults])
        return {name: future.result() for name, future in self.results.items()}

    # --- lanes

    async def _gate_of_socket(self, gate: Case) -> None:
        """There is no registration to see; that it answers is what the other cases build on."""
        assert self.target.socket is not None
        plugin = Plugin(self.target.socket, self._timing(gate))
        try:
            await plugin.options()
        except Violation as error:
            raise CannotRun(f"--socket: {self.target.socket} is not answered by a device plugin: {error}") from error
        finally:
            await plugin.close()
        self._end(Result(gate, Verdict.NOT_APPLICABLE, _NEEDS_START))

    async def _alone(self, case: Case, slots: asyncio.Semaphore | None = None) -> None:
        """A case with a bench of its own, which it opens itself."""
        if await self._settled(case):
            return
        async with slots or asyncio.Semaphore(1):
            bench = self._bench(case)
            await self._try(case, bench)

    async def _shared(self, listed: Sequence[Case], slots: asyncio.Semaphore) -> None:
        async with slots, self._kept() as keep:
            for case in listed:
                if not await self._settled(case):
                    await self._on(case, keep)

    async def _faults(self, listed: Sequence[Case]) -> None:
        async with self._kept() as keep:
            for case in listed:
                if await self._settled(case):
                    continue
                if case.lane is Lane.FAULT:
                    await self._on(case, keep)
                else:
                    await self._try(case, self._bench(case))

    async def _on(self, case: Case, keep: "_Kept") -> None:
        """A case on a bench that others have used and will use, unless it was left in disorder."""
        bench = await self._orderly(case, keep)
        if bench is not None:
            result = await self._try(case, bench, close=False)
            if result.verdict not in GOOD and self.target.launcher is not None:
                await keep.drop()

    async def _orderly(self, case: Case, keep: "_Kept") -> Bench | None:
        timing = self._timing(case)
        if keep.bench is not None:
            keep.bench.timing = timing
            try:
                if self.target.launcher is not None:
                    seconds = timing.patience if self._recovers() else 0.0
                    await keep.bench.until(keep.in_order, "the plugin is as it was before the last case", seconds)
                return keep.bench
            except Violation:
                await keep.drop()
        bench = self._bench(case)
        keep.bench = bench
        try:
            if self.target.launcher is not None:
                await bench.open()
                await bench.start()
                await bench.registered()
                keep.healthy = bench.last.healthy
            return bench
        except Violation as error:
            self._end(Result(case, Verdict.FAILED, str(error), output=_output(bench)))
            await keep.drop()
            return None

    def _recovers(self) -> bool:
        """False once it is known that waiting for devices to be well again is in vain."""
        future = self.results.get(RECOVERS)
        return future is None or not future.done() or future.result().verdict in GOOD

    @asynccontextmanager
    async def _kept(self) -> "AsyncIterator[_Kept]":
        keep = _Kept()
        try:
            yield keep
        finally:
            await keep.drop()

    # --- one case

    def _timing(self, case: Case) -> Timing:
        return self.timings.get(case.id, self.timing)

    def _bench(self, case: Case) -> Bench:
        self.benches += 1
        hook = Hook(self.target.inject, self.timing.patience)
        place = self.place / str(self.benches)
        target = self.target
        return Bench(self._timing(case), hook, target.launcher, target.socket, place, target.resource, target.siblings)

    async def _settled(self, case: Case) -> bool:
        """True if the case need not be tried: it does not apply, or what it builds on did not pass."""
        if case.lane.needs_start and self.target.launcher is None:
            self._end(Result(case, Verdict.NOT_APPLICABLE, _NEEDS_START))
        elif case.lane.needs_faults and not self.target.inject:
            self._end(Result(case, Verdict.NOT_APPLICABLE, "it needs faults to be injected: use --inject"))
        else:
            for name in case.requires:
                required = await asyncio.shield(self.results[name])
                if required.verdict not in GOOD:
                    self._end(Result(case, Verdict.BLOCKED, f"{name} did not pass"))
                    return True
            return False
        return True

    async def _try(self, case: Case, bench: Bench, *, close: bool = True) -> Result:
        started = time.monotonic()
        verdict, message, output = Verdict.PASSED, "", ""
        try:
            try:
                message = await case.run(bench) or ""
            except NotApplicable as reason:
                verdict, message = Verdict.NOT_APPLICABLE, str(reason)
            except (Violation, Refused) as error:
                verdict, message, output = Verdict.FAILED, str(error), _output(bench)
            except CannotJudge as error:
                verdict, message, output = Verdict.ERROR, str(error), _output(bench)
            except CannotRun as error:
                if case.id == GATE:
                    raise
                verdict, message, output = Verdict.ERROR, str(error), _output(bench)
            except Exception as error:
                message = f"the suite itself failed: {error!r}"
                verdict, output = Verdict.ERROR, "".join(traceback.format_exception(error))
            finally:
                if close:
                    await bench.close()
        except CannotJudge as error:
            verdict, message = Verdict.ERROR, str(error)
        result = Result(case, verdict, message, time.monotonic() - started, output)
        self._end(result)
        return result

    def _end(self, result: Result) -> None:
        self.results[result.case.id].set_result(result)
        self.progress(result)


@dataclass(eq=False)
class _Kept:
    """A bench that cases use one after the other."""

    bench: Bench | None = None
    healthy: frozenset[str] = frozenset()

    def in_order(self) -> bool:
        """True if the plugin runs, is registered, and has the devices that it had at first."""
        bench = self.bench
        assert bench is not None
        return bench.kubelet.streams(bench.resource) == 1 and bench.last.healthy == self.healthy

    async def drop(self) -> None:
        """Ends it; the next case gets a new one."""
        bench, self.bench = self.bench, None
        if bench is not None:
            await bench.close()


_NEEDS_START = "it needs the suite to start the plugin: use --command or --image"


def _output(bench: Bench) -> str:
    return "\n".join(text for instance in bench.instances if (text := instance.output()))
