"""Remembering what was derived from a frozen value, for as long as the same value comes back."""

from collections.abc import Callable
from typing import Generic, TypeVar

Source = TypeVar("Source")
Derived = TypeVar("Derived")


class Memo(Generic[Source, Derived]):
    """``derive`` with a memory of ``most`` results, told apart by the identity of what they were derived from.

    For values that are never changed and expensive to hash, such as the spec of an accelerator: callers that keep such
    a value, instead of validating it again, pay for the derivation once.
    """

    def __init__(self, derive: Callable[[Source], Derived], most: int) -> None:
        self._derive = derive
        self._most = most
        # The source is kept, too: as long as it lives nothing else has its id.
        self._known: dict[int, tuple[Source, Derived]] = {}

    def __call__(self, source: Source) -> Derived:
        """What is derived from ``source``."""
        known = self._known.get(id(source))
        if known is not None:
            return known[1]
        if len(self._known) >= self._most:
            self._known.clear()
        derived = self._derive(source)
        self._known[id(source)] = (source, derived)
        return derived
