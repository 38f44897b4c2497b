"""Stages that work at the same time, each on a resource of its own, with streams between them.

    with Pipeline([Stage("embed", embed, Query(types=("NPU",))), Stage("rank", rank, Query(types=("GPU",)))], pool).run(
        documents
    ) as results:
        for result in results: ...

A stage takes a stream and gives one: ``run(items, context)``, usually a generator. It begins with the first item, and
waits where the next stage is behind by ``buffer`` items. What one stage raises ends all of them, and is raised to
whoever reads the results, with the stage's name; whoever stops reading ends them too.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput, PluginError, WorkloadError
from rm_abstract.core.resource import Resource
from rm_abstract.core.resource_pool import Lease, Query, ResourcePool

_BUFFER: Final = 8


class Cancelled(BaseException):
    """Raised in a stage that asks for its next item, or gives one, when nobody wants more. No failure; let it pass."""


class StageContext:
    """What a stage has beside its items."""

    def __init__(self, name: str, resource: Resource | None) -> None:
        self.name = name
        self.resource = resource
        """What was leased for it; None where it asked for nothing."""
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """True once nobody wants more."""
        return self._cancelled

    def check(self) -> None:
        """Raise Cancelled where nobody wants more: for a stage that computes long between two items."""
        if self._cancelled:
            raise Cancelled

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called once nobody wants more, on any thread: for a stage that waits for something else."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        """Nobody wants more. Harmless if said before."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            with suppress(Exception):
                callback()


StageFunction = Callable[[Iterator[Any], StageContext], Iterable[Any]]


@dataclass(frozen=True)
class Stage:
    """A part of a pipeline."""

    name: str
    run: StageFunction
    query: Query | None = None
    """The resource that it needs; None: none."""
    buffer: int = _BUFFER
    """Results that may wait for the next stage."""

    @classmethod
    def each(cls, name: str, function: Callable[[Any, StageContext], Any], query: Query | None = None) -> Self:
        """A stage that makes one result of each item."""

        def run(items: Iterator[Any], context: StageContext) -> Iterator[Any]:
            for item in items:
                yield function(item, context)

        return cls(name, run, query)


class Pipeline:
    """Stages in a row. A pipeline can be run any number of times, at the same time too.

    Raises BadInput for no stages, two of one name, and a stage that needs a resource where there is no pool.
    """

    def __init__(self, stages: Sequence[Stage], pool: ResourcePool | None = None) -> None:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise BadInput(f"a pipeline needs stages with names of their own, not {', '.join(names) or 'none'}")
        for stage in stages:
            if stage.query is not None and pool is None:
                raise BadInput(f"stage {stage.name} needs a resource, but the pipeline has no pool")
            if stage.buffer < 1:
                raise BadInput(f"stage {stage.name}: buffer is {stage.buffer}; at least one result must find room")
        self.stages = tuple(stages)
        self.pool = pool

    def run(self, inputs: Iterable[Any], *, timeout: float | None = None) -> "PipelineRun":
        """Lease all resources at once, and begin. ``inputs`` is read on a thread of its own.

        Raises as ``ResourcePool.acquire_all`` does, which waits ``timeout`` seconds.
        """
        queries = [stage.query for stage in self.stages if stage.query is not None]
        leases = iter(self.pool.acquire_all(queries, timeout=timeout) if self.pool is not None and queries else ())
        return PipelineRun(
            self.stages, [next(leases) if stage.query is not None else None for stage in self.stages], inputs
        )


class PipelineRun(Iterator[Any]):
    """The results of one run, in order, as they come. A context manager that ends what still runs."""

    def __init__(self, stages: Sequence[Stage], leases: Sequence[Lease | None], inputs: Iterable[Any]) -> None:
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._contexts = [
            StageContext(stage.name, None if lease is None else lease.resource)
            for stage, lease in zip(stages, leases, strict=True)
        ]
        self._channels = [_Channel(stage.buffer) for stage in stages]
        sources: list[Iterator[Any]] = [_Inputs(inputs, self._contexts[0]), *map(_Reader, self._channels[:-1])]
        self._threads = [
            threading.Thread(target=self._work, args=parts, name=f"stage-{parts[0].name}", daemon=True)
            for parts in zip(stages, leases, self._contexts, sources, self._channels, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def resources(self) -> dict[str, Resource | None]:
        """What each stage runs on."""
        return {context.name: context.resource for context in self._contexts}

    def __next__(self) -> Any:
        try:
            return self._channels[-1].get()
        except (StopIteration, Cancelled):
            self._join(None)
            if self._error is not None:
                raise self._error from self._error.__cause__
            raise StopIteration from None

    def cancel(self) -> None:
        """End all stages soon. The iteration then ends. Harmless at any time."""
        for context in self._contexts:
            context.cancel()
        for channel in self._channels:
            channel.abandon()

    def close(self, timeout: float | None = None) -> bool:
        """``cancel``, and wait until all stages have ended and given back their resources.

        False where one of them takes more than ``timeout`` seconds.
        """
        self.cancel()
        return self._join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _join(self, timeout: float | None) -> bool:
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def _work(
        self, stage: Stage, lease: Lease | None, context: StageContext, source: "_Source", sink: "_Channel"
    ) -> None:
        results: Any = None
        try:
            results = iter(stage.run(source, context))
            for result in results:
                sink.put(result)
            context.check()
        except Cancelled:
            pass
        except Exception as error:
            self._fail(stage.name, error)
        finally:
            with suppress(Exception, Cancelled):
                if hasattr(results, "close"):
                    results.close()
            # The stages before this one work for nobody now; those after it get what there is.
            source.abandon()
            sink.end()
            context.cancel()
            if lease is not None:
                lease.release()

    def _fail(self, name: str, error: Exception) -> None:
        where = "the input" if isinstance(error, _InputFailed) else f"stage {name}"
        cause = error.__cause__ if isinstance(error, _InputFailed) else error
        if isinstance(cause, WorkloadError):
            failure: Exception = type(cause)(f"{where} failed: {cause}")
        else:
            failure = PluginError(f"{where} failed: {type(cause).__name__}: {cause}")
        failure.__cause__ = cause
        with self._lock:
            if self._error is not None:
                return  # what a first failure brings about is not what the user must know
            self._error = failure
        self.cancel()


class _Source(Iterator[Any]):
    def abandon(self) -> None:
        raise NotImplementedError


@dataclass
class _Channel:
    """A row of results between two threads."""

    room: int
    _items: deque[Any] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False
    _abandoned: bool = False

    def put(self, item: Any) -> None:
        """Add one, when there is room. Raises Cancelled where nobody reads any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or len(self._items) < self.room)
            if self._abandoned:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        """The next one, when it is there. Raises StopIteration after the last, Cancelled where it was abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._items or self._ended)
            if self._abandoned:
                raise Cancelled
            if not self._items:
                raise StopIteration
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Say that no more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that nobody reads any more."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()


class _Reader(_Source):
    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def __next__(self) -> Any:
        return self._channel.get()

    def abandon(self) -> None:
        self._channel.abandon()


class _InputFailed(Exception):
    pass


class _Inputs(_Source):
    def __init__(self, inputs: Iterable[Any], context: StageContext) -> None:
        self._inputs = inputs
        self._iterator: Any = None
        self._context = context

    def __next__(self) -> Any:
        self._context.check()
        try:
            if self._iterator is None:
                self._iterator = iter(self._inputs)
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            raise _InputFailed from error

    def abandon(self) -> None:
        if hasattr(self._iterator, "close"):
            with suppress(Exception):
                self._iterator.close()
