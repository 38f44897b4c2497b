"""Stand-in for FINN."""


class RTLBackend:
    pass
