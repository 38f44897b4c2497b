"""What builds took, by profile."""

from decimal import Decimal

from rm_operator.controllers.reading import Reading
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS
from rm_operator.kube.store import Place, Stores


class SpentSeconds:
    """Seconds that builds took, by profile. Summed up as they change: thousands of artifacts may be of one profile."""

    def __init__(self, stores: Stores) -> None:
        self._ticks = stores.ticks
        self._totals: dict[str, Decimal] = {}
        for obj in stores[BUILD_ARTIFACTS]:
            self._changed(None, obj)
        stores[BUILD_ARTIFACTS].on_change(self._changed)

    def of(self, profile: str, known: Reading) -> Decimal:
        """Of all artifacts of ``profile`` that exist, whatever came of them."""
        known.note(_place(profile))
        return self._totals.get(profile, Decimal(0))

    def _changed(self, old: Object | None, new: Object | None) -> None:
        before, after = _seconds(old), _seconds(new)
        if before == after:
            return
        # One that was made again may be another profile's: its name tells what it is, not who has it built.
        for (profile, seconds), sign in ((before, -1), (after, 1)):
            total = self._totals.pop(profile, Decimal(0)) + sign * seconds
            if total:
                self._totals[profile] = total
            self._ticks.touch([_place(profile)])


def _seconds(artifact: Object | None) -> tuple[str, Decimal]:
    if artifact is None:
        return "", Decimal(0)
    return artifact["spec"]["profile"], Decimal((artifact.get("status") or {}).get("spentSeconds") or 0)


def _place(profile: str) -> Place:
    return "spent", profile
