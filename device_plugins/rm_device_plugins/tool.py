"""Calling what may hang: vendors' hooks, and the status tools that they run."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from rm_device_plugins.vendor import VendorError

T = TypeVar("T")

MAX_OUTPUT_BYTES = 4 * 1024 * 1024


class DeadlineError(VendorError):
    """A hook did not end in time. ``task`` is what was cancelled; it may still be running if it ignores that."""

    def __init__(self, message: str, task: "asyncio.Task[Any]") -> None:
        super().__init__(message)
        self.task = task


async def bounded(what: str, hook: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of ``hook``, or DeadlineError after ``seconds``, also if the hook swallows its cancellation."""
    task = asyncio.ensure_future(hook)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return task.result()
    task.cancel()
    task.add_done_callback(_consume)
    raise DeadlineError(f"{what} did not end within {seconds:g} s", task)


def _consume(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


async def run_tool(argv: Sequence[str]) -> bytes:
    """Standard output of a tool that ended with 0; otherwise VendorError with the end of what it said.

    The tool has a process group of its own, which is killed when the caller is cancelled or the tool says too much.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise VendorError(f"{argv[0]} cannot be run: {error.strerror}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        output, errors = await asyncio.gather(_read(process.stdout), _read(process.stderr))
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if code != 0:
        said = (errors.strip() or output.strip() or b"(it said nothing)").decode(errors="replace")
        raise VendorError(f"{os.path.basename(argv[0])} ended with {code}: {said[-300:]}")
    return output


async def _read(stream: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    while chunk := await stream.read(65536):
        chunks.append(chunk)
        if sum(map(len, chunks)) > MAX_OUTPUT_BYTES:
            raise VendorError(f"the tool wrote more than {MAX_OUTPUT_BYTES} bytes")
    return b"".join(chunks)
