"""A model on a device behaves as a model of transformers does, or says clearly that it cannot."""

from typing import Any

import pytest
from engine_scripts import Engines, expected

PROMPT = "Tell me a story about the sea."
OTHER = "Write a poem about the woods, please."


@pytest.fixture(scope="module")
def seen(openvino: Engines) -> dict[str, Any]:
    """What one script saw that does everything once, on OpenVINO."""
    return openvino.script("behaviour.py", PROMPT, OTHER, RM_DEVICE="openvino").result


@pytest.fixture
def story(openvino: Engines) -> str:
    return expected(openvino.model, PROMPT)


@pytest.fixture
def poem(openvino: Engines) -> str:
    return expected(openvino.model, OTHER)


def test_what_it_is(seen: dict[str, Any]) -> None:
    assert seen["is"] == [True, "LlamaForCausalLM", "cpu", "torch.bfloat16"]


def test_it_stays_where_it_is(seen: dict[str, Any]) -> None:
    assert seen["moved"] == [True] * 4


def test_its_configuration(seen: dict[str, Any], openvino: Engines) -> None:
    vocabulary, end, name = seen["configuration"]
    assert (vocabulary, name) == (896, str(openvino.model))
    assert isinstance(end, int)


@pytest.mark.parametrize("how", ["plain", "ids only", "streamed", "iterated", "pipeline"])
def test_its_text(seen: dict[str, Any], story: str, how: str) -> None:
    assert seen[how] == story


def test_a_stream_comes_in_pieces(seen: dict[str, Any]) -> None:
    assert seen["in pieces"]


@pytest.mark.parametrize(
    ("how", "length"),
    [("twenty", 20), ("max_length", 7), ("configured", 5), ("argument before configuration", 6)],
)
def test_how_much_it_says(seen: dict[str, Any], how: str, length: int) -> None:
    assert seen[how] == length


@pytest.mark.parametrize("how", ["ends", "own end", "two ends"])
def test_where_it_ends(seen: dict[str, Any], how: str) -> None:
    assert seen[how] is True


def test_a_padded_batch(seen: dict[str, Any], story: str, poem: str) -> None:
    assert seen["batch"] == [story, poem]
    assert seen["prompts are in it"]
    assert seen["mask inferred"]


def test_the_result_as_a_dictionary(seen: dict[str, Any]) -> None:
    assert seen["dictionary"]


def test_sampling_follows_the_scripts_own_seed(seen: dict[str, Any]) -> None:
    assert seen["seed"] == [True, True]
    assert seen["several"] == 3


@pytest.mark.parametrize("how", ["top_k", "top_p"])
def test_sampling_from_the_most_likely_alone_is_greedy(seen: dict[str, Any], how: str) -> None:
    assert seen[how] is True


def test_a_pipeline_that_loads_the_model_itself(seen: dict[str, Any], poem: str) -> None:
    module, said = seen["pipeline by name"]
    assert module == "rm_abstract.hooks.model"
    assert said == f"{OTHER}{poem}"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("num_beams", "generate(num_beams=4) is not possible on openvino"),
        ("stopping_criteria", "is not told stopping_criteria. Leave it out, or"),
        ("output_scores", "generate(output_scores=True) is not possible on openvino"),
        ("inputs_embeds", "is not told inputs_embeds"),
        ("unknown", "generate() got wings, which means nothing on openvino; it takes input_ids"),
        ("no sampling", "num_return_sequences>1) wants do_sample=True"),
        ("cold", "say do_sample=False"),
        ("short", "generate(max_length=3) counts the prompt, which has 9 tokens; say max_new_tokens"),
        ("streamed batch", "give it one prompt and num_return_sequences=1"),
        ("long", "the prompt has 2000 tokens, and the model takes 1024 with the answer; shorten it"),
        ("one row", "wants input_ids of shape [batch, tokens]; for one prompt, ids.unsqueeze(0)"),
        ("forward", "gives no logits; call generate()"),
        ("train", "cannot be trained; load it after rm_abstract.shutdown()"),
        ("save", "cannot be saved"),
        ("quantization_config", "compile_options of rm_abstract.init say how to compile"),
        ("nowhere", "there is no model in ./nowhere: no such directory"),
    ],
)
def test_what_it_cannot_do(seen: dict[str, Any], what: str, message: str) -> None:
    assert seen["refused"][what].startswith("BadInput: ")
    assert message in seen["refused"][what]


def test_a_model_that_cannot_be_fetched(seen: dict[str, Any]) -> None:
    assert "SourceUnreachable: the model nobody/nothing cannot be fetched" in seen["refused"]["not on the hub"]
