"""The artifact's key: what must change it, what must not, and that it never changes by accident."""

import hashlib
import json
import re
import unicodedata
from typing import Any

import pytest
from rm_api.build_steps import Step
from rm_api.dtypes import DType
from rm_api.kinds import BuildProfileSpec, ModelFacts
from rm_api.kinds.build_artifact import ShapeBucket, Toolchain
from rm_operator.plan.key import KeyInputs, artifact_key, artifact_name, canonical, expand

FACTS: dict[str, Any] = {
    "source": "hf://org/model",
    "revision": "0123",
    "architecture": "LlamaForCausalLM",
    "parameters": 8_000_000_000,
    "activeParameters": 8_000_000_000,
    "weightBytes": 16_000_000_000,
    "dtype": "bf16",
    "layers": 32,
    "heads": 32,
    "kvHeads": 8,
    "headDim": 128,
    "maxSequenceLength": 8192,
    "configDigest": "sha256:" + "a" * 64,
    "tensorsDigest": "sha256:" + "b" * 64,
    "weightsDigest": "sha256:" + "c" * 64,
}
PROFILE: dict[str, Any] = {
    "target": {"type": "NPU", "vendor": "Acme", "products": ["X1", "X2"], "targetString": "x1-a"},
    "supports": {"architectures": ["LlamaForCausalLM"], "dtypes": ["fp16"]},
    "steps": [
        {
            "name": "export",
            "image": "example.org/export@sha256:" + "d" * 64,
            "command": ["export", "--model", "${MODEL_DIR}"],
            "args": ["--dtype", "${DTYPE}", "--seq=${MAX_SEQ}"],
            "env": [{"name": "THREADS", "value": "4"}, {"name": "ARCH", "value": "${TARGET}"}],
            "outputs": ["model.xml"],
            "resources": {"cpu": "2"},
        },
        {"name": "link", "image": "example.org/link:1", "command": ["link", "${WORK}", "${OUTPUT}"]},
    ],
    "shapes": {"sequence": [4096], "batch": [8]},
    "compatibility": {"driver": ["1.4.0", "1.5.0"]},
    "output": {"format": "acme-blob"},
}
FORMAT_VERSION_1 = (
    '{"drivers":["1.4.0","1.5.0"],"dtype":"fp16","format":"acme-blob","isa":"amd64",'
    '"model":{"config":"sha256:' + "a" * 64 + '","tensors":"sha256:' + "b" * 64 + '","weights":"sha256:' + "c" * 64
    + '"},"parallel":{"pipeline":1,"tensor":1},"schema":1,"shape":{"batch":8,"sequence":4096},'
    '"steps":[{"argv":["export","--model","${MODEL_DIR}","--dtype","fp16","--seq=4096"],'
    '"env":{"ARCH":"x1-a","THREADS":"4"},"image":"example.org/export@sha256:' + "d" * 64 + '"},'
    '{"argv":["link","${WORK}","${OUTPUT}"],"env":{},"image":"example.org/link:1"}],'
    '"target":{"products":["X1","X2"],"string":"x1-a","type":"NPU","vendor":"Acme"}}'
)  # fmt: skip
CALIBRATION = {"name": "calibration", "source": "https://example.org/c.json", "digest": "sha256:" + "1" * 64}
BUCKET = {"maxSequenceLength": 4096, "maxBatchSize": 8}


def merged(base: Any, path: str, value: Any) -> Any:
    """``base`` with the member at the dotted ``path`` replaced; an empty path leaves it."""
    if not path:
        return base
    head, _, rest = path.partition(".")
    if isinstance(base, list):
        return [merged(one, rest, value) if i == int(head) and rest else one for i, one in enumerate(base)]
    return {**base, head: merged(base.get(head), rest, value) if rest else value}


def inputs(
    profile: tuple[str, Any] = ("", None),
    facts: tuple[str, Any] = ("", None),
    dtype: DType = DType.FP16,
    bucket: dict[str, int] | None = None,
    isa: str = "amd64",
    base: str | None = None,
    toolchain: dict[str, Any] | None = None,
    of: dict[str, Any] = PROFILE,
) -> KeyInputs:
    return KeyInputs.from_profile(
        BuildProfileSpec.model_validate(merged(of, *profile)),
        ModelFacts.model_validate(merged(FACTS, *facts)),
        dtype,
        ShapeBucket.model_validate(BUCKET if bucket is None else bucket),
        isa,
        base=base,
        toolchain=None if toolchain is None else Toolchain.model_validate(toolchain),
    )


