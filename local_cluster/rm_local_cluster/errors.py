"""The one error that callers of the local cluster have to know."""


class LocalClusterError(RuntimeError):
    """Something that the user can act on; the message says what happened and what to do."""
