"""UPMEM's plugin whole: built by its profile's Job, served under rma-launch, and asked over HTTP.

Only the SDK is a stand-in, which plays the units in the memory; layout, program, library, server and launcher are those
that run in pods.
"""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from build_profile_driver import ROOT, RUNTIME_IMAGE, Node, Profile, edited, facts_of, runtime_image, stand_ins
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import Binaries, Ended, Engine, Launch, requires_root, running, until
from scripted_model import SAMPLES, expected_text, write_model
from upmem_support import Libraries, build_libraries, compile_program, idle_launch

PROMPTS = [SAMPLES[0].prompt, SAMPLES[9].prompt, SAMPLES[12].prompt, SAMPLES[16].prompt]
PATHS = os.pathsep.join(
    str(ROOT / root) for root in ("crds", "operator", "device_plugins", "sdk", "cli", "local_cluster")
)
LOAD_LAUNCHES = 9
"""Launches of the check while the scripted model is loaded: one for each group of matrices."""


@dataclass(frozen=True)
class Built:
    """What a build left, described as the push would."""

    directory: Path
    key: str


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return build_libraries(tmp_path_factory.mktemp("upmem"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "scripted"
    write_model(directory)
    return directory


def built(binaries: Binaries, model: Path, directory: Path, ranks: int) -> Built:
    profile = Profile.load("upmem/build-profile.yaml", "upmem/accelerator.yaml")
    steps = [step.to_wire() for step in profile.spec.steps]
    steps[0]["args"] = [word.replace("${DEVICE_COUNT}", str(ranks)) for word in steps[0]["args"]]
    profile = edited(profile, steps=steps)
    sdk = stand_ins(directory / "sdk", dpu_upmem_dpurte_clang="dpu_upmem_dpurte_clang")
    ours = runtime_image(directory / "ours")
    images = {image: sdk if "upmem-sdk" in image else ours for image in profile.images} | {RUNTIME_IMAGE: ours}
    artifact = profile.artifact(facts_of(model), requirements={"dtype": "int8"})
    build = Node(binaries.launcher, directory, images).build(artifact).lay(model)
    for stage in range(build.stages):
        build.vendor(stage).succeeded()
    BuildArtifact(build.output, build.spec.key, "upmem-pim", ("UPMEM PIM rank",)).write()
    return Built(build.output, build.spec.key)


@pytest.fixture(scope="module")
def artifacts(binaries: Binaries, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Built]:
    """By the number of ranks that they are laid out for."""
    return {ranks: built(binaries, model, tmp_path_factory.mktemp(f"ranks{ranks}"), ranks) for ranks in (1, 2)}


def test_another_number_of_ranks_is_another_artifact(artifacts: Mapping[int, Built], model: Path) -> None:
    assert artifacts[1].key != artifacts[2].key
    # As the profile says it, the number is that of the devices, and what it is counts, not that it is a variable.
    profile = Profile.load("upmem/build-profile.yaml", "upmem/accelerator.yaml")
    wanted = profile.artifact(facts_of(model), requirements={"dtype": "int8"})
    assert wanted["spec"]["key"] == artifacts[1].key
    layouts = [(built.directory / "layout.json").read_text() for built in artifacts.values()]
    assert layouts[0] != layouts[1]
    # The program is the same: only where the rows are differs.
    programs = [(built.directory / "gemv.dpu").read_bytes() for built in artifacts.values()]
    assert programs[0] == programs[1]


@dataclass
class Rig:
    """A node with ranks, and the launcher of a pod on it."""

    launch: Launch
    libraries: Libraries
    root: Path

    def __post_init__(self) -> None:
        (self.root / "dev").mkdir()
        (self.root / "sys/module/dpu").mkdir(parents=True)
        (self.root / "sys/module/dpu/version").write_text("2025.1.0\n")
        for number in range(3):
            os.mknod(self.rank(number), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            os.mknod(self.root / f"dev/dax{number}.{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 5))

    def rank(self, number: int) -> Path:
        return self.root / f"dev/dpu_rank{number}"

    def environment(self, ranks: int) -> dict[str, str]:
        """What the device plugin sets for that many ranks, and what the image has."""
        nodes = [f"{self.rank(one)}=1:3,{self.root}/dev/dax{one}.{one}=1:5" for one in range(ranks)]
        return {
            "PYTHONPATH": PATHS,
            "RMA_PIM_LIBRARY": str(self.libraries.pim),
            "RMA_UPMEM_SYS": str(self.root / "sys"),
            names.ENV_DEVICE_NODES: ",".join(nodes),
            names.ENV_DEVICE_IDS: ",".join(f"D1-{one}" for one in range(ranks)),
            names.ENV_DEVICE_INDEXES: ",".join(map(str, range(ranks))),
            names.ENV_DEVICE_PRODUCT: "UPMEM PIM rank",
        }

    def engine(self, artifact: Built, ranks: int, **environment: str) -> Engine:
        """The pod's engine container, as the operator writes its command line."""
        engine = Engine(self.launch, "tape")
        flags = [
            f"--served-name={engine.served_name}", f"--port={engine.port}", f"--report-port={engine.report_port}",
            f"--artifact-dir={artifact.directory}", f"--artifact-key={artifact.key}", f"--require-devices={ranks}",
        ]  # fmt: skip
        served = [
            "rm-abstract", "serve", "--plugin=upmem", f"--artifact={artifact.directory}", "--served-name=tape",
            f"--port={engine.port}", "--max-batch=4",
        ]  # fmt: skip
        program = self.root / "rm-abstract"
        if not program.exists():
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rm_cli "$@"\n')
            program.chmod(0o755)
        path = f"{self.root}{os.pathsep}{os.environ['PATH']}"
        variables = {**self.environment(ranks), names.ENV_ENGINE_REPORT: str(engine.notes), "PATH": path, **environment}
        with (self.root / "log").open("wb") as log, (self.root / "errors").open("wb") as errors:
            engine.process = self.launch.popen(
                "engine", *flags, "--", *served, env=variables, stdout=log, stderr=errors
            )
        return engine


@pytest.fixture
def rig(binaries: Binaries, libraries: Libraries, tmp_path: Path) -> Rig:
    requires_root()
    (tmp_path / "node").mkdir()
    return Rig(Launch(binaries, tmp_path), libraries, tmp_path / "node")


Start = Callable[..., Engine]


@pytest.fixture
def start(rig: Rig) -> Iterator[Start]:
    """Starts engines, which end with the test."""
    started: list[Engine] = []

    def start(artifact: Built, ranks: int, **environment: str) -> Engine:
        started.append(rig.engine(artifact, ranks, **environment))
        return started[-1]

    yield start
    for engine in started:
        with running(engine.process):
            pass


def ready(engine: Engine) -> openai.OpenAI:
    """A client of the engine, once it is Ready; to be closed."""

    def reached() -> bool:
        assert engine.process.poll() is None, engine.launch.log.read_text()
        return engine.ready()[0] == 200

    until("Ready", reached)
    return openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="none", max_retries=0, timeout=300)


def ended(engine: Engine) -> Ended:
    code = engine.process.wait(120)
    errors = (engine.launch.directory / "node/errors").read_text()
    return Ended(code, "", errors, engine.launch.log.read_bytes())


def completed(client: openai.OpenAI, prompt: str) -> str:
    return client.completions.create(model="tape", prompt=prompt, temperature=0, max_tokens=64).choices[0].text


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_units_say_the_known_text(start: Start, artifacts: Mapping[int, Built], model: Path, ranks: int) -> None:
    engine = start(artifacts[ranks], ranks)
    with ready(engine) as client:
        with ThreadPoolExecutor() as pool:  # so they share steps of the decode
            texts = list(pool.map(lambda prompt: completed(client, prompt), PROMPTS))
        assert texts == [expected_text(model, prompt, 64) for prompt in PROMPTS]
        messages: Any = [{"role": "user", "content": SAMPLES[5].prompt}]
        chunks = client.chat.completions.create(
            model="tape", messages=messages, temperature=0, max_tokens=64, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        pieces = [(chunk.choices[0].delta.content if chunk.choices else "", chunk.usage) for chunk in chunks]
        assert "".join(text or "" for text, _ in pieces) == expected_text(model, messages, 64)
        assert pieces[-1][1] is not None
        scored = client.completions.create(model="tape", prompt=PROMPTS[0], temperature=0, max_tokens=4, logprobs=2)
    told = scored.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    # The known text is far more likely than any other.
    assert all(value is not None and -1e-3 < value <= 0 for value in told.token_logprobs)

    report = engine.report()
    assert (report["ready"], report["driver"]) == (True, "2025.1.0")
    assert report["versions"]["upmem-sdk"] == "2025.1.0 (stand-in)"
    assert report["observedDevice"]["serial"] == ",".join(f"D1-{one}" for one in range(ranks))
    assert report["observedDevice"]["product"] == "UPMEM PIM rank"
    engine.process.terminate()
    assert ended(engine).code == ExitCode.OK


def test_without_the_units_the_text_is_another(
    start: Start, artifacts: Mapping[int, Built], libraries: Libraries, model: Path, tmp_path: Path
) -> None:
    """What answers is the memory: once its units no longer compute, nothing else does."""
    made = shutil.copytree(libraries.dpu.parent, tmp_path / "idle")
    idle = idle_launch(made, LOAD_LAUNCHES)
    with ready(start(artifacts[1], 1, LD_PRELOAD=str(idle))) as client:
        text = completed(client, PROMPTS[0])
    wanted = expected_text(model, PROMPTS[0], 64)
    # The host chooses the first token, from the prompt.
    assert text != wanted
    assert text[:1] == wanted[:1]


def test_units_that_compute_wrong_are_never_ready(
    start: Start, artifacts: Mapping[int, Built], libraries: Libraries, tmp_path: Path
) -> None:
    made = shutil.copytree(libraries.dpu.parent, tmp_path / "idle")
    idle = idle_launch(made, LOAD_LAUNCHES - 1)
    engine = start(artifacts[1], 1, LD_PRELOAD=str(idle))
    ended(engine).failed(ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING, "units compute head wrong")


@pytest.mark.parametrize(("laid_out", "given"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_is_refused(
    start: Start, artifacts: Mapping[int, Built], laid_out: int, given: int
) -> None:
    engine = start(artifacts[laid_out], given)
    ended(engine).failed(
        ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, f"laid out for {laid_out} ranks", f"was given {given}"
    )


def serve(rig: Rig, artifact: Built, ranks: int = 1, **environment: str) -> Ended:
    """`rm-abstract serve` alone, which is to refuse: the launcher would see some of this first."""
    log = rig.root / "termination-log"
    variables = {**rig.environment(ranks), "PATH": os.environ["PATH"], "RMA_TERMINATION_LOG": str(log), **environment}
    argv = [sys.executable, "-m", "rm_cli", "serve", "--plugin=upmem", f"--artifact={artifact.directory}"]
    done = subprocess.run(
        [*argv, "--served-name=tape", "--port=1"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, log.read_bytes())


def test_ranks_that_are_not_as_announced(rig: Rig, artifacts: Mapping[int, Built]) -> None:
    missing = (ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING)
    variables: dict[str, str] = {names.ENV_DEVICE_NODES: ""}
    serve(rig, artifacts[1], **variables).failed(*missing, "no rank was allocated")
    serve(rig, artifacts[1], **{names.ENV_DEVICE_IDS: "a,b"}).failed(*missing, "names 1 ranks", "has 2")
    serve(rig, artifacts[1], **{names.ENV_DEVICE_NODES: f"{rig.rank(0)}=1:5"}).failed(*missing, "is device 1:3", "1:5")
    (rig.root / "dev/dax0.0").unlink()
    serve(rig, artifacts[1]).failed(*missing, "dax0.0 cannot be opened")
    rig.rank(1).unlink()
    serve(rig, artifacts[2], 2).failed(*missing, "cannot be opened")


def test_ranks_that_cannot_be_had(rig: Rig, artifacts: Mapping[int, Built]) -> None:
    missing = (ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING)
    serve(rig, artifacts[1], UPMEM_STAND_IN_DISABLED="4").failed(*missing, "60 units that work, and 64 are needed")
    with rig.rank(1).open("wb") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        serve(rig, artifacts[2], 2).failed(*missing, "dpu_rank1 cannot be allocated", "somebody else")


def test_no_library(rig: Rig, artifacts: Mapping[int, Built]) -> None:
    done = serve(rig, artifacts[1], RMA_PIM_LIBRARY="/no/librma_pim.so")
    done.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "/no/librma_pim.so cannot be loaded")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: truncate(path / "weights.pim"), ("weights.pim", "damaged")),
        (lambda path: (path / "weights.pim").unlink(), ("weights.pim", "missing")),
        (lambda path: truncate(path / "host.safetensors"), ("host.safetensors is truncated",)),
        (lambda path: (path / "layout.json").unlink(), ("has no layout.json",)),
        (lambda path: (path / "layout.json").write_text("{}"), ("layout.json", "not what we write")),
        (lambda path: (path / "gemv.dpu").write_text("no program"), ("gemv.dpu cannot be loaded", "invalid ELF file")),
        (lambda path: (path / "gemv.dpu").unlink(), ("gemv.dpu cannot be loaded", "no such ELF file")),
        (lambda path: (path / "tokenizer.json").unlink(), ("tokenizer",)),
    ],
    ids=["weights", "no weights", "host", "no layout", "layout", "program", "no program", "tokenizer"],
)
def test_an_artifact_that_is_not_what_it_should_be(
    rig: Rig, artifacts: Mapping[int, Built], tmp_path: Path, damage: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    copy = replace(artifacts[1], directory=shutil.copytree(artifacts[1].directory, tmp_path / "copy"))
    damage(copy.directory)
    serve(rig, copy).failed(ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, *words)


def test_another_program_for_the_units(rig: Rig, artifacts: Mapping[int, Built], tmp_path: Path) -> None:
    copy = replace(artifacts[1], directory=shutil.copytree(artifacts[1].directory, tmp_path / "copy"))
    done = compile_program(Path(__file__).parent / "upmem_stand_in" / "try.c", copy.directory / "gemv.dpu")
    assert done.returncode == 0, done.stderr
    serve(rig, copy).failed(ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, "the program has no task")


def test_the_servers_health_does_not_wait_for_the_units(start: Start, artifacts: Mapping[int, Built]) -> None:
    engine = start(artifacts[1], 1)
    with ready(engine) as client:
        stream = client.completions.create(
            model="tape", prompt="The", max_tokens=200, stream=True, temperature=0, extra_body={"ignore_eos": True}
        )
        next(stream)
        assert httpx2.get(f"http://127.0.0.1:{engine.port}/health", timeout=30).status_code == 200
        stream.close()
