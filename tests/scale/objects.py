"""What the benchmarks put into the cluster: a fleet, a model that everybody serves, and other people's pods."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from rm_api import names
from rm_api.kinds.model_deployment import ModelSource
from rm_operator.kube.resources import Resource
from rm_operator.plan import resolve

from scale.etcd import Entry

Object = dict[str, Any]

RESOURCE_NAME = "acme.com/npu"
SOURCE = "oci://registry.example:5000/models/llama:1"
DEVICES_PER_NODE = 8
_DIGEST = "sha256:" + "a" * 64
CREATED = "2026-01-01T00:00:00Z"
FACTS: Object = {
    "source": SOURCE,
    "revision": "sha256:" + "b" * 64,
    "architecture": "LlamaForCausalLM",
    "parameters": 1_000_000_000,
    "activeParameters": 1_000_000_000,
    "weightBytes": 2_000_000_000,
    "dtype": "bf16",
    "layers": 16,
    "heads": 32,
    "kvHeads": 8,
    "headDim": 64,
    "maxSequenceLength": 131072,
    "configDigest": _DIGEST,
    "tensorsDigest": _DIGEST,
    "weightsDigest": _DIGEST,
}


def accelerator(name: str = "npu", **spec: Any) -> Object:
    """An AcceleratorResource whose devices the vendor's own plugin advertises."""
    body = {
        "type": "NPU",
        "vendor": "Acme",
        "product": "X1",
        "resourceName": RESOURCE_NAME,
        "capability": {"dtypes": ["fp16", "bf16"], "maxBatchSize": 64, "maxSequenceLength": 16384},
        "performance": {"memoryGiB": 48, "bandwidthGBps": 1500, "tflops": [{"dtype": "fp16", "value": 256}]},
        "power": {"idleWatts": 30, "maxWatts": 180},
        "cost": {"perHour": "1.20", "currency": "USD"},
        "runtime": {"plugin": "acme", "image": "acme/serve:1"},
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": name},
        "spec": body | spec,
    }


def profile(name: str = "acme", **spec: Any) -> Object:
    """A BuildProfile for ``accelerator``."""
    step = {"name": "compile", "image": "acme/cc:1", "command": ["acme-cc", "${MODEL_DIR}", "-o", "${OUTPUT}"]}
    body = {
        "target": {"type": "NPU", "vendor": "Acme", "products": ["X1"], "targetString": "x1"},
        "supports": {"dtypes": ["fp16", "bf16"]},
        "steps": [step],
        "output": {"format": "acme"},
    }
    return {"apiVersion": names.API_VERSION, "kind": "BuildProfile", "metadata": {"name": name}, "spec": body | spec}


