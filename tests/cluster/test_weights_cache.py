"""The weights cache of a node in a real cluster: pods fetch a model through it, and the chart's registry is its source.

The tests build on one another, in order. The engine is a small server of this file, which is no engine: it answers with
the digest of the weights that its pod was given. Nothing is compiled into the artifact.
"""

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_api import names
from rm_cli import release
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import write_model
from support import ask, deploy, serving_pods, wait_for

Object = dict[str, Any]
CACHE = f"daemonset/{release.RELEASE}-weights-cache"
WEIGHTS = 3 << 20
READY_SECONDS = 300
NOTHING = 'import pathlib; pathlib.Path("/rma/output/result.bin").write_bytes(b"compiled")'
SERVER = """
import hashlib, http.server, json, os, pathlib

digest = hashlib.sha256(pathlib.Path(os.environ["MODEL_DIR"], "model.safetensors").read_bytes()).hexdigest()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"data": [{"id": os.environ["SERVED_NAME"]}]})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.headers.get("Transfer-Encoding") and (size := int(self.rfile.readline(), 16)):
            self.rfile.read(size + 2)
        choice = {"text": digest, "message": {"role": "assistant", "content": digest}}
        self.say({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    def say(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""
SPOIL = """
import pathlib, sys
path = pathlib.Path("/var/lib/weights-cache/blobs", sys.argv[1])
raw = bytearray(path.read_bytes())
raw[len(raw) // 2] ^= 1
path.write_bytes(raw)
"""


def _weights(directory: Path) -> bytes:
    """A model whose weights are large enough for a cache: the numbers say nothing."""
    write_model(directory)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [WEIGHTS // 2], "data_offsets": [0, WEIGHTS]}}).encode()
    raw = struct.pack("<Q", len(header)) + header + hashlib.shake_256(b"weights").digest(WEIGHTS)
    (directory / "model.safetensors").write_bytes(raw)
    return raw


@dataclass(frozen=True)
class Served:
    """A deployment whose pods fetch the weights beside the artifact."""

    kubectl: Kubectl
    installed: Installed
    digest: str
    size: int

    def pod(self, other_than: str = "") -> Object:
        """The pod that serves, once that is another one than before."""

        def found() -> Object | None:
            for each in serving_pods(self.kubectl, "cached"):
                if each["metadata"]["name"] != other_than and condition(each, "Ready").get("status") == "True":
                    return each
            return None

        pod: Object = wait_until(f"no pod serves in place of {other_than or 'none'}", found, timeout=READY_SECONDS)
        return pod

    def replaced(self) -> Object:
        """Another pod in the place of the one that serves."""
        before = self.pod()["metadata"]["name"]
        self.kubectl.delete("pod", before)
        return self.pod(before)

    def told(self, pod: Object) -> Object:
        """What the fetch of the weights reported of the cache; the pod serves the right ones in any case."""
        answer = ask(self.kubectl, "cached", [{"role": "user", "content": "which?"}])
        assert answer["choices"][0]["message"]["content"] == self.digest
        assert not [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume]
        (status,) = [each for each in pod["status"]["initContainerStatuses"] if each["name"] == "fetch-model"]
        report = json.loads(status["state"]["terminated"]["message"])
        cache: Object = report["facts"]["nodeCache"]
        return cache


@pytest.fixture(scope="module")
def served(
    installed: Installed, module_namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The installation with the cache, and a deployment that serves."""
    name = f"cached-{module_namespace.namespace}"
    on_node = f"--set=cache.directory=/var/lib/kubelet/rm-abstract-weights-{module_namespace.namespace}"
    release.install(installed.cluster, installed.references, "--set=cache.enabled=true", on_node)
    image = installed.references["runtime"]
    accelerator = {
        "type": "CPU", "vendor": "Stand-in", "product": "Digest", "allowedNamespaces": [module_namespace.namespace],
        "capability": {"dtypes": ["bf16"], "architectures": ["LlamaForCausalLM"]},
        "runtime": {"image": image, "command": ["python3", "-c", SERVER]},
    }  # fmt: skip
    profile = {
        "target": {"type": "CPU", "vendor": "Stand-in"}, "supports": {"dtypes": ["bf16"]}, "interface": "CLI",
        "steps": [{"name": "nothing", "image": image, "command": ["python3", "-c", NOTHING]}],
        "output": {"format": "stand-in"}, "weightsInArtifact": False, "binds": "Structure",
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as directory:
            raw = _weights(Path(directory))
            source = release.ModelRegistry(installed.cluster).push(Path(directory), "models/cache-test", "1")
        for kind, spec in (("AcceleratorResource", accelerator), ("BuildProfile", profile)):
            made = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
            module_namespace.apply(made)
        deploy(module_namespace, "cached", source, accelerators={"names": [name]}, buildProfile=name)
        wait_for(module_namespace, "cached", "Ready", timeout=READY_SECONDS)
        yield Served(module_namespace, installed, hashlib.sha256(raw).hexdigest(), len(raw))
    finally:
        release.install(installed.cluster, installed.references)
        module_namespace.delete("mdep", "cached")
        for kind in ("accel", "bprof"):
            module_namespace.delete(kind, name, wait=False)


def test_the_next_pod_of_the_node_has_the_weights_from_its_cache(served: Served) -> None:
    first = served.told(served.pod())
    assert first["hits"] + first["filled"] == 1, "the build's Job may have fetched them before"
    assert served.told(served.replaced()) == {"hits": 1, "bytes": served.size, "filled": 0}


def test_wrong_weights_of_the_cache_are_refused_and_put_right(served: Served) -> None:
    spoil = ["exec", CACHE, "-c", "weights-cache", "--", "python3", "-c", SPOIL, served.digest]
    served.installed.system.run(*spoil)
    told = served.told(served.replaced())
    assert (told["hits"], told["filled"]) == (0, 1)
    assert f"for sha256:{served.digest}" in told["trouble"]
    assert served.told(served.replaced()) == {"hits": 1, "bytes": served.size, "filled": 0}


def test_where_the_cache_is_gone_the_weights_come_from_the_source(served: Served) -> None:
    """Its pods were told of one: they are not made anew because it goes."""
    template = served.pod()["metadata"]["labels"]["pod-template-hash"]
    release.install(served.installed.cluster, served.installed.references)
    pod = served.replaced()
    told = served.told(pod)
    assert (told["hits"], told["filled"]) == (0, 0)
    assert told["trouble"]
    assert pod["metadata"]["labels"]["pod-template-hash"] == template
