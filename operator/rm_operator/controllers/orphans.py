"""Looks through the artifact store once a day for what no object names, and has go what has been there for too long."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.indexes import named_by
from rm_operator.kube.artifact_store import ArtifactStore, StoreTrouble
from rm_operator.kube.client import Object
from rm_operator.kube.errors import ApiError, NotFound
from rm_operator.kube.resources import BUILD_ARTIFACTS, CONFIGMAPS, DEPLOYMENTS, MODEL_DEPLOYMENTS, Resource
from rm_operator.plan import artifact, build_job, orphans
from rm_operator.plan.model import Settings, name_of, namespace_of, to_timestamp
from rm_operator.plan.orphans import Orphan

logger = logging.getLogger(__name__)

FIRST_SECONDS: Final = 600.0
"""From when this replica leads until it looks."""
EVERY_SECONDS: Final = 86400.0
_USERS: Final = (BUILD_ARTIFACTS, MODEL_DEPLOYMENTS, DEPLOYMENTS)


class OrphanCollector:
    """Works while this replica leads. What was seen since when is in a ConfigMap of the system namespace."""

    def __init__(self, context: Context, settings: Settings, store: ArtifactStore) -> None:
        self._stores = context.stores
        self._client = context.client
        self._store = store
        self._namespace = settings.system_namespace
        self._builds_namespace = settings.builds_namespace
        self._days = settings.retention.orphan_days
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, in a while."""
        self._task = asyncio.create_task(self._run(), name="orphans")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            try:
                await self.walk(datetime.now(UTC))
            except (StoreTrouble, ApiError) as error:
                logger.warning("the artifact store was not looked through for orphans: %s", error)
            except Exception:
                logger.exception("the artifact store was not looked through for orphans")
            await asyncio.sleep(EVERY_SECONDS)

    async def walk(self, now: datetime) -> None:
        """Look once. Raises StoreTrouble or ApiError; then nothing was forgotten that is not written down."""
        before = await self._remembered()
        found = await self._find()
        plan = orphans.plan(found, before, self._days, now)
        since = dict(plan.since)
        if before or since:
            # Before anything goes: where this ends in the middle, the next look knows as much.
            await self._remember(since, now)
        gone = [orphan for orphan in plan.remove if await self._remove(orphan)]
        if gone:
            for orphan in gone:
                del since[orphan.name]
            await self._remember(since, now)

    async def _find(self) -> list[Orphan]:
        tags: dict[str, tuple[str, ...]] = {}
        listed = [each for each in await self._store.repositories() if orphans.place_of(each) is not None]
        # Whatever is made from here on is not in the list, or is known here.
        named, ready, staged = self._known()
        for repository in listed:
            place = orphans.place_of(repository)
            if place not in named or place in staged:
                tags[repository] = await self._store.tags(repository)
        return orphans.find(tags, named, ready)

    def _known(self) -> tuple[set[tuple[str, str]], set[tuple[str, str]], set[tuple[str, str]]]:
        """Artifacts that objects name; of those, the ones that are Ready; of those, the ones built in several Jobs."""
        named = {place for kind in _USERS for each in self._stores[kind].list() for place in _places(kind, each)}
        done = [each for each in self._stores[BUILD_ARTIFACTS].list() if artifact.is_ready(each)]
        ready = {(namespace_of(each), name_of(each)) for each in done}
        staged = {
            (namespace_of(each), name_of(each)) for each in done if len(build_job.stages(artifact.spec_of(each))) > 1
        }
        return named, ready, staged

    async def _remove(self, orphan: Orphan) -> bool:
        place = orphans.place_of(orphan.repository)
        assert place is not None
        try:
            if orphan.tag:
                await self._store.forget_tag(orphan.repository, orphan.tag)
                gone = True
            else:
                gone = await self._store.forget_unless(orphan.repository, lambda: self._is_named(*place))
        except (StoreTrouble, ApiError) as error:
            logger.warning("the orphan %s stays for now: %s", orphan.name, error)
            return False
        if gone:
            logger.info("the orphan %s was removed from the artifact store", orphan.name)
        return gone

    async def _is_named(self, namespace: str, name: str) -> bool:
        """Whether an object names it, by the API server's own word and not by what is known of it here."""
        # Those that all namespaces share may be named in any.
        where = None if namespace == self._builds_namespace else namespace
        for resource in _USERS:
            for each in (await self._client.list(resource, where)).items:
                if (namespace, name) in _places(resource, each):
                    return True
        return False

    async def _remembered(self) -> Mapping[str, str]:
        try:
            live = await self._client.get(CONFIGMAPS, self._namespace, names.ORPHANS_CONFIG_MAP)
        except NotFound:
            return {}
        try:
            since = json.loads((live.get("data") or {}).get(names.ORPHANS_KEY, "{}"))["since"]
            return {str(name): str(seen) for name, seen in since.items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            logger.warning("%s is not as it was written; every orphan counts as seen today", names.ORPHANS_CONFIG_MAP)
            return {}

    async def _remember(self, since: Mapping[str, str], now: datetime) -> None:
        told: dict[str, Any] = {"lookedAt": to_timestamp(now), "removedAfterDays": self._days, "since": dict(since)}
        body = {
            "apiVersion": CONFIGMAPS.api_version,
            "kind": CONFIGMAPS.kind,
            "metadata": {"name": names.ORPHANS_CONFIG_MAP, "namespace": self._namespace},
            "data": {names.ORPHANS_KEY: json.dumps(told, sort_keys=True)},
        }
        await self._client.apply(CONFIGMAPS, body, field_manager=names.FIELD_MANAGER)


def _places(resource: Resource, obj: Object) -> set[tuple[str, str]]:
    """Artifacts, by namespace and name, that an object names, itself included if it is one."""
    own = {(namespace_of(obj), name_of(obj))} if resource is BUILD_ARTIFACTS else set()
    return named_by(resource, obj) | own
