"""A list on its way into a store."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import Json
from rm_operator.kube.documents import Document

if TYPE_CHECKING:
    from rm_operator.kube.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys of what a fresh list changed."""

    added: tuple[ObjectKey, ...] = ()
    changed: tuple[ObjectKey, ...] = ()
    removed: tuple[ObjectKey, ...] = ()


class Listing:
    """A list on its way into a store, page by page, so that the whole is never in memory decoded.

    An object that is newer than the list, known from the answer to an own write, stays. A list older than what the
    store has already seen means that the cluster was restored from a backup: then the list alone is true.
    """

    def __init__(self, store: "Store", resource_version: str) -> None:
        self._store = store
        self._resource_version = resource_version
        self._version = int(resource_version)
        self._back_in_time = store.resource_version != "" and self._version < int(store.resource_version)
        self._seen: set[ObjectKey] = set()
        self._added: list[ObjectKey] = []
        self._changed: list[ObjectKey] = []
        if self._back_in_time:
            logger.warning("%s went back in time: it is taken as listed", store.resource.name)
            store.forget_history()

    def take(self, items: Iterable[Json]) -> None:
        """Take one page."""
        store = self._store
        for item in items:
            document = Document.of(item)
            key, known = document.key, store.version(document.key)
            self._seen.add(key)
            fresh = known != document.version if self._back_in_time else store.is_news(document)
            if fresh and store.put(document):
                (self._added if known < 0 else self._changed).append(key)

    def finish(self) -> Changes:
        """All pages were taken: what was not among them goes. Returns what the list changed."""
        store, removed = self._store, []
        gone = [key for key in store.keys() if key not in self._seen]  # noqa: SIM118 - a store's own are objects
        for key in gone:
            if self._back_in_time or store.version(key) <= self._version:
                store.remove(*key, resource_version=self._resource_version)
                removed.append(key)
        store.resource_version = self._resource_version
        return Changes(tuple(self._added), tuple(self._changed), tuple(removed))