def deployment(namespace: str, name: str, **spec: Any) -> Object:
    """A ModelDeployment of the model that everybody serves."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"model": {"source": SOURCE}, **spec},
    }


def facts_map(namespace: str) -> Object:
    """The ConfigMap by which the model counts as resolved in ``namespace``; nobody owns it."""
    hash_ = resolve.source_hash(ModelSource(source=SOURCE))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "namespace": namespace,
            "name": resolve.config_map_name(hash_),
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_MODEL: hash_},
        },
        "immutable": True,
        "data": {resolve.FACTS_KEY: json.dumps(FACTS, sort_keys=True, separators=(",", ":"))},
    }


def built(artifact: Mapping[str, Any], users: int) -> Object:
    """The status of ``artifact`` once it is in the store."""
    generation = artifact["metadata"].get("generation", 1)
    digest = "sha256:" + "d" * 64
    location = f"store.example:5000/artifacts/{artifact['metadata']['name']}@{digest}"

    def condition(kind: str, reason: str, message: str) -> Object:
        return {
            "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": CREATED,
            "observedGeneration": generation,
        }  # fmt: skip

    return {
        "observedGeneration": generation,
        "attempts": 1,
        "failures": 0,
        "location": location,
        "digest": digest,
        "sizeBytes": 2_000_000_000,
        "referrerCount": users,
        "conditions": [
            condition("Ready", "Ready", "built and in the store"),
            condition("Built", "Built", location),
        ],
    }


def node(number: int, devices: int = DEVICES_PER_NODE, *, resource_name: str = RESOURCE_NAME) -> Object:
    """A node as a cloud makes it, with ``devices`` accelerators (0: none) and a list of pulled images."""
    name = f"node-{number:05d}"
    amounts = {"cpu": "64", "memory": "263823240Ki", "ephemeral-storage": "203056560Ki", "pods": "110"}
    amounts |= {resource_name: str(devices)} if devices else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "x1.16xlarge",
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": f"region-1{'abc'[number % 3]}",
            },
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": f"10.{number // 256}.{number % 256}.0/24", "providerID": f"cloud:///region-1/i-{number:017x}"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"172.16.{number // 256}.{number % 256}"}],
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [
                {
                    "type": kind,
                    "status": "True" if kind == "Ready" else "False",
                    "reason": f"Kubelet{kind}",
                    "message": "kubelet is posting ready status",
                    "lastHeartbeatTime": CREATED,
                    "lastTransitionTime": CREATED,
                }
                for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
            ],
            "images": [
                {"names": [f"registry.example/{image}@{_DIGEST}", f"registry.example/{image}:v1"], "sizeBytes": 10**8}
                for image in range(50)
            ],
            "nodeInfo": {
                "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.2.9",
                "kernelVersion": "6.18.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.1", "machineID": "m",
                "operatingSystem": "linux", "osImage": "Linux", "systemUUID": "s",
            },
        },
    }  # fmt: skip


def foreign_pod(number: int, nodes: int, *, devices: int = 0, resource_name: str = RESOURCE_NAME) -> Object:
    """A pod of somebody else's Deployment as it is while it runs; with ``devices`` it holds accelerators."""
    app = f"app-{number // 20:05d}"
    name, namespace = f"{app}-5d8f7c9b6-{number:06d}", f"team-{number % 100:03d}"
    limits = {"cpu": "2", "memory": "4Gi"} | ({resource_name: str(devices)} if devices else {})
    token = {
        "name": "kube-api-access",
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ],
        },
    }
    probe = {
        "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1,
        "successThreshold": 1, "failureThreshold": 3,
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "generateName": f"{app}-5d8f7c9b6-",
            "labels": {"app": app, "team": namespace, "pod-template-hash": "5d8f7c9b6"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{app}-5d8f7c9b6", "controller": True,
                    "uid": f"00000000-0000-4000-9000-{number // 20:012x}", "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "nodeName": f"node-{number % nodes:05d}",
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30,
            "containers": [
                {
                    "name": "app",
                    "image": f"registry.example/{app}@{_DIGEST}",
                    "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": f"SETTING_{each}", "value": f"value-{each}"} for each in range(8)],
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "resources": {"limits": limits, "requests": limits},
                    "livenessProbe": probe,
                    "readinessProbe": probe,
                    "volumeMounts": [
                        {
                            "name": "kube-api-access", "readOnly": True,
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        }
                    ],
                }
            ],
            "tolerations": [
                {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": effect, "tolerationSeconds": 300}
                for key, effect in (("not-ready", "NoExecute"), ("unreachable", "NoExecute"))
            ],
            "volumes": [token],
        },
        "status": {
            "phase": "Running",
            "podIP": f"10.{number % nodes // 256}.{number % nodes % 256}.{number // nodes + 2}",
            "startTime": CREATED,
            "qosClass": "Guaranteed",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": CREATED}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": "app", "image": f"registry.example/{app}@{_DIGEST}", "imageID": f"sha256:{number:064x}",
                    "containerID": f"containerd://{number:064x}", "ready": True, "started": True, "restartCount": 0,
                    "state": {"running": {"startedAt": CREATED}},
                }
            ],
        },
    }  # fmt: skip


def uid(prefix: str, number: int) -> str:
    """A uid; ``prefix`` is eight hexadecimal digits."""
    return f"{prefix}-0000-4000-8000-{number:012x}"


def managed_fields(obj: Mapping[str, Any], manager: str, *, subresource: str = "") -> Object:
    """A managedFields entry that owns what ``obj`` says, of about the size that the API server's own has."""
    said = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
    metadata = {name: value for name, value in obj.get("metadata", {}).items() if name in _OWNED_METADATA}
    owned = ({"metadata": metadata} if metadata else {}) | said
    entry = {
        "manager": manager, "operation": "Apply", "apiVersion": obj["apiVersion"], "time": CREATED,
        "fieldsType": "FieldsV1", "fieldsV1": _fields(owned, _ATOMIC.get(obj.get("kind", ""), frozenset())),
    }  # fmt: skip
    return entry | ({"subresource": subresource} if subresource else {})


_OWNED_METADATA = ("annotations", "labels", "ownerReferences")
_ATOMIC: Mapping[str, frozenset[str]] = {"ControllerRevision": frozenset({"data"})}
_ATOMIC_IN: Mapping[str, frozenset[str]] = {"status": frozenset({"model", "placement"})}
"""Members of a kind, and of a member, that are owned as a whole, as the schemas say."""


