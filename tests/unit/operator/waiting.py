"""Waiting for a condition instead of for a time."""

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return once ``condition`` holds; fail with ``what`` if it does not within ``seconds``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.005)
