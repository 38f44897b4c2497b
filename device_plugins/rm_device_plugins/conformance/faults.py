"""The hook by which a vendor lets the suite do to devices what otherwise only happens to them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rm_device_plugins.conformance import template
from rm_device_plugins.conformance.model import CannotJudge, CannotRun, NotApplicable

NOT_OFFERED = 3
"""Exit code by which a hook says that it does not know an action."""
PLACEHOLDERS = {"action": "what to do", "device": "ID of the device, empty where the action is about none"}

ACTIONS = {
    "fail": "DEVICE is broken",
    "recover": "DEVICE is well again",
    "busy": "DEVICE is in use",
    "idle": "DEVICE is in use no more",
    "remove": "DEVICE is taken out: the driver does not list it",
    "add": "DEVICE is put back",
    "node-remove": "the device file of DEVICE is gone",
    "node-restore": "it is back",
    "flap": "DEVICE fails and recovers at least ten times within a second, and is well at the end",
    "no-devices": "there is no device at all",
    "all-devices": "all devices are back",
    "tool-hang": "the vendor's status tool or library does not answer",
    "tool-fail": "it ends with an error",
    "tool-garbage": "it answers something that cannot be understood",
    "tool-partial": "it lists some of the devices, but not DEVICE",
    "tool-ok": "it works again",
    "allocate-hang": "what the plugin does to allocate DEVICE does not end",
    "allocate-ok": "it ends again",
    "reload": "the plugin's configuration changes, and the plugin is told to read it",
}
"""What a hook may offer. All but ``flap`` and ``reload`` last until the opposite is asked for."""


class Hook:
    """Runs the vendor's command. ``None`` for a plugin without one."""

    def __init__(self, argv: Sequence[str] | None, seconds: float) -> None:
        self._argv = tuple(argv or ())
        self._seconds = seconds
        for word in self._argv:
            template.check("--inject", word, PLACEHOLDERS)
        if self._argv and not any("action" in template.placeholders(word) for word in self._argv):
            raise CannotRun(
                "--inject must contain {action}: it is called with what to do, as in 'hook {action} {device}'"
            )

    async def run(self, action: str, device: str = "") -> None:
        """Does ``action``. Raises NotApplicable where the hook does not offer it, and CannotJudge where it fails."""
        if not self._argv:
            raise NotApplicable(f"it needs a fault to be injected: --inject, with the action {action!r}")
        values = {"action": action, "device": device}
        argv = [template.fill(word, values) for word in self._argv]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotJudge(f"the hook {argv[0]} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._seconds):
                output, _ = await process.communicate()
        except TimeoutError:
            raise CannotJudge(f"the hook did not end within {self._seconds:g} s: {' '.join(argv)}") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode == NOT_OFFERED:
            raise NotApplicable(f"the hook does not offer the action {action!r} ({ACTIONS[action]})")
        if process.returncode:
            words = output.decode(errors="replace").strip()[-300:] or "it said nothing"
            raise CannotJudge(f"the hook ended with {process.returncode}: {' '.join(argv)}: {words}")

    @asynccontextmanager
    async def during(self, action: str, undo: str, device: str = "") -> AsyncIterator[None]:
        """``action`` at the beginning, ``undo`` at the end, whatever happens in between."""
        await self.run(action, device)
        try:
            yield
        finally:
            await self.run(undo, device)
