"""Interface definitions that others own, and the Python generated from them by ``generate``."""
