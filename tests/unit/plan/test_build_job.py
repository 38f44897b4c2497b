"""The Jobs of a build: which containers run in which order, and what each is told, for every interface."""

from typing import Any

import pytest
from chain import FACTS, SETTINGS
from rm_api.dtypes import DType
from rm_api.kinds import BuildProfileSpec, ModelFacts
from rm_api.kinds.build_artifact import BaseArtifact, BuildArtifactSpec, Toolchain
from rm_operator.plan import build_job
from rm_operator.plan.artifact_spec import artifact_spec
from rm_operator.plan.buckets import bucket
from rm_operator.plan.build_job import Devices, Run

Object = dict[str, Any]

FIRST = Run(1)
ARTIFACT: Object = {
    "apiVersion": "rm-abstract.io/v1alpha1",
    "kind": "BuildArtifact",
    "metadata": {"name": "a-x", "namespace": "ns", "uid": "1"},
}
STEP: Object = {
    "name": "compile",
    "image": "acme/cc:1",
    "command": ["acmec", "${MODEL_DIR}"],
    "args": ["-o", "${OUTPUT}"],
}
PROFILE: Object = {
    "target": {"type": "NPU", "vendor": "Acme", "targetString": "x1"},
    "shapes": {"sequence": [2048], "batch": [4]},
    "output": {"format": "acme"},
    "steps": [STEP],
}
CALIBRATION: Object = {
    "name": "Calibration_set", "source": "https://example.org/c.json", "digest": "sha256:" + "1" * 64,
}  # fmt: skip
BASE = BaseArtifact(name="a-base", key="2" * 64, location="store:5000/artifacts/ns/a-base@sha256:" + "3" * 64)


def spec_of(base: BaseArtifact | None = None, toolchain: Toolchain | None = None, **profile: Any) -> BuildArtifactSpec:
    facts = ModelFacts.model_validate({**FACTS, "source": "hf://acme/model"})
    recipe = BuildProfileSpec.model_validate({**PROFILE, **profile})
    return artifact_spec("acme", recipe, facts, DType.FP16, bucket(2048, 4), None, "x86_64", base, toolchain, (), ())


def pod_of(spec: BuildArtifactSpec, run: Run = FIRST) -> Object:
    pod: Object = build_job.render(ARTIFACT, spec, run, SETTINGS)["spec"]["template"]["spec"]
    return pod


def containers(spec: BuildArtifactSpec, run: Run = FIRST) -> dict[str, Object]:
    pod = pod_of(spec, run)
    return {each["name"]: each for each in [*pod["initContainers"], *pod["containers"]]}


def test_an_attempt_of_one_job_fetches_compiles_and_pushes() -> None:
    assert list(containers(spec_of())) == ["launcher", "fetch", "compile", "push"]


def test_everything_that_a_recipe_can_ask_for_comes_in_this_order() -> None:
    spec = spec_of(
        BASE,
        interface="ConfigFile",
        configTemplate={"format": "JSON", "path": "c.json", "content": "{}"},
        inputs=[CALIBRATION],
        check={"image": "acme/cc:1", "command": ["acmec", "--dry-run", "${MODEL_DIR}"]},
        probe={"image": "acme/cc:1", "command": ["acmec", "--verify", "${OUTPUT}"]},
    )
    assert list(containers(spec)) == [
        "launcher", "fetch-config", "check", "fetch", "input-calibration-set", "base", "config", "compile", "probe",
        "push",
    ]  # fmt: skip


def command_of(spec: BuildArtifactSpec, name: str) -> list[str]:
    return list(containers(spec)[name]["command"])


def test_a_dry_run_sees_the_model_without_its_weights_and_blames_the_model() -> None:
    check = {"image": "acme/check:2", "command": ["acmec", "--dry-run", "${MODEL_DIR}"]}
    spec = spec_of(check=check, exitCodes=[{"code": 9, "meaning": "Transient"}])
    assert "--no-weights" in command_of(spec, "fetch-config")
    assert "--no-weights" not in command_of(spec, "fetch")
    assert containers(spec)["check"]["image"] == "acme/check:2"
    assert command_of(spec, "check") == [
        "/rma/bin/rma-launch", "run", "--name=check", "--failure-meaning=UnsupportedModel", "--exit-code=9=Transient",
        "--", "acmec", "--dry-run", "$${MODEL_DIR}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({}, ["run", "--name=compile", "--", "acmec", "$${MODEL_DIR}", "-o", "$${OUTPUT}"]),
        (
            {"interface": "Python", "flags": [{"name": "opt", "value": "3"}],
             "steps": [{**STEP, "command": ["acme.build:main"], "args": ["fast"]}]},
            ["python", "--name=compile", "--flag=opt=3", "--", "acme.build:main", "fast"],
        ),
        (
            {"interface": "Warmup", "steps": [{**STEP, "command": ["vllm", "serve"], "args": []}]},
            ["warmup", "--name=compile", "--sequence=2048", "--batch=4", "--", "vllm", "serve"],
        ),
    ],
    ids=["CLI", "Python", "Warmup"],
)  # fmt: skip
def test_how_each_interface_drives_the_compiler_in_its_image(profile: Object, expected: list[str]) -> None:
    spec = spec_of(**profile)
    assert containers(spec)["compile"]["image"] == "acme/cc:1"
    assert command_of(spec, "compile") == ["/rma/bin/rma-launch", *expected]


