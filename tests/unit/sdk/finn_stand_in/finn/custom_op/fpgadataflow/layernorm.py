"""Stand-in for FINN."""

from finn.custom_op.fpgadataflow.hwcustomop import HWCustomOp


class LayerNorm(HWCustomOp):
    pass


class QuantLayerNorm(LayerNorm):
    pass
