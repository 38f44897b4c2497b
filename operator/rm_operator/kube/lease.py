"""Leader election over a Lease, with monotonic time and a deadline on every attempt."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from rm_api.names import FIELD_MANAGER

from rm_operator.kube.client import KubeClient, Object
from rm_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from rm_operator.kube.resources import LEASES

logger = logging.getLogger(__name__)

_jitter = Random().random  # noqa: S311 - jitter

SHORTEST_SECONDS: Final = 0.001
"""A deadline that is nearer than this has come: what is shorter than a tick of the loop's clock is never slept off."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. A holder that could not renew for ``renew_deadline`` stops; others wait ``duration`` to take over.

    The difference is what covers requests still on their way. Raises ValueError unless duration > renew_deadline >
    retry_period > 0.
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError(f"a Lease needs duration > renew_deadline > retry_period > 0, not {self}")


class LeaderElector:
    """One candidate. ``on_lost`` is called once when leadership ends against our will, and must end the process.

    Others are judged by how long their record has not changed on our monotonic clock; wall-clock times in the Lease are
    for people. Wants a client of its own, without rate limit: a renewal must never wait behind other requests.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_lost: Callable[[], None],
        times: LeaseTimes | None = None,
    ) -> None:
        self.leading = asyncio.Event()
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_lost = on_lost
        self._times = times or LeaseTimes()
        self._lease: dict[str, Any] | None = None
        self._observed: tuple[object, ...] | None = None
        self._observed_at = 0.0
        self._valid_until = float("-inf")

    def may_write(self) -> bool:
        """True while the Lease is ours and its renew deadline has not passed; to be asked right before each write."""
        return asyncio.get_running_loop().time() < self._valid_until

    async def run(self) -> None:
        """Wait for leadership, then keep it; returns after it was lost and ``on_lost`` was called."""
        while not await self._attempt():  # noqa: ASYNC110 - what we wait for is in the API server
            await asyncio.sleep(self._until_next_look())
        logger.info("%s leads", self._identity)
        self.leading.set()
        pause = self._times.retry_period
        while (left := self._valid_until - asyncio.get_running_loop().time()) > SHORTEST_SECONDS:
            await asyncio.sleep(min(pause, left))
            renewed = await self._attempt()
            if not renewed and self._held_by_another():
                break
            # After a failure the time that is left is worth more than the requests.
            pause = self._times.retry_period if renewed else self._times.retry_period / 4
        self._valid_until = float("-inf")
        self.leading.clear()
        logger.error("%s lost the Lease %s/%s", self._identity, self._namespace, self._name)
        self._on_lost()

    async def release(self) -> None:
        """Give the Lease up, so that another replica need not wait for it to run out. Cancel ``run`` first."""
        if self._lease is None or not self.may_write():
            return
        # No write of ours may follow the release.
        self._valid_until = float("-inf")
        self.leading.clear()
        try:
            async with asyncio.timeout(self._times.retry_period):
                await self._write("", duration=1)
            logger.info("%s released the Lease", self._identity)
        except (ApiError, TimeoutError) as error:
            logger.warning("the Lease could not be released and will run out: %s", error)

    async def _attempt(self) -> bool:
        """One try to take or renew the Lease, bounded in time."""
        loop = asyncio.get_running_loop()
        try:
            seconds = self._times.renew_deadline
            if self.leading.is_set():
                seconds = self._valid_until - loop.time()
                if seconds <= 0:
                    return False
            async with asyncio.timeout(seconds):
                return await self._take_or_renew()
        except TimeoutError:
            logger.warning("an attempt at the Lease took too long")
        except ApiError as error:
            logger.warning("an attempt at the Lease failed: %s", error)
        return False

    def _until_next_look(self) -> float:
        """Seconds until a candidate asks again: less than a period, not past the moment at which the Lease runs out."""
        period = self._times.retry_period
        if self._held_by_another():
            left = self._runs_out_at() - asyncio.get_running_loop().time()
            if 0 < left <= period:
                # Then, and not before, or the look would tell nothing; a little later for each, since only one can win.
                return left + _jitter() * period / 20
        # More often than the holder renews: a renewal, or that it was given back, is seen soon.
        return period * (0.5 + _jitter() / 4)

    def _runs_out_at(self) -> float:
        """When the Lease that was seen last may be taken from whoever holds it, on the loop's clock."""
        spec = (self._lease or {}).get("spec") or {}
        return self._observed_at + float(spec.get("leaseDurationSeconds") or self._times.duration)

    async def _take_or_renew(self) -> bool:
        loop = asyncio.get_running_loop()
        if self.leading.is_set():
            try:
                # As long as nobody else writes it, the last known version is the newest, and reading is not needed.
                return await self._write_timed(self._identity)
            except (Conflict, NotFound):
                pass
        try:
            self._observe(await self._client.get(LEASES, self._namespace, self._name))
        except NotFound:
            self._lease = None
            return await self._create()
        if self._held_by_another() and (self.leading.is_set() or loop.time() < self._runs_out_at()):
            return False
        try:
            return await self._write_timed(self._identity)
        except Conflict:
            return False

    async def _create(self) -> bool:
        sent = asyncio.get_running_loop().time()
        try:
            created = await self._client.create(LEASES, self._body(self._identity), field_manager=FIELD_MANAGER)
        except AlreadyExists:
            return False
        self._observe(created)
        self._valid_until = sent + self._times.renew_deadline
        return True

    async def _write_timed(self, holder: str) -> bool:
        # Counted from before the request was sent: others count from when they saw its effect, which is later.
        sent = asyncio.get_running_loop().time()
        await self._write(holder)
        self._valid_until = sent + self._times.renew_deadline
        return True

    async def _write(self, holder: str, *, duration: float | None = None) -> None:
        body = self._body(holder, duration=duration)
        # The version makes it compare-and-swap.
        body["metadata"]["resourceVersion"] = (self._lease or {})["metadata"]["resourceVersion"]
        self._observe(await self._client.apply(LEASES, body, field_manager=FIELD_MANAGER))

    def _body(self, holder: str, *, duration: float | None = None) -> dict[str, Any]:
        spec = (self._lease or {}).get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = spec.get("holderIdentity") == holder
        transitions = int(spec.get("leaseTransitions") or 0)
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": round(duration or self._times.duration),
                "acquireTime": spec["acquireTime"] if mine and spec.get("acquireTime") else now,
                "renewTime": now,
                "leaseTransitions": transitions if mine or self._lease is None else transitions + 1,
            },
        }

    def _observe(self, lease: dict[str, Any]) -> None:
        record = _record(lease)
        if record != self._observed:
            self._observed = record
            self._observed_at = asyncio.get_running_loop().time()
        self._lease = lease

    def _held_by_another(self) -> bool:
        holder = ((self._lease or {}).get("spec") or {}).get("holderIdentity") or ""
        return holder not in ("", self._identity)


def _record(lease: Object) -> tuple[object, ...]:
    spec = lease.get("spec") or {}
    return lease["metadata"]["uid"], spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions")
