"""The key of an artifact: the hash of all that can make the result of a build another one, and of nothing else.

Two deployments whose keys are equal share one build. So nothing goes in that names where or for whom it is built: no
deployment, namespace or node, no profile's name, no source of the model; and nothing that only decides how the build
goes about it: resources, time limits, patterns, expected outputs, the probe.
"""

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rm_api import config_template, names
from rm_api.build_steps import Step
from rm_api.dtypes import DType
from rm_api.kinds.build_artifact import ShapeBucket, Toolchain
from rm_api.kinds.build_profile import Binds, BuildInterface, BuildProfileSpec, ConfigTemplate, Target
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.memo import Memo


@dataclass(frozen=True)
class KeyStep:
    """What of a build step counts."""

    image: str
    """With its digest, where the profile gives one."""
    argv: tuple[str, ...]
    """Command and arguments, which the launcher joins."""
    env: tuple[tuple[str, str], ...]
    """Variables by name."""
    on_device: bool = False
    """Whether it runs on a device: what is tuned there is tuned for it."""


def build_variables(target: Target, dtype: DType, bucket: ShapeBucket, dtype_name: str | None = None) -> dict[str, str]:
    """Values of the variables that decide what is built; a size that is not compiled in is empty.

    ``dtype_name`` is what the tools call the number format, where they call it something else.

    The directories are not among them: where they are mounted does not change the result.
    """
    return {
        "TARGET": target.target_string,
        "DTYPE": dtype_name or str(dtype),
        "TP": str(bucket.tensor_parallel or 1),
        "PP": str(bucket.pipeline_parallel or 1),
        "MAX_SEQ": str(bucket.max_sequence_length or ""),
        "MAX_BATCH": str(bucket.max_batch_size or ""),
        "DEVICE_COUNT": str(bucket.devices),
    }


def dtype_name(profile: BuildProfileSpec, dtype: DType) -> str | None:
    """What the profile's tools call the number format; None where they say the same."""
    return next((each.name for each in profile.dtype_names if each.dtype is dtype), None)


def expand(step: Step, values: Mapping[str, str]) -> KeyStep:
    """``step`` with the variables in ``values`` replaced; all others stay as ``${NAME}``, see ``names.expand``."""
    return KeyStep(
        image=step.image,
        argv=tuple(names.expand(argument, values) for argument in (*step.command, *step.args)),
        env=tuple(sorted({variable.name: names.expand(variable.value, values) for variable in step.env}.items())),
        on_device=step.requires_device,
    )


@dataclass(frozen=True)
class KeyInputs:
    """All that an artifact's key is made of."""

    config_digest: str
    tensors_digest: str
    weights_digest: str | None
    """None where the result does not depend on the weights."""
    steps: tuple[KeyStep, ...]
    target: Target
    dtype: DType
    bucket: ShapeBucket
    drivers: tuple[str, ...]
    """The compatibility class: driver versions that load the result. Their order does not matter."""
    format: str
    isa: str
    """Instruction set of the host that the build is for, such as amd64; empty where no host code is made."""
    sdks: tuple[str, ...] = ()
    """The same of the vendor's runtime libraries."""
    scales_digest: str | None = None
    code_digest: str | None = None
    """Of the code that comes with the model, where that is run."""
    interface: BuildInterface = BuildInterface.CLI
    config: tuple[str, str, Any] | None = None
    """The compiler's configuration file: its format, its path, and what it says."""
    flags: tuple[tuple[str, str], ...] = ()
    auxiliary: tuple[tuple[str, str], ...] = ()
    """Digests of what else the build reads, by the input's name."""
    base: str | None = None
    """Key of the artifact that the build starts from."""
    toolchain: Toolchain | None = None
    weights_in_artifact: bool = True

    @classmethod
    def from_profile(
        cls,
        profile: BuildProfileSpec,
        facts: ModelFacts,
        dtype: DType,
        bucket: ShapeBucket,
        isa: str,
        *,
        base: str | None = None,
        toolchain: Toolchain | None = None,
        chosen: NodeClass | None = None,
        code: str | None = None,
    ) -> Self:
        """The inputs for compiling the model of ``facts`` to ``dtype`` and ``bucket`` with ``profile``.

        ``base`` is the key of the artifact that it starts from, ``chosen`` the class of nodes that it is for: all that
        the profile declares, without it. ``code`` is the digest of the model's code, where that is run.

        Raises TemplateInvalid for a profile that is unusable.
        """
        values = build_variables(profile.target, dtype, bucket, dtype_name(profile, dtype))
        template = profile.config_template
        return cls(
            config_digest=facts.config_digest,
            tensors_digest=facts.tensors_digest,
            weights_digest=facts.weights_digest if profile.binds is Binds.WEIGHTS else None,
            scales_digest=facts.scales_digest if profile.binds is Binds.SCALES else None,
            code_digest=code,
            interface=profile.interface,
            config=(template.format, template.path, _filled(template, values)) if template else None,
            flags=tuple((flag.name, flag.value) for flag in profile.flags),
            auxiliary=tuple((each.name, each.digest) for each in profile.inputs),
            base=base,
            toolchain=toolchain,
            weights_in_artifact=profile.weights_in_artifact,
            steps=tuple(expand(step, values) for step in profile.steps),
            target=profile.target,
            dtype=dtype,
            bucket=bucket,
            drivers=tuple(profile.compatibility.driver) if chosen is None else chosen.drivers,
            sdks=tuple(profile.compatibility.sdk) if chosen is None else chosen.sdks,
            format=profile.output.format,
            isa=isa,
        )


