"""The key of an artifact: the hash of all that can make the result of a build another one, and of nothing else.

Two deployments whose keys are equal share one build. So nothing goes in that names where or for whom it is built: no
deployment, namespace or node, no profile's name, no source of the model; and nothing that only decides how the build
goes about it: resources, time limits, patterns, expected outputs, the probe.
"""

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rm_api import names
from rm_api.dtypes import DType
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.kinds.build_profile import BuildProfileSpec, Step, Target
from rm_api.kinds.model_deployment import ModelFacts

TENSOR_PARALLEL = 1
PIPELINE_PARALLEL = 1
"""One device serves one replica."""


@dataclass(frozen=True)
class KeyStep:
    """What of a build step counts."""

    image: str
    """With its digest, where the profile gives one."""
    argv: tuple[str, ...]
    """Command and arguments, which the launcher joins."""
    env: tuple[tuple[str, str], ...]
    """Variables by name."""


def build_variables(target: Target, dtype: DType, bucket: ShapeBucket) -> dict[str, str]:
    """Values of the variables that decide what is built; a size that is not compiled in is empty.

    The directories are not among them: where they are mounted does not change the result.
    """
    return {
        "TARGET": target.target_string,
        "DTYPE": str(dtype),
        "TP": str(TENSOR_PARALLEL),
        "PP": str(PIPELINE_PARALLEL),
        "MAX_SEQ": str(bucket.max_sequence_length or ""),
        "MAX_BATCH": str(bucket.max_batch_size or ""),
        "DEVICE_COUNT": str(TENSOR_PARALLEL * PIPELINE_PARALLEL),
    }


def expand(step: Step, values: Mapping[str, str]) -> KeyStep:
    """``step`` with the variables in ``values`` replaced; all others stay as ``${NAME}``.

    A dollar is always written ``$$`` in the result, so a value or a literal that looks like a variable is not one.
    """
    return KeyStep(
        image=step.image,
        argv=tuple(_expand(argument, values) for argument in (*step.command, *step.args)),
        env=tuple(sorted({variable.name: _expand(variable.value, values) for variable in step.env}.items())),
    )


@dataclass(frozen=True)
class KeyInputs:
    """All that an artifact's key is made of."""

    config_digest: str
    tensors_digest: str
    weights_digest: str
    steps: tuple[KeyStep, ...]
    target: Target
    dtype: DType
    bucket: ShapeBucket
    drivers: tuple[str, ...]
    """The compatibility class: driver versions that load the result. Their order does not matter."""
    format: str
    isa: str
    """Instruction set of the host that the build is for, such as amd64; empty where no host code is made."""

    @classmethod
    def from_profile(
        cls, profile: BuildProfileSpec, facts: ModelFacts, dtype: DType, bucket: ShapeBucket, isa: str
    ) -> Self:
        """The inputs for compiling the model of ``facts`` to ``dtype`` and ``bucket`` with ``profile``."""
        values = build_variables(profile.target, dtype, bucket)
        return cls(
            config_digest=facts.config_digest,
            tensors_digest=facts.tensors_digest,
            weights_digest=facts.weights_digest,
            steps=tuple(expand(step, values) for step in profile.steps),
            target=profile.target,
            dtype=dtype,
            bucket=bucket,
            drivers=tuple(profile.compatibility.driver),
            format=profile.output.format,
            isa=isa,
        )


def canonical(inputs: KeyInputs) -> bytes:
    """The bytes that the key is the hash of: JSON with sorted members, no white space, NFC strings, no floats."""
    target = inputs.target
    return _json(
        {
            "schema": names.KEY_SCHEMA_VERSION,
            "model": {
                "config": inputs.config_digest,
                "tensors": inputs.tensors_digest,
                "weights": inputs.weights_digest,
            },
            "steps": [{"image": s.image, "argv": list(s.argv), "env": dict(s.env)} for s in inputs.steps],
            "target": {
                "type": str(target.type),
                "vendor": target.vendor,
                "products": sorted(set(target.products)),
                "string": target.target_string,
            },
            "dtype": str(inputs.dtype),
            "shape": {"sequence": inputs.bucket.max_sequence_length, "batch": inputs.bucket.max_batch_size},
            "parallel": {"tensor": TENSOR_PARALLEL, "pipeline": PIPELINE_PARALLEL},
            "drivers": sorted(set(inputs.drivers)),
            "format": inputs.format,
            "isa": inputs.isa,
        }
    )


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


_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)\}|\$")


def _expand(text: str, values: Mapping[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$$"
        return values[name].replace("$", "$$") if name in values else match.group(0)

    return _REFERENCE.sub(replacement, text)


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
    raise TypeError(f"a key is made of texts and whole numbers, not of {type(value).__name__}")
