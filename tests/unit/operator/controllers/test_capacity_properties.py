"""No device is promised twice, to deployments or builds, whatever happens in whatever order; and none stays unused
while somebody waits."""

from typing import Any

from fleet_cluster import Cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api import names
from rm_operator.kube.resources import MODEL_DEPLOYMENTS, PODS

repeatable = settings(deadline=None, derandomize=True, max_examples=150, database=None)

CAPACITY = {"fast": 2, "slow": 2}
NAMES = ("a", "b", "c", "d", "e")
actions = st.lists(
    st.tuples(st.sampled_from(("decide", "decide", "write", "write", "pod", "bind", "end", "remove", "deploy",
                               "build", "build", "job", "build pod", "build ends")),
              st.sampled_from(NAMES)),
    min_size=5, max_size=60,
)  # fmt: skip


class Story:
    """Deployments of one replica that are decided on, written, started, ended, removed and made again."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        for bandwidth, (name, devices) in zip((4000, 1000), CAPACITY.items(), strict=True):
            self.cluster.accelerator(name, healthy=devices, bandwidth=bandwidth)
        self.decided: dict[str, str | None] = {}
        """What was decided and is not written yet."""
        self.builds: dict[str, str] = {}
        """Builds that were let in, and where; of those before "job" only the decision knows."""
        self.jobs: set[str] = set()
        self.pods = 0

    def alive(self, name: str) -> bool:
        return self.cluster.stores[MODEL_DEPLOYMENTS].get("ns", name) is not None

    def placed(self, name: str) -> str | None:
        if not self.alive(name):
            return None
        status = self.cluster.deployment(name).get("status") or {}
        chosen = (status.get("placement") or {}).get("chosen")
        return None if chosen is None else str(chosen)

    def pods_of(self, name: str) -> list[Any]:
        pods = self.cluster.stores[PODS]
        return [pod for pod in pods if pod["metadata"]["labels"].get(names.LABEL_DEPLOYMENT) == name]

    def act(self, action: str, name: str) -> None:
        cluster = self.cluster
        if action == "deploy" and not self.alive(name):
            cluster.deploy(name)
        elif action == "remove" and self.alive(name):
            cluster.remove(name)
            self.decided.pop(name, None)
        elif action == "decide" and self.alive(name):
            self.decided[name] = cluster.decide(name).chosen
        elif action == "write" and name in self.decided:
            cluster.write(name, self.decided.pop(name))
        elif action == "pod" and (chosen := self.placed(name)) and not self.pods_of(name):
            self.pods += 1
            cluster.pod(f"{name}-{self.pods}", chosen, name, node="")
        elif action == "bind":
            for pod in self.pods_of(name):
                accelerator = pod["metadata"]["labels"][names.LABEL_ACCELERATOR]
                if self.bound(accelerator) < CAPACITY[accelerator]:
                    cluster.pod(pod["metadata"]["name"], accelerator, name)
        elif action == "end":
            for pod in self.pods_of(name):
                cluster.end(pod["metadata"]["name"])
        else:
            self.build(action, f"of-{name}")

    def build(self, action: str, build: str) -> None:
        """The same of a build that nobody waits for, so that it borrows from nobody."""
        cluster = self.cluster
        if action == "build" and build not in self.builds:
            spoken_for = cluster.spoken_for(build)
            free = [each for each, devices in CAPACITY.items() if spoken_for[each] < devices]
            if free:
                self.builds[build] = free[0]
                cluster.claim(build, free[0])
        elif action == "job" and build in self.builds and build not in self.jobs:
            self.jobs.add(build)
            cluster.job(build, self.builds[build])
        elif action == "build pod" and build in self.jobs:
            if self.bound(self.builds[build]) < CAPACITY[self.builds[build]]:
                cluster.build_pod(build, self.builds[build])
        elif action == "build ends" and build in self.jobs:
            cluster.job(build, self.builds.pop(build), over=True)
            self.jobs.remove(build)
            cluster.end(f"{build}-pod")

    def bound(self, accelerator: str) -> int:
        return sum(
            "nodeName" in pod["spec"]
            for pod in self.cluster.stores[PODS]
            if pod["metadata"]["labels"][names.LABEL_ACCELERATOR] == accelerator
        )

    def spoken_for(self, accelerator: str) -> set[str]:
        """Deployments that were told that they have a device there: by a decision, a status or a pod."""
        told = {name for name in NAMES if self.placed(name) == accelerator}
        told |= {name for name, chosen in self.decided.items() if chosen == accelerator}
        labels = [pod["metadata"]["labels"] for pod in self.cluster.stores[PODS]]
        here = [each for each in labels if each[names.LABEL_ACCELERATOR] == accelerator]
        told |= {each[names.LABEL_DEPLOYMENT] for each in here if names.LABEL_DEPLOYMENT in each}
        return told | {build for build, where in self.builds.items() if where == accelerator}


@repeatable
@given(actions, st.sets(st.integers(0, 59)))
def test_no_device_is_promised_twice_even_with_restarts(story: list[tuple[str, str]], restarts: set[int]) -> None:
    teller = Story()
    for number, (action, name) in enumerate(story):
        if number in restarts:
            # What was decided and not written is forgotten with the process that decided.
            teller.decided.clear()
            teller.builds = {build: where for build, where in teller.builds.items() if build in teller.jobs}
            teller.cluster.restart()
        teller.act(action, name)
        for accelerator, devices in CAPACITY.items():
            told = teller.spoken_for(accelerator)
            assert len(told) <= devices, f"{accelerator} of {devices} is promised to {told}"
            assert teller.cluster.free(accelerator) == devices - len(told)


@repeatable
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 4)), min_size=1, max_size=25))
def test_what_is_granted_to_deployments_of_any_size_stays_within_what_there_is(wishes: list[tuple[str, int]]) -> None:
    cluster = Cluster()
    cluster.accelerator("npu", healthy=5)
    for name, replicas in wishes:
        cluster.deploy(name, replicas=replicas)
        chosen = cluster.place(name)
        free = cluster.free("npu")
        assert free is not None
        assert 0 <= free <= 5
        # Nobody is sent away while there is a device; whoever comes to a full one wants none.
        assert chosen == "npu" or free == 0


@repeatable
@given(actions)
def test_once_nothing_moves_everything_that_was_promised_is_free_again(story: list[tuple[str, str]]) -> None:
    teller = Story()
    for action, name in story:
        teller.act(action, name)
    for pod in list(teller.cluster.stores[PODS]):
        teller.cluster.end(pod["metadata"]["name"])
    teller.cluster.wait(1800)
    for accelerator, devices in CAPACITY.items():
        assert teller.cluster.free(accelerator) == devices


@repeatable
@given(st.integers(1, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_every_free_device_finds_one_that_waits_and_no_more_are_woken(waiting: int, freed: int, random: Any) -> None:
    cluster = Cluster()
    cluster.accelerator("npu", healthy=12)
    cluster.pod("x", "npu", devices=12)
    for number in range(waiting):
        cluster.deploy(f"w{number}", **random.choice(({}, {"accelerators": {"exclude": ["npu"]}})))
        cluster.place(f"w{number}")
    willing = [
        each["metadata"]["name"] for each in cluster.stores[MODEL_DEPLOYMENTS] if "accelerators" not in each["spec"]
    ]
    cluster.drain()
    if freed:
        cluster.pod("x", "npu", devices=12 - freed, phase="Running" if freed < 12 else "Succeeded")
    reconciles = 0
    while woken := cluster.drain():
        for name in woken:
            reconciles += 1
            cluster.place(name)
    assert reconciles == min(freed, len(willing))
    assert cluster.free("npu") == freed - reconciles
