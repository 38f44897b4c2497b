"""Hosts with each vendor's devices, as far as the vendor's own interface shows them, and what can happen to those.

What the vendor ships (a library, a status tool, a driver's sysfs class) is a stand-in from the unit tests, or a
directory. As a program this is the fault hook: ``conformance_vendor_host.py VENDOR DIRECTORY ACTION [DEVICE]``.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

NOT_OFFERED = 3
STAND_INS = Path(__file__).parents[1] / "unit" / "device_plugins" / "stand_ins"
COUNT = 4
_FLAPS = 20
_FLAP_SECONDS = 1.0
_RELEASES = 20
_RELEASE_SECONDS = 0.01

Device = dict[str, Any]


class Host(ABC):
    """A directory that holds the state of its devices, and what the vendor's interface makes of it.

    ``state.json``: ``devices`` by ID with ``number``, ``failed``, ``busy`` and ``removed``; ``none`` while there is no
    device; ``tool`` and ``left_out``, what is wrong with the vendor's tool.
    """

    vendor: ClassVar[str]
    offers: ClassVar[frozenset[str]] = frozenset(
        {
            "fail", "recover", "remove", "add", "node-remove", "node-restore", "flap", "no-devices", "all-devices",
            "tool-hang", "tool-fail", "tool-garbage", "tool-partial", "tool-ok", "reload",
        }
    )  # fmt: skip

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dev, self.sys = root / "dev", root / "sys"
        self._state = root / "state.json"
        self._config = root / "config.yaml"

    # --- what a vendor's host is made of

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """The vendor's part of the plugin's configuration."""

    def environment(self) -> Mapping[str, str]:
        """Variables that lead the plugin to the stand-in."""
        return {}

    @abstractmethod
    def id(self, number: int) -> str:
        """The ID that the plugin gives the device."""

    @abstractmethod
    def node(self, number: int) -> Path:
        """Its device file."""

    @abstractmethod
    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        """Lets the vendor's interface say how the devices that are there are; ``tool`` is ok, hang, fail or garbage."""

    def hold_allocations(self, held: bool) -> None:
        """Begins and ends what makes the work of an allocation hang."""
        raise NotImplementedError

    # --- all hosts

    def create(self, plugin: Mapping[str, object], count: int = COUNT) -> None:
        """Makes the directory and the plugin's configuration, ``config.yaml``."""
        self.root.mkdir(parents=True)
        devices = {
            self.id(number): {"number": number, "failed": False, "busy": False, "removed": False}
            for number in range(count)
        }
        for number in range(count):
            make_node(self.node(number))
        self._write({"devices": devices, "none": False, "tool": "ok", "left_out": ""})
        # JSON is YAML, and this program runs without our packages.
        self._config.write_text(json.dumps({**self.settings(), "plugin": plugin}))
        self._show()

    def inject(self, action: str, device: str) -> None:
        """Does one of ``offers`` to the device that an ID stands for, or to all devices."""
        device = device.partition("::")[0]
        if action == "flap":
            began = time.monotonic()
            for number in range(2 * _FLAPS):
                self.inject("recover" if number % 2 else "fail", device)
                due = began + (number + 1) * _FLAP_SECONDS / _FLAPS / 2
                time.sleep(max(0.0, due - time.monotonic()))
            return
        state = self._read()
        flags = {"fail": "failed", "busy": "busy", "remove": "removed"}
        ends = {"recover": "failed", "idle": "busy", "add": "removed"}
        if action in flags:
            state["devices"][device][flags[action]] = True
        elif action in ends:
            state["devices"][device][ends[action]] = False
        elif action in ("no-devices", "all-devices"):
            state["none"] = action == "no-devices"
        elif action.startswith("tool-"):
            state["tool"] = action.removeprefix("tool-")
            state["left_out"] = device if action == "tool-partial" else ""
        elif action in ("node-remove", "node-restore"):
            node = self.node(state["devices"][device]["number"])
            node.unlink(missing_ok=True)
            if action == "node-restore":
                make_node(node)
            return
        elif action in ("allocate-hang", "allocate-ok"):
            self.hold_allocations(action == "allocate-hang")
            return
        else:
            self._reload()
            return
        self._write(state)
        self._show()

    def _reload(self) -> None:
        config = json.loads(self._config.read_text())
        config["plugin"]["healthyAfter"] = 5 - config["plugin"]["healthyAfter"]
        put(self._config, json.dumps(config))

    def _show(self) -> None:
        state = self._read()
        there = {
            name: device
            for name, device in state["devices"].items()
            if not (state["none"] or device["removed"] or name == state["left_out"])
        }
        self.show(there, "ok" if state["tool"] == "partial" else state["tool"])

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def _write(self, state: Mapping[str, Any]) -> None:
        put(self._state, json.dumps(state))

    def keep_nodes(self, devices: Mapping[str, Device]) -> None:
        """For drivers that make and remove device files themselves: those of ``devices`` are there, no others."""
        for name, device in self._read()["devices"].items():
            node = self.node(device["number"])
            if name not in devices:
                node.unlink(missing_ok=True)
            elif not node.exists():
                make_node(node)


