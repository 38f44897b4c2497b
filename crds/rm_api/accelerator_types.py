"""What accelerators are, from GPUs to endpoints elsewhere."""

from enum import StrEnum


class AcceleratorType(StrEnum):
    """What an accelerator is."""

    GPU = "GPU"
    NPU = "NPU"
    PIM = "PIM"
    FPGA = "FPGA"
    CPU = "CPU"
    REMOTE = "REMOTE"


DEFAULT_PRIORITY: dict[AcceleratorType, int] = {
    AcceleratorType.NPU: 100,
    AcceleratorType.GPU: 75,
    AcceleratorType.PIM: 50,
    AcceleratorType.FPGA: 25,
    AcceleratorType.CPU: 0,
    AcceleratorType.REMOTE: -25,
}
