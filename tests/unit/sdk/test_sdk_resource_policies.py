"""Policies: the document's preferences, figures before preferences, and a hybrid one that does not swing."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_abstract.core.errors import BadInput
from rm_abstract.core.policies import (
    FIGURES,
    PREFERRED,
    CostPolicy,
    EnergyPolicy,
    HybridPolicy,
    LatencyPolicy,
    Policy,
    PolicyType,
    Switch,
    ThroughputPolicy,
    WeightedPolicy,
    policy_of,
)
from rm_abstract.core.resource import Resource, ResourceType
from rm_api import placement
from rm_operator.plan.placement.score import Goal

FLEET = [Resource(kind.lower(), kind) for kind in ResourceType]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        (LatencyPolicy(), ["npu"]),
        (ThroughputPolicy(), ["gpu"]),
        (EnergyPolicy(), ["npu", "pim"]),
        (CostPolicy(), ["cpu", "remote"]),
        (HybridPolicy(), ["npu"]),
    ],
)
def test_what_is_preferred_where_nothing_is_known(policy: Policy, first: list[str]) -> None:
    order = [resource.id for resource in policy.order(FLEET)]
    assert order[: len(first)] == first
    assert set(order) == {resource.id for resource in FLEET}
    rest = [name for name in ("npu", "gpu", "pim", "fpga", "cpu", "remote", "hybrid") if name not in first]
    assert order[len(first) :] == rest, "then the usual order"


def test_the_vocabulary_is_that_of_deployments() -> None:
    words = {kind.value for kind in placement.PolicyType}
    assert words <= {kind.value for kind in PolicyType}
    for kind in placement.PolicyType:
        goal = Goal(placement.Policy(type=kind))
        own = policy_of(kind.value)
        assert isinstance(own, WeightedPolicy)
        assert own.weights == goal.weights
        assert [each.value for each in own.preference if each is not ResourceType.HYBRID] == [
            each.value for each in goal.preference
        ]
    assert set(PREFERRED) == set(PolicyType) - {PolicyType.WEIGHTED, PolicyType.HYBRID}


def known(name: str, figure: str, value: float, kind: ResourceType = ResourceType.CPU, **more: object) -> Resource:
    return Resource(name, kind, {figure: value, **more})


def test_figures_come_before_preferences() -> None:
    slow, fast = known("slow", "seconds_per_answer", 2.0), known("fast", "seconds_per_answer", 0.5)
    npu = Resource("npu", ResourceType.NPU)
    assert LatencyPolicy().order([npu, slow, fast]) == [fast, slow, npu]
    assert ThroughputPolicy().order([npu, slow, fast])[0] is npu, "that figure says nothing of throughput"


def test_equal_figures_are_decided_by_priority_and_then_by_name() -> None:
    a = known("a", "joules_per_token", 1.0, ResourceType.GPU)
    b = known("b", "joules_per_token", 1.000001, ResourceType.NPU)
    c = known("c", "joules_per_token", 1.0, ResourceType.CPU, priority=1000)
    d = known("d", "joules_per_token", 1.0, ResourceType.GPU)
    assert EnergyPolicy().order([d, b, a, c]) == [c, b, a, d]


def test_prices_in_different_currencies_are_not_compared() -> None:
    euro = known("euro", "price_per_million_tokens", 1.0, currency="EUR")
    dollar = known("dollar", "price_per_million_tokens", 9.0)
    free = known("free", "price_per_million_tokens", 0, currency="EUR")
    assert CostPolicy().order([euro, dollar, free]) == [dollar, free, euro]
    assert WeightedPolicy(latency=1).rank(euro).group == (3 + 1, ""), "no price counts where cost has no weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policy_of("Fastest"), "there are Latency, Throughput"),
        (lambda: policy_of("latency", {"cost": 1}), "weights are for the policy Weighted"),
        (lambda: policy_of("weighted", {"speed": 1}), "no weight speed"),
        (lambda: WeightedPolicy(cost=-1), "at least 0"),
        (lambda: HybridPolicy(low=0.8, high=0.8), "low below high"),
        (lambda: LatencyPolicy().order([known("x", "seconds_per_answer", -1)]), "seconds_per_answer of x is -1"),
        (lambda: LatencyPolicy().order([Resource("x", ResourceType.CPU, {FIGURES[0]: "soon"})]), "is 'soon'"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


_resources = st.builds(
    lambda number, kind, figures: Resource(f"r{number}", kind, {k: v for k, v in figures.items() if v is not None}),
    st.integers(0, 99),
    st.sampled_from(list(ResourceType)),
    st.fixed_dictionaries({name: st.none() | st.floats(0, 1e6) for name in FIGURES}),
)
_policies = st.builds(WeightedPolicy, *[st.floats(0, 10)] * 4)


@settings(max_examples=150, deadline=None)
@given(_policies, st.lists(_resources, max_size=5, unique_by=lambda resource: resource.id))
def test_the_order_depends_on_nothing_but_the_pair(policy: Policy, resources: list[Resource]) -> None:
    order = policy.order(resources)
    for first, second in itertools.combinations(order, 2):
        assert policy.order([second, first]) == [first, second]


# Hybrid


def test_a_hybrid_policy_goes_over_and_back() -> None:
    clock, switches = Clock(), list[Switch]()
    policy = HybridPolicy(high=0.8, low=0.5, stabilization_seconds=10, clock=clock, on_switch=switches.append)
    npu, gpu = (Resource(kind.lower(), kind) for kind in (ResourceType.NPU, ResourceType.GPU))

    def after(seconds: float, load: float) -> str:
        clock.now += seconds
        policy.observe(load)
        return policy.order([gpu, npu])[0].id

    assert after(0, 0.1) == "npu"
    assert after(5, 0.9) == "npu", "high, but only now"
    assert after(9, 2.0) == "npu"
    assert after(1, 0.8) == "gpu", "high for ten seconds"
    assert after(100, 0.6) == "gpu", "in between nothing changes"
    assert after(1, 0.5) == "gpu"
    assert after(9, 0.51) == "gpu", "it was not low all the time"
    assert after(1, 0.4) == "gpu"
    assert after(10, 0.0) == "npu"
    assert [(switch.at, switch.load, switch.policy.type) for switch in switches] == [
        (15, 0.8, PolicyType.THROUGHPUT),
        (136, 0.0, PolicyType.LATENCY),
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1.5)), max_size=60))
def test_a_hybrid_policy_never_swings(observations: list[tuple[float, float]]) -> None:
    """Between two changes lies at least the time of stabilisation, and at each the load was beyond its limit."""
    clock, switches = Clock(), list[Switch]()
    policy = HybridPolicy(stabilization_seconds=4, clock=clock, on_switch=switches.append)
    for seconds, load in observations:
        clock.now += seconds
        policy.observe(load)
    for switch in switches:
        assert switch.load >= 0.8 if switch.policy.type is PolicyType.THROUGHPUT else switch.load <= 0.5
    assert all(later.at - earlier.at >= 4 for earlier, later in itertools.pairwise(switches))
    assert all(a.policy is not b.policy for a, b in itertools.pairwise(switches))