def test_the_canonical_form_of_schema_version_1_is_this_text_and_the_key_its_hash() -> None:
    assert canonical(inputs()).decode() == FORMAT_VERSION_1
    assert artifact_key(inputs()) == hashlib.sha256(FORMAT_VERSION_1.encode()).hexdigest()
    assert artifact_key(inputs()) == "3c1fd473d468f2619b0f96f89cbe036a705b6128dbd946a3f2879848c57d7d4e"
    assert artifact_name(artifact_key(inputs())) == "a-hqp5i46undzgdgyps34jzpqdnj"


@pytest.mark.parametrize(
    "changed",
    [
        {"facts": ("configDigest", "sha256:" + "e" * 64)},
        {"facts": ("tensorsDigest", "sha256:" + "e" * 64)},
        {"facts": ("weightsDigest", "sha256:" + "e" * 64)},
        {"profile": ("target.type", "FPGA")},
        {"profile": ("target.vendor", "acme")},
        {"profile": ("target.products", ["X1"])},
        {"profile": ("target.targetString", "x1-b")},
        {"profile": ("steps.0.image", "example.org/export@sha256:" + "e" * 64)},
        {"profile": ("steps.0.command", ["export", "-v", "--model", "${MODEL_DIR}"])},
        {"profile": ("steps.0.args", ["--dtype", "${DTYPE}"])},
        {"profile": ("steps.0.args", ["--dtype ${DTYPE}", "--seq=${MAX_SEQ}"])},
        {"profile": ("steps.0.env", [{"name": "THREADS", "value": "4"}])},
        {"profile": ("steps.0.env", [{"name": "THREADS", "value": "5"}, {"name": "ARCH", "value": "${TARGET}"}])},
        {"profile": ("steps.1.command", ["link", "${OUTPUT}", "${WORK}"])},
        {"profile": ("steps", PROFILE["steps"][::-1])},
        {"profile": ("steps", PROFILE["steps"][:1])},
        {"profile": ("compatibility.driver", ["1.4.0"])},
        {"profile": ("output.format", "acme-blob-2")},
        {"dtype": DType.INT8},
        {"bucket": {"maxSequenceLength": 8192, "maxBatchSize": 8}},
        {"bucket": {"maxSequenceLength": 4096, "maxBatchSize": 16}},
        {"bucket": {"maxSequenceLength": 4096}},
        {"bucket": {**BUCKET, "prefillChunk": 512}},
        {"bucket": {**BUCKET, "prefillChunk": 1024}},
        {"bucket": {**BUCKET, "tensorParallel": 2}},
        {"bucket": {**BUCKET, "tensorParallel": 4}},
        {"bucket": {**BUCKET, "pipelineParallel": 2}},
        {"bucket": {**BUCKET, "lora": {"maxRank": 16, "maxAdapters": 4}}},
        {"isa": "arm64"},
        {"profile": ("interface", "Python")},
        {"profile": ("interface", "SharedLibrary")},
        {"profile": ("interface", "Warmup")},
        {"profile": ("steps.0.requiresDevice", True)},
        {"profile": ("flags", [{"name": "opt", "value": "3"}])},
        {"profile": ("inputs", [CALIBRATION])},
        {"profile": ("weightsInArtifact", False)},
        {"profile": ("dtypeNames", [{"dtype": "fp16", "name": "float16"}])},
        {"base": "1" * 64},
        {"toolchain": {"versions": {"acmec": "2.1.0"}}},
        {"toolchain": {"images": [{"image": "example.org/link:1", "digest": "sha256:" + "f" * 64}]}},
    ],
    ids=str,
)
def test_what_can_change_the_result_changes_the_key(changed: dict[str, Any]) -> None:
    assert artifact_key(inputs(**changed)) != artifact_key(inputs())


