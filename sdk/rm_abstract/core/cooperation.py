"""Several resources on one request: a batch that is split among them, and a prompt and its answer on different ones."""

import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from rm_abstract.core.errors import BadInput, PluginError, Transient
from rm_abstract.core.pipeline import Pipeline, PipelineRun, Stage, StageContext
from rm_abstract.core.resource import Resource
from rm_abstract.core.resource_pool import Lease, Query, ResourcePool
from rm_abstract.core.session import FinishReason, GenerationRequest, Session

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def run_batch(
    pool: ResourcePool,
    items: Sequence[ItemT],
    call: Callable[[Resource, Sequence[ItemT]], Sequence[ResultT]],
    query: Query | None = None,
    *,
    timeout: float | None = None,
) -> list[ResultT]:
    """The results of all items, in their order, computed by as many resources as will do and are free, at least one.

    Each resource takes its share, within the ``max_batch_size`` of its capability, and another one when it is done, so
    that the faster ones do more. Where a resource fails, the others do its share. Raises BadInput where none will do or
    ``call`` raises it, Transient where none became free within ``timeout`` seconds, and what the last resource raised
    where all of them have failed.
    """
    if not items:
        return []
    query = query or Query()
    leases = [pool.acquire(query, timeout=timeout)]
    while len(leases) < len(items):
        try:
            taken = {lease.resource.id for lease in leases}
            leases.append(pool.acquire(query, timeout=0, order=partial(_others, taken)))
        except Transient:
            break
    batch: _Batch[ItemT, ResultT] = _Batch(items, len(leases), call)
    threads = [
        threading.Thread(
            target=batch.work,
            args=(lease, pool.capability(lease.resource.id).max_batch_size),
            name=f"batch-{lease.resource.id}",
            daemon=True,
        )
        for lease in leases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return batch.outcome()


def _others(taken: Collection[str], found: Sequence[Resource]) -> list[Resource]:
    return [resource for resource in found if resource.id not in taken]


class _Batch(Generic[ItemT, ResultT]):
    """Items that are still to be done, and results, shared by the workers of a batch."""

    def __init__(
        self, items: Sequence[ItemT], workers: int, call: Callable[[Resource, Sequence[ItemT]], Sequence[ResultT]]
    ) -> None:
        self._items = items
        self._call = call
        self._changed = threading.Condition()
        self._workers = workers
        self._open = [(0, len(items))]
        self._running = 0
        self._results: dict[int, ResultT] = {}
        self._error: Exception | None = None
        self._stopped = False

    def work(self, lease: Lease, most: int | None) -> None:
        """Do shares until there are none, on the leased resource; a failure is its last."""
        with lease:
            while (share := self._take(most)) is not None:
                start, end = share
                error: Exception | None = None
                results: Sequence[ResultT] = ()
                try:
                    results = self._call(lease.resource, self._items[start:end])
                    if len(results) != end - start:
                        raise PluginError(f"{lease.resource.id} gave {len(results)} results for {end - start} items")
                except Exception as failure:
                    error = failure
                if self._finish(share, results, error):
                    return

    def _take(self, most: int | None) -> tuple[int, int] | None:
        with self._changed:
            # While others run, their shares may come back.
            self._changed.wait_for(lambda: self._open or not self._running or self._stopped)
            if not self._open or self._stopped:
                return None
            start, end = self._open.pop()
            left = end - start + sum(stop - begin for begin, stop in self._open)
            size = min(end - start, -(-left // self._workers), most or left)
            if start + size < end:
                self._open.append((start + size, end))
            self._running += 1
            return start, start + size

    def _finish(self, share: tuple[int, int], results: Sequence[ResultT], error: Exception | None) -> bool:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
            if error is None:
                self._results.update(zip(range(*share), results, strict=True))
                return False
            self._error = error
            self._open.append(share)
            self._workers -= 1
            self._stopped = self._stopped or isinstance(error, BadInput)
            return True

    def outcome(self) -> list[ResultT]:
        """All results, in order; raises what the last worker failed with where some are missing."""
        if len(self._results) < len(self._items):
            assert self._error is not None
            raise self._error
        return [self._results[index] for index in range(len(self._items))]


def stream_session(
    session: Session, request: GenerationRequest, context: StageContext | None = None
) -> Generator[list[int], None, FinishReason]:
    """The tokens of a generation as they come; its result is why it ended.

    Ending the iteration, or cancelling the stage whose context is given, ends the generation. Raises PluginError where
    the engine fails.
    """
    arrived: queue.SimpleQueue[tuple[list[int], FinishReason | None]] = queue.SimpleQueue()
    generation = session.execute(request, lambda tokens, finish: arrived.put((list(tokens), finish)))
    if context is not None:
        context.on_cancel(generation.cancel)
    finish: FinishReason | None = None
    try:
        while finish is None:
            tokens, finish = arrived.get()
            if tokens:
                yield tokens
    finally:
        if finish is None:
            generation.cancel()
    if finish is FinishReason.ERROR:
        raise PluginError(f"the engine failed while it generated: {session.failure or 'it does not say why'}")
    return finish


@dataclass(frozen=True)
class Handoff:
    """What goes from the resource that has read the prompt to the one that says the answer."""

    number: int
    """Of the request, in the order in which they came."""
    request: GenerationRequest
    tokens: tuple[int, ...]
    """What has been generated of the answer."""
    finish: FinishReason | None = None
    """Why it has ended already; None where there is more to say."""


@dataclass(frozen=True)
class Piece:
    """Tokens of an answer."""

    number: int
    """Of the request, in the order in which they came."""
    tokens: tuple[int, ...]
    finish: FinishReason | None = None
    """Why the answer ended, with its last piece."""


class PrefillDecode:
    """Reads prompts and gives the first token on one resource, and the rest on another: both are busy at once.

    Sessions hand over tokens, not their engines' state: the second engine reads prompt and first token at its own pace,
    while the first token has been given already, and the next prompt is being read. Both must be of the same model.
    With sampling, tokens are drawn anew on the second; penalties cannot be split.
    """

    def __init__(
        self,
        prefill: Session,
        decode: Session,
        pool: ResourcePool | None = None,
        *,
        prefill_query: Query | None = None,
        decode_query: Query | None = None,
    ) -> None:
        if prefill.vocabulary_size != decode.vocabulary_size:
            raise BadInput(
                f"the sessions are of different models: one knows {prefill.vocabulary_size} tokens, "
                f"the other {decode.vocabulary_size}"
            )
        self._prefill, self._decode = prefill, decode
        stages = [Stage("prefill", self._read, prefill_query), Stage("decode", self._say, decode_query)]
        self._pipeline = Pipeline(stages, pool)

    def run(self, requests: Iterable[GenerationRequest], *, timeout: float | None = None) -> PipelineRun:
        """The answers in pieces (``Piece``), one request after the other. Raises as ``Pipeline.run`` does."""
        return self._pipeline.run(requests, timeout=timeout)

    def _read(self, requests: Iterator[GenerationRequest], context: StageContext) -> Iterator[Handoff]:
        for number, request in enumerate(requests):
            if request.presence_penalty or request.frequency_penalty:
                raise BadInput("penalties count what was generated, which is split between two engines; leave them out")
            first, finish = _all(stream_session(self._prefill, replace(request, max_tokens=1), context))
            context.check()
            ended = finish is FinishReason.STOP or request.max_tokens == 1
            yield Handoff(number, request, first, finish if ended else None)

    def _say(self, handoffs: Iterator[Handoff], context: StageContext) -> Iterator[Piece]:
        for handoff in handoffs:
            yield Piece(handoff.number, handoff.tokens, handoff.finish)
            if handoff.finish is not None:
                continue
            prompt = [*handoff.request.prompt, *handoff.tokens]
            left = handoff.request.max_tokens - len(handoff.tokens)
            rest = stream_session(self._decode, replace(handoff.request, prompt=prompt, max_tokens=left), context)
            last: tuple[int, ...] = ()
            while True:
                try:
                    tokens = next(rest)
                except StopIteration as end:
                    context.check()
                    yield Piece(handoff.number, last, end.value)
                    break
                if last:
                    yield Piece(handoff.number, last)
                last = tuple(tokens)


def _all(pieces: Generator[list[int], None, FinishReason]) -> tuple[tuple[int, ...], FinishReason]:
    tokens: list[int] = []
    while True:
        try:
            tokens.extend(next(pieces))
        except StopIteration as end:
            return tuple(tokens), end.value