def canonical(inputs: KeyInputs) -> bytes:
    """The bytes that the key is the hash of: JSON with sorted members, no white space, NFC strings, no floats."""
    target = inputs.target
    model = {"config": inputs.config_digest, "tensors": inputs.tensors_digest}
    if inputs.weights_digest is not None:
        model["weights"] = inputs.weights_digest
    if inputs.scales_digest is not None:
        model["scales"] = inputs.scales_digest
    if inputs.code_digest is not None:
        model["code"] = inputs.code_digest
    return _json(
        {
            "schema": names.KEY_SCHEMA_VERSION,
            "model": model,
            "steps": [_step(step) for step in inputs.steps],
            "target": {
                "type": str(target.type),
                "vendor": target.vendor,
                "products": sorted(set(target.products)),
                "string": target.target_string,
            },
            "dtype": str(inputs.dtype),
            "shape": {"sequence": inputs.bucket.max_sequence_length, "batch": inputs.bucket.max_batch_size},
            "parallel": {
                "tensor": inputs.bucket.tensor_parallel or 1,
                "pipeline": inputs.bucket.pipeline_parallel or 1,
            },
            "drivers": sorted(set(inputs.drivers)),
            "format": inputs.format,
            "isa": inputs.isa,
            **_later(inputs),
        }
    )


def _step(step: KeyStep) -> dict[str, Any]:
    said = {"image": step.image, "argv": list(step.argv), "env": dict(step.env)}
    return {**said, "device": True} if step.on_device else said


def _later(inputs: KeyInputs) -> dict[str, Any]:
    """What recipes can say since the form was fixed. It counts where it is said, so what was built before stays."""
    said: dict[str, Any] = {}
    if inputs.interface is not BuildInterface.CLI:
        said["interface"] = str(inputs.interface)
    if inputs.config is not None:
        format_, path, data = inputs.config
        said["config"] = {"format": format_, "path": path, "says": data}
    if inputs.sdks:
        said["sdks"] = sorted(set(inputs.sdks))
    if inputs.flags:
        said["flags"] = dict(inputs.flags)
    if inputs.auxiliary:
        said["inputs"] = dict(inputs.auxiliary)
    if inputs.base is not None:
        said["base"] = inputs.base
    if not inputs.weights_in_artifact:
        said["weightsOutside"] = True
    if inputs.bucket.prefill_chunk is not None:
        said["prefillChunk"] = inputs.bucket.prefill_chunk
    if inputs.bucket.lora is not None:
        said["lora"] = {"rank": inputs.bucket.lora.max_rank, "adapters": inputs.bucket.lora.max_adapters}
    if inputs.toolchain is not None:
        said["versions"] = dict(inputs.toolchain.versions)
        said["images"] = {pinned.image: pinned.digest for pinned in inputs.toolchain.images}
    return said


def artifact_key(inputs: KeyInputs) -> str:
    """The key: 64 hexadecimal digits."""
    return hashlib.sha256(canonical(inputs)).hexdigest()


def artifact_name(key: str) -> str:
    """Name of the BuildArtifact with this key, 28 characters that are valid in any name of Kubernetes.

    Raises ``ValueError`` if ``key`` is not what ``artifact_key`` gives.
    """
    digest = bytes.fromhex(key)
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"an artifact's key has 64 hexadecimal digits, this one has {len(key)}: {key!r}")
    return "a-" + base64.b32encode(digest).decode("ascii")[:26].lower()


def _template(format_: str, content: str) -> Any:
    return config_template.read(format_, content)


_read: Memo[[str, str], Any] = Memo(_template, most=64)


def _filled(template: ConfigTemplate, values: Mapping[str, str]) -> Any:
    return config_template.filled(_read(template.format, template.content), values)


def _json(value: Any) -> bytes:
    text = json.dumps(_normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", errors="surrogatepass")


def _normal(value: Any) -> Any:
    match value:
        case str():
            return unicodedata.normalize("NFC", value)
        case dict():
            return {_normal(name): _normal(member) for name, member in value.items()}
        case list():
            return [_normal(member) for member in value]
        case None | int():
            return value
        case float():
            # As a number it would be written in as many ways as there are libraries.
            return {"float": repr(value)}
    raise TypeError(f"a key is made of texts and numbers, not of {type(value).__name__}")