def test_a_library_leaves_its_image_and_is_called_in_ours() -> None:
    spec = spec_of(
        interface="SharedLibrary",
        flags=[{"name": "opt", "value": "3"}],
        steps=[{"name": "compile", "image": "acme/lib:1", "command": ["/opt/acme/libacme.so"]}],
    )
    found = containers(spec)
    assert list(found) == ["launcher", "fetch", "compile-library", "compile", "push"]
    assert found["compile-library"]["image"] == "acme/lib:1"
    assert found["compile-library"]["command"][1:] == ["copy", "/opt/acme/libacme.so", "/rma/work/.library"]
    assert found["compile"]["image"] == SETTINGS.images.runtime
    command = found["compile"]["command"]
    assert command[command.index("--") + 1 :][:5] == [
        "python3", "-m", "rm_abstract.native", "compile", "/rma/work/.library/libacme.so",
    ]  # fmt: skip
    assert {"--max-sequence-length=2048", "--max-batch-size=4", "--option=opt=3"} <= set(command)


def test_a_check_has_an_environment_and_patterns_and_the_inputs_that_it_names() -> None:
    digest = "sha256:" + "1" * 64
    inputs = [
        {"name": name, "source": f"https://files/{name}", "digest": digest} for name in ("arch", "calibration", "rules")
    ]
    check = {
        "image": "acme/check:2",
        "command": ["acmec", "--dry-run", "--arch=${INPUT_arch}/arch.json", "$${INPUT_calibration}"],
        "env": [{"name": "RULES", "value": "${INPUT_rules}"}],
        "successPattern": "supported: yes",
        "failurePattern": "^ERROR $5",
    }
    spec = spec_of(check=check, inputs=inputs)
    found = containers(spec)
    assert list(found)[:7] == [
        "launcher", "fetch-config", "input-arch", "input-rules", "check", "fetch", "input-calibration",
    ]  # fmt: skip
    assert command_of(spec, "check") == [
        "/rma/bin/rma-launch", "run", "--name=check", "--failure-meaning=UnsupportedModel",
        "--success-pattern=supported: yes", "--failure-pattern=^ERROR $$5", "--",
        "acmec", "--dry-run", "--arch=$${INPUT_arch}/arch.json", "$$$${INPUT_calibration}",
    ]  # fmt: skip
    assert {"name": "RULES", "value": "$${INPUT_rules}"} in found["check"]["env"]
    assert {"name": "inputs", "mountPath": "/rma/inputs", "readOnly": True} in found["check"]["volumeMounts"]


def test_a_later_job_has_all_inputs_whoever_names_them() -> None:
    digest = "sha256:" + "1" * 64
    spec = spec_of(
        steps=[
            {"name": "compile", "image": "i", "command": ["c"]},
            {"name": "tune", "image": "i", "command": ["c"], "requiresDevice": True},
        ],
        check={"image": "i", "command": ["c", "${INPUT_arch}"]},
        inputs=[{"name": "arch", "source": "https://files/arch", "digest": digest}],
    )
    devices = Devices("npu", {}, {}, [])
    later = containers(spec, Run(1, 1, devices=devices))
    assert "input-arch" in later
    assert "check" not in later


