"""``rm-abstract plan`` and ``explain``: the same answer as in the status, and what they say to bad input."""

import json
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from placement_fleet import FLEET, LLAMA_8B, PROFILES, request
from rm_abstract.sources import resolve_model
from rm_api.kinds import BuildProfileSpec
from rm_api.placement import Placement, PolicyType
from rm_cli.main import main
from rm_cli.placement_text import table
from rm_operator.plan.placement import place
from rm_operator.plan.version_probe import recipe_hash

API_VERSION = "rm-abstract.io/v1alpha1"


def wire(kind: str, name: str, spec: Any, **further: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec, **further}


def chat(**spec: Any) -> dict[str, Any]:
    return wire("ModelDeployment", "chat", {"model": {"source": "hf://org/model"}, **spec})


ACCELERATORS = [wire("AcceleratorResource", each.name, each.spec.to_wire()) for each in FLEET]
BUILD_PROFILES = [wire("BuildProfile", each.name, each.spec.to_wire()) for each in PROFILES]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the fleet, a deployment and the facts of its model, and no cluster anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/accelerators.yaml").write_text(yaml.safe_dump_all(ACCELERATORS))
    # as `kubectl get -o json` prints them
    listed = {"apiVersion": "v1", "kind": "List", "items": BUILD_PROFILES}
    (tmp_path / "fleet/profiles.json").write_text(json.dumps(listed))
    (tmp_path / "fleet/README.md").write_text("not read")
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(chat()))
    (tmp_path / "facts.json").write_text(json.dumps({"reason": "Resolved", "facts": LLAMA_8B.to_wire()}))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


OFFLINE = ("plan", "-f", "chat.yaml", "-f", "fleet", "--facts", "facts.json", "-n", "team")


def expected() -> dict[str, Any]:
    result = place(request(fleet=tuple(type(each)(each.name, each.spec) for each in FLEET)))
    return Placement(
        policy=PolicyType.LATENCY, chosen=result.chosen, profile=result.profile, candidates=list(result.candidates)
    ).to_wire()


