"""The ranks of this container: what the device plugin announced, held against what is there."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rm_api.names import ENV_DEVICE_IDS, ENV_DEVICE_NODES, ENV_DEVICE_PRODUCT

from rm_abstract.core.errors import DeviceMissing

ENV_SYS: Final = "RMA_UPMEM_SYS"
"""Where sysfs is, ``/sys`` by default: the driver says its version there."""
_RANK: Final = re.compile(r"dpu_rank\d+")


@dataclass(frozen=True)
class Rank:
    """A rank that was opened, and is the announced one."""

    node: str
    id: str
    product: str
    driver: str


def observe(environment: Mapping[str, str]) -> list[Rank]:
    """The allocated ranks. DeviceMissing where there is none, or one is not there or is another one.

    The memory of a rank may be a device of its own (``/dev/daxN.N``): it goes with its rank and is not counted.
    """
    announced = [text for text in environment.get(ENV_DEVICE_NODES, "").split(",") if text]
    nodes = [text for text in announced if _RANK.fullmatch(Path(text.rpartition("=")[0]).name)]
    ids = [text for text in environment.get(ENV_DEVICE_IDS, "").split(",") if text]
    if not nodes:
        raise DeviceMissing(f"no rank was allocated: {ENV_DEVICE_NODES} names none; does the pod request one?")
    if len(ids) != len(nodes):
        raise DeviceMissing(f"{ENV_DEVICE_NODES} names {len(nodes)} ranks, and {ENV_DEVICE_IDS} has {len(ids)}")
    for text in announced:
        _check(text)
    version = Path(environment.get(ENV_SYS, "/sys"), "module", "dpu", "version")
    driver = version.read_text(encoding="utf-8").strip() if version.is_file() else ""
    product = environment.get(ENV_DEVICE_PRODUCT, "")
    return [Rank(text.rpartition("=")[0], one, product, driver) for text, one in zip(nodes, ids, strict=True)]


def _check(announced: str) -> None:
    path, _, numbers = announced.rpartition("=")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceMissing(f"{path or announced} cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISCHR(found.st_mode):
        raise DeviceMissing(f"{path} is no character device")
    if (have := f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}") != numbers:
        raise DeviceMissing(f"{path} is device {have}, but the device plugin announced {numbers}")
