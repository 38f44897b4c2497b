"""One script, not changed for anything, on every device that there is here: the text that is known beforehand."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from engine_scripts import SECONDS, UNCHANGED, Done, Engines, expected, processes_with
from scripted_model import SAMPLES

PROMPTS = [sample.prompt for sample in SAMPLES[:6]]
"""Of different lengths: the shorter ones are padded."""


def on_device(engines: Engines, device: str, *prompts: str, **variables: object) -> Done:
    return engines.run(
        "-m", "rm_abstract", "-v", UNCHANGED, engines.model, *(prompts or PROMPTS), RM_DEVICE=device, **variables
    )


def answers(engines: Engines, *prompts: str) -> list[str]:
    return [expected(engines.model, prompt) for prompt in prompts or PROMPTS]


def test_without_rm_abstract(openvino: Engines) -> None:
    """What the script says on its own, in the words of the oracle: the others are compared with that."""
    assert openvino.run(UNCHANGED, openvino.model, *PROMPTS).lines == answers(openvino)


@pytest.mark.parametrize(
    ("device", "plugin"), [("cpu", "PyTorch (CPU)"), ("openvino", "OpenVINO (CPU)"), ("npu:0", "Simulated NPU")]
)
def test_on_a_device(openvino: Engines, device: str, plugin: str) -> None:
    variables = openvino.device if device.startswith("npu") else {}
    done = on_device(openvino, device, **variables)
    assert done.lines == answers(openvino)
    assert f"rm_abstract: {plugin} runs what is asked of {device}" in done.errors


def test_on_vllm_of_which_nothing_is_left(vllm: Engines) -> None:
    done = on_device(vllm, "vllm-cpu", RMA_TEST_OF="vllm")
    assert done.lines == answers(vllm)
    assert processes_with("RMA_TEST_OF", "vllm") == []


def test_auto_takes_the_npu_where_one_was_allocated_and_pytorch_elsewhere(openvino: Engines) -> None:
    question = "import rm_abstract; print(rm_abstract.init().manager.active_name)"
    assert openvino.run("-c", question, **openvino.device).lines == ["simulated-npu"]
    assert openvino.run("-c", question).lines == ["pytorch"]


def test_the_second_run_compiles_nothing(openvino: Engines, tmp_path: Path) -> None:
    """Shown by taking the compiler away, and by the files that are the same ones."""
    own = {"RM_CACHE_DIR": tmp_path / "cache"}
    first = on_device(openvino, "openvino", PROMPTS[0], **own)
    files = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.bin")}
    broken = tmp_path / "broken" / "optimum"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('the compiler was started')\n")
    path = f"{broken.parent}:{openvino.environment()['PYTHONPATH']}"
    second = on_device(openvino, "openvino", PROMPTS[0], **own, PYTHONPATH=path)
    assert first.lines == second.lines == answers(openvino, PROMPTS[0])
    assert "compiling for openvino" in first.errors
    assert "found the model compiled" in second.errors
    assert files
    assert {path: path.stat().st_ino for path in files} == files
    # Another option is another artifact, for which the compiler is needed: it is the broken one.
    load = "rm_abstract.init(compile_options={'precision': 'fp32'}).load(pathlib.Path(sys.argv[1]))"
    code = f"import pathlib, rm_abstract, sys; {load}"
    done = openvino.attempt("-c", code, openvino.model, RM_DEVICE="openvino", **own, PYTHONPATH=path)
    assert done.returncode
    assert "the compiler was started" in done.stderr


def test_processes_that_start_together_compile_once(openvino: Engines, tmp_path: Path) -> None:
    arguments = ("-m", "rm_abstract", "-v", UNCHANGED, openvino.model, PROMPTS[0])
    variables = {"RM_DEVICE": "openvino", "RM_CACHE_DIR": tmp_path}
    processes = [openvino.start(*arguments, **variables) for _ in range(2)]
    try:
        ended = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [output.splitlines() for output, _ in ended] == [answers(openvino, PROMPTS[0])] * 2
    assert sorted("compiling for openvino" in errors for _, errors in ended) == [False, True]
    assert len(list((tmp_path / "entries").glob("*/*"))) == 1


def test_a_compile_that_is_killed_leaves_nothing_and_the_next_one_succeeds(openvino: Engines, tmp_path: Path) -> None:
    process = openvino.start(
        "-m", "rm_abstract", "-v", UNCHANGED, openvino.model, PROMPTS[0], RM_DEVICE="openvino", RM_CACHE_DIR=tmp_path
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "compiling for openvino" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "entries").glob("*/*"))
    done = on_device(openvino, "openvino", PROMPTS[0], RM_CACHE_DIR=tmp_path)
    assert done.lines == answers(openvino, PROMPTS[0])


def test_a_driver_that_is_killed_takes_vllm_with_it(vllm: Engines) -> None:
    """The script is gone at once and cannot clean up; its server, which is starting, must not stay."""
    process = vllm.start(
        "-m", "rm_abstract", UNCHANGED, vllm.model, PROMPTS[0], RM_DEVICE="vllm-cpu", RMA_TEST_OF="killed"
    )
    deadline = time.monotonic() + SECONDS
    while not any("api_server" in _command(pid) for pid in processes_with("RMA_TEST_OF", "killed")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.kill()
    process.communicate()
    while processes_with("RMA_TEST_OF", "killed"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("device", "message", "code"),
    [
        ("tpu:0", "no plugin for tpu is available here", 64),
        ("npu:0", "no plugin for npu is available here", 64),
        ("vllm", "plugin vllm is not available here; it needs vllm", 66),
        ("simulated-npu:0", "plugin simulated-npu is not available here", 66),
        ("gpu 0", "device 'gpu 0' cannot be understood", 64),
        ("remote:http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1 does not answer", 69),
    ],
)
def test_a_device_that_is_not_there(openvino: Engines, device: str, message: str, code: int) -> None:
    """The script does not start: it must not run on something else unasked."""
    done = openvino.attempt("-m", "rm_abstract", UNCHANGED, openvino.model, PROMPTS[0], RM_DEVICE=device)
    assert message in done.stderr
    assert (done.returncode, done.stdout) == (code, "")


def test_a_device_of_which_there_are_fewer(openvino: Engines) -> None:
    done = openvino.attempt(
        "-m", "rm_abstract", UNCHANGED, openvino.model, "a", RM_DEVICE="simulated-npu:3", **openvino.device
    )
    assert "plugin simulated-npu has no device 3; it finds 1" in done.stderr
    assert done.returncode == 66


def test_a_toolchain_that_is_missing(openvino: Engines, tmp_path: Path) -> None:
    """Serving could go on without it; this model was never compiled."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "python3"):
        (programs / name).symlink_to(openvino.python)
    shutil.copy(openvino.python.parent.parent / "pyvenv.cfg", tmp_path)
    (tmp_path / "lib").symlink_to(openvino.python.parent.parent / "lib")
    done = subprocess.run(
        [programs / "python", "-m", "rm_abstract", UNCHANGED, openvino.model, PROMPTS[0]],
        env=openvino.environment(RM_DEVICE="openvino", RM_CACHE_DIR=tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "optimum-intel is not installed here; it needs optimum-cli" in done.stderr


def test_the_command_without_a_script(openvino: Engines) -> None:
    assert "usage: RM_DEVICE=DEVICE python -m rm_abstract" in openvino.attempt("-m", "rm_abstract").stderr
    assert "there is no script nothing.py" in openvino.attempt("-m", "rm_abstract", "nothing.py").stderr
