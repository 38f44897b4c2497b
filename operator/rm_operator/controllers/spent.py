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
        self._seconds: dict[str, Decimal] = {}
        for obj in stores[BUILD_ARTIFACTS]:
            self._changed(None, obj)
        stores[BUILD_ARTIFACTS].on_change(self._changed)

    def of(self, profile: str, known: Reading) -> Decimal:
        """Of all artifacts of ``profile`` that exist, whatever came of them."""
        known.note(_place(profile))
        return self._seconds.get(profile, Decimal(0))

    def _changed(self, old: Object | None, new: Object | None) -> None:
        for obj, sign in ((old, -1), (new, 1)):
            if obj is None or not (seconds := Decimal((obj.get("status") or {}).get("spentSeconds") or 0)):
                continue
            profile = obj["spec"]["profile"]
            self._seconds[profile] = self._seconds.get(profile, Decimal(0)) + sign * seconds
            if not self._seconds[profile]:
                del self._seconds[profile]
            self._ticks.touch([_place(profile)])


def _place(profile: str) -> Place:
    return "spent", profile
