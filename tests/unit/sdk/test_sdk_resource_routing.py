"""Routing: by what a request is like, to the least busy, past those that fail; and what is seen of it all."""

import threading
from collections.abc import Callable, Iterator

import pytest
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, Transient
from rm_abstract.core.policies import CostPolicy, HybridPolicy, LatencyPolicy, ThroughputPolicy
from rm_abstract.core.resource import Capability, Resource, ResourceType
from rm_abstract.core.resource_pool import Query, ResourcePool
from rm_abstract.core.routing import Circuit, Request, Router, Rule

NPU, GPU, CPU = (Resource(kind.lower(), kind) for kind in (ResourceType.NPU, ResourceType.GPU, ResourceType.CPU))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool() -> ResourcePool:
    pool = ResourcePool()
    pool.add(NPU, Capability(4, 4096, ("fp16",)), slots=8)
    pool.add(GPU, Capability(64, 32768, ("fp16", "bf16")), slots=8)
    pool.add(CPU, slots=8)
    return pool


def name(resource: Resource) -> str:
    return resource.id


def failing(*ids: str, error: Exception | None = None) -> Callable[[Resource], str]:
    def call(resource: Resource) -> str:
        if resource.id in ids:
            raise error or PluginError(f"{resource.id} has gone")
        return resource.id

    return call


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(100, 100), "npu"),
        (Request(4000, 97), "gpu"),
        (Request(batch_size=5), "gpu"),
        (Request(dtype="bf16"), "gpu"),
        (Request(100_000), "cpu"),
        (Request(dtype="int4"), "cpu"),
        (Request(query=Query(types=(ResourceType.CPU,))), "cpu"),
    ],
)
def test_a_request_goes_where_it_fits(pool: ResourcePool, request_: Request, expected: str) -> None:
    assert Router(pool).run(request_, name) == expected


def test_rules_decide_before_the_policy(pool: ResourcePool) -> None:
    router = Router(
        pool,
        LatencyPolicy(),
        [
            Rule("batch", lambda request: request.labels.get("class") == "batch", CostPolicy()),
            Rule("long", lambda request: request.input_tokens > 2000, query=Query(types=(ResourceType.GPU,))),
        ],
    )
    assert router.run(Request(labels={"class": "batch"}), name) == "cpu"
    assert router.run(Request(3000), name) == "gpu"
    assert router.run(Request(2000), name) == "npu"
    with pytest.raises(BadInput, match="no resource is capable of"):
        router.run(Request(40_000), name)


