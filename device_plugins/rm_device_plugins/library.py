"""Calls into a vendor's library or driver, which may hang: on one thread of their own, never two at a time."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from rm_device_plugins.vendor import VendorError

T = TypeVar("T")


class LibraryThread:
    """Libraries of drivers are rarely safe to call from two threads, and a call into a broken driver may never return.

    A call that hangs keeps its thread; whoever calls meanwhile is told so at once, instead of leaving a thread behind
    at each attempt. The thread is a daemon: a hanging driver does not keep the plugin from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = threading.Lock()

    async def call(self, function: Callable[[], T]) -> T:
        """The result of ``function``. Raises what it raises, or VendorError while an earlier call has not returned."""
        if not self._busy.acquire(blocking=False):
            raise VendorError(f"{self._name} has not answered an earlier call yet")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return  # who asked has given up
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = function()
            except BaseException as error:
                failure = error
            self._busy.release()
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return await answer
