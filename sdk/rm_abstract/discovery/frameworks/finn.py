"""FINN: its transformations, hardware operations, their HLS and RTL backends, and the steps of its builder.

The layout is the one that FINN documents: transformations below ``finn.transformation``; operations below
``finn.custom_op.fpgadataflow`` that derive from ``HWCustomOp``; their backends, which derive from the operation and
from ``HLSBackend`` or ``RTLBackend``; functions ``step_NAME`` in ``finn.builder.build_dataflow_steps``.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from rm_abstract.core.registry import Origin, PluginEntry, PluginType
from rm_abstract.discovery.frameworks.base import Classes, PackageAdapter
from rm_abstract.discovery.frameworks.qonnx import transforms
from rm_abstract.discovery.index import Reading

_OPERATIONS: Final = "finn.custom_op.fpgadataflow"
_STEPS: Final = "finn.builder.build_dataflow_steps"
_STEP: Final = "step_"
_BACKENDS: Final = {"hls": f"{_OPERATIONS}.hlsbackend.HLSBackend", "rtl": f"{_OPERATIONS}.rtlbackend.RTLBackend"}


class FINNAdapter(PackageAdapter):
    """Finds what FINN has of each type: transforms, kernels, backends and steps, all named ``finn.NAME``."""

    name = "finn"
    plugin_types = frozenset({PluginType.TRANSFORM, PluginType.KERNEL, PluginType.BACKEND, PluginType.STEP})
    packages = ("finn.transformation", _OPERATIONS, "finn.builder")

    def entries(self, readings: Sequence[Reading]) -> Iterable[PluginEntry]:
        """See the base class. A step's name is without ``step_``."""
        classes = Classes(readings)
        yield from transforms(classes, self.name)
        backends = {kind: set(classes.derived(base)) for kind, base in _BACKENDS.items()}
        implementing = set[str]().union(*backends.values())
        kernels = [full for full in classes.derived(f"{_OPERATIONS}.hwcustomop.HWCustomOp") if full not in implementing]
        for full in kernels:
            yield self._entry(PluginType.KERNEL, full, classes.files[full])
        for kind, found in backends.items():
            for full in sorted(found):
                kernel = _nearest(full, kernels, classes)
                if kernel:
                    attributes = {"kernel": f"{self.name}.{_last(kernel)}", "backend_type": kind}
                    yield self._entry(PluginType.BACKEND, full, classes.files[full], attributes)
        for reading in readings:
            if reading.file.module == _STEPS:
                for function in reading.facts.get("functions", ()):
                    if function.startswith(_STEP):
                        full = f"{_STEPS}.{function}"
                        yield self._entry(PluginType.STEP, full, reading.file.path, name=function[len(_STEP) :])

    def _entry(
        self, plugin_type: str, full: str, file: str, attributes: dict[str, str] | None = None, name: str = ""
    ) -> PluginEntry:
        module, _, attribute = full.rpartition(".")
        return PluginEntry(
            plugin_type,
            name or attribute,
            Origin.FRAMEWORK,
            f"{module}:{attribute}",
            framework=self.name,
            file=file,
            attributes=attributes or {},
        )


def _nearest(full: str, wanted: Collection[str], classes: Classes) -> str:
    """The first class above ``full`` that is one of ``wanted``; empty if there is none."""
    level = classes.bases(full)
    for _ in range(100):  # deeper than any class is
        for base in level:
            if base in wanted:
                return base
        level = [above for base in level for above in classes.bases(base)]
        if not level:
            break
    return ""


def _last(full: str) -> str:
    return full.rpartition(".")[2]
