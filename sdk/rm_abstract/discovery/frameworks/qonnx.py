"""QONNX: its transformations of graphs, as transforms ``qonnx.NAME``."""

from collections.abc import Iterable, Sequence

from rm_abstract.core.registry import Origin, PluginEntry, PluginType
from rm_abstract.discovery.frameworks.base import Classes, PackageAdapter
from rm_abstract.discovery.index import Reading

BASES = ("qonnx.transformation.base.Transformation", "qonnx.transformation.base.NodeLocalTransformation")


class QONNXAdapter(PackageAdapter):
    """Finds the classes below ``qonnx.transformation`` that derive from its ``Transformation``."""

    name = "qonnx"
    plugin_types = frozenset({PluginType.TRANSFORM})
    packages = ("qonnx.transformation",)

    def entries(self, readings: Sequence[Reading]) -> Iterable[PluginEntry]:
        """See the base class."""
        return transforms(Classes(readings), self.name)


def transforms(classes: Classes, framework: str) -> Iterable[PluginEntry]:
    """The transformations among ``classes``. A name beginning with ``_`` is the framework's own matter."""
    for full in classes.derived(*BASES):
        module, _, name = full.rpartition(".")
        if not name.startswith("_"):
            yield PluginEntry(
                PluginType.TRANSFORM,
                name,
                Origin.FRAMEWORK,
                f"{module}:{name}",
                framework=framework,
                file=classes.files[full],
            )
