"""The fault hook of the simulated NPU: ``python -m rm_device_plugins.simulator_faults --root DIR ACTION [DEVICE]``.

It changes the simulator's directory as hardware and driver would, and offers what ``rm-abstract conformance --inject``
can ask for, but for hanging allocations (the simulator does nothing to allocate) and a new configuration.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rm_device_plugins.sharing import device_of
from rm_device_plugins.simulator_tool import (
    DEFAULT_ROOT,
    REMOVED,
    TOOL_FAULT,
    SimulatorError,
    Status,
    edited,
    make_node,
)

NOT_OFFERED = 3
"""Exit code for an action that this hook does not know."""
FLAPS = 20
_FLAP_SECONDS = 1.0


def inject(root: Path, action: str, device: str = "") -> None:
    """Does one of OFFERED to the device with the UUID ``device``.

    Raises SimulatorError for a device or directory that is not there.
    """
    if action == "flap":
        for _ in range(FLAPS):
            for half in ("fail", "recover"):
                inject(root, half, device)
                time.sleep(_FLAP_SECONDS / FLAPS / 2)
        return
    with edited(root) as status:
        _ACTIONS[action](root, status, device)


def _find(status: Status, device: str, where: str = "devices") -> dict[str, Any]:
    for entry in status.get(where, []):
        if entry["uuid"] == device:
            found: dict[str, Any] = entry
            return found
    raise SimulatorError(
        f"no device {device!r} is among the {where}; {[each['uuid'] for each in status['devices']]} are"
    )


def _health(health: str) -> Callable[[Path, Status, str], None]:
    def change(root: Path, status: Status, device: str) -> None:
        del root
        _find(status, device)["health"] = health

    return change


def _in_use(used: bool) -> Callable[[Path, Status, str], None]:
    def change(root: Path, status: Status, device: str) -> None:
        del root
        _find(status, device)["inUse"] = used

    return change


def _tool(fault: str) -> Callable[[Path, Status, str], None]:
    def change(root: Path, status: Status, device: str) -> None:
        del root
        status[TOOL_FAULT] = f"{fault} {device}" if fault == "omit" else fault

    return change


def _remove(root: Path, status: Status, device: str) -> None:
    del root
    entry = _find(status, device)
    status["devices"].remove(entry)
    status.setdefault(REMOVED, []).append(entry)


def _add(root: Path, status: Status, device: str) -> None:
    del root
    entry = _find(status, device, REMOVED)
    status[REMOVED].remove(entry)
    _insert(status, [entry])


def _remove_all(root: Path, status: Status, device: str) -> None:
    del root, device
    status[REMOVED] = [*status.get(REMOVED, []), *status["devices"]]
    status["devices"] = []


def _add_all(root: Path, status: Status, device: str) -> None:
    del root, device
    _insert(status, status.pop(REMOVED, []))


def _insert(status: Status, entries: list[dict[str, Any]]) -> None:
    status["devices"] = sorted([*status["devices"], *entries], key=lambda entry: int(entry["index"]))


def _remove_node(root: Path, status: Status, device: str) -> None:
    (root / "dev" / _find(status, device)["node"]).unlink(missing_ok=True)


def _restore_node(root: Path, status: Status, device: str) -> None:
    make_node(root, _find(status, device))


_ACTIONS: dict[str, Callable[[Path, Status, str], None]] = {
    "fail": _health("failed"),
    "recover": _health("ok"),
    "busy": _in_use(True),
    "idle": _in_use(False),
    "remove": _remove,
    "add": _add,
    "no-devices": _remove_all,
    "all-devices": _add_all,
    "node-remove": _remove_node,
    "node-restore": _restore_node,
    "tool-hang": _tool("hang"),
    "tool-fail": _tool("fail"),
    "tool-garbage": _tool("garbage"),
    "tool-partial": _tool("omit"),
    "tool-ok": _tool(""),
}

OFFERED = (*_ACTIONS, "flap")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 1 with a message on stderr, or NOT_OFFERED."""
    parser = argparse.ArgumentParser(prog="rm_device_plugins.simulator_faults", description=__doc__)
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, metavar="DIR")
    parser.add_argument("action")
    parser.add_argument("device", nargs="?", default="", help="its UUID, or the ID of a share of it")
    options = parser.parse_args(argv)
    if options.action not in OFFERED:
        sys.stderr.write(f"the action {options.action!r} is not offered; there are {', '.join(OFFERED)}\n")
        return NOT_OFFERED
    try:
        inject(options.root, options.action, device_of(options.device))
    except SimulatorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
