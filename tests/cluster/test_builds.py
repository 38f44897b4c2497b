"""Builds in a real cluster, by every interface: Jobs of several stages, a device, inputs, a base, a dry run.

The compilers are small programs of this file, run by the Python of an image that stands for a vendor's: what is tested
is how they are driven and what becomes of what they leave. The deployments are scaled to zero.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.native import include_directory
from rm_abstract.store.artifact import ArtifactStore
from rm_cli import release
from rm_cli.kubectl import Kubectl, condition, run, wait_until
from scripted_model import write_model
from support import deploy, wait_for
from system_packages import need

Object = dict[str, Any]

# Reads its settings as a compiler does that is driven by a file.
READ = """
import json, pathlib, tomllib
settings = tomllib.loads(pathlib.Path("/rma/work/conf/settings.toml").read_text())
config = json.loads((pathlib.Path(settings["model"]) / "config.json").read_text())
pathlib.Path("/rma/work/read.json").write_text(json.dumps({**settings, "architecture": config["architectures"][0]}))
"""
# Opens the device that the kubelet gave it, as a compiler does that tunes on it.
TUNE = """
import json, os, pathlib
nodes = os.environ["RMA_DEVICE_NODES"].split(",")
for node in nodes:
    os.close(os.open(node.partition("=")[0], os.O_RDONLY))
pathlib.Path("/rma/work/tuned.json").write_text(json.dumps({"devices": len(nodes)}))
"""
PACK = """
import json, os, pathlib
assert "RMA_DEVICE_NODES" not in os.environ, "a step that needs no device has one"
parts = [json.loads(pathlib.Path(f"/rma/work/{name}.json").read_text()) for name in ("read", "tuned")]
pathlib.Path("/rma/output/result.json").write_text(json.dumps({**parts[0], **parts[1]}))
"""
# A vendor's Python package, as an input of the build.
PACKAGE = """
import json, pathlib

def compile(build):
    base = json.loads((pathlib.Path(build.inputs["from"]) / "result.json").read_text())
    result = {"base": base, "level": build.flags["level"], "sequence": build.max_seq, "args": build.args}
    (pathlib.Path(build.output) / "final.json").write_text(json.dumps(result))
    return {"versions": {"acmec": "2.1.0"}}
"""


@pytest.fixture(scope="module")
def profiles(installed: Installed, module_namespace: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace; the profiles go with the module."""
    yield module_namespace
    for name in ("staged", "called", "counted", "picky"):
        module_namespace.delete("bprof", f"{name}-{module_namespace.namespace}", wait=False)


def _profile(kubectl: Kubectl, name: str, **spec: Any) -> str:
    """Applies a profile for the simulated NPU that nobody chooses who does not name it."""
    full = f"{name}-{kubectl.namespace}"
    common = {
        "target": {"type": "NPU", "vendor": "RM Abstract"},
        "priority": -100,
        "output": {"format": name},
        "shapes": {"sequence": [512]},
        "timeoutSeconds": 300,
    }
    kubectl.apply(
        {
            "apiVersion": "rm-abstract.io/v1alpha1",
            "kind": "BuildProfile",
            "metadata": {"name": full},
            "spec": {**common, **spec},
        }
    )
    return full


def _python(name: str, image: str, program: str, **further: Any) -> Object:
    return {"name": name, "image": image, "command": ["python3", "-c", program.replace("$", "$$")], **further}


def _jobs(kubectl: Kubectl, artifact: str) -> list[Object]:
    return kubectl.list("jobs", selector=f"rm-abstract.io/artifact={artifact}")


def _built(kubectl: Kubectl, name: str) -> Object:
    """The artifact of a deployment, once it is in the store."""
    deployment = wait_for(kubectl, name, "Built", on="ArtifactReady", timeout=240)
    found: Object = kubectl.get("bart", deployment["status"]["artifact"])
    return found


@pytest.fixture(scope="module")
def staged(profiles: Kubectl, installed: Installed, model_source: str) -> Object:
    """An artifact that took three Jobs, the second with a device, of a profile with a configuration file."""
    image = installed.references["runtime"]
    name = _profile(
        profiles,
        "staged",
        interface="ConfigFile",
        configTemplate={
            "format": "TOML",
            "path": "conf/settings.toml",
            "content": 'model = "${MODEL_DIR}"\nsequence = "${MAX_SEQ}"\ntarget = "${TARGET} is \\"quoted\\""\n',
        },
        steps=[
            _python("read", image, READ, outputs=["/rma/work/read.json"]),
            _python("tune", image, TUNE, requiresDevice=True),
            _python("pack", image, PACK, outputs=["result.json"]),
        ],
    )
    seen: dict[str, Object] = {}
    deploy(profiles, "staged", model_source, buildProfile=name, replicas=0)

    def watched() -> bool:
        seen.update(
            {job["metadata"]["name"]: job for job in profiles.list("jobs", selector="rm-abstract.io/role=build")}
        )
        return condition(profiles.get("mdep", "staged"), "ArtifactReady").get("reason") == "Built"

    wait_until("the artifact is not built", watched, timeout=240)
    artifact = _built(profiles, "staged")
    return {"artifact": artifact, "jobs": seen}


