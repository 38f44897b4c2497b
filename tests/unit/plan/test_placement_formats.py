"""Which artifacts an accelerator's engine serves: of two engines on one kind of device, each gets its own."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from chain import World
from placement_fleet import accelerator, candidate, figures, profile, request
from rm_api.conditions import Reason
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec
from rm_api.runtimes import RUNTIMES
from rm_operator.plan.placement import AcceleratorView, ProfileView, place

Object = dict[str, Any]
EXAMPLES = Path(__file__).parents[3] / "examples"
POLICIES = ["Latency", "Throughput", "Energy", "Cost", "Weighted"]
FORMATS = sorted({each for facts in RUNTIMES.values() for each in facts.formats})


def cpu(name: str, runtime: str | list[str], times: int = 1, **members: Any) -> AcceleratorView:
    """A way to use the machine's processor, so many times as fast, as cheap and as frugal as another one."""
    started = {"plugin": runtime} if isinstance(runtime, str) else {"command": runtime}
    return accelerator(
        name, "CPU", "Generic", product="x86-64", performance=figures(256, 100 * times, 4 * times),
        power={"idleWatts": 10, "maxWatts": 60}, cost={"perHour": "0.04"}, runtime={**started, "image": "i"}, **members,
    )  # fmt: skip


def makes(format_: str, name: str = "", **members: Any) -> ProfileView:
    return profile(name or format_, "CPU", "Generic", output={"format": format_}, **members)


IR, CACHE, OWN = makes("openvino-ir"), makes("vllm-cache"), makes("acme-bin")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("faster", ["cpu-openvino", "cpu-vllm"])
@pytest.mark.parametrize(
    ("profiles", "eligible"),
    [
        ((IR,), {"cpu-openvino": "openvino-ir"}),
        ((CACHE,), {"cpu-vllm": "vllm-cache"}),
        ((IR, CACHE), {"cpu-openvino": "openvino-ir", "cpu-vllm": "vllm-cache"}),
    ],
    ids=["openvino", "vllm", "both"],
)
def test_each_engine_gets_what_it_serves_however_much_better_the_other_would_be(
    policy: str, faster: str, profiles: tuple[ProfileView, ...], eligible: dict[str, str]
) -> None:
    fleet = tuple(
        cpu(name, plugin, 2 if name == faster else 1)
        for name, plugin in (("cpu-openvino", "openvino"), ("cpu-vllm", "vllm-cpu"))
    )
    result = place(request(fleet=fleet, profiles=profiles, policy={"type": policy}))
    assert {c.name: c.profile for c in result.candidates if c.eligible} == eligible
    assert result.chosen == (faster if faster in eligible else next(iter(eligible)))
    assert result.profile == eligible[result.chosen]


@pytest.mark.parametrize("format_", [*FORMATS, "acme-bin"])
@pytest.mark.parametrize("plugin", [*RUNTIMES, "TensorRT_LLM", "acme"])
def test_a_format_of_another_engine_is_left_out_and_any_other_is_tried(plugin: str, format_: str) -> None:
    """The table of engines is the oracle; of a vendor's plugin, and of a vendor's format, nobody knows."""
    facts = RUNTIMES.get(plugin.lower().replace("_", "-"))
    there = cpu("cpu", plugin, capability={"dtypes": ["bf16"]})
    result = place(request(fleet=(there,), profiles=(makes(format_),)))
    assert candidate(result, "cpu").eligible is (facts is None or format_ in (*facts.formats, "acme-bin"))


@pytest.mark.parametrize("format_", [*FORMATS, "acme-bin"])
def test_of_a_command_nothing_is_known(format_: str) -> None:
    result = place(request(fleet=(cpu("cpu", ["acme-serve"]),), profiles=(makes(format_),)))
    assert result.chosen == "cpu"
    assert "not known to serve" not in candidate(result, "cpu").reason


@pytest.mark.parametrize(
    ("plugin", "profiles", "spec", "sentence"),
    [
        (
            "vllm-cpu",
            (IR, makes("iree-vmfb")),
            {},
            "its runtime plugin vllm-cpu does not serve iree-vmfb, openvino-ir, which its BuildProfiles make; install "
            "one for it whose spec.output.format is one of huggingface, vllm-cache, or use an accelerator with the "
            "plugin iree, openvino",
        ),
        (
            "openvino",
            (CACHE, IR),
            {"buildProfile": "vllm-cache"},
            "its runtime plugin openvino does not serve vllm-cache, which the BuildProfile vllm-cache that "
            "spec.buildProfile names makes; remove that, name one whose spec.output.format is one of openvino-ir, or "
            "use an accelerator with the plugin vllm, vllm-cpu",
        ),
        # What the engine serves is nearer than what it does not: its own profile says what is amiss.
        (
            "openvino",
            (CACHE, makes("openvino-ir", supports={"architectures": ["QwenForCausalLM"]})),
            {},
            "no BuildProfile for it compiles LlamaForCausalLM; they compile QwenForCausalLM",
        ),
    ],
    ids=["several", "pinned", "nearer"],
)
def test_the_candidate_says_what_to_do(
    plugin: str, profiles: tuple[ProfileView, ...], spec: Object, sentence: str
) -> None:
    result = place(request(fleet=(cpu("cpu", plugin),), profiles=profiles, **spec))
    assert (result.chosen, result.reason) == (None, Reason.NO_ELIGIBLE_ACCELERATOR)
    assert candidate(result, "cpu").reason == sentence
    assert sentence in result.message


