"""Python's garbage collector, told what it need not look at.

Objects of the API, decoded or not, are trees without cycles, which nobody has to look for: at the default thresholds
the collector runs through all of them, and through every module, many times a second during a start.
"""

import gc
from typing import Final

LOADING: Final = (1_000_000, 20, 20)
"""Thresholds while everything is listed: of ten thousand deployments with their children not one object is garbage."""
WORKING: Final = (50_000, 20, 20)
"""Thresholds from then on."""


def begin_loading() -> None:
    """Leave alone what was imported, and for the time being nearly everything that comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*LOADING)


def begin_working() -> None:
    """Leave alone what was loaded: what of it changes or goes is freed without the collector."""
    # Not collected before, which would take as long as has been saved.
    gc.freeze()
    gc.set_threshold(*WORKING)
