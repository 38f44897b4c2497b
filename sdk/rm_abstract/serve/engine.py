"""Brings requests of the API to a session: a limited number at a time, a limited number waiting."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from rm_abstract.core.session import FinishReason, GenerationRequest, Session
from rm_abstract.core.text import TextStream
from rm_abstract.serve.admission import Admission
from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.schema import ApiRequest
from rm_abstract.serve.scores import Score, Scores


@dataclass(frozen=True)
class Piece:
    """What came of one choice since the last piece."""

    choice: int
    """Number of the answer: those to the first prompt come first."""
    text: str
    tokens: int
    """Tokens computed for it."""
    finish: FinishReason | None
    """STOP or LENGTH in the last piece of a choice."""
    scores: tuple[Score, ...] = ()
    """Of the tokens whose text is given out, where the request has ``logprobs``."""


class Engine(Admission):
    """Runs at most ``max_batch`` generations at a time, in the order in which they came; ``max_queue`` may wait."""

    def __init__(self, session: Session, *, max_batch: int, max_queue: int) -> None:
        super().__init__(max_batch + max_queue, "answers are being generated")
        self.session = session
        self._slots = asyncio.Semaphore(max_batch)

    @property
    def failure(self) -> str:
        """See the base class."""
        return self.session.failure

    @property
    def max_sequence_length(self) -> int:
        """See the base class: of prompt and answer together."""
        return self.session.max_sequence_length

    async def failed(self) -> None:
        """See the base class."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(event.set)

        self.session.on_failure = tell
        if not self.session.failure:
            await event.wait()

    def close(self) -> None:
        """See the base class."""
        self.session.close()

    @asynccontextmanager
    async def admit(self, request: ApiRequest) -> AsyncIterator[AsyncIterator[Piece]]:
        """The pieces of all choices, as they come. ApiError 429 or 503 at once; leaving it cancels what goes on."""
        with self.place(len(request.prompts) * request.choices):
            async with aclosing(self._run(request)) as pieces:
                yield pieces

    async def _run(self, request: ApiRequest) -> AsyncGenerator[Piece, None]:
        queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._choice(index * request.choices + number, number, prompt, request, queue))
            for index, prompt in enumerate(request.prompts)
            for number in range(request.choices)
        ]
        left = len(tasks)
        try:
            while left:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= piece.finish is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(
        self,
        choice: int,
        number: int,
        prompt: list[int],
        request: ApiRequest,
        out: asyncio.Queue[Piece | BaseException],
    ) -> None:
        came, end = monotonic(), "abort"
        try:
            async with self._slot():
                self.metrics.queue_time.observe(monotonic() - came)
                async for piece in self._generate(choice, number, prompt, request, came):
                    out.put_nowait(piece)
                    end = piece.finish or end
            self.metrics.e2e_latency.observe(monotonic() - came)
        except Exception as error:
            end = "error"
            out.put_nowait(error)
        finally:
            self.metrics.finished[end] += 1

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    async def _generate(
        self, choice: int, number: int, prompt: list[int], request: ApiRequest, came: float
    ) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[Sequence[int], FinishReason | None]] = asyncio.Queue()

        def sink(tokens: Sequence[int], finish: FinishReason | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (tokens, finish))

        room = self.session.max_sequence_length - len(prompt)
        text = TextStream(self.session.tokenizer, request.stop)
        scores = Scores(self.session.tokenizer)
        length, last, begun = 0, came, False
        generation = self.session.execute(
            GenerationRequest(
                prompt=prompt,
                max_tokens=min(request.max_tokens or room, room),
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                # Answers to one prompt must differ from each other, and be the same again for the same seed.
                seed=None if request.seed is None else request.seed + number,
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                ignore_eos=request.ignore_eos,
                logprobs=request.logprobs,
            ),
            sink,
        )
        finish: FinishReason | None = None
        try:
            while finish is None:
                tokens, finish = await events.get()
                if finish in (FinishReason.ERROR, FinishReason.CANCELLED):
                    raise ApiError(
                        500,
                        f"the engine failed: {self.session.failure or 'the generation was dropped'}",
                        code="engine_failed",
                    )
                counted = 0
                pieces = []
                for token in tokens:
                    counted += 1
                    if request.logprobs is not None:
                        scores.add(token, text.length)
                    pieces.append(text.push([token]))
                    if text.stopped:
                        break
                if finish is not None and not text.stopped:
                    pieces.append(text.finish())
                if text.stopped:
                    finish = FinishReason.STOP
                last = self._count(len(prompt), counted, last, first=not begun)
                begun = begun or counted > 0
                said = "".join(pieces)
                length += len(said)
                yield Piece(choice, said, counted, finish, scores.take(length))
        finally:
            generation.cancel()

    def _count(self, prompt: int, tokens: int, last: float, *, first: bool) -> float:
        """Count tokens that came now, those before at ``last``, and give the time that counts as last from now on."""
        if not tokens:
            return last
        now = monotonic()
        if first:
            self.metrics.prompt_tokens += prompt
            self.metrics.time_to_first_token.observe(now - last)
        else:
            self.metrics.inter_token_latency.observe((now - last) / tokens, tokens)
        self.metrics.generation_tokens += tokens
        return now