def test_steps_on_a_device_run_in_jobs_of_their_own_and_go_on_where_the_last_one_ended() -> None:
    steps = [STEP, {**STEP, "name": "tune", "requiresDevice": True}, {**STEP, "name": "pack"}]
    spec = spec_of(steps=steps, check={"image": "i", "command": ["c"]})
    devices = Devices("npu", {"acme.com/npu": "1"}, {"pool": "npu"}, [{"key": "npu", "operator": "Exists"}])
    first, second, third = (
        containers(spec, Run(1, stage, devices=devices if stage == 1 else None)) for stage in range(3)
    )
    assert list(first) == ["launcher", "fetch-config", "check", "fetch", "compile", "push"]
    assert list(second) == ["launcher", "fetch", "earlier", "tune", "push"]
    assert list(third) == ["launcher", "fetch", "earlier", "pack", "push"]
    reference = "--reference=store:5000/artifacts/ns/a-x:"
    assert first["push"]["command"][:4] == ["rm-abstract", "stage", "push", f"{reference}stage-1"]
    assert second["earlier"]["command"][:4] == ["rm-abstract", "stage", "fetch", f"{reference}stage-1"]
    assert second["push"]["command"][:4] == ["rm-abstract", "stage", "push", f"{reference}stage-2"]
    assert third["earlier"]["command"][:4] == ["rm-abstract", "stage", "fetch", f"{reference}stage-2"]
    assert third["push"]["command"][:2] == ["rm-abstract", "push"]
    # One device, for the step that needs it: a pod asks for the most that any of its containers asks for.
    limited = [name for name, each in second.items() if "acme.com/npu" in each.get("resources", {}).get("limits", {})]
    assert limited == ["tune"]
    pod = pod_of(spec, Run(1, 1, devices=devices))
    assert pod["nodeSelector"] == {"pool": "npu"}
    assert pod["tolerations"] == [{"key": "npu", "operator": "Exists"}]
    assert not any("acme.com/npu" in str(each) for each in (first, third))


def test_the_jobs_of_an_attempt_are_told_apart_by_a_label_and_a_number() -> None:
    spec = spec_of(steps=[STEP, {**STEP, "name": "tune", "requiresDevice": True}])
    second = build_job.render(ARTIFACT, spec, Run(3, 1), SETTINGS)
    assert second["metadata"]["name"] == "b-x-3-2"
    assert second["metadata"]["labels"]["rm-abstract.io/stage"] == "2"
    assert "rm-abstract.io/stage" not in build_job.render(ARTIFACT, spec_of(), Run(3), SETTINGS)["metadata"]["labels"]


def test_inputs_are_where_their_variables_say() -> None:
    step = {**STEP, "args": ["${INPUT_Calibration_set}/c.json", "${INPUT_from}"]}
    found = containers(spec_of(BASE, inputs=[CALIBRATION], steps=[step]))
    environment = {each["name"]: each["value"] for each in found["compile"]["env"]}
    fetched = {name: found[name]["command"] for name in ("input-calibration-set", "base")}
    for variable, name in (("INPUT_Calibration_set", "input-calibration-set"), ("INPUT_from", "base")):
        assert f"--dest={environment[variable]}" in fetched[name]
    mounted = {each["mountPath"]: each for each in found["compile"]["volumeMounts"]}
    assert mounted["/rma/inputs"]["readOnly"] is True
    assert f"--digest={CALIBRATION['digest']}" in fetched["input-calibration-set"]
    assert f"--reference={BASE.location}" in fetched["base"]


@pytest.mark.parametrize(
    ("model", "optional"),
    [("hf://acme/model", {"credentials-aws"}), ("s3://models/acme", {"credentials"}),
     ("pvc://shelf/acme", {"credentials", "credentials-aws"})],
)  # fmt: skip
def test_an_input_is_fetched_with_the_key_of_its_own_scheme(model: str, optional: set[str]) -> None:
    sources = {"web": "https://example.org/c.json", "bucket": "s3://data/c", "more": "s3://data/d"}
    inputs = [{**CALIBRATION, "name": name, "source": source} for name, source in sources.items()]
    facts = ModelFacts.model_validate({**FACTS, "source": model})
    recipe = BuildProfileSpec.model_validate({**PROFILE, "inputs": inputs})
    spec = artifact_spec("acme", recipe, facts, DType.FP16, bucket(2048, 4), "keys", "x86_64", None, None, (), ())
    found = containers(spec)
    given = {
        name: {each["name"] for each in found[name]["volumeMounts"]} & {"credentials", "credentials-aws", "source"}
        for name in ("input-web", "input-bucket", "input-more", "compile", "push")
    }
    assert given == {
        "input-web": {"credentials"}, "input-bucket": {"credentials-aws"}, "input-more": {"credentials-aws"},
        "compile": set(), "push": set(),
    }  # fmt: skip
    # The Secret is of the model's source: what an input would need may be missing, and the container then says so.
    volumes = {each["name"]: each["secret"] for each in pod_of(spec)["volumes"] if "secret" in each}
    assert {name for name, secret in volumes.items() if secret.get("optional")} == optional
    assert set(volumes) == {"credentials", "credentials-aws"}
    assert {secret["items"][0]["key"] for secret in volumes.values()} == {"netrc", "aws"}


