"""Work that is done in order by a thread of its own, a little behind whoever hands it over."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, ParamSpec, Self

_Arguments = ParamSpec("_Arguments")
_MOST: Final = 8
"""Pieces of work that may wait, and with them the bytes that they are about."""


class Behind:
    """A context manager. What a piece of work raises is raised by one of the next calls; what waits then is not done.

    So receiving, hashing and writing can go on at the same time: all three let go of Python's lock.
    """

    def __init__(self, name: str, most: int = _MOST) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most = most
        self._waiting: deque[Future[object]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def do(self, work: Callable[_Arguments, object], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        """Hand over a piece of work; where too many wait, the first of them is waited for."""
        if len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(work, *arguments, **named))

    def finish(self) -> None:
        """Wait until all is done that was handed over."""
        while self._waiting:
            self._waiting.popleft().result()