class Nvidia(Host):
    """NVML, a library in C."""

    vendor = "nvidia"
    offers = Host.offers | {"busy", "idle"}

    def settings(self) -> Mapping[str, object]:
        return {"devRoot": str(self.dev), "sysRoot": str(self.sys)}

    def environment(self) -> Mapping[str, str]:
        return {
            "LD_LIBRARY_PATH": os.environ["NVML_STAND_IN_LIBRARY"],
            "NVML_STAND_IN": str(self.root / "nvml"),
            "NVML_STAND_IN_XIDS": str(self.root / "xids"),
            "NVML_STAND_IN_MORE": str(self.root / "more"),
        }

    def id(self, number: int) -> str:
        return f"GPU-{number:08x}-0000-0000-0000-000000000000"

    def node(self, number: int) -> Path:
        return self.dev / f"nvidia{number}"

    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        rows = []
        for name, device in devices.items():
            number = device["number"]
            bus = f"{number + 1:02x}:00.0"
            put(self.sys / f"bus/pci/devices/0000:{bus}/numa_node", f"{number % 2}\n")
            # Two GPUs with one UUID: an answer of the right form that cannot be.
            uuid = self.id(0) if tool == "garbage" else name
            rows.append(f"{uuid} SN{number} {number} 00000000:{bus} {int(device['failed'])} 0")
        driver_not_loaded = 9
        status = driver_not_loaded if tool == "fail" else 0
        put(self.root / "xids", "")
        used = [f"process {device['number']} 4242\n" for device in devices.values() if device["busy"]]
        put(self.root / "more", "".join(used))
        put(self.root / "nvml", "\n".join([f"580.95.05 {status}", *rows]) + "\n", hangs=tool == "hang")


