"""A list on its way into a store."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rm_operator.kube.buckets import ObjectKey
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
    """A list on its way into a store, part by part, so that the whole is never in memory decoded.

    An object that is newer than the list, known from the answer to an own write, stays. A list older than what the
    store has already seen means that the cluster was restored from a backup: then the list alone is true.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._seen: set[ObjectKey] = set()
        self._added: list[ObjectKey] = []
        self._changed: list[ObjectKey] = []
        self._older: list[Document] = []
        """Objects of which something newer is known. How old the list is, it says at its end."""

    def take(self, documents: Iterable[Document]) -> None:
        """Take one part."""
        for document in documents:
            self._seen.add(document.key)
            if self._store.is_news(document):
                self._put(document)
            elif self._store.version(document.key) != document.version:
                self._older.append(document)

    def finish(self, resource_version: str) -> Changes:
        """All parts were taken: what was not among them goes. Returns what the list changed."""
        store, version, removed = self._store, int(resource_version), []
        back_in_time = store.resource_version != "" and version < int(store.resource_version)
        if back_in_time:
            logger.warning("%s went back in time: it is taken as listed", store.resource.name)
            store.forget_history()
            for document in self._older:
                self._put(document)
        gone = [key for key in store.keys() if key not in self._seen]  # noqa: SIM118 - a store's own are objects
        for key in gone:
            if back_in_time or store.version(key) <= version:
                store.remove(*key, resource_version=resource_version)
                removed.append(key)
        store.resource_version = resource_version
        return Changes(tuple(self._added), tuple(self._changed), tuple(removed))

    def _put(self, document: Document) -> None:
        known = document.key in self._store
        if self._store.put(document):
            (self._changed if known else self._added).append(document.key)
