"""The artifact's key: what must change it, what must not, and that it never changes by accident."""

import hashlib
import json
import re
import unicodedata
from typing import Any

import pytest
from rm_api.dtypes import DType
from rm_api.kinds import BuildProfileSpec, ModelFacts
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.kinds.build_profile import Step
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
) -> KeyInputs:
    return KeyInputs.from_profile(
        BuildProfileSpec.model_validate(merged(PROFILE, *profile)),
        ModelFacts.model_validate(merged(FACTS, *facts)),
        dtype,
        ShapeBucket.model_validate(BUCKET if bucket is None else bucket),
        isa,
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
        {"isa": "arm64"},
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
        {"profile": ("supports", {})},
        {"profile": ("shapes", {"sequence": [1024, 4096], "batch": [8, 64]})},
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
