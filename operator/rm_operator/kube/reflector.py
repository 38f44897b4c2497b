"""Keeps a store like the cluster: list, watch, and list again whenever the watch may have missed something.

A list is asked for as a whole, not in pages: the server sends that from its memory, and pages it may have to read from
etcd. It is taken while it comes.
"""

import asyncio
import contextlib
import logging
from random import Random
from typing import Final, Protocol

from rm_operator.kube.client import KubeClient
from rm_operator.kube.documents import Document
from rm_operator.kube.errors import ApiError, Gone, ServerError, Silent, TooManyRequests, Unreachable
from rm_operator.kube.listing import Changes
from rm_operator.kube.resources import Resource
from rm_operator.kube.store import Store

logger = logging.getLogger(__name__)

_random = Random().random  # noqa: S311 - jitter

INACTIVITY_SECONDS: Final = 75.0
"""A watch that sends neither event nor bookmark for so long is dead: bookmarks come once a minute."""
FIRST_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
_SHORT_WATCH_SECONDS: Final = 1.0


class ReflectorObserver(Protocol):
    """Told what a reflector does, for metrics."""

    def listed(self, resource: Resource, changes: Changes, *, first: bool) -> None:
        """A list was taken into the store."""
        ...

    def failed(self, resource: Resource) -> None:
        """A list or watch ended with an error."""
        ...


class Reflector:
    """One list-and-watch loop into one store.

    After each list the store equals it, so what was deleted unseen is swept. A broken watch goes on where it stood;
    only a position that the server no longer knows (410), silence or an unexplained error costs a list.
    """

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        inactivity_seconds: float = INACTIVITY_SECONDS,
        observer: ReflectorObserver | None = None,
    ) -> None:
        self.store = store
        self._client = client
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._inactivity_seconds = inactivity_seconds
        self._observer = observer
        self._listed = False
        self._failures = 0
        self._active_at: float | None = None

    @property
    def idle_seconds(self) -> float:
        """Seconds since this loop last did anything: an event, a bookmark, or an attempt that ended."""
        return 0.0 if self._active_at is None else asyncio.get_running_loop().time() - self._active_at

    @property
    def alive(self) -> bool:
        """False if the loop is stuck; an API server that is away does not make it so, for failed attempts count."""
        return self.idle_seconds < 2 * self._inactivity_seconds

    async def run(self) -> None:
        """Keep the store like the cluster until cancelled."""
        while True:
            self._active()
            try:
                if not self._listed:
                    await self._list()
                await self._watch()
                continue
            except Gone:
                logger.info("the position in %s is too old: listing again", self.store.resource.name)
                self._listed = False
            except Silent as error:
                # A live server sends bookmarks. One that was restored from a backup waits, without a word, for a
                # position that lies in the future of its past.
                logger.info("%s: %s: listing again", self.store.resource.name, error)
                self._listed = False
            except (Unreachable, TooManyRequests, ServerError) as error:
                logger.info("%s: %s", self.store.resource.name, error)
                await self._back_off(error.retry_after)
                continue
            except ApiError as error:
                logger.warning("%s cannot be watched: %s", self.store.resource.name, error)
                self._listed = False
            except Exception:
                logger.exception("the reflector of %s failed", self.store.resource.name)
                self._listed = False
            await self._back_off(None)

    async def _list(self) -> None:
        first = not self.store.synced.is_set()
        listing, version = self.store.listing(), ""
        parts = self._client.parts(
            self.store.resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            inactivity_seconds=self._inactivity_seconds,
        )
        async with contextlib.aclosing(parts):
            async for part in parts:
                self._active()
                listing.take(map(Document, part.items))
                version = part.resource_version
        changes = listing.finish(version)
        self._listed = True
        self.store.synced.set()
        if self._observer is not None:
            self._observer.listed(self.store.resource, changes, first=first)

    async def _watch(self) -> None:
        """Follow changes until the server ends the stream."""
        started, heard = asyncio.get_running_loop().time(), False
        stream = self._client.watch(
            self.store.resource,
            self._namespace,
            resource_version=self.store.resource_version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            inactivity_seconds=self._inactivity_seconds,
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._active()
                heard = True
                self._failures = 0
                document = Document(event.object)
                if event.type in ("ADDED", "MODIFIED"):
                    self.store.take(document)
                elif event.type == "DELETED":
                    version = document.resource_version
                    self.store.remove(*document.key, uid=document.uid, resource_version=version)
                elif event.type != "BOOKMARK":
                    logger.warning("%s: unknown event %r", self.store.resource.name, event.type)
                    continue
                self.store.resource_version = document.resource_version
        if not heard and asyncio.get_running_loop().time() - started < _SHORT_WATCH_SECONDS:
            raise Unreachable("the watch ended at once")

    async def _back_off(self, retry_after: float | None) -> None:
        if self._observer is not None:
            self._observer.failed(self.store.resource)
        seconds = min(FIRST_BACKOFF_SECONDS * 2**self._failures, MAX_BACKOFF_SECONDS) * (0.5 + _random() / 2)
        self._failures = min(self._failures + 1, 10)
        self._active()
        await asyncio.sleep(min(max(seconds, retry_after or 0.0), MAX_BACKOFF_SECONDS))

    def _active(self) -> None:
        self._active_at = asyncio.get_running_loop().time()
