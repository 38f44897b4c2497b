"""The pool of resources: finding, leasing, and many threads at once."""

import random
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_abstract.core.errors import BadInput, Transient
from rm_abstract.core.resource import Capability, Resource, ResourceType
from rm_abstract.core.resource_pool import Lease, Query, ResourcePool

GPU = Resource("gpu0", ResourceType.GPU, {"vendor": "Acme", "memory_gb": 80}, ["big"])
NPU = Resource("npu0", ResourceType.NPU, {"vendor": "Red", "memory_gb": 32}, ["low-latency", "big"])
CPU = Resource("cpu", ResourceType.CPU)


@pytest.fixture
def pool() -> ResourcePool:
    pool = ResourcePool([GPU])
    pool.add(NPU, Capability(8, 4096, ("fp16",)))
    pool.add(CPU, Capability(max_seq_len=1024), slots=2)
    return pool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_resources_are_found_by_what_they_are(pool: ResourcePool) -> None:
    assert pool.find() == list(pool) == [GPU, NPU, CPU]
    assert pool.find_by_type(ResourceType.NPU) == [NPU]
    assert pool.find_by_tag("big") == [GPU, NPU]
    assert pool.find_by_tag("big", "low-latency") == [NPU]
    assert pool.find_by_attributes(vendor="Acme") == [GPU]
    assert pool.find_by_attributes(memory_gb=lambda size: size >= 32) == [GPU, NPU]
    assert pool.find_by_capability(Capability(max_seq_len=2048)) == [GPU, NPU], "what is not known suffices"
    assert pool.find(Query(types=(ResourceType.CPU, ResourceType.GPU), tags=("big",))) == [GPU]
    assert pool.find(Query(ids=("cpu", "gpu0"))) == [GPU, CPU]
    assert pool.capability("npu0").max_batch_size == 8
    assert len(pool) == 3
    assert "npu0" in pool


def test_what_is_not_there_is_said(pool: ResourcePool) -> None:
    with pytest.raises(BadInput, match="there are gpu0, npu0, cpu"):
        pool.get("npu9")
    with pytest.raises(BadInput, match="remove it first"):
        pool.add(GPU)
    with pytest.raises(BadInput, match="member that is not there: npu9"):
        pool.add(Resource("h", ResourceType.HYBRID, {"members": ["gpu0", "npu9"]}))
    with pytest.raises(BadInput, match="at least one user"):
        pool.add(Resource("x", ResourceType.CPU), slots=0)
    with pytest.raises(BadInput, match="no resource of this pool will do"):
        pool.acquire(Query(types=(ResourceType.FPGA,)))


def test_a_resource_is_lent_to_as_many_as_it_has_slots(pool: ResourcePool) -> None:
    query = Query(types=(ResourceType.CPU,))
    first, second = pool.acquire(query), pool.acquire(query)
    assert pool.free("cpu") == 0
    with pytest.raises(Transient, match="is free"):
        pool.acquire(query, timeout=0)
    with first:
        assert first.valid
    assert not first.valid
    assert pool.free("cpu") == 1
    first.release()
    assert pool.free("cpu") == 1, "giving back twice frees nothing that another one holds"
    second.release()


def test_the_preferred_one_that_is_free(pool: ResourcePool) -> None:
    def by_name(found: object) -> list[Resource]:
        return sorted(found, key=lambda resource: resource.id, reverse=True)  # type: ignore[call-overload, no-any-return]

    names = [pool.acquire(order=by_name).resource.id for _ in range(4)]
    assert names == ["npu0", "gpu0", "cpu", "cpu"]


def test_a_lease_that_nobody_gives_back_runs_out() -> None:
    clock = Clock()
    pool = ResourcePool([GPU], clock=clock)
    lease = pool.acquire(lasts=10)
    clock.now += 9
    lease.renew(10)
    clock.now += 9
    assert lease.valid
    clock.now += 1
    assert not lease.valid
    with pytest.raises(BadInput, match="has ended"):
        lease.renew(1)
    again = pool.acquire(timeout=0)
    lease.release()
    assert again.valid, "a lease that ran out must not end another one's"
    again.renew(None)
    clock.now += 1e6
    assert again.valid


