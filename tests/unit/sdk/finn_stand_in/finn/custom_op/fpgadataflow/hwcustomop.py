"""Stand-in for FINN."""


class HWCustomOp:
    pass
