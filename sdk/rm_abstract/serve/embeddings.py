"""``/v1/embeddings``: requests, read strictly, and the engine that computes them in batches."""

import asyncio
import base64
import math
import sys
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from rm_abstract.core.embedding import Embedder
from rm_abstract.serve.admission import Admission
from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.fields import check_fields

_MAX_INPUTS: Final = 2048
_FORMATS: Final = ("float", "base64")


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request, checked."""

    prompts: list[list[int]]
    """Token ids, special ones included."""
    size: int
    """Numbers of an embedding."""
    base64: bool


def parse(body: Mapping[str, Any], embedder: Embedder) -> EmbeddingRequest:
    """A request to ``/v1/embeddings``. Raises ApiError."""
    check_fields("/v1/embeddings", body)
    format_ = body.get("encoding_format")
    if format_ not in (None, *_FORMATS):
        raise ApiError(400, f"encoding_format must be one of {', '.join(_FORMATS)}", param="encoding_format")
    prompts = _inputs(body.get("input"), embedder)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ApiError(400, f"input {index} is empty", param="input")
        if len(prompt) > embedder.max_sequence_length:
            raise ApiError(
                400,
                f"this model takes {embedder.max_sequence_length} tokens, but input {index} has {len(prompt)}",
                param="input", code="context_length_exceeded",
            )  # fmt: skip
    return EmbeddingRequest(prompts, _size(body.get("dimensions"), embedder), format_ == "base64")


def _size(wanted: Any, embedder: Embedder) -> int:
    if wanted is None:
        return embedder.size
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ApiError(400, "dimensions must be a whole number of at least 1", param="dimensions")
    if wanted not in embedder.sizes:
        sizes = embedder.sizes
        able = f"1 to {embedder.size}" if isinstance(sizes, range) else ", ".join(map(str, sizes))
        raise ApiError(
            400, f"this model's embeddings cannot be cut to {wanted} numbers; they have {able}",
            param="dimensions", code="unsupported_parameter",
        )  # fmt: skip
    return wanted


def _inputs(value: Any, embedder: Embedder) -> list[list[int]]:
    def is_token(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < embedder.vocabulary_size

    def encode(text: str) -> list[int]:
        if not text:
            raise ApiError(400, "an input is an empty string", param="input")
        return embedder.tokenizer.encode(text, add_special_tokens=True)

    if isinstance(value, str):
        return [encode(value)]
    if isinstance(value, list) and value:
        if all(is_token(item) for item in value):
            return [list(value)]
        if len(value) > _MAX_INPUTS:
            raise ApiError(400, f"{len(value)} inputs are more than the {_MAX_INPUTS} of a request", param="input")
        if all(isinstance(item, str) for item in value):
            return [encode(item) for item in value]
        if all(isinstance(item, list) and item and all(map(is_token, item)) for item in value):
            return [list(item) for item in value]
    raise ApiError(
        400, "input must be a string, a list of strings, a list of token ids or a list of such lists", param="input"
    )


def answer(request: EmbeddingRequest, vectors: Sequence[Sequence[float]], model: str, normalized: bool) -> Any:
    """The body of the answer."""
    tokens = sum(map(len, request.prompts))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _rendered(request, vector, normalized)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _rendered(request: EmbeddingRequest, vector: Sequence[float], normalized: bool) -> Any:
    values = list(vector[: request.size])
    if normalized and len(values) < len(vector):
        length = math.sqrt(math.fsum(value * value for value in values))
        values = [value / length for value in values] if length else values
    if not request.base64:
        return values
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


@dataclass(eq=False)
class _Running:
    """A request whose inputs are being computed."""

    prompts: list[list[int]]
    came: float
    done: asyncio.Future[None]
    vectors: dict[int, list[float]] = field(default_factory=dict)
    begun: int = 0
    """Inputs that are or were in a batch."""


class EmbeddingEngine(Admission):
    """Computes batches of at most ``max_batch`` inputs, of all requests in turn; so many requests and ``max_queue``
    more may be there at a time."""

    def __init__(self, embedder: Embedder, *, max_batch: int, max_queue: int) -> None:
        super().__init__(max_batch + max_queue, "requests are being computed")
        self.embedder = embedder
        self._max_batch = max_batch
        self._failure = ""
        self._gone = asyncio.Event()
        self._pending: deque[_Running] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str:
        """See the base class."""
        return self._failure

    @property
    def max_sequence_length(self) -> int:
        """See the base class."""
        return self.embedder.max_sequence_length

    async def failed(self) -> None:
        """See the base class."""
        await self._gone.wait()

    def close(self) -> None:
        """See the base class."""
        self._thread.shutdown()
        self.embedder.close()

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """An embedding of each. ApiError 429 or 503 at once, 500 where the engine fails; cancelled, it is dropped."""
        with self.place(1):
            running = _Running(prompts, monotonic(), asyncio.get_running_loop().create_future())
            self._pending.append(running)
            self.waiting += len(prompts)
            if self._worker is None:
                self._worker = asyncio.create_task(self._work())
            end = "abort"
            try:
                await running.done
                end = "stop"
            except ApiError:
                end = "error"
                raise
            finally:
                self.metrics.finished[end] += 1
                if running in self._pending:
                    self._pending.remove(running)
                self.waiting -= len(prompts) - running.begun
            self.metrics.e2e_latency.observe(monotonic() - running.came)
            return [running.vectors[index] for index in range(len(prompts))]

    async def _work(self) -> None:
        """Compute until nothing is left."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._batch():
                try:
                    inputs = [running.prompts[index] for running, index in batch]
                    vectors = await loop.run_in_executor(self._thread, self.embedder.embed, inputs)
                except Exception as error:
                    self._fail(" ".join(f"{type(error).__name__}: {error}".split()), batch)
                    return
                finally:
                    self.running -= len(batch)
                for (running, index), vector in zip(batch, vectors, strict=True):
                    running.vectors[index] = vector
                    self.metrics.prompt_tokens += len(running.prompts[index])
                    if len(running.vectors) == len(running.prompts) and not running.done.done():
                        running.done.set_result(None)
        finally:
            self._worker = None

    def _batch(self) -> list[tuple[_Running, int]]:
        """The next inputs: one of each request in turn, so that none waits for all of a large one."""
        batch: list[tuple[_Running, int]] = []
        while self._pending and len(batch) < self._max_batch:
            running = self._pending.popleft()
            if not running.begun:
                self.metrics.queue_time.observe(monotonic() - running.came)
            batch.append((running, running.begun))
            running.begun += 1
            if running.begun < len(running.prompts):
                self._pending.append(running)
        self.running += len(batch)
        self.waiting -= len(batch)
        return batch

    def _fail(self, why: str, batch: Sequence[tuple[_Running, int]]) -> None:
        self._failure = why
        left = {*self._pending, *(running for running, _ in batch)}
        self._pending.clear()
        for running in left:
            if not running.done.done():
                running.done.set_exception(ApiError(500, f"the engine failed: {why}", code="engine_failed"))
        self._gone.set()