def seen_to(deployment: Object) -> Object:
    """An apps/v1 Deployment of no pods as the cluster's own controller leaves it."""
    metadata, revision = deployment["metadata"], "deployment.kubernetes.io/revision"
    progressed = f'ReplicaSet "{metadata["name"]}-7d9f8b6c54" has successfully progressed.'
    told = [
        ("Progressing", "NewReplicaSetAvailable", progressed),
        ("Available", "MinimumReplicasAvailable", "Deployment has minimum availability."),
    ]
    conditions = [
        {
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": CREATED, "lastUpdateTime": CREATED,
        }
        for kind, reason, message in told
    ]  # fmt: skip
    said = {
        "apiVersion": deployment["apiVersion"],
        "metadata": {"annotations": {revision: "1"}},
        "status": {"conditions": conditions, "observedGeneration": 1},
    }
    fields = managed_fields(said, "kube-controller-manager", subresource="status") | {"operation": "Update"}
    annotations = {**(metadata.get("annotations") or {}), revision: "1"}
    kept = {**metadata, "annotations": annotations, "managedFields": [*metadata["managedFields"], fields]}
    return {**deployment, "metadata": kept, "status": said["status"]}


def _fields(value: Mapping[str, Any], atomic: frozenset[str] = frozenset()) -> Object:
    found: Object = {}
    for name, member in value.items():
        if name in atomic:
            found[f"f:{name}"] = {}
        elif isinstance(member, Mapping):
            found[f"f:{name}"] = _fields(member, _ATOMIC_IN.get(name, frozenset()))
        elif name == "ownerReferences":
            found[f"f:{name}"] = {f'k:{{"uid":"{each["uid"]}"}}': {} for each in member}
        elif isinstance(member, list) and (key := _key_of(member)) is not None:
            found[f"f:{name}"] = {
                f'k:{{"{key}":"{each[key]}"}}': {".": {}, **_fields(each)} for each in member
            }  # fmt: skip
        else:
            found[f"f:{name}"] = {}
    return found


def _key_of(members: list[Any]) -> str | None:
    """The member that tells them apart, where they are objects that have one."""
    return next(
        (key for key in ("name", "type") if members and all(isinstance(e, Mapping) and key in e for e in members)), None
    )


def entry(resource: Resource, obj: Mapping[str, Any]) -> Entry:
    """``obj`` as it is kept in etcd. It must have a uid."""
    metadata = {"creationTimestamp": CREATED, "generation": 1, **obj["metadata"]}
    metadata.pop("resourceVersion", None)
    # The group is part of the key for custom resources only, and a few built-in kinds are kept under older names.
    folder = _FOLDERS.get(resource.plural) or "/".join(
        filter(None, (resource.group if "." in resource.group else "", resource.plural))
    )
    key = "/".join(filter(None, ("/registry", folder, metadata.get("namespace"), metadata["name"])))
    return key, orjson.dumps({**obj, "metadata": metadata})


_FOLDERS: Mapping[str, str] = {
    "nodes": "minions",
    "services": "services/specs",
    "endpointslices": "endpointslices",
}


def foreign_entries(nodes: int, pods: int) -> Iterator[Entry]:
    """``nodes`` nodes, half of them with accelerators, and ``pods`` pods, of which one in a hundred holds some."""
    from rm_operator.kube.resources import NODES, PODS

    for number in range(nodes):
        yield entry(NODES, _stored(node(number, DEVICES_PER_NODE * (number % 2)), uid("e0000000", number)))
    for number in range(pods):
        devices = 1 if number % 100 == 1 else 0
        yield entry(PODS, _stored(foreign_pod(number, nodes, devices=devices), uid("f0000000", number)))


def _stored(obj: Object, its_uid: str) -> Object:
    fields = [managed_fields(obj, "manager")]
    return {**obj, "metadata": {**obj["metadata"], "uid": its_uid, "managedFields": fields}}


def namespaces(prefix: str, count: int) -> list[str]:
    """Names of ``count`` namespaces."""
    return [f"{prefix}-{number:05d}" for number in range(count)]


def in_namespaces(spaces: Iterable[str], each: int, *, prefix: str = "model", **spec: Any) -> Iterator[Object]:
    """``each`` ModelDeployments in every namespace, one namespace after another."""
    for space in spaces:
        for number in range(each):
            yield deployment(space, f"{prefix}-{number:03d}", **spec)
