"""A fleet for tests of placement: a GPU, two NPUs, PIM, CPUs and a remote endpoint, with a profile for each."""

from typing import Any

from rm_api.capabilities import Cost
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec, ModelDeploymentSpec, ModelFacts
from rm_api.placement import Candidate
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, PlacementResult, ProfileView

DIGEST = "sha256:" + "0" * 64
LLAMA_8B = ModelFacts(
    source="hf://org/model", revision="0123", architecture="LlamaForCausalLM", parameters=8_000_000_000,
    active_parameters=8_000_000_000, weight_bytes=16_000_000_000, dtype="bf16", layers=32, heads=32, kv_heads=8,
    head_dim=128, max_sequence_length=8192, config_digest=DIGEST, tensors_digest=DIGEST, weights_digest=DIGEST,
)  # fmt: skip


def accelerator(name: str, kind: str, vendor: str, **members: Any) -> AcceleratorView:
    """A view of an accelerator; members of the view by their name, all others go into the spec."""
    counted = kind not in ("CPU", "REMOTE")
    counts: dict[str, Any] = {"free": 4, "healthy": 4, "nodes": 2} if counted else {}
    views = {k: members.pop(k) for k in ("free", "healthy", "nodes", "ready", "reason", "taken") if k in members}
    spec = {"type": kind, "vendor": vendor, "product": name.upper(), "runtime": {"plugin": "p", "image": "i"}}
    if kind == "REMOTE":
        del spec["runtime"]
    if counted:
        spec["resourceName"] = f"{vendor.lower()}.com/{name}"
    return AcceleratorView(name, AcceleratorResourceSpec.model_validate(spec | members), **(counts | views))


def endpoint(name: str, prompt: str, answer: str, **members: Any) -> AcceleratorView:
    """A remote endpoint that charges so much for 10^6 tokens of prompts and of answers."""
    cost = {"perMillionInputTokens": prompt, "perMillionOutputTokens": answer}
    served = [{"source": "hf://org/model", "name": "large-1"}]
    remote = {"endpoint": "https://api.example.com/v1", "models": served} | members.pop("remote", {})
    return accelerator(name, "REMOTE", "Cloud", cost=cost, remote=remote, **({"allowedNamespaces": ["team"]} | members))


def figures(memory: int, bandwidth: int, tflops: int, efficiency: dict[str, str] | None = None) -> dict[str, Any]:
    """``spec.performance``: GiB, GB/s, Tflop/s."""
    return {
        "memoryGiB": memory,
        "bandwidthGBps": bandwidth,
        "tflops": [{"dtype": "bf16", "value": tflops}],
        "efficiency": efficiency or {"compute": "0.4", "bandwidth": "0.6"},
    }


def profile(name: str, kind: str, vendor: str, usable: bool = True, reason: str = "", **members: Any) -> ProfileView:
    """A view of a profile with one step."""
    spec = {
        "target": {"type": kind, "vendor": vendor} | members.pop("target", {}),
        "steps": [{"name": "compile", "image": "i", "command": ["c"]}],
        "output": {"format": "f"},
    }
    return ProfileView(name, BuildProfileSpec.model_validate(spec | members), usable, reason)


GPU = accelerator(
    "gpu", "GPU", "Green", performance=figures(80, 2000, 1000), power={"idleWatts": 60, "maxWatts": 700},
    cost={"perHour": "4"},
)  # fmt: skip
NPU_FAST = accelerator(
    "npu-fast", "NPU", "Red", performance=figures(48, 2400, 200), power={"idleWatts": 40, "maxWatts": 400},
    cost={"perHour": "3"}, tags=["low-latency"],
)  # fmt: skip
NPU_SMALL = accelerator(
    "npu-small", "NPU", "Blue", performance=figures(24, 400, 120), power={"idleWatts": 20, "maxWatts": 70},
    cost={"perHour": "0.35"},
)  # fmt: skip
PIM = accelerator(
    "pim", "PIM", "Grey", performance=figures(64, 1600, 20), power={"idleWatts": 10, "maxWatts": 60},
    cost={"perHour": "2"},
)  # fmt: skip
CPU = accelerator("cpu", "CPU", "Plain", cost={"perHour": "0.04"}, performance=figures(256, 100, 4))
BARE_CPU = accelerator("bare-cpu", "CPU", "Plain")
REMOTE = endpoint("remote", "0.05", "0.3")
FLEET = (GPU, NPU_FAST, NPU_SMALL, PIM, CPU, BARE_CPU, REMOTE)
PROFILES = (
    profile("blue", "NPU", "Blue"),
    profile("green", "GPU", "Green"),
    profile("grey", "PIM", "Grey"),
    profile("plain", "CPU", "Plain"),
    profile("red", "NPU", "Red", shapes={"sequence": [1024, 2048, 4096], "batch": [1, 16]}),
)


def request(**members: Any) -> PlacementRequest:
    """The whole fleet and Llama 8B; members of the request by their name, all others go into the spec."""
    fleet, profiles = members.pop("fleet", FLEET), members.pop("profiles", PROFILES)
    current, facts = members.pop("current", None), members.pop("facts", LLAMA_8B)
    further = {k: members.pop(k) for k in ("current_policy", "led_for") if k in members}
    namespace = members.pop("namespace", "team")
    spec = ModelDeploymentSpec.model_validate({"model": {"source": "hf://org/model"}} | members)
    return PlacementRequest("chat", spec, facts, fleet, profiles, current, namespace=namespace, **further)


def candidate(result: PlacementResult, name: str) -> Candidate:
    """The candidate of that name."""
    return next(c for c in result.candidates if c.name == name)


def cost(per_hour: str, currency: str) -> Cost:
    """``spec.cost``."""
    return Cost.model_validate({"perHour": per_hour, "currency": currency})
