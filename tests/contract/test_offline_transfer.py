"""Deployments are carried to a cluster that reaches nothing outside, whose operator adopts what was built elsewhere."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "api"))

from offline_sites import DIGEST, Site, operator_objects, site
from rm_abstract.core.errors import BadInput
from rm_abstract.store import ArtifactStore, push_model
from rm_abstract.store.bundle import ANNOTATION_SCHEMA, Bundle
from rm_api import names
from rm_cli.kubectl import wait_until
from test_offline_bundle import write_model

Object = dict[str, Any]
ACCELERATOR: Object = {
    "type": "CPU", "vendor": "acme", "product": "x", "nodeSelector": {"example.com/cpu": "yes"},
    "runtime": {"plugin": "p", "image": "quay.example.com/acme/serve:1"},
}  # fmt: skip
PROFILE: Object = {
    "target": {"type": "CPU", "vendor": "acme"},
    "steps": [{"name": "compile", "image": "quay.example.com/acme/cc:1", "command": ["cc", "${MODEL_DIR}"]}],
    "probe": {"image": "acme/check:2", "command": ["check"]},
    "output": {"format": "f"},
}
EDGE = {"labels": {"team": "a"}, "annotations": {"example.com/why": "because"}}


def obj(kind: str, name: str, spec: Object, namespace: str | None = None, **metadata: Any) -> Object:
    where = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name, **where, **metadata}, "spec": spec,
    }  # fmt: skip


class Exported:
    """Bundles of a cluster that is gone."""

    def __init__(self, directory: Path) -> None:
        self.whole = directory / "whole"
        self.tar = directory / "edge.tar"
        self.keys: dict[str, str] = {}
        self.said = ""
        self.host = ""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``chat`` of namespace team with its weights, ``small`` of namespace edge without. Then the cluster ends."""
    directory = tmp_path_factory.mktemp("exported")
    found = Exported(directory)
    with site(directory / "site") as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMA_PLAIN_HTTP_HOSTS", here.registry.host)
        found.host = here.registry.host
        write_model(directory / "model")
        source = f"oci://{here.registry.host}/acme/tiny:1"
        push_model(directory / "model", source)
        kubectl = here.kubectl()
        kubectl.apply(
            *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("team", "edge")),
            *operator_objects(here.registry.host),
            obj("AcceleratorResource", "cpu", ACCELERATOR),
            obj("AcceleratorResource", "other", {**ACCELERATOR, "vendor": "nobody"}),
            obj("BuildProfile", "cc", PROFILE),
            obj("ModelDeployment", "chat", {"model": {"source": source}, "replicas": 2}, "team", **EDGE),
            obj("ModelDeployment", "small", {"model": {"source": source, "servedName": "s"}}, "edge"),
        )
        # One that is not built yet cannot be exported, and says why.
        for namespace, name in (("team", "chat"), ("edge", "small")):
            found.keys[namespace] = here.wait_for_artifact(namespace, name)["spec"]["key"]
        kill_exports(here, found.whole)
        found.said = here.artifacts("export", "team/chat", "edge/small", "-o", str(found.whole))
        here.artifacts("export", "--all", "-n", "edge", "--no-weights", "-o", str(found.tar))
    return found