@pytest.mark.parametrize(
    "changed",
    [
        {"facts": ("source", "oci://example.org/copy:1")},
        {"facts": ("revision", "main")},
        {"profile": ("target.products", ["X2", "X1", "X1"])},
        {"profile": ("compatibility.driver", ["1.5.0", "1.4.0"])},
        {"profile": ("priority", 7)},
        {"profile": ("dtypeNames", [{"dtype": "bf16", "name": "bfloat16"}, {"dtype": "fp16", "name": "fp16"}])},
        {"profile": ("supports", {})},
        {"profile": ("shapes", {"sequence": [1024, 4096], "batch": [8, 64]})},
        {"profile": ("shapes", {"tensorParallel": [1, 2], "pipelineParallel": [1, 2], "prefillChunk": [512]})},
        {"profile": ("probe", {"image": "example.org/probe", "command": ["probe"]})},
        {"profile": ("resources", {"memory": "64Gi"})},
        {"profile": ("scratch", "1Gi")},
        {"profile": ("timeoutSeconds", 60)},
        {"profile": ("exitCodes", [{"code": 3, "meaning": "Transient"}])},
        {"profile": ("steps.0.name", "other")},
        {"profile": ("steps.0.outputs", ["*.xml", "*.bin"])},
        {"profile": ("steps.0.resources", {"memory": "1Gi"})},
        {"profile": ("steps.0.successPattern", "done")},
        {"profile": ("steps.0.failurePattern", "error")},
        {"profile": ("steps.0.env", PROFILE["steps"][0]["env"][::-1])},
        {"profile": ("steps.0.args", ["--dtype", "fp16", "--seq=4096"])},
        {"facts": ("scalesDigest", "sha256:" + "e" * 64)},
        {"profile": ("check", {"image": "example.org/check", "command": ["check"]})},
        {"profile": ("versionProbe", {"image": "example.org/export", "command": ["export", "--version"]})},
        {"profile": ("maxMemory", "64Gi")},
        {"profile": ("parallelBuilds", 2)},
        {"profile": ("secretRefs", [{"name": "licence"}])},
    ],
    ids=str,
)
def test_what_cannot_change_the_result_leaves_the_key(changed: dict[str, Any]) -> None:
    assert artifact_key(inputs(**changed)) == artifact_key(inputs())


def test_command_and_arguments_are_one_list() -> None:
    whole = merged(merged(PROFILE, "steps.1.command", ["link"]), "steps.1.args", ["${WORK}", "${OUTPUT}"])
    moved = KeyInputs.from_profile(
        BuildProfileSpec.model_validate(whole),
        ModelFacts.model_validate(FACTS),
        DType.FP16,
        ShapeBucket.model_validate(BUCKET),
        "amd64",
    )
    assert artifact_key(moved) == artifact_key(inputs())


def test_the_order_and_layout_of_the_yaml_do_not_matter() -> None:
    def backwards(value: Any) -> Any:
        return {k: backwards(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    again = json.loads(json.dumps(backwards(PROFILE), indent=4))
    key = KeyInputs.from_profile(
        BuildProfileSpec.model_validate(again),
        ModelFacts.model_validate(backwards(FACTS)),
        DType.FP16,
        ShapeBucket.model_validate(BUCKET),
        "amd64",
    )
    assert artifact_key(key) == artifact_key(inputs())


def test_two_spellings_of_one_unicode_text_are_one_key() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Société") for form in ("NFC", "NFD"))
    assert composed != decomposed
    first = inputs(profile=("target.vendor", composed))
    assert artifact_key(first) == artifact_key(inputs(profile=("target.vendor", decomposed)))


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("${DTYPE}-${TP}${PP}", "fp16-11"),
        ("${MODEL_DIR}/x", "${MODEL_DIR}/x"),
        ("$${DTYPE}", "$${DTYPE}"),
        ("$$$${DTYPE}", "$$$${DTYPE}"),
        ("costs $5", "costs $$5"),
        ("costs $$5", "costs $$5"),
        ("${TARGET}", "a$${DTYPE}"),
        ("${UNKNOWN}", "${UNKNOWN}"),
        ("end$", "end$$"),
        ("${DTYPE", "$${DTYPE"),
    ],
)
def test_variables_are_replaced_once_and_a_literal_dollar_stays_one(argument: str, expanded: str) -> None:
    values = {"DTYPE": "fp16", "TP": "1", "PP": "1", "TARGET": "a${DTYPE}"}
    step = Step(name="s", image="i", command=["c", argument], env=[{"name": "E", "value": argument}])
    assert expand(step, values).argv == ("c", expanded)
    assert expand(step, values).env == (("E", expanded),)


def test_a_value_that_looks_like_a_path_variable_is_not_one() -> None:
    base = ("steps.1.command", ["link", "${TARGET}"])
    literal = merged(merged(PROFILE, "target.targetString", "${WORK}"), *base)
    variable = merged(literal, "steps.1.command", ["link", "${WORK}"])
    keys = {
        artifact_key(
            KeyInputs.from_profile(
                BuildProfileSpec.model_validate(profile),
                ModelFacts.model_validate(FACTS),
                DType.FP16,
                ShapeBucket(),
                "amd64",
            )
        )
        for profile in (literal, variable)
    }
    assert len(keys) == 2


def test_every_number_of_a_shape_is_a_part_of_the_key_by_itself() -> None:
    lora = {"maxRank": 16, "maxAdapters": 4}
    shapes: list[dict[str, Any]] = [
        BUCKET,
        *({**BUCKET, name: size} for name in ("prefillChunk", "tensorParallel", "pipelineParallel") for size in (2, 4)),
        {**BUCKET, "tensorParallel": 2, "pipelineParallel": 2},
        *({**BUCKET, "lora": {**lora, **changed}} for changed in ({}, {"maxRank": 32}, {"maxAdapters": 8})),
    ]
    # Of a recipe whose commands name none of them.
    plain = merged(PROFILE, "steps.0.args", [])
    keys = {artifact_key(inputs(of=plain, bucket=shape)) for shape in shapes}
    assert len(keys) == len(shapes)


