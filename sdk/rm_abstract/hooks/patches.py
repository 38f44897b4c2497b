"""Replacing attributes of other libraries, and putting back exactly what was there."""

import threading
from collections.abc import Callable
from typing import Any, Final

_MISSING: Final = object()


class Patches:
    """What was replaced, newest last. Attributes are taken and put back as the class holds them, not as they bind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: list[tuple[Any, str, object, object]] = []

    def replace(self, owner: Any, name: str, make: Callable[[Any], object]) -> None:
        """Put ``make(original)`` in the place of ``owner.name``; ``original`` is unbound.

        Raises AttributeError where ``owner`` has no such attribute.
        """
        with self._lock:
            own = vars(owner).get(name, _MISSING)
            original = own if own is not _MISSING else _inherited(owner, name)
            replacement = make(original)
            setattr(owner, name, replacement)
            self._done.append((owner, name, own, replacement))

    def restore(self) -> None:
        """Put everything back. What somebody else has replaced in the meantime is left to them."""
        with self._lock:
            done, self._done = self._done, []
        for owner, name, own, replacement in reversed(done):
            if vars(owner).get(name, _MISSING) is not replacement:
                continue
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _inherited(owner: Any, name: str) -> object:
    for base in getattr(owner, "__mro__", ()):
        if name in vars(base):
            return vars(base)[name]
    raise AttributeError(f"{getattr(owner, '__name__', owner)} has no attribute {name}")
