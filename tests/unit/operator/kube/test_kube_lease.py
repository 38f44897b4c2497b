"""Leader election: never two writers, a bounded time without one, whatever becomes of the requests.

Time is the loop's own and jumps; the Lease lives in a small API server that can be cut off from each candidate.
"""

import asyncio
import random
from typing import Any

import pytest
from rm_operator.kube.errors import AlreadyExists, Conflict, NotFound, ServerError, Unreachable
from rm_operator.kube.lease import LeaderElector, LeaseTimes
from rm_operator.kube.resources import Resource

pytestmark = pytest.mark.looptime


class LeaseServer:
    """One Lease, with the API server's compare-and-swap."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.holders: list[str] = []
        self.written_at = 0.0
        self.read_at: list[float] = []

    def read(self) -> dict[str, Any]:
        self.read_at.append(asyncio.get_running_loop().time())
        if self.lease is None:
            raise NotFound(404, "NotFound", "no lease")
        return self.lease

    def write(self, obj: dict[str, Any], *, create: bool) -> dict[str, Any]:
        if create and self.lease is not None:
            raise AlreadyExists(409, "AlreadyExists", "it exists")
        wanted = obj["metadata"].get("resourceVersion")
        if not create and self.lease is not None and wanted != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "the object has been modified")
        self.version += 1
        self.written_at = asyncio.get_running_loop().time()
        metadata = {**obj["metadata"], "uid": "u", "resourceVersion": str(self.version)}
        self.lease = {**obj, "metadata": metadata}
        self.holders.append(obj["spec"]["holderIdentity"])
        return self.lease


class Line:
    """A candidate's way to the server: slow, cut, or one that loses answers."""

    def __init__(self, server: LeaseServer) -> None:
        self._server = server
        self.latency = 0.01
        self.cut = False
        self.hanging = False
        self.loses_answers = False
        self.failing = False

    async def _pass(self) -> None:
        await asyncio.sleep(self.latency)
        if self.hanging:
            await asyncio.Event().wait()
        if self.cut:
            raise Unreachable("the line is cut")
        if self.failing:
            raise ServerError(500, "InternalError", "etcd is away")

    async def get(self, resource: Resource, namespace: str | None, name: str, **_: Any) -> dict[str, Any]:
        await self._pass()
        return self._server.read()

    async def create(self, resource: Resource, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        return await self._write(obj, create=True)

    async def apply(self, resource: Resource, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        return await self._write(obj, create=False)

    async def _write(self, obj: dict[str, Any], *, create: bool) -> dict[str, Any]:
        await self._pass()
        answer = self._server.write(obj, create=create)
        await asyncio.sleep(self.latency)
        if self.loses_answers:
            raise Unreachable("the answer was lost")
        return answer


class Candidate:
    def __init__(self, server: LeaseServer, name: str) -> None:
        self.name = name
        self.line = Line(server)
        self.lost = False
        self.elector = LeaderElector(
            self.line,  # type: ignore[arg-type]
            namespace="system",
            name="lease",
            identity=name,
            on_lost=self._on_lost,
        )
        self.task = asyncio.create_task(self.elector.run())

    def _on_lost(self) -> None:
        self.lost = True

    @property
    def leads(self) -> bool:
        return self.elector.may_write()

    async def wait(self) -> float:
        """Seconds until it leads."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.timeout(60):
            await self.elector.leading.wait()
        return loop.time() - start

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
async def server() -> LeaseServer:
    return LeaseServer()


async def test_one_of_several_leads(server: LeaseServer) -> None:
    candidates = [Candidate(server, name) for name in "abc"]
    await asyncio.sleep(120)
    assert [each.leads for each in candidates].count(True) == 1
    assert len(set(server.holders)) == 1
    assert not any(each.lost for each in candidates)


async def test_a_dead_leader_is_followed_within_18_seconds(server: LeaseServer) -> None:
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    await asyncio.sleep(30)
    await first.stop()
    assert await second.wait() < 18


async def test_a_dead_leader_is_followed_as_soon_as_its_lease_has_run_out(server: LeaseServer) -> None:
    """Counted from when the last renewal was seen, not from some look after that."""
    loop, times = asyncio.get_running_loop(), LeaseTimes()
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    for dies_after in (20.0, 20.5, 21.0, 21.5):
        await asyncio.sleep(dies_after)
        renewed = server.written_at
        await first.stop()
        await second.wait()
        # It may have been seen up to a period after it was made, and two requests take their time.
        assert times.duration < loop.time() - renewed < times.duration + times.retry_period + 0.5
        first, second = second, Candidate(server, f"{first.name}'")


async def test_those_who_wait_do_not_all_come_at_once(server: LeaseServer) -> None:
    first = Candidate(server, "a")
    await first.wait()
    others = [Candidate(server, f"b{number}") for number in range(5)]
    await asyncio.sleep(30)
    server.read_at.clear()
    await first.stop()
    await asyncio.wait([asyncio.create_task(each.wait()) for each in others], return_when=asyncio.FIRST_COMPLETED)
    assert sum(each.leads for each in others) == 1
    assert len(set(server.read_at)) > len(server.read_at) / 2


async def test_a_released_lease_is_taken_at_the_next_look(server: LeaseServer) -> None:
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    await asyncio.sleep(30)
    await first.stop()
    await first.elector.release()
    assert not first.leads
    assert await second.wait() < 2


async def test_a_leader_whose_requests_hang_stops_before_another_takes_over(server: LeaseServer) -> None:
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    await asyncio.sleep(7)
    loop = asyncio.get_running_loop()
    start = loop.time()
    first.line.hanging = True
    while first.leads:
        assert not second.leads
        await asyncio.sleep(0.05)
    assert loop.time() - start <= 10
    await second.wait()
    assert loop.time() - start < 20
    assert first.lost


@pytest.mark.parametrize("trouble", ["cut", "failing"])
async def test_trouble_shorter_than_the_deadline_costs_nothing(server: LeaseServer, trouble: str) -> None:
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    for _ in range(5):
        setattr(first.line, trouble, True)
        await asyncio.sleep(7)
        setattr(first.line, trouble, False)
        await asyncio.sleep(5)
        assert first.leads
    assert not first.lost
    assert not second.leads
    assert set(server.holders) == {"a"}


async def test_a_renewal_whose_answer_was_lost_is_recognised_as_ours(server: LeaseServer) -> None:
    first = Candidate(server, "a")
    await first.wait()
    first.line.loses_answers = True
    await asyncio.sleep(4)
    first.line.loses_answers = False
    await asyncio.sleep(20)
    assert first.leads
    assert not first.lost


async def test_a_process_that_slept_past_its_deadline_may_not_write(server: LeaseServer) -> None:
    first, second = Candidate(server, "a"), Candidate(server, "b")
    await first.wait()
    # As after SIGSTOP and SIGCONT: nothing of this process ran, while time went on.
    first.line.latency = 1000
    await second.wait()
    first.line.latency = 0.01
    assert not first.leads
    assert second.leads


async def test_losing_it_is_told_once(server: LeaseServer) -> None:
    first = Candidate(server, "a")
    await first.wait()
    assert server.lease is not None
    server.write({**server.lease, "spec": {**server.lease["spec"], "holderIdentity": "thief"}}, create=False)
    await asyncio.wait([first.task], timeout=5)
    assert first.lost
    assert not first.leads
    assert server.lease["spec"]["holderIdentity"] == "thief", "nothing was written after the loss"


async def test_a_wall_clock_that_is_wrong_does_not_matter(server: LeaseServer) -> None:
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": "1999-01-01T00:00:00.000000Z"}
    server.write({"metadata": {"namespace": "system", "name": "lease"}, "spec": spec}, create=True)
    candidate = Candidate(server, "a")
    # It looks ancient, but we have not watched it for as long as it lasts.
    assert await candidate.wait() >= 15


async def test_transitions_are_counted_and_acquisition_is_kept(server: LeaseServer) -> None:
    first = Candidate(server, "a")
    await first.wait()
    assert server.lease is not None
    acquired = server.lease["spec"]["acquireTime"]
    await asyncio.sleep(20)
    assert server.lease["spec"]["acquireTime"] == acquired
    assert server.lease["spec"]["leaseTransitions"] == 0
    await first.stop()
    second = Candidate(server, "b")
    await second.wait()
    assert server.lease["spec"]["leaseTransitions"] == 1


async def test_a_deleted_lease_is_made_anew(server: LeaseServer) -> None:
    first = Candidate(server, "a")
    await first.wait()
    server.lease = None
    await asyncio.sleep(10)
    assert first.leads
    assert server.lease is not None


async def test_a_moment_too_short_for_the_clock_is_none(server: LeaseServer) -> None:
    """With less time left than the loop's clock can tell, waiting for the rest of it would never end."""
    candidate = Candidate(server, "a")
    await candidate.wait()
    candidate.line.cut = True
    # It looks again after two seconds, and then this much is left.
    candidate.elector._valid_until = asyncio.get_running_loop().time() + 2 + 1e-10
    await asyncio.sleep(3)
    assert candidate.lost


@pytest.mark.parametrize("seed", range(5))
async def test_never_two_writers_whatever_happens_to_the_lines(server: LeaseServer, seed: int) -> None:
    rng = random.Random(seed)
    candidates = [Candidate(server, f"0-{name}") for name in "abc"]
    led, generation = 0, 0
    for _ in range(1200):
        if rng.random() < 0.02:
            line = rng.choice(candidates).line
            line.cut, line.hanging, line.loses_answers = (rng.random() < 0.3 for _ in range(3))
            line.latency = rng.choice([0.01, 0.5, 3.0])
        for position, candidate in enumerate(candidates):
            if candidate.task.done():  # its process has ended and is started again
                generation += 1
                candidates[position] = Candidate(server, f"{generation}-x")
        await asyncio.sleep(0.25)
        writers = sum(candidate.leads for candidate in candidates)
        assert writers <= 1
        led += writers
    assert led > 150, "somebody leads as often as the lines allow"


@pytest.mark.parametrize(("duration", "deadline", "period"), [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_times_that_cannot_be_safe_are_refused(duration: float, deadline: float, period: float) -> None:
    with pytest.raises(ValueError, match="duration > renew_deadline > retry_period"):
        LeaseTimes(duration, deadline, period)
