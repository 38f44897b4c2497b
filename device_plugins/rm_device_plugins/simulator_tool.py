"""``rma-sim``: the status tool of the simulated NPU, and what prepares and changes its host directory.

Standard library only and a single file, so that any image can carry it. The directory::

    ROOT/dev/npu0 …            one character device per NPU, made with mknod
    ROOT/driver/status.json    what the driver would say of itself and of its devices

Only the silicon is simulated. The nodes are aliases of the kernel's memory devices (null, zero, full, random, urandom:
major 1, minors 3, 5, 7, 8, 9, in turn), so that a container which was given one can really open it, and a container
which was not cannot. They are world-readable and -writable (0666), as a runtime copies the mode into the container and
workloads run as a user of their own.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEFAULT_ROOT = Path("/var/lib/rma-simulator")
DEFAULT_DRIVER_DIR = Path("/run/rma-simulator")
"""Where a container finds the directory ``driver`` of the host."""

STATUS_FILE = "status.json"
REMOVED = "removed"
"""Member of the status: devices that were taken out, and are not listed."""
TOOL_FAULT = "toolFault"
"""Member of the status: how the status tool misbehaves. ``hang``, ``fail``, ``garbage``, or ``omit UUID``."""
MAJOR = 1
MINORS = (3, 5, 7, 8, 9)
NODE_MODE = 0o666
FAILURES = ("Transient", "NeedsReset", "Dead", "Unknown")
_SERIALS = uuid.UUID("5d9a3c4e-8a53-5b5e-9c57-0d1f6a2b7c11")

Status = dict[str, Any]


class SimulatorError(Exception):
    """What was asked cannot be done; the message says why and what to do."""


def read_status(driver_dir: Path) -> Status:
    """The status in ``driver_dir``. Raises SimulatorError where there is no driver, or its status is no such thing."""
    path = driver_dir / STATUS_FILE
    try:
        status = json.loads(path.read_text())
    except FileNotFoundError:
        raise SimulatorError(f"no driver: {path} does not exist; is this a node with simulated NPUs?") from None
    except (OSError, ValueError) as error:
        raise SimulatorError(f"no driver: {path} cannot be read: {error}") from error
    if not isinstance(status, dict) or not isinstance(status.get("devices"), list):
        raise SimulatorError(f"no driver: {path} is not a driver status (an object with a list of devices)")
    return status


def initialise(
    root: Path,
    devices: int,
    product: str,
    driver: str,
    firmware: str = "1.0.0",
    memory_mib: int = 16384,
    numa_nodes: int = 1,
) -> Status:
    """Makes sure that ``root`` has at least ``devices`` NPUs; returns the status as it is afterwards.

    What is there is kept: a changed driver, a failed device, and a node that was taken away stay as they are, also if
    the arguments say otherwise. The first ``devices / numa_nodes`` NPUs are on NUMA node 0, and so on.
    """
    if devices < 0 or numa_nodes < 1:
        raise SimulatorError("the number of devices must be at least 0, and that of NUMA nodes at least 1")
    for directory in (root / "dev", root / "driver"):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(root):
        if (root / "driver" / STATUS_FILE).exists():
            status = read_status(root / "driver")
        else:
            status = {"driver": driver, "firmware": firmware, "product": product, "devices": []}
        known = {device["index"] for device in [*status["devices"], *status.get(REMOVED, [])]}
        for index in sorted(set(range(devices)) - known):
            serial = f"{_serial_prefix(status['product'])}-{index:04d}"
            device = {
                "index": index,
                "serial": serial,
                "uuid": _uuid(serial),
                "node": f"npu{index}",
                "major": MAJOR,
                "minor": MINORS[index % len(MINORS)],
                "health": "ok",
                "numaNode": index * numa_nodes // devices,
                "memoryMiB": memory_mib,
            }
            make_node(root, device)
            status["devices"].append(device)
        status["devices"].sort(key=lambda device: int(device["index"]))
        _write_status(root, status)
    return status


def change(
    root: Path,
    *,
    driver: str | None = None,
    firmware: str | None = None,
    device: int | None = None,
    health: str | None = None,
    failure: str | None = None,
    watts: float | None = None,
    serial: str | None = None,
    remove_node: int | None = None,
    restore_node: int | None = None,
) -> Status:
    """Changes what is given and nothing else; returns the new status. A new serial means another card: a new uuid."""
    with edited(root) as status:
        if driver is not None:
            status["driver"] = driver
        if firmware is not None:
            status["firmware"] = firmware
        changes = {"health": health, "failure": failure, "watts": watts, "serial": serial}
        if any(value is not None for value in changes.values()):
            if device is None:
                raise SimulatorError("--health, --failure, --watts and --serial need --device INDEX")
            entry = _device(status, device)
            entry.update({name: value for name, value in changes.items() if value is not None})
            if serial is not None:
                entry["uuid"] = _uuid(serial)
        if remove_node is not None:
            (root / "dev" / _device(status, remove_node)["node"]).unlink(missing_ok=True)
        if restore_node is not None:
            make_node(root, _device(status, restore_node))
    return status


@contextlib.contextmanager
def edited(root: Path) -> Iterator[Status]:
    """The status, to be changed by one at a time; it is written at the end, unless something is raised."""
    with _locked(root):
        status = read_status(root / "driver")
        yield status
        _write_status(root, status)


def _device(status: Status, index: int) -> dict[str, Any]:
    devices: list[dict[str, Any]] = status["devices"]
    for device in devices:
        if device["index"] == index:
            return device
    raise SimulatorError(f"there is no device {index}; there are {[d['index'] for d in devices]}")


def _serial_prefix(product: str) -> str:
    return "SIM" + (re.sub(r"[^A-Z0-9]", "", product.rsplit(maxsplit=1)[-1].upper()) if product.split() else "")


def _uuid(serial: str) -> str:
    return str(uuid.uuid5(_SERIALS, serial))


def make_node(root: Path, device: dict[str, Any]) -> None:
    """Makes the device file of ``device``, a member of the status, unless it is there. Raises SimulatorError."""
    path = root / "dev" / str(device["node"])
    wanted = os.makedev(int(device["major"]), int(device["minor"]))
    try:
        have = path.lstat()
        if not stat.S_ISCHR(have.st_mode) or have.st_rdev != wanted:
            raise SimulatorError(f"{path} exists and is not the device {device['major']}:{device['minor']}; remove it")
    except FileNotFoundError:
        try:
            os.mknod(path, stat.S_IFCHR | NODE_MODE, wanted)
        except PermissionError as error:
            raise SimulatorError(f"mknod {path}: {error.strerror}; this needs root with CAP_MKNOD") from error
    path.chmod(NODE_MODE)  # mknod obeys the umask


def _write_status(root: Path, status: Status) -> None:
    """Replaces the file in one step: containers have the directory mounted and must never read half of it."""
    text = json.dumps(status, indent=2) + "\n"
    path = root / "driver" / STATUS_FILE
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".status-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        handle = os.open(root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        raise SimulatorError(f"{root} does not exist; make it with `rma-sim init --root {root} …`") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rma-sim", description="Status tool of the simulated NPU, and its set-up.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="print what the driver says; exit 1 where there is none")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.add_argument("--driver-dir", type=Path, default=DEFAULT_DRIVER_DIR, metavar="DIR")
    init = commands.add_parser("init", help="make the directory of a node; what is there is kept")
    init.add_argument("--root", type=Path, default=DEFAULT_ROOT, metavar="DIR")
    init.add_argument("--devices", type=int, required=True, metavar="N")
    init.add_argument("--product", default="Simulated NPU X1")
    init.add_argument("--driver", default="1.4.0", metavar="VERSION")
    init.add_argument("--firmware", default="1.0.0", metavar="VERSION")
    init.add_argument("--memory-mib", type=int, default=16384, metavar="MIB")
    init.add_argument("--numa-nodes", type=int, default=1, metavar="N")
    setter = commands.add_parser("set", help="change the simulated state")
    setter.add_argument("--root", type=Path, default=DEFAULT_ROOT, metavar="DIR")
    setter.add_argument("--driver", metavar="VERSION")
    setter.add_argument("--firmware", metavar="VERSION")
    setter.add_argument("--device", type=int, metavar="INDEX", help="the device that the next four are about")
    setter.add_argument("--health", choices=("ok", "failed"))
    setter.add_argument("--failure", choices=FAILURES, help="what would help, as the driver says")
    setter.add_argument("--watts", type=float, help="what it draws")
    setter.add_argument("--serial")
    setter.add_argument("--remove-node", type=int, metavar="INDEX")
    setter.add_argument("--restore-node", type=int, metavar="INDEX")
    return parser


def _answer(status: Status, as_json: bool) -> str:
    """What the status tool says, or does, in the state that the driver is in."""
    fault = str(status.pop(TOOL_FAULT, ""))
    status.pop(REMOVED, None)
    if fault == "hang":
        signal.pause()
    if fault == "fail":
        raise SimulatorError("the driver does not answer")
    if fault.startswith("omit "):
        status["devices"] = [each for each in status["devices"] if each["uuid"] != fault.removeprefix("omit ")]
    text = json.dumps(status) if as_json else _table(status)
    return text[: len(text) // 2] if fault == "garbage" else text


def _table(status: Status) -> str:
    lines = [f"{status.get('product')}  driver {status.get('driver')}  firmware {status.get('firmware')}"]
    lines += [
        f"{d['index']:>3}  {d['node']:<8} {d['serial']:<16} {d['health']:<7} NUMA {d['numaNode']}  {d['memoryMiB']} MiB"
        for d in status["devices"]
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 1 with a message on stderr (argparse: 2)."""
    options = vars(_parser().parse_args(argv))
    command = options.pop("command")
    try:
        if command == "status":
            sys.stdout.write(f"{_answer(read_status(options['driver_dir']), options['json'])}\n")
        elif command == "init":
            initialise(**options)
        else:
            change(**options)
    except SimulatorError as error:
        sys.stderr.write(f"rma-sim: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
