"""Pieces of bytes that are produced in a thread of their own, a few ahead of whoever takes them."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Final

PIECE: Final = 1 << 20
"""Bytes."""
_LARGE: Final = PIECE >> 2
"""Bytes from which on a piece is handed on as it is: copying it costs more than handing on a few more."""
_AHEAD: Final = 8
"""Pieces that may wait."""


def ahead(chunks: Iterator[bytes]) -> Generator[bytes]:
    """The same bytes in larger pieces. What the producer raises is raised here, after what came before it.

    So receiving, hashing and writing can go on at the same time: all three let go of Python's lock.
    """
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(thing: bytes | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                made.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for piece in _joined(chunks):
                if not put(piece):
                    break
            else:
                put(None)
        except BaseException as error:
            put(error)
        finally:
            if isinstance(chunks, Generator):
                chunks.close()

    thread = threading.Thread(target=produce, name="store-ahead", daemon=True)
    thread.start()
    try:
        while (piece := made.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.set()
        thread.join()


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        if not held and len(chunk) >= _LARGE:
            yield chunk
            continue
        held.append(chunk)
        size += len(chunk)
        if size >= PIECE:
            yield held[0] if len(held) == 1 else b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
