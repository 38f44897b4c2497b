"""The hooks with real transformers: what they do, when, for whom, and that nothing of them stays."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from engine_scripts import Engines, expected
from scripted_model import greedy
from scripted_model.tokenizer import Tokenizer

PROMPT = "Tell me a story about the sea."


@pytest.fixture(scope="module")
def seen(openvino: Engines) -> dict[str, Any]:
    """What one script saw that goes from PyTorch to OpenVINO and back."""
    return openvino.script("hooks.py", PROMPT).result


@pytest.fixture
def story(openvino: Engines) -> str:
    return expected(openvino.model, PROMPT)


def test_init_imports_nothing_heavy(seen: dict[str, Any]) -> None:
    assert seen["init imports nothing"] == []


@pytest.mark.parametrize("device", ["pytorch", "openvino", "transformers alone"])
def test_the_text(seen: dict[str, Any], story: str, device: str) -> None:
    assert seen[device] == story


def test_pytorch_gives_transformers_own_model_that_can_do_everything(seen: dict[str, Any]) -> None:
    assert seen["pytorch gives the model itself"]
    assert seen["beams"] == 4


def test_init_again(seen: dict[str, Any]) -> None:
    assert seen["again is the same controller"]
    assert seen["one after the other"] == [False, True, True]


def test_an_init_that_fails_leaves_the_one_before(seen: dict[str, Any]) -> None:
    assert seen["a failing init changes nothing"] == ["no plugin for nothing ", True, True]


def test_a_switch_while_the_script_runs(seen: dict[str, Any], story: str) -> None:
    assert (seen["switched"], seen["after a switch"]) == ("pytorch", story)


def test_many_threads(seen: dict[str, Any], story: str) -> None:
    assert seen["threads"] == [story] * 4


def test_the_smaller_interface(seen: dict[str, Any], story: str) -> None:
    assert seen["backend"] == story


def test_what_is_not_ours_is_left_to_transformers(seen: dict[str, Any], story: str) -> None:
    assert seen["a model loaded elsewhere"] == [True, story]
    assert seen["another task is left to transformers"] is True
    assert seen["told"].count("passed") >= 2


def test_shutdown_puts_back_what_was_there(seen: dict[str, Any]) -> None:
    assert seen["hooks are ours"]
    assert seen["gone"] == [[], False]
    assert seen["hooked"] == []
    assert seen["restored"] == []
    assert seen["closed"] == [False, []]


def test_what_is_told(seen: dict[str, Any]) -> None:
    first = [stage for stage in seen["told"] if stage != "passed"][:6]
    assert first[:4] == ["selected", "loading", "loaded", "selected"]
    assert first[4] in ("compiling", "cached")


def test_an_engine_that_dies_is_told_and_replaced(openvino: Engines, story: str) -> None:
    result = openvino.script("engine_death.py", PROMPT, int(signal.SIGKILL), RM_DEVICE="openvino").result
    assert re.fullmatch(r"ToolchainFailure: the engine failed: its process ended with -9", result["failed"])
    assert result["again"] == story


def test_a_name_from_the_hub(openvino: Engines, tmp_path: Path, story: str) -> None:
    """The hub's own cache on disk, as a download leaves it; nothing is fetched."""
    snapshot = tmp_path / "hub" / "models--maker--llama" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(openvino.model)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    script = "from transformers import AutoModelForCausalLM as M; m = M.from_pretrained('maker/llama'); print(repr(m))"
    path = tmp_path / "script.py"
    path.write_text(script)
    done = openvino.run("-m", "rm_abstract", path, RM_DEVICE="openvino", HF_HOME=tmp_path)
    assert done.lines == ["LlamaForCausalLM('maker/llama' on openvino, through rm_abstract)"]


def test_without_transformers(openvino: Engines) -> None:
    """init works where there is nothing to hook; the compiled model is used directly."""
    absent = "import sys; sys.modules['transformers'] = None"
    code = f"{absent}; import rm_abstract; print(rm_abstract.init(device='openvino').name)"
    assert openvino.run("-c", code).lines == ["openvino"]


def test_pytorch_in_a_session_as_a_server_uses_it(openvino: Engines) -> None:
    result = openvino.script("pytorch_session.py", PROMPT, RM_DEVICE="pytorch").result
    story = greedy(openvino.model, Tokenizer(openvino.model).encode(PROMPT), 60)
    assert result["tokens"] == story
    assert result["streamed"] == story
    assert result["at once"] == [story] * 3
    assert result["text"] == expected(openvino.model, PROMPT)
    assert result["cut"] == story[:5]
    assert len(result["beyond the end"]) == 60
    assert result["seeds"] == [True, False]
    assert result["cancelled"] == "cancelled"