def test_whoever_waits_gets_what_is_given_back_or_added(pool: ResourcePool) -> None:
    held = [pool.acquire(Query(ids=("gpu0",)))]
    got: list[Lease] = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire(Query(types=(ResourceType.GPU,)))))
    waiting.start()
    held.pop().release()
    waiting.join()
    assert got[0].resource == GPU
    second = threading.Thread(target=lambda: got.append(pool.acquire(Query(types=(ResourceType.GPU,)))))
    second.start()
    pool.add(Resource("gpu1", ResourceType.GPU))
    second.join()
    assert got[1].resource.id == "gpu1"


def test_a_removed_resource_is_not_lent_but_its_leases_stay(pool: ResourcePool) -> None:
    lease = pool.acquire(Query(ids=("npu0",)))
    assert pool.remove("npu0") == NPU
    assert "npu0" not in pool
    assert lease.valid
    lease.release()
    pool.add(NPU)
    assert pool.free("npu0") == 1


def test_a_hybrid_resource_takes_its_members(pool: ResourcePool) -> None:
    pool.add(Resource.hybrid("both", [GPU, NPU]))
    pool.add(Resource("more", ResourceType.HYBRID, {"members": ["both", "gpu0", "cpu"]}))
    with pool.acquire(Query(types=(ResourceType.HYBRID,), ids=("both",))):
        assert (pool.free("gpu0"), pool.free("npu0"), pool.free("cpu")) == (0, 0, 2)
    with pool.acquire(Query(ids=("more",))):
        assert [pool.free(each) for each in ("gpu0", "npu0", "both", "cpu")] == [0, 0, 0, 1]
    lease = pool.acquire(Query(ids=("npu0",)))
    assert pool.free("both") == 0
    with pytest.raises(Transient):
        pool.acquire(Query(ids=("both",)), timeout=0)
    lease.release()
    pool.remove("npu0")
    assert "both" not in pool
    assert "more" not in pool


def test_several_are_leased_together_or_not_at_all(pool: ResourcePool) -> None:
    big, gpu = Query(tags=("big",)), Query(types=(ResourceType.GPU,))
    one, other = pool.acquire_all([big, gpu])
    assert (one.resource, other.resource) == (NPU, GPU), "the first query leaves the second what it needs"
    one.release()
    with pytest.raises(Transient):
        pool.acquire_all([big, gpu], timeout=0)
    assert pool.free("npu0") == 1, "what was free is free again"


@pytest.fixture
def deadlock_bait() -> Iterator[ResourcePool]:
    pool = ResourcePool()
    for number in range(3):
        pool.add(Resource(f"d{number}", ResourceType.NPU), slots=2)
    yield pool
    assert all(pool.free(f"d{number}") == 2 for number in range(3))


def test_many_threads_never_hold_more_than_there_is(deadlock_bait: ResourcePool) -> None:
    held = {f"d{number}": 0 for number in range(3)}
    lock = threading.Lock()
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            ids = rng.sample(list(held), rng.randint(1, 3))
            leases = deadlock_bait.acquire_all([Query(ids=(each,)) for each in ids])
            with lock:
                for lease in leases:
                    held[lease.resource.id] += 1
                    if held[lease.resource.id] > 2:
                        failures.append(lease.resource.id)
            with lock:
                for lease in leases:
                    held[lease.resource.id] -= 1
            for lease in leases:
                lease.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    actions=st.lists(st.tuples(st.booleans(), st.integers(0, 10), st.floats(0, 5)), max_size=40),
)
def test_the_books_always_balance(slots: list[int], actions: list[tuple[bool, int, float]]) -> None:
    """Against a model: free + valid leases = slots, at every step, leases that run out included."""
    clock = Clock()
    pool = ResourcePool(clock=clock)
    for number, count in enumerate(slots):
        pool.add(Resource(str(number), ResourceType.CPU), slots=count)
    leases: list[Lease] = []
    for take, number, seconds in actions:
        wanted = str(number % len(slots))
        if take:
            try:
                leases.append(pool.acquire(Query(ids=(wanted,)), timeout=0, lasts=seconds or None))
            except Transient:
                assert pool.free(wanted) == 0
        elif leases:
            leases[number % len(leases)].release()
        clock.now += seconds / 4
        for each, count in enumerate(slots):
            valid = sum(lease.valid for lease in leases if lease.resource.id == str(each))
            assert pool.free(str(each)) == count - valid