def kill_exports(here: Site, path: Path) -> None:
    """Ends an export in the middle, again and again: what it left is no bundle, and is used by the next one."""
    ended = []
    for least in (1, 4):
        process = subprocess.Popen(
            here.command("export", "team/chat", "edge/small", "-o", str(path)), env=here.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and len(list(path.glob("blobs/sha256/*"))) < least:
            time.sleep(0.001)
        process.kill()
        ended.append(process.wait())
        if not (path / "index.json").exists():
            with pytest.raises(BadInput, match="is not finished"):
                Bundle(path)
    assert -signal.SIGKILL in ended


@pytest.fixture(scope="module")
def there(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster with nothing in it but the operator. Whoever asks for the first one's registry gets no answer."""
    with site(tmp_path_factory.mktemp("there") / "site") as found:
        found.kubectl().apply(*operator_objects(found.registry.host))
        yield found


def imported(there: Site, path: Path, *further: str, code: int = 0) -> str:
    return there.artifacts("import", str(path), "--registry", there.registry.host, *further, code=code)


def uploaded(there: Site) -> list[Path]:
    """Blobs in the registry, complete ones only."""
    return list(there.registry.storage.glob("docker/registry/v2/blobs/sha256/*/*/data"))


def objects_there(there: Site) -> list[str]:
    kinds = "mdep,bprof,accel,bart"
    return there.kubectl().run("get", kinds, "-A", "-o", "name").split()


def test_the_bundle_says_what_it_holds(exported: Exported) -> None:
    assert "2 deployments, 2 artifacts, 1 profiles, 1 accelerators" in exported.said
    read = Bundle(exported.whole)
    read.layout.verify()
    images = {each.image: each for each in read.contents.images}
    assert set(images) == {
        "quay.example.com/acme/serve:1", "quay.example.com/acme/cc:1", "acme/check:2", "reg.example.com/rma/operator:1",
        "reg.example.com/rma/runtime:1", f"reg.example.com/rma/launcher:1@{DIGEST}",
    }  # fmt: skip
    assert images["quay.example.com/acme/cc:1"].used_by == ["BuildProfile cc: step compile"]
    assert images["reg.example.com/rma/runtime:1"].used_by == ["Deployment default/rma-operator: runtime"]
    assert images["reg.example.com/rma/runtime:1"].digest == DIGEST, "as the resolve Job's pod was told"
    assert images[f"reg.example.com/rma/launcher:1@{DIGEST}"].digest == DIGEST
    assert images["quay.example.com/acme/cc:1"].digest is None
    assert [each.source for each in read.contents.models] == [f"oci://{exported.host}/acme/tiny:1"]
    assert Bundle(exported.tar).contents.models == []


@pytest.mark.parametrize("what", ["damage", "schema"])
def test_what_cannot_be_used_changes_nothing_there(there: Site, exported: Exported, tmp_path: Path, what: str) -> None:
    before = objects_there(there)
    path = tmp_path / "bad"
    shutil.copytree(exported.whole, path)
    if what == "damage":
        largest = max((path / "blobs/sha256").iterdir(), key=lambda file: file.stat().st_size)
        with largest.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
    else:
        index = json.loads((path / "index.json").read_bytes())
        index["annotations"][ANNOTATION_SCHEMA] = "9"
        (path / "index.json").write_text(json.dumps(index))
    said = imported(there, path, code=1)
    assert ("is damaged" if what == "damage" else "its schema is 9, and this version reads 1") in said
    assert objects_there(there) == before
    assert there.kubectl().get("namespace", "team") is None
    assert not uploaded(there)


def test_a_dry_run_changes_nothing(there: Site, exported: Exported) -> None:
    before = objects_there(there)
    said = imported(there, exported.whole, "--dry-run", "--image-registry", "mirror.example.com/m")
    assert "would apply team/chat" in said
    # The key counts the step's image, so its name stays. All others are where they were copied to.
    assert "  quay.example.com/acme/cc:1\n" in said
    assert "  quay.example.com/acme/serve:1 -> mirror.example.com/m/acme/serve:1" in said
    assert "  acme/check:2 -> mirror.example.com/m/acme/check:2" in said
    assert f"  reg.example.com/rma/runtime:1@{DIGEST} -> mirror.example.com/m/rma/runtime:1" in said
    assert objects_there(there) == before
    assert there.kubectl().get("namespace", "team") is None


def test_another_store_than_the_operators_is_refused(there: Site, exported: Exported) -> None:
    said = there.artifacts("import", str(exported.whole), code=1)
    assert "no store that the chart runs is found there: say where it is with --registry" in said
    said = imported(there, exported.whole, "--registry-for-pods", "elsewhere:5000", code=1)
    assert f"the operator there keeps artifacts at {there.registry.host}, not at elsewhere:5000" in said


def test_an_import_that_is_killed_again_and_again_and_then_adopted(there: Site, exported: Exported) -> None:
    images = ("--image-registry", "mirror.example.com/m")
    command = there.command("import", str(exported.whole), "--registry", there.registry.host, *images)
    ended = []
    for least in (1, 3, 6, None):
        process = subprocess.Popen(
            command, env=there.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        if least is None:
            # All is pushed, and the objects are on their way.
            next((line for line in process.stderr if " pushed, " in line), None)
        while process.poll() is None and least and len(uploaded(there)) < least:
            time.sleep(0.001)
        process.kill()
        ended.append(process.wait())
        process.stderr.close()
        deployed = json.loads(there.kubectl().run("get", "mdep", "-A", "-o", "json"))["items"]
        check_whole(there, exported, [each["spec"]["model"]["source"] for each in deployed])
    assert -signal.SIGKILL in ended
    assert "applied team/chat" in imported(there, exported.whole, *images)

    for namespace, name in (("team", "chat"), ("edge", "small")):
        artifact = there.wait_for_artifact(namespace, name)
        assert artifact["spec"]["key"] == exported.keys[namespace]
        check_adopted(there, artifact)
    chat = there.kubectl("team").get("mdep", "chat")
    assert chat is not None
    assert (chat["spec"]["replicas"], chat["metadata"]["labels"]["team"]) == (2, "a")
    assert chat["metadata"]["annotations"]["example.com/why"] == "because"
    source = chat["spec"]["model"]["source"]
    assert source.startswith(f"oci://{there.registry.host}/models/acme/tiny:")
    assert chat["status"]["model"]["source"] == source
    assert (there.kubectl("edge").get("mdep", "small") or {})["spec"]["model"]["servedName"] == "s"
    accelerator, profile = there.kubectl().get("accel", "cpu"), there.kubectl().get("bprof", "cc")
    assert accelerator is not None
    assert profile is not None
    assert accelerator["spec"]["runtime"]["image"] == "mirror.example.com/m/acme/serve:1"
    assert profile["spec"]["probe"]["image"] == "mirror.example.com/m/acme/check:2"
    assert profile["spec"]["steps"][0]["image"] == "quay.example.com/acme/cc:1"


def check_whole(there: Site, exported: Exported, sources: list[str]) -> None:
    """Whatever can be seen is complete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMA_PLAIN_HTTP_HOSTS", there.registry.host)
        visible = []
        with ArtifactStore() as store:
            for each in Bundle(exported.whole).contents.artifacts:
                at = f"{there.registry.host}/{names.artifact_repository(each.namespace, each.name)}"
                found = store.resolve_manifest(f"{at}:v1")
                if found is not None:
                    visible.append(each.name)
                    destination = there.directory / f"pulled-{time.monotonic_ns()}"
                    store.pull(f"{at}@{found}", destination, key=each.key)
            # A deployment comes after all that it needs.
            assert not sources or len(visible) == 2
            for source in sources:
                assert store.resolve_manifest(source.removeprefix("oci://")) is not None


def check_adopted(there: Site, artifact: Object) -> None:
    reasons = {each["type"]: each["reason"] for each in artifact["status"]["conditions"]}
    assert reasons["Built"] == "Adopted"
    # The number of an attempt is written before its Job is made, so there never was one.
    assert artifact["status"].get("attempts", 0) == 0
    assert there.jobs(names.ROLE_BUILD) == []
    assert artifact["status"]["location"].startswith(f"{there.registry.host}/artifacts/")


def test_without_weights_nobody_asks_for_the_model(exported: Exported, tmp_path: Path) -> None:
    """In a cluster of its own, as the first import brought the model with it."""
    with site(tmp_path / "site") as alone:
        assert "applied edge/small" in imported(alone, exported.tar)
        artifact = alone.wait_for_artifact("edge", "small")
        assert artifact["spec"]["key"] == exported.keys["edge"]
        check_adopted(alone, artifact)
        assert alone.jobs(names.ROLE_RESOLVE) == []
        small = alone.kubectl("edge").get("mdep", "small")
        assert small is not None
        assert small["spec"]["model"]["source"] == f"oci://{exported.host}/acme/tiny:1"
        assert "applied edge/small" in imported(alone, exported.tar), "once more changes nothing"
        check_renamed_step_is_built(alone)


def check_renamed_step_is_built(alone: Site) -> None:
    """That nothing was built shows something: with another name of the compiler's image, it is."""
    renamed = {**PROFILE, "steps": [{**PROFILE["steps"][0], "image": "mirror.example.com/acme/cc:1"}]}
    text = json.dumps(obj("BuildProfile", "cc", renamed))
    alone.kubectl().run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    wait_until("it is built", lambda: alone.jobs(names.ROLE_BUILD), timeout=120)


def test_an_object_that_says_otherwise_is_not_overwritten_in_silence(there: Site, exported: Exported) -> None:
    mine = obj("AcceleratorResource", "cpu", {**ACCELERATOR, "product": "mine"})
    there.kubectl().run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(mine))
    said = imported(there, exported.whole, code=1)
    assert "conflict" in said
    assert "--force-conflicts" in said
    imported(there, exported.whole, "--force-conflicts")
    assert (there.kubectl().get("accel", "cpu") or {})["spec"]["product"] == "x"


def test_ls_and_watch(there: Site, exported: Exported) -> None:
    listed = there.artifacts("ls", "-A", "-o", "json")
    rows = {row["namespace"]: row for row in json.loads(listed)}
    assert set(rows) == {"team", "edge"}
    row = rows["team"]
    assert (row["key"], row["profile"], row["format"], row["state"]) == (exported.keys["team"], "cc", "f", "Ready")
    assert row["sizeBytes"] > 10_000_000
    assert row["referrers"] == 1
    assert row["name"] in there.artifacts("ls", "-n", "team")
    assert "There are no artifacts." in there.artifacts("ls", "-n", "default")
    assert f"{row['name']}: Ready" in there.artifacts("watch", "-n", "team", "--deployment", "chat")
    assert f"{row['name']}: Ready" in there.artifacts("watch", "-n", "team", row["name"])
    assert "there is no artifact a-none" in there.artifacts("watch", "-n", "team", "a-none", code=1)


def test_export_of_what_is_not_there(there: Site, tmp_path: Path) -> None:
    said = there.artifacts("export", "team/none", "-o", str(tmp_path / "x"), code=1)
    assert "there is no ModelDeployment none in namespace team" in said
    waiting = obj("ModelDeployment", "late", {"model": {"source": "oci://127.0.0.1:1/none:1"}}, "default")
    there.kubectl().apply(waiting)
    said = there.artifacts("export", "late", "-o", str(tmp_path / "x"), code=1)
    assert "late: it is not known yet what its model is" in said
    assert not (tmp_path / "x").exists()
    there.kubectl("default").delete("mdep", "late")