@pytest.mark.parametrize(("format_", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_the_answer_is_what_the_status_would_say(here: Path, format_: str, load: Callable[[str], Any]) -> None:
    done = run(*OFFLINE, "-o", format_)
    assert done.exit_code == 0, done.output
    answer = load(done.stdout)
    assert answer["metadata"] == {"name": "chat", "namespace": "team"}
    assert answer["status"]["placement"] == expected()
    (placed,) = answer["status"]["conditions"]
    assert (placed["type"], placed["status"], placed["reason"]) == ("Placed", "True", "Placed")


def test_the_table_has_a_line_for_each_candidate_and_columns_that_align(here: Path) -> None:
    done = run(*OFFLINE)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "team/chat  policy Latency, on npu-fast, compiled with red"
    header = next(line for line in lines if "CANDIDATE" in line)
    rows = lines[lines.index(header) + 1 :]
    columns = {name: header.index(name) for name in header.split()}
    assert list(columns) == [
        "CANDIDATE", "ELIGIBLE", "DEVICES", "SCORE", "TTFT", "TPOT", "RATE", "J/TOKEN", "PRICE/MTOKEN", "PROVENANCE",
        "REASON",
    ]  # fmt: skip
    assert all(row[start - 1] == " " for row in rows for start in columns.values() if len(row) > start)
    first = rows[0]
    assert first.startswith("*  npu-fast")
    cells = {name: first[start:].split("  ")[0].strip() for name, start in columns.items()}
    assert cells["TTFT"] == "209.2 ms"
    assert cells["PRICE/MTOKEN"] == "2.03 USD"
    assert cells["REASON"].startswith("lowest latency, 3524 ms")
    named = [row.removeprefix("*").split()[0] for row in rows if row[columns["ELIGIBLE"] :].startswith(("yes", "no"))]
    assert named == [candidate["name"] for candidate in expected()["candidates"]]


def test_long_reasons_go_on_below_themselves() -> None:
    candidate = {"name": "a", "eligible": False, "reason": " ".join(["word"] * 60)}
    lines = table({"candidates": [candidate]}, 140).splitlines()
    start = lines[0].index("REASON")
    assert len(lines) > 3
    assert all(len(line) <= 140 for line in lines)
    assert all(line[:start].strip() == "" for line in lines[2:])
    assert " ".join(line[start:] for line in lines[1:]) == candidate["reason"]


def test_without_a_place_it_ends_with_3_and_still_says_why(here: Path) -> None:
    (here / "chat.yaml").write_text(yaml.safe_dump(chat(slo={"tpotMs": 1}, accelerators={"types": ["GPU"]})))
    done = run(*OFFLINE)
    assert done.exit_code == 3
    assert "SloUnreachable: no accelerator can take chat" in done.stdout
    assert "spec.slo.tpotMs allows 1" in done.stdout


def test_several_deployments_are_answered_in_their_order(here: Path) -> None:
    two = [chat(), {**chat(), "metadata": {"name": "other", "namespace": "elsewhere"}}]
    (here / "chat.yaml").write_text(yaml.safe_dump_all(two))
    items = json.loads(run(*OFFLINE, "-o", "json").stdout)["items"]
    assert [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in items] == [
        ("team", "chat"),
        ("elsewhere", "other"),
    ]
    # the endpoint is for namespace team only
    reasons = {each["name"]: each["reason"] for each in items[1]["status"]["placement"]["candidates"]}
    assert "namespace elsewhere may not use it" in reasons["remote"]


@pytest.mark.parametrize(
    ("allocated", "reason", "eligible"),
    [(4, "Advertised", False), (3, "Advertised", True), (4, "NotCounted", True)],
)
def test_devices_by_class_count_as_others_unless_nobody_can_count_them(
    here: Path, allocated: int, reason: str, eligible: bool
) -> None:
    status = {
        "nodes": 1, "devices": {"total": 4, "healthy": 4, "allocated": allocated},
        "conditions": [{"type": "DevicesAdvertised", "status": "True", "reason": reason}],
    }  # fmt: skip
    (fast,) = (each for each in ACCELERATORS if each["metadata"]["name"] == "npu-fast")
    spec = {key: value for key, value in fast["spec"].items() if key != "resourceName"} | {"deviceClassName": "fast"}
    (here / "fleet/accelerators.yaml").write_text(yaml.safe_dump({**fast, "spec": spec, "status": status}))
    (candidate,) = json.loads(run(*OFFLINE, "-o", "json").stdout)["status"]["placement"]["candidates"]
    assert candidate["eligible"] is eligible
    if not eligible:
        assert "no device of deviceclass.resource.kubernetes.io/fast is free" in candidate["reason"]


def test_the_status_in_the_files_counts(here: Path) -> None:
    devices = {"total": 4, "healthy": 4, "allocated": 4}
    ready = [{"type": "DevicesAdvertised", "status": "True", "reason": "Advertised"}]
    full = {"nodes": 1, "devices": devices, "conditions": ready}
    seen = [{**each, "status": full} if each["metadata"]["name"] == "npu-fast" else each for each in ACCELERATORS]
    (here / "fleet/accelerators.yaml").write_text(yaml.safe_dump_all(seen))
    placement = {"policy": "Latency", "chosen": "pim"}
    (here / "chat.yaml").write_text(
        yaml.safe_dump({**chat(), "status": {"model": LLAMA_8B.to_wire(), "placement": placement}})
    )
    answer = json.loads(run("plan", "-f", "chat.yaml", "-f", "fleet", "-o", "json").stdout)["status"]["placement"]
    candidates = {each["name"]: each for each in answer["candidates"]}
    assert "no device of red.com/npu-fast is free" in candidates["npu-fast"]["reason"]
    # where it is, and from where it would move in time
    assert answer["chosen"] == "pim"
    assert "it moves to gpu if that stays clearly better" in candidates["pim"]["reason"]


VERSION_PROBE = {"versionProbe": {"image": "red/cc:1", "command": ["cc", "--version"]}}


def probed(conditions: list[dict[str, Any]] | None = None, **status: Any) -> str:
    """The profiles, of which ``red`` has its toolchain probed; its status, as a cluster has it."""
    found = [dict(each) for each in BUILD_PROFILES]
    (red,) = [each for each in found if each["metadata"]["name"] == "red"]
    red["spec"] = {**red["spec"], **VERSION_PROBE}
    red["metadata"] = {"name": "red", "generation": 1}
    if status or conditions:
        red["status"] = {"conditions": conditions or [], **status}
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": found})


def test_versions_that_no_cluster_has_probed_are_said_and_change_no_place(here: Path) -> None:
    (here / "fleet/profiles.json").write_text(probed())
    done = run(*OFFLINE, "-o", "json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["status"]["placement"] == expected()
    _, unknown = answer["status"]["conditions"]
    assert (unknown["type"], unknown["status"], unknown["reason"]) == ("ArtifactReady", "Unknown", "Probing")
    assert "not known yet: red;" in unknown["message"]
    assert "not known yet: red;" in run(*OFFLINE).stdout


def test_versions_that_are_known_need_no_word(here: Path) -> None:
    (red,) = [each.spec for each in PROFILES if each.name == "red"]
    spec = BuildProfileSpec.model_validate({**red.to_wire(), **VERSION_PROBE})
    answer = {"recipe": recipe_hash(spec), "generation": 1, "again": "", "time": "2026-01-01T00:00:00Z"}
    (here / "fleet/profiles.json").write_text(probed(versions={"toolchain": "7"}, images=[], probed=answer))
    done = run(*OFFLINE, "-o", "json")
    assert done.exit_code == 0, done.output
    assert [each["type"] for each in json.loads(done.stdout)["status"]["conditions"]] == ["Placed"]


def test_a_toolchain_that_a_cluster_could_not_probe_has_no_place(here: Path) -> None:
    said = {"status": "False", "reason": "ToolchainFailed", "message": "cc: not found", "observedGeneration": 1}
    (here / "fleet/profiles.json").write_text(
        probed([{"type": "Ready", **said}, {"type": "Stalled", **said, "status": "True"}])
    )
    done = run(*OFFLINE, "-o", "json")
    candidates = json.loads(done.stdout)["status"]["placement"]["candidates"]
    assert [each["name"] for each in candidates if "cc: not found" in each.get("reason", "")]


def test_facts_written_by_hand_need_no_digests(here: Path) -> None:
    unneeded = ("source", "revision", "configDigest", "tensorsDigest", "weightsDigest")
    (here / "facts.json").write_text(json.dumps({k: v for k, v in LLAMA_8B.to_wire().items() if k not in unneeded}))
    assert run(*OFFLINE).exit_code == 0


def test_facts_may_be_yaml(here: Path) -> None:
    (here / "facts.yaml").write_text(yaml.safe_dump(LLAMA_8B.to_wire()))
    given = [*OFFLINE[:5], "--model-facts", "facts.yaml", *OFFLINE[7:]]
    assert run(*given).stdout == run(*OFFLINE).stdout


def write_model(root: Path, parameters: int) -> None:
    """A model of which only the weights' head is there; the rest is a hole in the file."""
    root.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    (root / "tokenizer.json").write_text("{}")
    entry = {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}
    header = json.dumps({"w": entry}).encode()
    with (root / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2 * parameters)


@pytest.fixture
def model_server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The source of a small model on a web server, and what that is asked for with GET."""
    root, asked = here / "served", list[str]()
    write_model(root, 544)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("NETRC", raising=False)
    yield f"https://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


def test_the_source_itself_is_asked_what_the_model_is(here: Path, model_server: tuple[str, list[str]]) -> None:
    source, asked = model_server
    (here / "chat.yaml").write_text(yaml.safe_dump(chat(model={"source": source})))
    planned = run("plan", "-f", "chat.yaml", "-f", "fleet", "--resolve", "-n", "team", "-o", "json")
    assert planned.exit_code == 0, planned.output
    assert "/tokenizer.json" not in asked, "it was read for a digest that planning has no use for"
    (here / "facts.json").write_text(json.dumps(resolve_model(source)))
    assert json.loads(run(*OFFLINE, "-o", "json").stdout) == json.loads(planned.stdout)
    assert "/tokenizer.json" in asked


def test_a_model_in_a_volume_is_planned_where_the_volume_is_mounted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(here / "volumes/shelf/llms/big", 8_000_000_000)
    (here / "chat.yaml").write_text(yaml.safe_dump(chat(model={"source": "pvc://shelf/llms/big"})))
    arguments = ("plan", "-f", "chat.yaml", "-f", "fleet", "--resolve", "-n", "team", "-o", "json")
    monkeypatch.setenv("RMA_PVC_DIR", str(here / "volumes"))
    monkeypatch.setattr("rm_abstract.sources.pvc.hash_file", None)  # nothing needs to be read for a digest
    planned = run(*arguments)
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["status"]["placement"]["chosen"]
    monkeypatch.delenv("RMA_PVC_DIR")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "only where the claim is mounted; RMA_PVC_DIR says where that is" in refused.output
    (here / "facts.json").write_text(json.dumps(LLAMA_8B.to_wire()))
    known = run("plan", "-f", "chat.yaml", "-f", "fleet", "--model-facts", "facts.json", "-n", "team", "-o", "json")
    assert known.exit_code == 0, known.output


def test_a_source_that_cannot_be_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", "127.0.0.1:1")
    (here / "chat.yaml").write_text(yaml.safe_dump(chat(model={"source": "https://127.0.0.1:1/m/"})))
    result = run("plan", "-f", "chat.yaml", "-f", "fleet", "--resolve")
    assert result.exit_code == 1
    assert "it cannot be told what https://127.0.0.1:1/m/ is: 127.0.0.1:1 does not answer" in result.output


@pytest.mark.usefixtures("here")
def test_facts_come_from_a_file_or_from_the_source() -> None:
    result = run(*OFFLINE, "--resolve")
    assert result.exit_code == 2
    assert "not both" in result.output


Files = dict[str, str]


@pytest.mark.parametrize(
    ("files", "arguments", "said"),
    [
        ({}, ("-f", "fleet"), "the files have no ModelDeployment; give one with -f"),
        (
            {},
            ("-f", "chat.yaml", "-f", "fleet"),
            "it is not known what hf://org/model is: give --resolve, or --model-facts FILE",
        ),
        ({"a.yaml": "a: ["}, ("-f", "a.yaml"), "a.yaml is not valid YAML: while parsing"),
        ({"a.yaml": "- 1"}, ("-f", "a.yaml"), "a.yaml is no Kubernetes object, but list"),
        (
            {"a.yaml": "kind: Pod"},
            ("-f", "a.yaml"),
            "a.yaml: kind Pod is not used here; there are ModelDeployment, AcceleratorResource, BuildProfile",
        ),
        (
            {"a.yaml": yaml.safe_dump_all([chat(), {**chat(), "apiVersion": "v1"}])},
            ("-f", "a.yaml"),
            "a.yaml, document 2: apiVersion v1 is not rm-abstract.io/v1alpha1",
        ),
        ({"a.yaml": yaml.safe_dump({**chat(), "metadata": {}})}, ("-f", "a.yaml"), "metadata.name is missing"),
        (
            {"a.yaml": yaml.safe_dump({**chat(), "spec": None})},
            ("-f", "a.yaml"),
            "ModelDeployment chat): spec is missing",
        ),
        (
            {"a.yaml": yaml.safe_dump(chat(workload={"concurrency": 0}))},
            ("-f", "a.yaml"),
            "a.yaml (ModelDeployment chat): spec.workload.concurrency: Input should be greater than or equal to 1",
        ),
        (
            {"a.yaml": yaml.safe_dump(chat(policy={"kind": "Cost"}))},
            ("-f", "a.yaml"),
            "spec.policy.kind: there is no such field; there are type, weights",
        ),
        (
            {"a.yaml": yaml.safe_dump(chat(runtime={"env": [{"name": "TZ", "val": "x"}]}))},
            ("-f", "a.yaml"),
            "spec.runtime.env.0.val: there is no such field; there are name, value",
        ),
        (
            {"a.yaml": yaml.safe_dump(chat(policy={"type": "Weighted"}))},
            ("-f", "a.yaml"),
            "spec.policy: type Weighted needs weights",
        ),
        (
            {"a.yaml": yaml.safe_dump(ACCELERATORS[0])},
            ("-f", "chat.yaml", "-f", "fleet", "-f", "a.yaml"),
            "a.yaml (AcceleratorResource gpu): there is another AcceleratorResource of this name",
        ),
        ({"facts.json": "{"}, OFFLINE[1:], "facts.json is not valid YAML: while parsing"),
        ({"facts.json": "[]"}, OFFLINE[1:], "facts.json: facts are one object"),
        ({"facts.json": '{"architecture": "X"}'}, OFFLINE[1:], "facts.json: parameters: Field required"),
        ({"empty/x.txt": ""}, ("-f", "empty"), "empty: the directory has no file that ends with .yaml, .yml, .json"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_is_refused_with_the_place_and_the_reason(
    here: Path, files: Files, arguments: Sequence[str], said: str
) -> None:
    for name, text in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    done = run("plan", *arguments)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.output


@pytest.fixture
def cluster(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Objects that a stand-in for kubectl answers with, by the words that it is called with."""
    answers: dict[str, Any] = {}
    (here / "kubeconfig").write_text("")
    # The stand-in understands `get KIND[,KIND] [NAME] --ignore-not-found -o json`, which is all that is asked.
    tool = here / "bin/kubectl"
    tool.parent.mkdir()
    tool.write_text(
        "#!/usr/bin/env python3\n"
        "import json, sys\n"
        "words = sys.argv[1:]\n"
        "words = [w for i, w in enumerate(words) if not w.startswith('-') and words[i - 1] not in\n"
        "         ('--kubeconfig', '--namespace', '-o')]\n"
        f"answers = json.load(open({str(here / 'answers.json')!r}))\n"
        "found = answers.get(' '.join(words))\n"
        "print(json.dumps(found) if found else '')\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return answers


def answer(here: Path, answers: dict[str, Any], *arguments: str) -> Result:
    (here / "answers.json").write_text(json.dumps(answers))
    return run(*arguments, "--kubeconfig", "kubeconfig")


MDEP = "get modeldeployments.rm-abstract.io chat"
FLEET_OF = "get acceleratorresources.rm-abstract.io,buildprofiles.rm-abstract.io"


def test_without_accelerators_in_the_files_the_cluster_is_asked(here: Path, cluster: dict[str, Any]) -> None:
    newer = {**ACCELERATORS[0], "spec": {**ACCELERATORS[0]["spec"], "ofAnotherVersion": 1}}
    cluster[FLEET_OF] = {"items": [newer, *ACCELERATORS[1:], *BUILD_PROFILES]}
    cluster[MDEP] = {**chat(), "status": {"model": LLAMA_8B.to_wire()}}
    done = answer(here, cluster, "plan", "-f", "chat.yaml", "-n", "team", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["status"]["placement"] == expected()


def test_explain_tells_what_the_status_says(here: Path, cluster: dict[str, Any]) -> None:
    placed = {"type": "Placed", "status": "True", "reason": "Placed", "message": "chat goes to npu-fast"}
    cluster[MDEP] = {**chat(), "status": {"placement": expected(), "conditions": [placed]}}
    done = answer(here, cluster, "explain", "chat")
    assert done.exit_code == 0, done.output
    assert "Placed: chat goes to npu-fast" in done.stdout
    assert table(expected(), 200) in done.stdout
    whole = json.loads(answer(here, cluster, "explain", "chat", "-o", "json").stdout)
    assert whole["status"] == {"placement": expected(), "conditions": [placed]}


def test_explain_says_what_is_in_the_way_before_it_comes_to_a_placement(here: Path, cluster: dict[str, Any]) -> None:
    conditions = [
        {"type": "Ready", "status": "False", "reason": "Resolving", "message": "reading hf://org/model"},
        {"type": "Placed", "status": "Unknown", "reason": "WaitingForModel", "message": ""},
    ]
    cluster[MDEP] = {**chat(), "status": {"conditions": conditions}}
    done = answer(here, cluster, "explain", "chat")
    assert (done.exit_code, "Resolving: reading hf://org/model" in done.stdout) == (3, True)
    cluster[MDEP] = chat()
    done = answer(here, cluster, "explain", "chat")
    assert (done.exit_code, "the operator has not looked at it yet" in done.stdout) == (3, True)


def test_explain_of_nothing(here: Path, cluster: dict[str, Any]) -> None:
    done = answer(here, cluster, "explain", "chat", "-n", "team")
    assert (done.exit_code, done.stderr) == (1, "Error: there is no ModelDeployment chat in namespace team\n")


def test_a_model_that_no_device_can_hold_goes_to_several_of_one_node(here: Path) -> None:
    large = LLAMA_8B.model_copy(
        update={
            "parameters": 70_000_000_000, "active_parameters": 70_000_000_000, "weight_bytes": 140_000_000_000,
            "layers": 80, "heads": 64,
        }
    )  # fmt: skip
    (here / "facts.json").write_text(json.dumps(large.to_wire()))
    (here / "chat.yaml").write_text(yaml.safe_dump(chat(workload={"concurrency": 64})))
    (gpu,) = (each for each in ACCELERATORS if each["metadata"]["name"] == "gpu")
    linked = {**gpu, "spec": {**gpu["spec"], "performance": {**gpu["spec"]["performance"], "linkGBps": "450"}}}
    said = [{"type": "DevicesAdvertised", "status": "True", "reason": "Advertised", "message": "m"}]

    def planned(on_node: int | None, total: int) -> Result:
        devices = {"total": total, "healthy": total, "allocated": 0, "mostOnNode": on_node}
        status = {} if on_node is None else {"status": {"nodes": 2, "devices": devices, "conditions": said}}
        (here / "fleet/accelerators.yaml").write_text(yaml.safe_dump(linked | status))
        return run(*OFFLINE)

    for found in (planned(None, 0), planned(4, 8)):
        assert found.exit_code == 0, found.output
        assert "4 devices for each replica" in " ".join(found.output.split())
        header, row = (line.split() for line in found.output.splitlines() if line.startswith((" ", "*"))
                       and ("CANDIDATE" in line or line.startswith("*")))  # fmt: skip
        assert row[header.index("DEVICES") + 1] == "4"
    refused = planned(2, 8)
    assert refused.exit_code == 3, refused.output
    told = " ".join(refused.output.split())
    assert "it would fit 4 devices of one node, and no node has more than 2 of green.com/gpu" in told
