"""The contracts: the document, the names and the launcher's sources say the same, and a report is never broken."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode, variables_in
from rm_api.report import Report, ReportInvalid

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/contracts.md").read_text()
LAUNCHER = {path.name: path.read_text() for path in (ROOT / "runtime_images/launcher").glob("*.go")}
SOURCES = "\n".join(text for name, text in LAUNCHER.items() if not name.endswith("_test.go"))

# Code → (name, tried again), from the document's table.
TABLE = {
    int(code): (name, again.strip())
    for code, name, again in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|[^|]*\|([^|]*)\|$", DOCUMENT, re.MULTILINE)
}


def test_the_documents_exit_codes_are_ours() -> None:
    assert {code: name for code, (name, _) in TABLE.items()} == {int(code): code.name for code in ExitCode}


@pytest.mark.parametrize("code", ExitCode)
def test_what_is_tried_again_is_what_the_document_says(code: ExitCode) -> None:
    again = TABLE[code][1]
    assert code.retryable == (again == "yes")
    assert code.excludes_node == (again == "not on this node")


def _go_strings(text: str) -> list[str]:
    return re.findall(r'"((?:[^"\\]|\\.)*)"', text)


def test_the_launcher_has_the_same_exit_codes() -> None:
    found = {name.lower(): int(code) for name, code in re.findall(r"^\tcode(\w+)\s*= (\d+)$", SOURCES, re.MULTILINE)}
    assert found == {code.name.replace("_", "").lower(): int(code) for code in ExitCode}


def test_the_launcher_tries_the_same_again() -> None:
    body = re.search(r"func isRetryable\(code int\) bool \{(.*?)\n\}", SOURCES, re.DOTALL)
    assert body
    named = {name.lower() for name in re.findall(r"code(\w+)", body[1].replace("code int", ""))} - {""}
    assert named == {code.name.replace("_", "").lower() for code in ExitCode if code.retryable}


def test_the_launchers_reasons_are_of_the_vocabulary() -> None:
    reasons = set(re.findall(r'code\w+:?,?\s+"([A-Z]\w+)"', SOURCES)) | set(re.findall(r'Reason:\s+"(\w+)"', SOURCES))
    assert len(reasons) >= 8
    assert reasons <= {reason.value for reason in Reason}


@pytest.mark.parametrize(
    ("variable", "catalogue"), [("buildVariables", names.BUILD_VARIABLES), ("serveVariables", names.SERVE_VARIABLES)]
)
def test_the_launcher_knows_the_same_variables(variable: str, catalogue: frozenset[str]) -> None:
    body = re.search(rf"{variable}\s*= \[\]string\{{(.*?)\}}", SOURCES, re.DOTALL)
    assert body
    found = _go_strings(body[1])
    assert set(found) == catalogue
    assert len(found) == len(catalogue)


def test_the_launcher_knows_the_variables_of_inputs() -> None:
    assert re.search(rf'^const inputPrefix = "{names.INPUT_VARIABLE_PREFIX}"$', SOURCES, re.MULTILINE)
    assert re.search(r"buildCatalogue = catalogue\{names: buildVariables, inputs: true\}", SOURCES)
    assert re.search(r"serveCatalogue = catalogue\{names: serveVariables\}", SOURCES)


@pytest.mark.parametrize(
    "value",
    [
        names.TERMINATION_LOG, names.REPORT_PATH, names.READY_PATH, names.LIVE_PATH, names.ENV_DEVICE_NODES,
        names.ENV_DEVICE_PRODUCT, names.ENV_DEVICE_SERIALS, names.ENV_DEVICE_IDS, names.ENV_ENGINE_REPORT,
        names.ENV_DEVICE_DRIVER,
    ],
)  # fmt: skip
def test_the_launcher_names_what_the_operator_names(value: str) -> None:
    assert any(value == text or text.endswith(f" {value}") for text in _go_strings(SOURCES)), value


def test_the_launchers_ports_and_sizes_are_ours() -> None:
    ports = re.findall(r'flags\.IntVar\(&\w\.\w+, "([a-z-]*port)", (\d+), ""\)', SOURCES)
    assert sorted(ports) == [("port", str(names.SERVE_PORT))] * 2 + [("report-port", str(names.REPORT_PORT))]
    assert re.search(rf"\bmaxReportBytes\s*= {names.MAX_TERMINATION_MESSAGE_BYTES}$", SOURCES, re.MULTILINE)


def test_the_launchers_meanings_of_exit_codes_are_the_apis() -> None:
    from rm_api.build_steps import ExitCodeMapping

    body = re.search(r"meanings = map\[string\]verdict\{(.*?)\n\}", SOURCES, re.DOTALL)
    assert body
    words = re.findall(r'^\t"(\w+)":', body[1], re.MULTILINE)
    assert set(words) == set(ExitCodeMapping.model_json_schema()["properties"]["meaning"]["enum"])
    for word, code, reason in re.findall(r'"(\w+)":\s+\{code(\w+), "(\w+)"\}', body[1]):
        number = next(int(each) for each in ExitCode if each.name.replace("_", "").lower() == code.lower())
        assert re.search(rf"{word} \({number}, (reason )?{reason}\)", DOCUMENT), word


@pytest.mark.parametrize(
    "value",
    [
        names.MEDIA_TYPE_CONFIG, names.MEDIA_TYPE_LAYER, names.OCI_ANNOTATION_TITLE,
        names.BIN_DIR, names.MODEL_DIR, names.WORK_DIR, names.OUTPUT_DIR, names.CACHE_DIR, names.ARTIFACT_DIR,
        names.REPORT_DIR, names.TERMINATION_LOG, f":{names.REPORT_PORT}{names.REPORT_PATH}",
        f":{names.REPORT_PORT}{names.READY_PATH}", f":{names.REPORT_PORT}{names.LIVE_PATH}",
        f":{names.DEVICE_PLUGIN_PORT}{names.REPORT_PATH}", f"--port {names.SERVE_PORT}",
        f"--report-port {names.REPORT_PORT}", f"{names.MAX_TERMINATION_MESSAGE_BYTES} bytes",
        f"tag `{names.ARTIFACT_TAG}`", names.ENV_DEVICE_IDS, names.ENV_DEVICE_INDEXES, names.ENV_DEVICE_NODES,
        names.ENV_DEVICE_SERIALS, names.ENV_DEVICE_PRODUCT, names.ENV_DEVICE_DRIVER, names.ENV_ENGINE_REPORT,
        names.ENV_NETRC,
        names.artifact_repository("<namespace>", "<artifact name>"),
    ],
)  # fmt: skip
def test_the_document_says_what_the_names_say(value: str) -> None:
    assert re.search(rf"(?<![\w/]){re.escape(value)}(?!\w)", DOCUMENT) or value in DOCUMENT.split("`"), value


def test_the_documents_annotations_are_ours() -> None:
    body = re.search(r"`io\.rm-abstract\.artifact\.\{([a-z,]+)\}`", DOCUMENT)
    assert body
    ours = {value for name, value in vars(names).items() if name.startswith("OCI_ANNOTATION_") and "artifact." in value}
    assert {f"io.rm-abstract.artifact.{name}" for name in body[1].split(",")} == ours
    assert names.MAX_LAYER_BYTES == 4 * 2**30, "the document says 4 GiB"


def test_the_documents_report_has_the_reports_members() -> None:
    body = re.search(r"^`\{(\"reason\".*)\}`\. `reason`", DOCUMENT, re.MULTILINE)
    assert body
    flat = re.sub(r"\{[^{}]*\}", "0", body[1])
    assert {name.strip('"') for name in re.findall(r'"\w+"', flat)} == set(Report.__dataclass_fields__)


def test_paths_below_rma_that_the_document_names_exist() -> None:
    directories = {value for name, value in vars(names).items() if name.endswith("_DIR")}
    assert set(re.findall(r"`(/rma/[a-z]+)`", DOCUMENT)) <= directories


PIECE = st.text(st.characters(codec="utf-8"), max_size=40)
WORDS = st.builds(lambda piece, times, end: piece * times + end, PIECE, st.integers(0, 100), PIECE)
"""Of up to 4040 characters, too many for a report, though few of them have to be thought up."""
SMALL = st.text(string.ascii_letters, max_size=12)
REPORTS = st.builds(
    Report,
    reason=st.sampled_from([reason.value for reason in Reason]),
    message=WORDS,
    retryable=st.booleans(),
    digest=st.sampled_from(["", "sha256:" + "a" * 64]),
    sizeBytes=st.integers(0, 2**63),
    seconds=st.floats(0, 1e9, allow_nan=False),
    versions=st.dictionaries(SMALL, SMALL, max_size=4),
    facts=st.dictionaries(SMALL, st.one_of(SMALL, st.integers(), st.booleans()), max_size=6),
)


@given(REPORTS)
def test_a_report_fits_and_is_read_back_with_nothing_but_its_message_shortened(report: Report) -> None:
    text = report.to_json()
    assert len(text.encode()) <= names.MAX_TERMINATION_MESSAGE_BYTES
    assert "\n" not in text
    read = Report.parse(text)
    assert {**read.__dict__, "message": ""} == {**report.__dict__, "message": ""}
    whole = json.dumps(report.__dict__, separators=(",", ":"), ensure_ascii=False)
    if len(whole.encode()) <= names.MAX_TERMINATION_MESSAGE_BYTES:
        assert read.message == report.message
    elif read.message != report.message:
        cuts = [place for place, character in enumerate(read.message) if character == "…"]
        middle_lost = any(
            report.message.startswith(read.message[:cut]) and report.message.endswith(read.message[cut + 1 :])
            for cut in cuts
        )
        assert middle_lost or report.message.startswith(read.message)


@given(st.integers(2000, 20000))
def test_facts_that_do_not_fit_are_an_error_and_not_half_the_facts(size: int) -> None:
    with pytest.raises(ValueError, match="exceed 2048 bytes"):
        Report("Resolved", message="m" * 50, facts={"data": "x" * (size + 48)}).to_json()


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_report_or_is_refused(text: str) -> None:
    try:
        report = Report.parse(text)
    except ReportInvalid:
        return
    assert report.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
MEMBERS = st.sampled_from([*Report.__dataclass_fields__, "unknown"])


@given(st.dictionaries(MEMBERS, JSON))
def test_any_json_is_a_report_of_the_right_types_or_is_refused(raw: dict[str, Any]) -> None:
    try:
        report = Report.parse(json.dumps(raw))
    except ReportInvalid:
        return
    assert isinstance(report.reason, str)
    assert isinstance(report.message, str)
    assert isinstance(report.retryable, bool)
    assert isinstance(report.sizeBytes, int)
    assert not isinstance(report.sizeBytes, bool)
    assert not isinstance(report.seconds, bool)
    assert all(isinstance(value, str) for value in report.versions.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("Killed", "not JSON"),
        ('{"reason":"Bui', "not JSON"),
        ("null", "no reason"),
        ('["Built"]', "no reason"),
        ('{"reason":""}', "no reason"),
        ('{"reason":7}', "no reason"),
        ('{"reason":"Built","retryable":"yes"}', "retryable is a str"),
        ('{"reason":"Built","sizeBytes":"7"}', "sizeBytes is a str"),
        ('{"reason":"Built","sizeBytes":true}', "sizeBytes is a bool"),
        ('{"reason":"Built","facts":[]}', "facts is a list"),
        ('{"reason":"Built","message":null}', "message is a NoneType"),
        ('{"reason":"Built","versions":{"cc":1}}', "versions: that of cc is a int"),
        ("[" * 100_000, "not JSON"),
        ('{"reason":"Built","seconds":-1}', "seconds is negative"),
        ('{"reason":"Built","seconds":NaN}', "NaN is no number"),
        ('{"reason":"Built","message":"\\ud800"}', "surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_and_says_why(text: str, said: str) -> None:
    with pytest.raises(ReportInvalid, match=re.escape(said)):
        Report.parse(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", set()),
        ("$A $(B) {C}", set()),
        ("${A}", {"A"}),
        ("x${A}${B_1}y", {"A", "B_1"}),
        ("$${A}", set()),
        ("$$${A}", {"A"}),
        ("$$$${A}", set()),
        ("${}", {""}),
        ("${A", set()),
        ("${${A}}", {"${A"}),
    ],
)
def test_variables_in(text: str, found: set[str]) -> None:
    assert variables_in(text) == found