@pytest.mark.parametrize("name", ["staged", "counted", "picky"])
@pytest.mark.parametrize("replicas", [0, 1])
def test_a_format_of_somebodys_own_is_built_and_said_not_to_be_known(name: str, replicas: int) -> None:
    """Whoever only builds on an accelerator, or has an image that serves more, is not kept from it."""
    npu = accelerator("simulated-npu", "NPU", "Red", runtime={"plugin": "simulated-npu", "image": "i"})
    own = profile(name, "NPU", "Red", output={"format": name}, priority=-100)
    usual = profile("usual", "NPU", "Red", output={"format": "simulated-npu"})
    result = place(request(fleet=(npu,), profiles=(own, usual), buildProfile=name, replicas=replicas))
    assert (result.chosen, result.profile) == ("simulated-npu", name)
    said = f"its runtime plugin simulated-npu is not known to serve {name}"
    assert said in candidate(result, "simulated-npu").reason
    assert said not in candidate(place(request(fleet=(npu,), profiles=(usual,))), "simulated-npu").reason


def test_what_the_engine_is_known_to_serve_is_tried_first_whatever_the_priority() -> None:
    own = makes("acme-bin", priority=1000)
    assert place(request(fleet=(cpu("cpu", "vllm-cpu"),), profiles=(own, CACHE))).profile == "vllm-cache"
    assert place(request(fleet=(cpu("cpu", "acme"),), profiles=(own, CACHE))).profile == "acme-bin"
    assert place(request(fleet=(cpu("cpu", ["acme-serve"]),), profiles=(own, CACHE))).profile == "acme-bin"
    # Only the order changes: where the known one does not take the model, the other is tried.
    text = makes("vllm-cache", supports={"tasks": ["Embed"]})
    assert place(request(fleet=(cpu("cpu", "vllm-cpu"),), profiles=(own, text))).profile == "acme-bin"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_engine_that_may_not_serve_it_ranks_after_one_that_nothing_speaks_against(policy: str) -> None:
    """A vendor's own format goes to the vendor's own engine, and not to vLLM beside it that looks twice as good."""
    fleet = (cpu("cpu-acme", ["acme-serve"]), cpu("cpu-vllm", "vllm-cpu", 2))
    result = place(request(fleet=fleet, profiles=(OWN,), policy={"type": policy}))
    assert [(c.name, c.eligible) for c in result.candidates] == [("cpu-acme", True), ("cpu-vllm", True)]
    behind = candidate(result, "cpu-vllm").reason
    assert "behind cpu-acme, as it may not serve what is built for it" in behind
    assert "its runtime plugin vllm-cpu is not known to serve acme-bin" in behind
    assert "of 1 that can take it without a doubt" in candidate(result, "cpu-acme").reason
    # It is better than none; and nothing that runs is moved for a doubt.
    assert place(request(fleet=fleet[1:], profiles=(OWN,), policy={"type": policy})).chosen == "cpu-vllm"
    stays = place(request(fleet=fleet, profiles=(OWN,), current="cpu-vllm", led_for=9999.0, policy={"type": policy}))
    assert (stays.chosen, stays.leader) == ("cpu-vllm", None)
    assert "to move it, exclude cpu-vllm" in candidate(stays, "cpu-vllm").reason


def _examples(kind: str) -> dict[str, Object]:
    return {
        f"{file.parent.name}/{body['metadata']['name']}": body["spec"]
        for file in sorted(EXAMPLES.glob("*/*.yaml"))
        for body in yaml.safe_load_all(file.read_text())
        if body["kind"] == kind
    }


ACCELERATORS, PROFILES = _examples("AcceleratorResource"), _examples("BuildProfile")
OF_OTHERS = {
    ("iree/cpu-iree", "openvino-embeddings/cpu-openvino-embeddings"),
    ("iree/cpu-iree", "simulated-npu/cpu-openvino"),
    ("simulated-npu/cpu", "iree/cpu-iree"),
    ("vllm-cpu/cpu-vllm", "openvino-embeddings/cpu-openvino-embeddings"),
    ("vllm-cpu/cpu-vllm", "simulated-npu/cpu-openvino"),
    ("adopt-nvidia/nvidia-l40s", "tensorrt-llm/nvidia-tensorrt-llm"),
}
"""Examples for one product whose engines are different ones."""