def test_steps_on_a_device_have_jobs_of_their_own(staged: Object) -> None:
    limit = '"rm-abstract.io/simulated-npu": "1"'
    devices = {
        job["metadata"]["labels"]["rm-abstract.io/stage"]: limit in json.dumps(job["spec"])
        for job in staged["jobs"].values()
    }
    assert devices == {"1": False, "2": True, "3": False}


def test_an_artifact_can_start_from_another_and_be_made_by_a_python_function(
    profiles: Kubectl, installed: Installed, staged: Object, model_source: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory)
        (package / "acme_compiler.py").write_text(PACKAGE)
        (package / "config.json").write_text("{}")
        digests = sorted(
            [path.name, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"] for path in package.iterdir()
        )
        source = release.ModelRegistry(installed.cluster).push(package, "inputs/acme-compiler", "1")
    digest = hashlib.sha256(json.dumps(digests, separators=(",", ":")).encode()).hexdigest()
    check = 'import json; r = json.load(open("/rma/output/final.json")); print("checked", sorted(r))'
    name = _profile(
        profiles,
        "called",
        interface="Python",
        **{"from": staged["artifact"]["spec"]["profile"]},
        inputs=[{"name": "package", "source": source, "digest": f"sha256:{digest}"}],
        flags=[{"name": "level", "value": "$3"}],
        steps=[
            {
                "name": "compile",
                "image": installed.references["runtime"],
                "command": ["acme_compiler:compile"],
                "args": ["fast"],
                "env": [{"name": "PYTHONPATH", "value": "${INPUT_package}"}],
                "outputs": ["final.json"],
            }
        ],
        probe={"image": installed.references["runtime"], "command": ["python3", "-c", check]},
    )
    deploy(profiles, "called", model_source, buildProfile=name, replicas=0)
    artifact = _built(profiles, "called")
    assert artifact["spec"]["base"]["key"] == staged["artifact"]["spec"]["key"], "what is there is not built again"
    assert artifact["status"]["versions"]["acmec"] == "2.1.0"


def test_a_library_in_an_image_without_a_shell_compiles(
    profiles: Kubectl, installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor's image has the library and nothing else; it is called from ours."""
    model, image = tmp_path / "model", tmp_path / "image"
    write_model(model)
    (model / "corpus.txt").write_text("the boat left its harbour\n")
    source = release.ModelRegistry(installed.cluster).push(model, "models/counted", "1")
    image.mkdir()
    native = release.ROOT / "examples" / "native_plugin_c"
    need({"cc": "gcc libc6-dev"})
    include, library = f"-I{include_directory()}", str(image / "libngram.so")
    run(["cc", "-std=c11", "-O2", "-shared", "-fPIC", include, "-o", library, str(native / "ngram.c"), "-lm"])
    push, pull = installed.cluster.image_registry_push, installed.cluster.image_registry_pull
    assert push is not None
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", push.partition("/")[0])
    with ArtifactStore() as store:
        pushed = store.push(BuildArtifact(image, "a" * 64, "image"), f"{push}/vendor/ngram:1")
    name = _profile(
        profiles,
        "counted",
        interface="SharedLibrary",
        shapes={"sequence": [256], "batch": [1]},
        steps=[{"name": "count", "image": f"{pull}/vendor/ngram@{pushed.digest}", "command": ["/libngram.so"]}],
    )
    deploy(
        profiles, "counted", source, buildProfile=name, replicas=0,
        workload={"inputTokens": 128, "outputTokens": 64, "concurrency": 1},
    )  # fmt: skip
    artifact = _built(profiles, "counted")
    assert artifact["status"]["versions"], "the library says its version"


def test_a_dry_run_refuses_a_model_before_its_weights_are_fetched(
    profiles: Kubectl, installed: Installed, model_source: str
) -> None:
    image = installed.references["runtime"]
    dry = 'import os, sys; files = os.listdir("/rma/model"); print("no kernel for this model:", *files); sys.exit(3)'
    name = _profile(
        profiles,
        "picky",
        check={"image": image, "command": ["python3", "-c", dry]},
        steps=[_python("compile", image, "raise SystemExit(1)")],
    )
    deploy(profiles, "picky", model_source, buildProfile=name, replicas=0)
    deployment = wait_for(profiles, "picky", "UnsupportedModel", timeout=120)
    said = condition(deployment, "Placed")["message"]
    assert "no kernel for this model" in said
    assert "safetensors" not in said
    made = len(_jobs(profiles, deployment["status"]["artifact"]))
    deploy(profiles, "picky-too", model_source, buildProfile=name, replicas=0)
    deployment = wait_for(profiles, "picky-too", "UnsupportedModel")
    assert "no kernel for this model" in condition(deployment, "Placed")["message"]
    assert len(profiles.list("jobs", selector="rm-abstract.io/role=build")) <= made, "nobody asks twice"
