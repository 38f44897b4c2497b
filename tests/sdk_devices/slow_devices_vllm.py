"""What takes minutes, and so is no part of ``make test``: vLLM's own server, and a script that uses it."""

import shutil
from pathlib import Path

from engine_scripts import ROOT, UNCHANGED, Engines, expected
from rm_abstract.core.resource import BuildArtifact
from scripted_model.tokenizer import Tokenizer
from test_devices_three_ways import OTHER, PROMPT, RM_ABSTRACT, completion, serving


def test_vllms_own_server_and_a_script_that_uses_it_as_a_remote_device(
    vllm: Engines, openvino: Engines, tmp_path: Path
) -> None:
    """``rm-abstract serve`` with vLLM becomes vLLM's own server, which sends tokens as they are."""
    directory = tmp_path / "artifact"
    shutil.copytree(vllm.model, directory)
    BuildArtifact(directory, "as-it-is", "huggingface").write()
    command = vllm.command(*RM_ABSTRACT, "serve", "--plugin", "vllm-cpu", "--artifact", directory)
    environment = vllm.environment(PYTHONPATH=f"{ROOT}/sdk:{ROOT}/crds:{ROOT}/cli")
    tokenizer = Tokenizer(vllm.model)
    with serving([*command, "--served-name", "tape"], environment, tmp_path / "log") as url:
        assert completion(url, tokenizer.encode(PROMPT)) == expected(vllm.model, PROMPT)
        remote = {"RM_DEVICE": f"remote:{url}/v1"}
        done = openvino.run("-m", "rm_abstract", UNCHANGED, openvino.model, PROMPT, OTHER, **remote)
        assert done.lines == [expected(openvino.model, prompt) for prompt in (PROMPT, OTHER)]
        code = "import rm_abstract, sys; print(rm_abstract.init().plugin.probe()[0].attributes['models'])"
        assert openvino.run("-c", code, **remote).lines == ["['tape']"]
