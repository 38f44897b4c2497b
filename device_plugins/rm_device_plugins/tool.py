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
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        transport, said = await loop.subprocess_exec(
            lambda: _Output(ended), *argv, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise VendorError(f"{argv[0]} cannot be run: {error.strerror}") from error
    try:
        await asyncio.shield(ended)
        code = transport.get_returncode()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        raise
    finally:
        # A process that left the group may hold the pipes open for ever, so they are not waited for.
        transport.close()
    if code != 0:
        words = (said.errors.strip() or said.output.strip() or b"(it said nothing)").decode(errors="replace")
        raise VendorError(f"{os.path.basename(argv[0])} ended with {code}: {words[-300:]}")
    return bytes(said.output)


class _Output(asyncio.SubprocessProtocol):
    def __init__(self, ended: "asyncio.Future[None]") -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self._ended = ended

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        into = self.output if fd == 1 else self.errors
        into += data
        if len(into) > MAX_OUTPUT_BYTES and not self._ended.done():
            self._ended.set_exception(VendorError(f"the tool wrote more than {MAX_OUTPUT_BYTES} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, and so has everything that held its pipes."""
        if not self._ended.done():
            self._ended.set_result(None)
