"""Where models that embed can run: only what serves embeddings, and only as what compiles them makes them."""

from typing import Any

import pytest
from placement_fleet import LLAMA_8B, accelerator, candidate, figures, profile, request
from rm_api.kinds.model_deployment import ModelFacts
from rm_api.tasks import ModelTask
from rm_operator.plan.buckets import required_shape
from rm_operator.plan.placement import AcceleratorView, ProfileView, place

BERT = LLAMA_8B.model_copy(
    update={
        "architecture": "BertModel", "task": ModelTask.EMBED, "parameters": 110_000_000, "layers": 12, "heads": 12,
        "active_parameters": 110_000_000, "weight_bytes": 440_000_000, "kv_heads": 12, "head_dim": 64,
        "max_sequence_length": 512,
    }
)  # fmt: skip
EMBEDS = {"tasks": ["Embed"]}


def cpu(plugin: str = "openvino", **members: Any) -> AcceleratorView:
    runtime = {"plugin": plugin, "image": "i"}
    return accelerator("cpu", "CPU", "Plain", performance=figures(256, 100, 4), runtime=runtime, **members)


def plain(**supports: Any) -> ProfileView:
    return profile("plain", "CPU", "Plain", supports=supports)


@pytest.mark.parametrize(
    ("facts", "machine", "profiles", "why"),
    [
        (BERT, cpu(), (plain(**EMBEDS),), None),
        (BERT, cpu("vllm"), (plain(**EMBEDS),), None),
        (BERT, cpu("vllm-cpu"), (plain(tasks=["Generate", "Embed"]),), None),
        (BERT, cpu("acme", capability={"features": ["embeddings"]}), (plain(**EMBEDS),), None),
        (BERT, cpu("acme"), (plain(**EMBEDS),), "its capability.features lack embeddings"),
        (BERT, cpu("furiosa-llm"), (plain(**EMBEDS),), "its capability.features lack embeddings"),
        (BERT, cpu(capability={"features": ["lora"]}), (plain(**EMBEDS),), "its capability.features lack embeddings"),
        (BERT, cpu(), (plain(),), "spec.supports.tasks names Embed"),
        (BERT, cpu(), (plain(tasks=["Generate"]),), "spec.supports.tasks names Embed"),
        (BERT, cpu(), (plain(tasks=["Embed"], architectures=["GteModel"]),), "compiles BertModel"),
        (LLAMA_8B, cpu(), (plain(),), None),
        (LLAMA_8B, cpu(), (plain(tasks=["Generate"]),), None),
        (LLAMA_8B, cpu(), (plain(**EMBEDS),), "this one generates text"),
        # What vLLM embeds with is not what it generates with.
        (
            LLAMA_8B.model_copy(update={"architecture": "BertModel"}),
            cpu("vllm"),
            (plain(),),
            "does not serve BertModel",
        ),
        (LLAMA_8B.model_copy(update={"task": ModelTask.EMBED}), cpu("vllm"), (plain(**EMBEDS),), None),
    ],
)
def test_where_models_that_embed_can_run(
    facts: ModelFacts, machine: AcceleratorView, profiles: tuple[ProfileView, ...], why: str | None
) -> None:
    result = place(request(facts=facts, fleet=(machine,), profiles=profiles))
    found = candidate(result, "cpu")
    assert found.eligible is (why is None), found.reason
    if why is not None:
        assert why in found.reason


def test_the_profile_for_the_task_is_chosen_whatever_its_priority() -> None:
    profiles = (
        profile("texts", "CPU", "Plain", priority=9),
        profile("vectors", "CPU", "Plain", supports=EMBEDS),
    )
    assert place(request(facts=BERT, fleet=(cpu(),), profiles=profiles)).profile == "vectors"
    assert place(request(facts=LLAMA_8B, fleet=(cpu(),), profiles=profiles)).profile == "texts"


def test_a_text_is_all_that_has_to_fit() -> None:
    """No answer follows it; the usual workload is longer than most such models take."""
    spec = request(workload={"inputTokens": 300, "outputTokens": 4096}).spec
    assert required_shape(spec, BERT).sequence == 300
    assert required_shape(spec, LLAMA_8B).sequence == 4396
    assert required_shape(request().spec, BERT).sequence == 512


def test_nothing_is_estimated_for_an_answer() -> None:
    several = [
        candidate(
            place(request(facts=BERT, fleet=(cpu(),), profiles=(plain(**EMBEDS),), workload={"outputTokens": tokens})),
            "cpu",
        ).score
        for tokens in (1, 4096)
    ]
    assert several[0] is not None
    assert several[0] == several[1]