def test_the_devices_of_a_replica_are_variables() -> None:
    def said(**shape: int) -> tuple[str, ...]:
        step = ("steps.0.args", ["${TP}", "${PP}", "${DEVICE_COUNT}"])
        return inputs(profile=step, bucket={**BUCKET, **shape}).steps[0].argv[-3:]

    assert said() == ("1", "1", "1")
    assert said(tensorParallel=4) == ("4", "1", "4")
    assert said(tensorParallel=4, pipelineParallel=2) == ("4", "2", "8")


def test_sizes_that_are_not_compiled_in_expand_to_nothing() -> None:
    argv = inputs(bucket={}).steps[0].argv
    assert argv[-1] == "--seq="


def test_the_name_is_a_valid_label_of_28_characters_and_follows_the_key() -> None:
    name = artifact_name(artifact_key(inputs()))
    assert re.fullmatch(r"a-[a-z2-7]{26}", name)
    assert artifact_name(artifact_key(inputs(isa="arm64"))) != name
    assert len(f"b-{name.removeprefix('a-')}-99") <= 40


@pytest.mark.parametrize("key", ["", "zz", "ab" * 31, "ab" * 33])
def test_a_name_is_made_of_a_whole_key_only(key: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        artifact_name(key)


STRUCTURE = {**PROFILE, "binds": "Structure", "weightsInArtifact": False}
SCALES = {**STRUCTURE, "binds": "Scales"}
WEIGHTS = {**PROFILE, "binds": "Weights"}


@pytest.mark.parametrize(
    ("profile", "changed", "shared"),
    [
        (STRUCTURE, "weightsDigest", True),
        (STRUCTURE, "scalesDigest", True),
        (STRUCTURE, "tensorsDigest", False),
        (STRUCTURE, "configDigest", False),
        (SCALES, "weightsDigest", True),
        (SCALES, "scalesDigest", False),
        (SCALES, "tensorsDigest", False),
        (WEIGHTS, "weightsDigest", False),
        (WEIGHTS, "scalesDigest", True),
    ],
)
def test_what_a_result_binds_decides_which_models_share_it(profile: dict[str, Any], changed: str, shared: bool) -> None:
    """A fine-tune has the structure of what it was made from, other weights, and other scales if it is quantised."""
    fine_tune = inputs(of=profile, facts=(changed, "sha256:" + "e" * 64))
    assert (artifact_key(fine_tune) == artifact_key(inputs(of=profile))) is shared


CONFIG = {
    **PROFILE,
    "interface": "ConfigFile",
    "configTemplate": {"format": "JSON", "path": "c.json", "content": '{"seq": "${MAX_SEQ}", "x": [1, 2.5]}'},
}


@pytest.mark.parametrize(
    ("format_", "content", "same"),
    [
        ("JSON", '{"x":[1,2.5],   "seq":4096}', True),
        ("JSON", '{"seq": "4096", "x": [1, 2.5]}', False),
        ("JSON", '{"seq": "${MAX_SEQ}", "x": [2.5, 1]}', False),
        ("JSON", '{"seq": "${MAX_SEQ}", "x": [1, 2.5], "y": null}', False),
        ("YAML", "seq: ${MAX_SEQ}\nx: [1, 2.5]\n", False),
    ],
)
def test_a_configuration_file_counts_by_what_it_says_and_not_how(format_: str, content: str, same: bool) -> None:
    other = {**CONFIG, "configTemplate": {"format": format_, "path": "c.json", "content": content}}
    assert (artifact_key(inputs(of=other)) == artifact_key(inputs(of=CONFIG))) is same


def test_the_order_of_inputs_and_options_does_not_matter() -> None:
    two = [CALIBRATION, {**CALIBRATION, "name": "layout"}]
    flags = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]
    some = {**PROFILE, "interface": "Python", "inputs": two, "flags": flags}
    others = {**PROFILE, "interface": "Python", "inputs": two[::-1], "flags": flags[::-1]}
    assert artifact_key(inputs(of=some)) == artifact_key(inputs(of=others))


def test_where_an_input_comes_from_does_not_matter_but_what_it_is() -> None:
    def of(**change: str) -> str:
        return artifact_key(inputs(of={**PROFILE, "inputs": [{**CALIBRATION, **change}]}))

    assert of(source="s3://bucket/c") == of()
    assert of(digest="sha256:" + "2" * 64) != of()
    assert of(name="other") != of()
