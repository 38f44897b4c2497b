"""An embedding model from its files to the official client: compiled by the example's steps, served as in a pod.

The vectors are held against the arithmetic of embedding_model.py, which knows no engine.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import embedding_model
import openai
import pytest
import yaml
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rm_api.conditions import Reason
from rm_local_cluster import environments
from rma_launch_driver import Binaries, Engine, Launch, running

ROOT = Path(__file__).parents[2]
EMBEDDINGS = "openvino-embeddings/build-profile.yaml"
TEXTS = ["a b c", "t h e z", "m", " ".join("abcdefghijklmnopqrstuv")]
SERVE = [sys.executable, "-c", "from rm_cli.main import main; main()", "serve"]
ON_PYTORCH = """
import json, sys
from pathlib import Path
from rm_abstract.backends.pytorch import PyTorchPlugin
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact
plugin = PyTorchPlugin()
embedder = plugin.create_embedder(
    plugin.prepare_resource(BuildArtifact(Path(sys.argv[1]), "k", "huggingface"), BackendConfig(dtype="fp32"))
)
prompts = [embedder.tokenizer.encode(text, add_special_tokens=True) for text in json.loads(sys.argv[2])]
print(json.dumps([embedder.max_sequence_length, prompts, embedder.embed(prompts)]))
"""


def _say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


@pytest.fixture(scope="module")
def python() -> Path:
    return environments.ensure("pytorch-openvino", _say) / "bin/python"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "tiny-bert"
    embedding_model.write(directory)
    return directory


@pytest.fixture(scope="module")
def artifact(python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the steps of the example make of the model."""
    (profile,) = yaml.safe_load_all((ROOT / "examples" / EMBEDDINGS).read_text())
    output = tmp_path_factory.mktemp("artifact") / "ir"
    output.mkdir()
    known = {"${MODEL_DIR}": str(model), "${OUTPUT}": str(output), "${DTYPE}": "fp32"}
    programs = {"optimum-cli": str(python.with_name("optimum-cli")), "python": sys.executable}
    for step in profile["spec"]["steps"]:
        program, *words = [*step["command"], *step["args"]]
        for variable, value in known.items():
            words = [word.replace(variable, value) for word in words]
        ours = os.environ["PYTHONPATH"] if program == "python" and "PYTHONPATH" in os.environ else ""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ours}
        subprocess.run([programs[program], *words], env=environment, check=True, capture_output=True)
        for made in step["outputs"]:
            assert (output / Path(made).relative_to("/rma/output")).is_file()
    BuildArtifact(output, "sha256:" + "a" * 64, "openvino-ir").write()
    return output


@pytest.fixture(scope="module")
def pod(binaries: Binaries, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The server as its pod has it."""
    launch = Launch(binaries, tmp_path_factory.mktemp("pod"))
    engine = Engine(launch)
    engine.served_name = "vectors"
    options = ["--plugin=openvino", f"--artifact={artifact}", "--served-name=vectors", f"--port={engine.port}"]
    with (launch.directory / "log").open("wb") as log:
        engine.process = launch.popen(
            "engine", "--served-name=vectors", f"--port={engine.port}", f"--report-port={engine.report_port}",
            "--hang-timeout=8", "--", *SERVE, *options, "--max-batch=3",
            env={**os.environ, names.ENV_ENGINE_REPORT: str(engine.notes)}, stdout=log, stderr=log,
        )  # fmt: skip
    with running(engine.process):
        engine.wait_ready()
        yield engine
        engine.process.terminate()
        ended = launch.end(engine.process)
        assert (ended.code, ended.report.reason) == (0, Reason.DELETING)


@pytest.fixture
def client(pod: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{pod.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_ready_is_an_embedding(pod: Engine) -> None:
    report = pod.report()
    assert (report["ready"], report["message"]) == (True, "the engine computes embeddings")


@pytest.mark.parametrize("format_", ["float", "base64"])
def test_the_vectors_are_the_models(client: openai.OpenAI, format_: Any) -> None:
    """Several texts of several lengths in one batch: what fills the shorter ones up must not count."""
    options = {} if format_ == "base64" else {"encoding_format": format_}
    answer = client.embeddings.create(model="vectors", input=TEXTS, **options)
    ids = [embedding_model.tokens(text) for text in TEXTS]
    for found, wanted in zip(answer.data, ids, strict=True):
        assert found.embedding == pytest.approx(embedding_model.embedding(wanted), abs=1e-4)
    assert answer.usage.total_tokens == sum(map(len, ids))
    alone = [client.embeddings.create(model="vectors", input=each).data[0].embedding for each in ids]
    for found, single in zip(answer.data, alone, strict=True):
        assert found.embedding == pytest.approx(single, abs=1e-5)


def test_its_limits(client: openai.OpenAI) -> None:
    """Those of sentence_bert_config.json: less than there are positions."""
    most = [5] * embedding_model.MOST_TOKENS
    found = client.embeddings.create(model="vectors", input=most).data[0].embedding
    assert found == pytest.approx(embedding_model.embedding(most), abs=1e-4)
    # The tokenizer would cut the text so that it fits, and nobody would know.
    for longer in ([*most, 5], " ".join("a" * (embedding_model.MOST_TOKENS - 1)), " ".join("a" * 300)):
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="vectors", input=longer)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="vectors", input="a", dimensions=8)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="vectors", prompt="a")
    assert refused.value.code == "unsupported_model"


def test_pytorch_computes_the_same(python: Path, model: Path) -> None:
    roots = [str(ROOT / name) for name in ("sdk", "crds")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(roots)}
    done = subprocess.run(
        [python, "-c", ON_PYTORCH, model, json.dumps(TEXTS)], env=environment, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    longest, prompts, vectors = json.loads(done.stdout.splitlines()[-1])
    assert longest == embedding_model.MOST_TOKENS
    assert prompts == [embedding_model.tokens(text) for text in TEXTS]
    for found, prompt in zip(vectors, prompts, strict=True):
        assert found == pytest.approx(embedding_model.embedding(prompt), abs=1e-4)
