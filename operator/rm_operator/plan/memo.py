"""Remembering what was derived from frozen values, for as long as the same values come back."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, ParamSpec, TypeVar

from rm_api.base import ApiModel

P = ParamSpec("P")
Derived = TypeVar("Derived")
Model = TypeVar("Model", bound=ApiModel)

_BY_VALUE: Final = (str, int, type(None))


class Memo(Generic[P, Derived]):
    """``derive`` with a memory of ``most`` results. Texts and numbers are told apart by value, all else by identity.

    For values that are never changed and expensive to hash, such as the spec of an accelerator: callers that keep such
    a value, instead of validating it again, pay for the derivation once. The result is shared, too: nobody changes it.
    """

    def __init__(self, derive: Callable[P, Derived], most: int) -> None:
        self._derive = derive
        self._most = most
        # The sources are kept, too: as long as they live nothing else has their ids.
        self._known: dict[tuple[object, ...], tuple[tuple[Any, ...], Derived]] = {}

    def __call__(self, *sources: P.args, **none: P.kwargs) -> Derived:
        """What is derived from ``sources``."""
        key = tuple([each if isinstance(each, _BY_VALUE) else (id(each),) for each in sources])
        known = self._known.get(key)
        if known is not None:
            return known[1]
        if len(self._known) >= self._most:
            self._known.clear()
        derived = self._derive(*sources, **none)
        self._known[key] = (sources, derived)
        return derived


class Specs(Generic[Model]):
    """Specs of objects as models, each validated once for as long as it stays the same; ``most`` are remembered."""

    def __init__(self, model: type[Model], most: int) -> None:
        self._model = model
        self._most = most
        self._known: dict[str, tuple[Mapping[str, Any], Model]] = {}

    def __call__(self, obj: Mapping[str, Any]) -> Model:
        """The spec of ``obj``. Raises ValidationError."""
        written, metadata = obj["spec"], obj["metadata"]
        if "resourceVersion" not in metadata:
            # Whoever made it up may still change it.
            return self._model.model_validate(written)
        uid = metadata["uid"]
        known = self._known.get(uid)
        # To compare JSON takes a tenth of the time of validating it.
        if known is not None and (known[0] is written or known[0] == written):
            return known[1]
        if len(self._known) >= self._most:
            self._known.clear()
        spec = self._model.model_validate(written)
        self._known[uid] = (written, spec)
        return spec