class Rebellions(Host):
    """``rbln-smi`` and the driver's class in sysfs."""

    vendor = "rebellions"
    offers = Host.offers | {"busy", "idle", "allocate-hang", "allocate-ok"}

    def settings(self) -> Mapping[str, object]:
        tool = self.root / "rbln-smi"
        if not tool.exists():
            shutil.copy(STAND_INS / "rbln_smi.py", tool)
            for number in range(1, 1 + COUNT):
                make_node(self.dev / f"rsd{number}")
        return {
            "statusTool": [sys.executable, "-IS", str(tool)], "groupLock": str(self.root / "group.lock"),
            "devRoot": str(self.dev), "sysRoot": str(self.sys),
        }  # fmt: skip

    def id(self, number: int) -> str:
        return f"6e7f0000-{number:04x}"

    def node(self, number: int) -> Path:
        return self.dev / f"rbln{number}"

    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        rows = []
        for name, device in devices.items():
            number = device["number"]
            state = "FAULT" if device["failed"] else "BUSY" if device["busy"] else "READY"
            put(self.sys / f"class/rebellions/rbln{number}/status", f"{state}\n")
            rows.append(
                {
                    "group_id": 0, "npu": str(number), "name": "RBLN-CA25", "sid": f"CARD{number // 2}",
                    "uuid": name, "device": f"rbln{number}", "status": "normal", "fw_ver": "1.0",
                    "pci": {"dev": "0x1250", "bus_id": f"0000:0{number}:00.0", "numa_node": str(number // 2)},
                    "memory": {"used": "0", "total": "16877879296"},
                }
            )  # fmt: skip
        answers: dict[str, Mapping[str, object]] = {
            "fail": {"answer": "rbln-smi: cannot open the driver", "code": 1},
            "garbage": {"answer": '{"KMD_version": "2.0.1", "devices": [{"gro'},
        }
        file = self.root / "rbln-smi.json"
        put(file, json.dumps(answers.get(tool, {"devices": rows})), hangs=tool == "hang")

    def hold_allocations(self, held: bool) -> None:
        """Somebody else has the lock under which groups are made."""
        holder = self.root / "holder"
        if not held:
            os.kill(int(holder.read_text()), 9)
            return
        import fcntl

        descriptor = os.open(self.root / "group.lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        parent = os.getppid()
        child = os.fork()
        if child:
            holder.write_text(str(child))
            return
        for standard in range(3):
            os.close(standard)
        while os.path.exists(f"/proc/{parent}"):
            time.sleep(0.1)
        os._exit(0)


class Furiosa(Host):
    """``furiosa_smi_py``."""

    vendor = "furiosa"

    def settings(self) -> Mapping[str, object]:
        return {}

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(STAND_INS / "furiosa"), "FURIOSA_STAND_IN": str(self.root / "furiosa.json")}

    def id(self, number: int) -> str:
        return f"A76AAD68-6855-40B1-9E86-D080852D1C8{number}"

    def node(self, number: int) -> Path:
        return self.dev / f"rngd/npu{number}pe0-7"

    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        rows = []
        for name, device in devices.items():
            number = device["number"]
            about = {"uuid": name, "index": number, "serial": f"RNGD{number}", "name": "RNGD", "numa_node": number % 2}
            rows.append({"info": about, "files": [str(self.node(number))], "alive": not device["failed"]})
        state: dict[str, object] = {"driver": "2026.1.2", "devices": rows}
        if tool == "fail":
            state = {"init": "driver not found"}
        text = json.dumps(state)
        put(self.root / "furiosa.json", text[: len(text) // 2] if tool == "garbage" else text, hangs=tool == "hang")


class Upmem(Host):
    """The class ``dpu_rank`` in sysfs. A rank that has failed is one whose device file the driver has taken away."""

    vendor = "upmem"
    offers = Host.offers | {"busy", "idle"}

    def settings(self) -> Mapping[str, object]:
        return {"devRoot": str(self.dev), "sysRoot": str(self.sys)}

    def id(self, number: int) -> str:
        return f"DIMM{number // 2}-{number % 2}"

    def node(self, number: int) -> Path:
        return self.dev / f"dpu_rank{number}"

    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        ranks = self.sys / "class/dpu_rank"
        ranks.mkdir(parents=True, exist_ok=True)
        there = {f"dpu_rank{device['number']}" for device in devices.values()}
        for name in os.listdir(ranks):
            if name not in there:
                shutil.rmtree(ranks / name)
        for device in devices.values():
            number = device["number"]
            rank = ranks / f"dpu_rank{number}"
            put(rank / "device/numa_node", f"{number // 2}\n")
            put(rank / "rank_index", "0\n" if tool == "garbage" else f"{number % 2}\n")
            put(rank / "is_owned", f"{int(device['busy'])}\n")
            put(rank / "usage_count", f"{int(device['busy'])}\n")
            put(rank / "channel_id", f"{number // 2}\n")
            serial = rank / "serial_number"
            if tool == "fail":
                serial.unlink(missing_ok=True)
                serial.mkdir(exist_ok=True)  # reading it fails, though it is there
            else:
                put(serial, f"DIMM{number // 2}\n", hangs=tool == "hang")
        self.keep_nodes({name: device for name, device in devices.items() if not device["failed"]})


class Generic(Host):
    """Device files, with files that say how they are."""

    vendor = "generic"
    offers = Host.offers | {"busy", "idle"}

    def settings(self) -> Mapping[str, object]:
        return {
            "match": [f"{self.dev}/accel*"], "healthFile": f"{self.sys}/{{name}}/state", "healthy": ["idle", "working"],
            "numaFile": f"{self.sys}/{{name}}/numa_node", "serialFile": f"{self.sys}/{{name}}/serial",
        }  # fmt: skip

    def id(self, number: int) -> str:
        return f"ACC000{number}"

    def node(self, number: int) -> Path:
        return self.dev / f"accel{number}"

    def show(self, devices: Mapping[str, Device], tool: str) -> None:
        for device in devices.values():
            number = device["number"]
            about = self.sys / f"accel{number}"
            put(about / "numa_node", f"{number % 2}\n")
            put(about / "serial", f"{self.id(number)}\n")
            state = about / "state"
            if tool == "fail":
                state.unlink(missing_ok=True)
                state.mkdir(exist_ok=True)
                continue
            said = "failed" if device["failed"] else "working" if device["busy"] else "idle"
            put(state, "\x00\x7f" if tool == "garbage" else f"{said}\n", hangs=tool == "hang")
        self.keep_nodes(devices)


HOSTS: dict[str, type[Host]] = {each.vendor: each for each in (Nvidia, Rebellions, Furiosa, Upmem, Generic)}


def make_node(path: Path) -> None:
    """A device node; 1:3 is that of /dev/null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def put(path: Path, text: str, *, hangs: bool = False) -> None:
    """Makes ``text`` the file's content at once; with ``hangs``, who opens the file waits until the next ``put``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rmdir()
    before = path.with_name(f".{path.name}.before")
    waiting = path.exists() and stat.S_ISFIFO(path.stat().st_mode)
    if not waiting and not hangs and path.exists() and path.read_text() == text:
        return
    if waiting:
        os.link(path, before)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    if hangs:
        os.mkfifo(new)
    else:
        new.write_text(text)
    new.replace(path)
    if waiting:
        _release(before, text)
        before.unlink()


def _release(pipe: Path, text: str) -> None:
    """Answers all who have opened the pipe, and those who were about to."""
    for _ in range(_RELEASES):
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        else:
            os.write(descriptor, text.encode())
            os.close(descriptor)
        time.sleep(_RELEASE_SECONDS)


def main(vendor: str, root: str, action: str, device: str = "") -> int:
    """The fault hook."""
    host = HOSTS[vendor](Path(root))
    if action not in host.offers:
        return NOT_OFFERED
    host.inject(action, device)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
