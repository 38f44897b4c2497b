"""Who waits for a device of which accelerator, and who is woken when one becomes free.

As many deployments are woken as devices are free, those without a place first, in the order in which they came; who
needs more devices for a replica than there are is left out, and keeps its place in the line. One that does not take the
device after all hands the wake-up on, so that neither all come for one device nor nobody does.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rm_operator.controllers.holders import Owner

_ONE_EACH: Final[Mapping[str, int]] = {}


@dataclass(slots=True)
class _Line:
    """One accelerator's."""

    without_place: OrderedDict[Owner, int] = field(default_factory=OrderedDict)
    """With the devices that a replica needs."""
    with_place: OrderedDict[Owner, int] = field(default_factory=OrderedDict)
    called: dict[Owner, int] = field(default_factory=dict)
    """Those who were woken and have not decided yet, or stand ready to move here."""


class Waiting:
    """Lines of waiting deployments, one per accelerator."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._places: dict[Owner, set[str]] = {}

    def wait(
        self,
        owner: Owner,
        accelerators: Sequence[str],
        *,
        placed: bool,
        next_to: str | None,
        devices: Mapping[str, int] = _ONE_EACH,
    ) -> list[str]:
        """``owner`` has decided, and waits for these; it will move to ``next_to`` unless something changes.

        ``devices`` are what a replica of it needs, by accelerator, where that is more than one. Returns the
        accelerators that it was woken for: others may want them now.
        """
        released = self.forget(owner, unless=() if placed else accelerators)
        for name in accelerators:
            line = self._line(name, owner)
            people = line.with_place if placed else line.without_place
            people[owner] = devices.get(name, 1)
        if next_to is not None:
            self._line(next_to, owner).called[owner] = devices.get(next_to, 1)
        return released

    def forget(self, owner: Owner, unless: Iterable[str] = ()) -> list[str]:
        """``owner`` waits no more, but keeps its place in the lines of ``unless``; returns what it was woken for."""
        kept, released = set(unless), []
        for name in self._places.pop(owner, set()):
            line = self._lines[name]
            if owner in line.called:
                del line.called[owner]
                released.append(name)
            line.with_place.pop(owner, None)
            if name not in kept:
                line.without_place.pop(owner, None)
            if not line.called and not line.with_place and not line.without_place:
                del self._lines[name]
        return sorted(released)

    def wake(self, accelerator: str, free: int | None, on_one_node: int | None = None) -> list[Owner]:
        """Who may come, now that ``free`` devices are there; everybody where devices are not counted.

        ``on_one_node`` is how many of them the node has that has most; None where that is not known.
        """
        line = self._lines.get(accelerator)
        if line is None:
            return []
        left = None if free is None else free - sum(line.called.values())
        woken: dict[Owner, int] = {}
        for people in (line.without_place, line.with_place):
            if left is not None and left <= 0:
                break
            for owner, needed in list(people.items()):
                if left is not None:
                    if needed > left or (needed > 1 and on_one_node is not None and needed > on_one_node):
                        continue
                    left -= needed
                woken[owner] = people.pop(owner)
                if left is not None and left <= 0:
                    break
        line.called.update(woken)
        return list(woken)

    def _line(self, accelerator: str, owner: Owner) -> _Line:
        self._places.setdefault(owner, set()).add(accelerator)
        return self._lines.setdefault(accelerator, _Line())
