"""Stand-in for FINN."""

from qonnx.transformation.base import NodeLocalTransformation, Transformation


class AbsorbNothing(Transformation):
    def apply(self, model):
        return model, False


class LocalOnly(NodeLocalTransformation):
    def applyNodeLocal(self, node):  # noqa: N802 (QONNX's name)
        return node, False


class NoTransformation:
    pass