def test_equal_resources_share_the_load() -> None:
    pool = ResourcePool()
    for number in range(3):
        pool.add(Resource(f"gpu{number}", ResourceType.GPU), slots=10)
    router = Router(pool)
    barrier = threading.Barrier(9)
    used: list[str] = []

    def call(resource: Resource) -> None:
        used.append(resource.id)
        barrier.wait()

    threads = [threading.Thread(target=router.run, args=(Request(), call)) for _ in range(9)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(used) <= number and not barrier.broken and number < 8:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert sorted(used) == ["gpu0"] * 3 + ["gpu1"] * 3 + ["gpu2"] * 3


def test_what_is_full_overflows_to_the_next(pool: ResourcePool) -> None:
    router = Router(pool)
    leases = [pool.acquire(Query(ids=("npu",))) for _ in range(8)]
    assert router.run(Request(), name) == "gpu"
    leases.pop().release()
    assert router.run(Request(), name) == "npu"


def test_a_failed_request_is_run_elsewhere(pool: ResourcePool) -> None:
    router = Router(pool)
    assert router.run(Request(), failing("npu")) == "gpu"
    assert router.run(Request(), failing("npu", error=RuntimeError("anything"))) == "gpu"
    with pytest.raises(PluginError, match=r"npu: PluginError: npu has gone; gpu: .*; cpu: ") as raised:
        router.run(Request(), failing("npu", "gpu", "cpu"))
    assert isinstance(raised.value.__cause__, PluginError)
    one = ResourcePool([NPU])
    with pytest.raises(DeviceMissing, match="gone away"):
        Router(one).run(Request(), failing("npu", error=DeviceMissing("gone away")))


def test_attempts_are_limited(pool: ResourcePool) -> None:
    tried: list[str] = []

    def call(resource: Resource) -> None:
        tried.append(resource.id)
        raise PluginError("no")

    with pytest.raises(PluginError, match=r"npu: .*gpu: "):
        Router(pool, attempts=2).run(Request(), call)
    assert tried == ["npu", "gpu"]


def test_the_users_mistake_is_nobodys_failure(pool: ResourcePool) -> None:
    router = Router(pool, failures=1)
    with pytest.raises(BadInput, match="too long"):
        router.run(Request(), failing("npu", error=BadInput("too long")))
    assert router.statistics()["npu"].failures == 0
    assert router.run(Request(), name) == "npu"


def test_a_resource_that_fails_again_and_again_rests(pool: ResourcePool, clock: Clock) -> None:
    router = Router(pool, failures=2, cooldown=30, clock=clock)
    for _ in range(2):
        assert router.run(Request(), failing("npu")) == "gpu"
    assert router.statistics()["npu"].circuit is Circuit.OPEN
    assert router.run(Request(), name) == "gpu", "it is not even asked"
    assert [resource.id for resource in router.candidates(Request())] == ["gpu", "cpu"]
    clock.now += 30
    assert router.statistics()["npu"].circuit is Circuit.HALF_OPEN
    assert router.run(Request(), failing("npu")) == "gpu"
    assert router.statistics()["npu"].circuit is Circuit.OPEN, "one failure is enough now"
    clock.now += 30
    assert router.run(Request(), name) == "npu"
    assert router.statistics()["npu"].circuit is Circuit.CLOSED


def test_one_request_at_a_time_tries_a_resource_that_has_rested(pool: ResourcePool, clock: Clock) -> None:
    router = Router(pool, failures=1, cooldown=10, clock=clock)
    router.run(Request(), failing("npu"))
    clock.now += 10
    inner = router.run(Request(), lambda outer: (outer.id, router.run(Request(), name)))
    assert inner == ("npu", "gpu")


def test_when_all_rest_it_is_said_when_the_first_is_tried_again(clock: Clock) -> None:
    router = Router(ResourcePool([NPU]), failures=1, cooldown=30, clock=clock)
    with pytest.raises(PluginError, match="npu has gone"):
        router.run(Request(), failing("npu"))
    clock.now += 10
    with pytest.raises(Transient, match=r"tried again in 20\.0 s"):
        router.run(Request(), name)


def test_nobody_free_in_time(pool: ResourcePool) -> None:
    leases = [pool.acquire() for _ in range(24)]
    with pytest.raises(Transient, match="is free"):
        Router(pool).run(Request(), name, timeout=0)
    assert len(leases) == 24


def test_streams_fail_over_until_they_have_begun(pool: ResourcePool) -> None:
    router = Router(pool)

    def call(resource: Resource, fail_after: int = 0) -> Iterator[str]:
        for number in range(3):
            if resource.id == "npu" and number == fail_after:
                raise PluginError("npu has gone")
            yield f"{resource.id}{number}"

    assert list(router.stream(Request(), call)) == ["gpu0", "gpu1", "gpu2"]
    got = []
    with pytest.raises(PluginError, match="npu has gone"):
        got.extend(list(zip(router.stream(Request(), lambda r: call(r, 1)), range(9), strict=False)))
    stream = router.stream(Request(), lambda resource: call(resource, 9))
    assert next(stream) == "npu0"
    assert router.statistics()["npu"].in_flight == 1
    assert pool.free("npu") == 7, "leased as long as it streams"
    stream.close()  # type: ignore[attr-defined]
    assert pool.free("npu") == 8
    assert router.statistics()["npu"].failures == 2


def test_the_first_of_several_wins(pool: ResourcePool) -> None:
    router, slow = Router(pool), threading.Event()

    def call(resource: Resource) -> str:
        if resource.id == "npu":
            slow.wait()
        return resource.id

    assert router.race(Request(), call) == "gpu"
    slow.set()
    assert router.race(Request(), failing("npu")) == "gpu"
    with pytest.raises(PluginError, match=r"npu: .*gpu: "):
        router.race(Request(), failing("npu", "gpu"))
    assert router.race(Request(100_000), name, copies=3) == "cpu", "only one is capable of it"


def test_a_hybrid_policy_is_told_the_load(clock: Clock) -> None:
    pool = ResourcePool()
    for resource in (NPU, GPU):
        pool.add(resource, slots=2)
    policy = HybridPolicy(
        LatencyPolicy(), ThroughputPolicy(), high=0.75, low=0.25, stabilization_seconds=10, clock=clock
    )
    router = Router(pool, policy)
    assert router.run(Request(), name) == "npu"
    held = [pool.acquire(Query(ids=(each,))) for each in ("npu", "gpu")]
    router.run(Request(), name)
    clock.now += 10
    assert router.run(Request(), name) == "gpu", "two of four in use and one to come, for ten seconds"
    for lease in held:
        lease.release()
    router.run(Request(), name)
    clock.now += 10
    assert router.run(Request(), name) == "npu"


def test_statistics(pool: ResourcePool, clock: Clock) -> None:
    router = Router(pool, clock=clock)

    def takes(seconds: float) -> None:
        clock.now += seconds
        if seconds > 3.5:
            raise PluginError("slow")

    for seconds in (1.0, 2.0, 3.0):
        router.run(Request(), lambda _resource, seconds=seconds: takes(seconds))  # type: ignore[misc]
    with pytest.raises(PluginError):
        router.run(Request(query=Query(ids=("npu",))), lambda _resource: takes(4.0))
    seen = router.statistics()["npu"]
    assert (seen.requests, seen.failures, seen.in_flight, seen.seconds) == (4, 1, 0, 10.0)
    assert (seen.p50, seen.p95) == (2.0, 2.9)
    assert seen.last_error == "PluginError: slow"
    assert router.statistics()["cpu"].requests == 0


def test_many_threads(pool: ResourcePool) -> None:
    router, done = Router(pool, failures=1000), list[str]()

    def work(seed: int) -> None:
        for number in range(40):
            done.append(router.run(Request(), failing("npu" if (seed + number) % 3 == 0 else "")))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = router.statistics()
    assert len(done) == 240
    assert sum(each.requests - each.failures for each in seen.values()) == 240
    assert all(each.in_flight == 0 for each in seen.values())
    assert [pool.free(each) for each in ("npu", "gpu", "cpu")] == [8, 8, 8]
