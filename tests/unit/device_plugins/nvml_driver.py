"""Two GPUs as the stand-in for NVIDIA's driver library shows them, and what can happen to them."""

from pathlib import Path

from vendor_process import make_node

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"
UNKNOWN = -1
"""Recovery action of a driver that knows none."""


class Driver:
    """The state that the stand-in shows, and the device files that go with it."""

    def __init__(self, directory: Path, library: Path) -> None:
        self.directory = directory
        self.file, self.xids, self.facts = directory / "nvml", directory / "xids", directory / "more"
        self.gpus = {A: ["1650001", 0, "00000000:3B:00.0", 0, 0], B: ["-", 1, "00000000:D8:00.0", 0, 0]}
        self.say()
        self.xids.write_text("")
        self.settings = {f"{name}Root": str(directory / name) for name in ("dev", "sys", "proc")}
        self.environment = {
            "LD_LIBRARY_PATH": str(library),
            "NVML_STAND_IN": str(self.file),
            "NVML_STAND_IN_XIDS": str(self.xids),
            "NVML_STAND_IN_MORE": str(self.facts),
        }
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            make_node(directory / "dev" / name)
        for bus, node in (("0000:3b:00.0", "0"), ("0000:d8:00.0", "1")):
            (directory / "sys/bus/pci/devices" / bus).mkdir(parents=True)
            (directory / "sys/bus/pci/devices" / bus / "numa_node").write_text(f"{node}\n")

    def say(self, uuid: str = "", *, action: int | None = None, lost: bool = False, init: int = 0) -> None:
        if uuid:
            self.gpus[uuid][4] = int(lost)
            if action is not None:
                self.gpus[uuid][3] = action
        lines = [" ".join(map(str, [name, *values])) for name, values in self.gpus.items()]
        self.file.write_text("\n".join([f"580.95.05 {init}", *lines]) + "\n")

    def xid(self, index: int, number: int, instance: int | None = None) -> None:
        with self.xids.open("a") as file:
            file.write(f"{index} {number}" + ("\n" if instance is None else f" gi={instance}\n"))

    def more(self, *facts: str) -> None:
        """Facts of the file NVML_STAND_IN_MORE, in place of those that were there."""
        self.facts.write_text("".join(f"{fact}\n" for fact in facts))
