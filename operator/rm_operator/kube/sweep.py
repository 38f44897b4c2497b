"""A second look at the kinds whose events come through kopf, which never compares a re-list with what it knew.

Once a minute the metadata of all objects is listed and compared with the store: what is gone is removed, and what the
watch should have brought long ago shows that the watch is dead.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import KubeClient
from rm_operator.kube.errors import ApiError
from rm_operator.kube.store import Store, key_of, version_of

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 60.0
FIRST_SWEEPS_SECONDS: Final = 1.0
LIST_SECONDS: Final = 100.0
_POLL_SECONDS: Final = 0.05


class Sweeper:
    """Watches over one store that somebody else fills.

    The store is ``synced`` once it holds everything that a list showed. After that a sweep each minute removes what is
    gone. An object that two sweeps in a row find missing or old means that its watch has died: ``alive`` turns False.
    """

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        *,
        interval: float = SWEEP_SECONDS,
        swept: Callable[[int], None] | None = None,
    ) -> None:
        self.store = store
        self._client = client
        self._interval = interval
        self._swept = swept
        self._late: Mapping[ObjectKey, int] = {}
        self._watch_died = False
        self._active_at: float | None = None

    @property
    def idle_seconds(self) -> float:
        """Seconds since a sweep last ended, well or badly."""
        return 0.0 if self._active_at is None else asyncio.get_running_loop().time() - self._active_at

    @property
    def alive(self) -> bool:
        """False if the watch that fills the store has died, or this loop is stuck."""
        return not self._watch_died and self.idle_seconds < 2 * self._interval + LIST_SECONDS

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            self._active_at = asyncio.get_running_loop().time()
            try:
                behind = await self._sweep()
            except (ApiError, TimeoutError) as error:
                logger.info("%s could not be swept: %s", self.store.resource.name, error)
            except Exception:
                logger.exception("the sweep of %s failed", self.store.resource.name)
            else:
                if self.store.synced.is_set():
                    self._judge(behind)
                elif await self._caught_up(behind):
                    logger.info("%s: all %d objects are known", self.store.resource.name, len(self.store))
                    self.store.synced.set()
            await asyncio.sleep(self._interval if self.store.synced.is_set() else FIRST_SWEEPS_SECONDS)

    async def _sweep(self) -> dict[ObjectKey, int]:
        """Remove what is gone; returns the objects, with their versions, that the store does not have or has older."""
        versions: dict[ObjectKey, int] = {}
        listed_at = 0
        pages = self._client.pages(self.store.resource, metadata_only=True)
        async with asyncio.timeout(LIST_SECONDS), contextlib.aclosing(pages):
            async for page in pages:
                versions |= {key_of(item): version_of(item) for item in page.items}
                listed_at = int(page.resource_version)
        count, known = 0, self.store.keys()
        for key in known:
            if key not in versions and self.store.version(key) <= listed_at:
                count += self.store.remove(*key, resource_version=str(listed_at))
        if count:
            logger.warning("%s: %d objects were gone unseen", self.store.resource.name, count)
            if self._swept is not None:
                self._swept(count)
        return {key: version for key, version in versions.items() if self._is_behind(key, version)}

    def _is_behind(self, key: ObjectKey, version: int) -> bool:
        return self.store.version(key) < version

    async def _caught_up(self, behind: Mapping[ObjectKey, int]) -> bool:
        """Wait a little for what is behind, since it may be gone again by now: then another list will tell."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FIRST_SWEEPS_SECONDS
        while behind := {key: version for key, version in behind.items() if self._is_behind(key, version)}:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def _judge(self, behind: Mapping[ObjectKey, int]) -> None:
        late = {key for key in behind if key in self._late and self._is_behind(key, self._late[key])}
        if late:
            logger.error(
                "the watch of %s has died: %d objects are not as they were a minute ago, such as %s/%s",
                self.store.resource.name,
                len(late),
                *min(late),
            )
        self._watch_died = bool(late)
        self._late = behind
