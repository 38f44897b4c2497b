"""Who waits for a device of which accelerator, and who is woken when one becomes free.

As many deployments are woken as devices are free, those without a place first, in the order in which they came. One
that does not take the device after all hands the wake-up on, so that neither all come for one device nor nobody does.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rm_operator.controllers.capacity import Owner


@dataclass(slots=True)
class _Line:
    """One accelerator's."""

    without_place: OrderedDict[Owner, None] = field(default_factory=OrderedDict)
    with_place: OrderedDict[Owner, None] = field(default_factory=OrderedDict)
    called: set[Owner] = field(default_factory=set)
    """Those who were woken and have not decided yet, or stand ready to move here."""


class Waiting:
    """Lines of waiting deployments, one per accelerator."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._places: dict[Owner, set[str]] = {}

    def wait(self, owner: Owner, accelerators: Sequence[str], *, placed: bool, next_to: str | None) -> list[str]:
        """``owner`` has decided, and waits for these; it will move to ``next_to`` unless something changes.

        Returns the accelerators that it was woken for: others may want them now.
        """
        released = self.forget(owner, unless=() if placed else accelerators)
        for name in accelerators:
            line = self._line(name, owner)
            (line.with_place if placed else line.without_place).setdefault(owner)
        if next_to is not None:
            self._line(next_to, owner).called.add(owner)
        return released

    def forget(self, owner: Owner, unless: Iterable[str] = ()) -> list[str]:
        """``owner`` waits no more, but keeps its place in the lines of ``unless``; returns what it was woken for."""
        kept, released = set(unless), []
        for name in self._places.pop(owner, set()):
            line = self._lines[name]
            if owner in line.called:
                line.called.discard(owner)
                released.append(name)
            line.with_place.pop(owner, None)
            if name not in kept:
                line.without_place.pop(owner, None)
            if not line.called and not line.with_place and not line.without_place:
                del self._lines[name]
        return sorted(released)

    def wake(self, accelerator: str, free: int | None) -> list[Owner]:
        """Who may come, now that ``free`` devices are there; everybody where devices are not counted."""
        line = self._lines.get(accelerator)
        if line is None:
            return []
        room = len(line.without_place) + len(line.with_place) if free is None else free - len(line.called)
        woken: list[Owner] = []
        while len(woken) < room and (line.without_place or line.with_place):
            owner, _ = (line.without_place or line.with_place).popitem(last=False)
            woken.append(owner)
        line.called.update(woken)
        return woken

    def _line(self, accelerator: str, owner: Owner) -> _Line:
        self._places.setdefault(owner, set()).add(accelerator)
        return self._lines.setdefault(accelerator, _Line())