def test_secrets_are_files_for_the_steps_and_for_nobody_else() -> None:
    spec = spec_of(secretRefs=[{"name": "acme-licence"}])
    readers = {
        name
        for name, each in containers(spec).items()
        if any(mount["mountPath"] == "/rma/secrets/acme-licence" for mount in each["volumeMounts"])
    }
    assert readers == {"compile"}
    (volume,) = [each for each in pod_of(spec)["volumes"] if "secret" in each]
    assert volume["secret"]["secretName"] == "acme-licence"


def test_a_template_reaches_its_writer_with_its_dollars() -> None:
    template = {"format": "YAML", "path": "sub/c.yaml", "content": "path: ${MODEL_DIR}\nprice: $$5\n"}
    found = containers(spec_of(interface="ConfigFile", configTemplate=template))["config"]
    environment = {each["name"]: each["value"] for each in found["env"]}
    assert found["command"] == ["rm-abstract", "config", "--format=YAML", "--dest=/rma/work/sub/c.yaml"]
    # The kubelet halves dollars.
    assert environment["RMA_CONFIG_TEMPLATE"].replace("$$", "$") == template["content"]
    assert environment["MODEL_DIR"] == "/rma/model"


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [({}, None, None), ({}, "8Gi", "8Gi"), ({"memory": "4Gi"}, "8Gi", "8Gi"), ({"memory": "16Gi"}, "8192Mi", "16Gi")],
)
def test_a_step_gets_the_memory_that_was_found_to_be_needed(
    own: Object, given: str | None, expected: str | None
) -> None:
    found = containers(spec_of(steps=[{**STEP, "resources": own}]), Run(1, memory=given))["compile"]
    assert found.get("resources", {}).get("limits", {}).get("memory") == expected


def test_images_are_run_by_the_digest_that_counts_for_the_key() -> None:
    digest = "sha256:" + "f" * 64
    toolchain = Toolchain.model_validate({"images": [{"image": "registry:5000/acme/cc:1", "digest": digest}]})
    steps = [{**STEP, "image": "registry:5000/acme/cc:1"}, {**STEP, "name": "pack", "image": "acme/pack:2"}]
    found = containers(spec_of(toolchain=toolchain, steps=steps))
    assert found["compile"]["image"] == f"registry:5000/acme/cc@{digest}"
    assert found["pack"]["image"] == "acme/pack:2"


def test_nodes_that_cannot_and_nodes_that_should_not() -> None:
    affinity = pod_of(spec_of(), Run(2, excluded=("n1",), avoided=("n2",), accelerators=("npu", "gpu")))["affinity"]
    nodes = affinity["nodeAffinity"]
    (required,) = nodes["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert required["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"]}]
    elsewhere, without_devices = nodes["preferredDuringSchedulingIgnoredDuringExecution"]
    assert elsewhere["preference"]["matchExpressions"][0]["values"] == ["n2"]
    assert {each["key"] for each in without_devices["preference"]["matchExpressions"]} == {
        "driver.rm-abstract.io/npu", "driver.rm-abstract.io/gpu",
    }  # fmt: skip
    assert elsewhere["weight"] > without_devices["weight"]
    assert "affinity" not in pod_of(spec_of())


@pytest.mark.parametrize(
    ("announced", "drivers", "flags"),
    [
        (True, [], ["--require-devices=1"]),
        (True, ["1.4.0", "1.5$"], ["--require-devices=1", "--require-driver=1.4.0", "--require-driver=1.5$$"]),
        (False, ["1.4.0"], []),
    ],
)
def test_a_step_on_a_device_of_our_plugin_looks_at_it_first(
    announced: bool, drivers: list[str], flags: list[str]
) -> None:
    steps = [{"name": "tune", "image": "i", "command": ["c"], "requiresDevice": True}]
    spec = spec_of(steps=steps).model_copy(update={"drivers": drivers})
    run = Run(1, devices=Devices("npu", {"acme.com/npu": "1"}, {}, [], announced=announced))
    command = containers(spec, run)["tune"]["command"]
    assert command == ["/rma/bin/rma-launch", "run", "--name=tune", *flags, "--", "c"]
