"""Stand-in for FINN."""


class HLSBackend:
    pass