def test_every_example_is_eligible_for_its_own_profile_and_not_for_those_of_other_engines() -> None:
    """All examples are installed together, as the demo and a curious reader do; each pair alone, so that it is seen."""
    left_out, there = set(), set()
    for on, spec in ACCELERATORS.items():
        if spec["type"] == "REMOTE":
            continue
        kind = AcceleratorResourceSpec.model_validate(spec)
        for name, recipe in PROFILES.items():
            target = recipe["target"]
            if (target["type"], target["vendor"]) != (kind.type, kind.vendor):
                continue
            if target.get("products", [kind.product]) != [kind.product]:
                continue
            # Models, number formats and memory are other tests' business, as are versions of devices.
            wire = {**recipe, "supports": {}, "shapes": {}, "compatibility": {}}
            view = ProfileView("profile", BuildProfileSpec.model_validate(wire))
            bare = {"capability": type(kind.capability)(), "performance": type(kind.performance)()}
            fleet = (AcceleratorView("kind", kind.model_copy(update=bare)),)
            dtype = {"requirements": {"dtype": "int8"}} if kind.plugin == "upmem" else {}
            found = candidate(place(request(fleet=fleet, profiles=(view,), **dtype)), "kind")
            there.add((on, name))
            if not found.eligible:
                assert "does not serve" in found.reason, (on, name)
                left_out.add((on, name))
    assert left_out == OF_OTHERS
    own = {(on, name) for on in ACCELERATORS for name in PROFILES if on.split("/")[0] == name.split("/")[0]}
    assert {name for _, name in there - left_out} == set(PROFILES)
    assert not own & left_out


def test_an_artifact_of_another_engine_is_never_taken() -> None:
    """It is Ready, of the same model and device, and covers what is needed; the other engine builds its own."""
    world = World()
    world.accelerators = [cpu("cpu-openvino", "openvino"), cpu("cpu-vllm", "vllm-cpu")]
    recipe = {"supports": {"dtypes": ["bf16"]}, "shapes": {"sequence": [2048], "batch": [8]}}
    world.profiles = [makes("openvino-ir", **recipe), makes("vllm-cache", **recipe)]

    def artifact_for(name: str, on: str) -> Object:
        world.serve(name, accelerators={"names": [on]})
        status = world.objects["ModelDeployment", name]["status"]
        assert status["placement"]["chosen"] == on
        spec: Object = world.objects["BuildArtifact", status["artifact"]]["spec"]
        return spec

    exported, warmed = artifact_for("first", "cpu-openvino"), artifact_for("second", "cpu-vllm")
    assert (exported["format"], warmed["format"]) == ("openvino-ir", "vllm-cache")
    assert exported["key"] != warmed["key"], "though every step is the same"
    # Without a profile of its own it has no place, whatever the store has.
    world.profiles = world.profiles[:1]
    world.deploy("third", accelerators={"names": ["cpu-vllm"]})
    world.settle()
    assert world.reason("third", "Placed") == "NoEligibleAccelerator"
    assert "artifact" not in world.objects["ModelDeployment", "third"]["status"]


def test_what_a_build_starts_from_may_be_what_the_engine_does_not_serve() -> None:
    """Only what comes out in the end is served: an exported model that another compiler goes on with is none of it."""
    world = World()
    world.accelerators = [cpu("cpu", "iree")]
    recipe = {"supports": {"dtypes": ["bf16"]}}
    world.profiles = [makes("openvino-ir", **recipe), makes("iree-vmfb", **recipe, **{"from": "openvino-ir"})]
    world.serve()
    built = {each["spec"]["format"]: each["metadata"]["name"] for each in world.of("BuildArtifact")}
    assert set(built) == {"openvino-ir", "iree-vmfb"}
    assert world.objects["ModelDeployment", "hello"]["status"]["artifact"] == built["iree-vmfb"]


def test_the_engine_of_an_accelerator_becomes_another_one() -> None:
    """What it was served with is not served by the new engine: the deployment waits for what the new one takes."""
    world = World()
    world.accelerators = [cpu("cpu", "openvino")]
    world.profiles = [makes("openvino-ir", supports={"dtypes": ["bf16"]})]
    world.serve()
    assert world.condition("ModelDeployment", "hello", "Ready")["status"] == "True"
    world.accelerators = [cpu("cpu", "vllm-cpu")]
    world.settle()
    assert world.reason(condition="Placed") == "NoEligibleAccelerator"
    assert "does not serve openvino-ir" in world.condition("ModelDeployment", "hello", "Placed")["message"]
    world.profiles.append(makes("vllm-cache", supports={"dtypes": ["bf16"]}))
    world.settle()
    assert world.objects["ModelDeployment", "hello"]["status"]["placement"]["profile"] == "vllm-cache"
