"""What builds read beside the model: fetched whole, checked by its content, or not there at all."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable, WorkloadError
from rm_abstract.http import NotFound
from rm_abstract.sources.inputs import fetch_input, files_digest
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_api.report import Report
from rm_cli.main import main
from sdk_support import Answer, Request, WebServer, ranged

DATA = b"calibration" * 1000


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_digest_of_files_is_that_of_the_file_or_of_the_list() -> None:
    one, two = sha256(b"1"), sha256(b"2")
    assert files_digest({"a": one}) == one
    assert files_digest({"ä": one, "b/c": two}) == sha256(f'[["b/c","{two}"],["ä","{one}"]]'.encode())


def test_a_file_of_a_web_server_is_the_one_file_of_its_directory(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/a b.npz").write_bytes(DATA)
    web.answer = lambda request: Answer(200 if request.path == "/data/a%20b.npz" else 404, DATA)
    dest = tmp_path / "inputs/calibration"
    assert fetch_input(f"https://{web.host}/data/a%20b.npz", sha256(DATA), dest) == len(DATA)
    assert files(dest) == {"a b.npz": DATA}
    assert [path.name for path in dest.parent.iterdir()] == ["calibration"]


def test_a_broken_connection_is_gone_on_with(web: WebServer, tmp_path: Path) -> None:
    def answer(request: Request) -> Answer:
        found = ranged(request, DATA, {"ETag": '"one"'})
        found.cut = 3000 if len(found.body) > 3000 else None
        return found

    web.answer = answer
    fetch_input(f"https://{web.host}/x.bin", sha256(DATA), tmp_path / "dest")
    assert files(tmp_path / "dest") == {"x.bin": DATA}
    assert len(web.requests) == 4


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda _: Answer(200, b"other"), ArtifactMismatch, f"has digest {sha256(b'other')}, not {sha256(DATA)}"),
        (lambda _: Answer(404), NotFound, "has no /x.bin"),
        (lambda _: Answer(503), SourceUnreachable, "cannot answer now"),
        (lambda _: Answer(200, DATA, cut=0), SourceUnreachable, "does not answer"),
    ],
)
def test_what_fails_leaves_nothing(
    web: WebServer, tmp_path: Path, answer: object, error: type[WorkloadError], message: str
) -> None:
    web.answer = answer  # type: ignore[assignment]
    with pytest.raises(error, match=message):
        fetch_input(f"https://{web.host}/x.bin", sha256(DATA), tmp_path / "inputs/x")
    assert not list((tmp_path / "inputs").iterdir())


def test_one_that_is_there_is_checked_and_not_fetched_again(web: WebServer, tmp_path: Path) -> None:
    web.answer = lambda _: Answer(200, DATA)
    uri, dest = f"https://{web.host}/x.bin", tmp_path / "x"
    fetch_input(uri, sha256(DATA), dest)
    web.requests.clear()
    assert fetch_input(uri, sha256(DATA), dest) == len(DATA)
    assert not web.requests
    (dest / "x.bin").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="is not empty, and does not hold"):
        fetch_input(uri, sha256(DATA), dest)
    assert files(dest) == {"x.bin": b"damaged"}


def test_what_an_earlier_attempt_left_behind_is_no_hindrance(web: WebServer, tmp_path: Path) -> None:
    web.answer = lambda _: Answer(200, DATA)
    (tmp_path / ".x.part").mkdir()
    (tmp_path / ".x.part/x.bin").write_bytes(DATA[:10])
    (tmp_path / "x").mkdir()
    fetch_input(f"https://{web.host}/x.bin", sha256(DATA), tmp_path / "x")
    assert files(tmp_path) == {"x/x.bin": DATA}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pvc://claim/data", "an input cannot be at 'pvc://claim/data'; there are hf://, https://, oci://, s3://"),
        ("file", "an input cannot be at"),
        ("https://host/", "names no file"),
        ("https://host/data/", "names no file"),
        ("https://host/data/..", "names no file"),
        ("https://host/data/a%2Fb", "names no file"),
        ("https://host/data/a%00b", "names no file"),
        ("https://host/data?x=1", "is no file of a web server"),
        ("https://me:hush@host/data", "is no file of a web server"),
        ("https:///data", "is no file of a web server"),
    ],
)
def test_places_that_are_no_input(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fetch_input(uri, sha256(b""), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def run(*arguments: object) -> tuple[int, Report]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, Report.parse(done.stdout)


def test_the_command_reports_the_digest_or_why_it_is_another(web: WebServer, tmp_path: Path) -> None:
    web.answer = lambda _: Answer(200, DATA)
    uri = f"https://{web.host}/x.bin"
    code, report = run("fetch", "input", f"--source={uri}", f"--digest={sha256(DATA)}", f"--dest={tmp_path}/x")
    assert (code, report.reason, report.digest, report.sizeBytes) == (0, Reason.READY, sha256(DATA), len(DATA))
    code, report = run("fetch", "input", f"--source={uri}", f"--digest={sha256(b'')}", f"--dest={tmp_path}/y")
    assert (code, report.reason, report.retryable) == (ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, False)
    assert report.message == f"{uri} has digest {sha256(DATA)}, not {sha256(b'')}"
    assert not (tmp_path / "y").exists()


def test_all_of_a_model_but_its_weights(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    facts = json.loads(CliRunner().invoke(main, ["resolve", f"--source={uri}"]).stdout)["facts"]
    web.requests.clear()
    dest = tmp_path / "dest"
    arguments = [
        f"--source={uri}",
        f"--revision={facts['revision']}",
        "--weights-digest=not-looked-at",
        f"--dest={dest}",
    ]
    code, report = run("fetch", "model", *arguments, "--no-weights")
    assert (code, report.reason, report.digest) == (0, Reason.READY, "")
    small = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix != ".safetensors"}
    assert files(dest) == small
    assert report.sizeBytes == sum(map(len, small.values()))
    assert not [each for each in web.requests if each.method == "GET" and each.path.endswith(".safetensors")]
    # The model as a whole then comes into the same directory.
    arguments[2] = f"--weights-digest={facts['weightsDigest']}"
    assert run("fetch", "model", *arguments)[0] == 0
    assert files(dest) == {path.name: path.read_bytes() for path in model.iterdir()}
    (model / "tokenizer.json").write_text("new")
    code, report = run("fetch", "model", *arguments, "--no-weights")
    assert (code, report.reason) == (ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH)


CONFIG = '{"model": "${MODEL_DIR}", "tp": "${TP}", "calibration": "${INPUT_calibration}/a.npz", "cost": "$$5"}'


def test_a_configuration_file_is_made_of_the_variables_beside_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMA_CONFIG_TEMPLATE", CONFIG)
    for name, value in {"MODEL_DIR": '/rma/"model', "TP": "2", "INPUT_calibration": "/rma/inputs/calibration"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # a container may be started again
        code, report = run("config", "--format=JSON", f"--dest={tmp_path}/conf/build.json")
        assert (code, report.reason) == (0, Reason.READY)
    made = (tmp_path / "conf/build.json").read_text()
    assert json.loads(made) == {
        "model": '/rma/"model', "tp": 2, "calibration": "/rma/inputs/calibration/a.npz", "cost": "$5",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "conf").iterdir()] == ["build.json"]
    assert report.sizeBytes == len(made)


@pytest.mark.parametrize(
    ("template", "format_", "message"),
    [
        (None, "JSON", "RMA_CONFIG_TEMPLATE is not set"),
        ("{", "JSON", "the template of build.json: no valid JSON: .*line 1"),
        ('["${NEVER_SET}"]', "JSON", "the template of build.json: it names NEVER_SET, which is not set"),
        ('["${RMA_CONFIG_TEMPLATE}"]', "JSON", "it names RMA_CONFIG_TEMPLATE"),
        ("[]", "XML", "there is no format XML"),
    ],
)
def test_a_template_that_makes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None, format_: str, message: str
) -> None:
    monkeypatch.delenv("RMA_CONFIG_TEMPLATE", raising=False)
    if template is not None:
        monkeypatch.setenv("RMA_CONFIG_TEMPLATE", template)
    code, report = run("config", f"--format={format_}", f"--dest={tmp_path}/build.json")
    assert (code, report.reason, report.retryable) == (ExitCode.BAD_INPUT, Reason.INVALID_SPEC, False)
    assert re.search(message, report.message)
    assert not list(tmp_path.iterdir())
