"""A step of a build as containers: how each interface drives the compiler that is in the step's image."""

from collections.abc import Mapping
from typing import Any

from rm_api import names
from rm_api.base import Resources
from rm_api.build_steps import Check, Step
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.quantity import quantity

from rm_operator.plan import pods
from rm_operator.plan.model import Settings

LIBRARY_DIR = f"{names.WORK_DIR}/.library"
"""Where a step's library is put for the container that calls it."""
_VOLUMES = ["bin", "tmp", "model", "work", "output", "cache"]
_SEALED = ["bin", "model", "inputs"]


def containers(
    step: Step,
    spec: BuildArtifactSpec,
    variables: Mapping[str, str],
    settings: Settings,
    memory: str | None,
    devices: Mapping[str, str],
    *,
    announced: bool = False,
) -> list[dict[str, Any]]:
    """The step's containers, in the order in which they run.

    ``memory`` replaces the step's own where it is more; ``devices`` are extended resources that the step is limited to.
    Where these are ``announced`` to it, rma-launch makes sure before the tool starts that they are there, under a
    driver that the result is for.
    """
    make = _Step(step, spec, variables, settings, memory, devices, announced=announced)
    match spec.interface:
        case BuildInterface.CLI | BuildInterface.CONFIG_FILE:
            return [make.container("run", [*step.command, *step.args])]
        case BuildInterface.PYTHON:
            flags = [f"--flag={pods.literal(flag.name)}={pods.literal(flag.value)}" for flag in spec.flags]
            return [make.container("python", [*step.command, *step.args], flags)]
        case BuildInterface.WARMUP:
            return [make.container("warmup", [*step.command, *step.args], _buckets(spec))]
        case BuildInterface.SHARED_LIBRARY:
            return make.library()


def exit_codes(spec: BuildArtifactSpec) -> list[str]:
    """Flags that tell rma-launch what the tools' exit codes mean."""
    return [f"--exit-code={mapping.code}={mapping.meaning}" for mapping in spec.exit_codes]


def patterns(judged: Step | Check) -> list[str]:
    """Flags that tell rma-launch what the log of a tool means."""
    return [
        *([f"--success-pattern={pods.literal(judged.success_pattern)}"] if judged.success_pattern else []),
        *([f"--failure-pattern={pods.literal(judged.failure_pattern)}"] if judged.failure_pattern else []),
    ]


def _buckets(spec: BuildArtifactSpec) -> list[str]:
    sequence, batch = spec.shape.max_sequence_length, spec.shape.max_batch_size
    return [
        *([f"--sequence={sequence}"] if sequence else []),
        *([f"--batch={batch}"] if batch else []),
    ]


class _Step:
    def __init__(
        self,
        step: Step,
        spec: BuildArtifactSpec,
        variables: Mapping[str, str],
        settings: Settings,
        memory: str | None,
        devices: Mapping[str, str],
        *,
        announced: bool,
    ) -> None:
        self._step = step
        self._announced = sum(map(int, devices.values())) if announced else 0
        self._spec = spec
        self._variables = variables
        self._settings = settings
        self._compute = pods.resources(_enough(step.resources, memory))
        if devices:
            self._compute["limits"] = {**self._compute.get("limits", {}), **devices}

    def container(self, command: str, argv: list[str], flags: list[str] | None = None) -> dict[str, Any]:
        """The step under rma-launch in its own image."""
        step = self._step
        return self._made(
            step.name,
            step.image,
            [names.LAUNCHER, command, *self._judged(), *(flags or []), "--", *map(pods.literal, argv)],
        )

    def library(self) -> list[dict[str, Any]]:
        """The library leaves its image, and is called by our own program in ours."""
        step, spec = self._step, self._spec
        path = step.command[0]
        fetch = [names.LAUNCHER, "copy", pods.literal(path), LIBRARY_DIR]
        options = [f"--option={pods.literal(flag.name)}={pods.literal(flag.value)}" for flag in spec.flags]
        sequence, batch = spec.shape.max_sequence_length, spec.shape.max_batch_size
        compiler = [
            "python3", "-m", "rm_abstract.native", "compile",
            f"{LIBRARY_DIR}/{pods.literal(path.rstrip('/').rpartition('/')[2])}",
            "--model=${MODEL_DIR}",
            "--output=${OUTPUT}",
            "--target=${TARGET}",
            "--dtype=${DTYPE}",
            f"--key={spec.key}",
            *([f"--max-sequence-length={sequence}"] if sequence else []),
            *([f"--max-batch-size={batch}"] if batch else []),
            *options,
        ]  # fmt: skip
        return [
            self._made(f"{step.name}-library", step.image, fetch, compute=False),
            self._made(
                step.name,
                self._settings.images.runtime,
                [names.LAUNCHER, "run", *self._judged(), "--", *compiler],
            ),
        ]

    def _judged(self) -> list[str]:
        """How rma-launch tells whether the step did what it should."""
        step = self._step
        return [
            f"--name={step.name}",
            *(f"--output={pods.literal(output)}" for output in step.outputs),
            *patterns(step),
            *self._looked_at(),
            *exit_codes(self._spec),
        ]

    def _looked_at(self) -> list[str]:
        """Flags by which rma-launch looks at the devices first: that they are there, under a driver that fits."""
        if not self._announced:
            return []
        return [
            f"--require-devices={self._announced}",
            *(f"--require-driver={pods.literal(driver)}" for driver in self._spec.drivers),
        ]

    def _made(self, name: str, image: str, command: list[str], *, compute: bool = True) -> dict[str, Any]:
        spec = self._spec
        mounted = [*_VOLUMES, "shm", *(["inputs"] if spec.inputs or spec.base else [])]
        secrets = [
            {"name": f"secret-{number}", "mountPath": f"{names.SECRETS_DIR}/{secret.name}", "readOnly": True}
            for number, secret in enumerate(spec.secret_refs)
        ]
        return pods.container(
            name,
            _pinned(image, spec),
            command,
            self._settings,
            mounted=[*pods.mounts(mounted, read_only=[each for each in _SEALED if each in mounted]), *secrets],
            environment=pods.env(self._variables, self._step.env),
            compute=self._compute if compute else None,
            workingDir=names.WORK_DIR,
        )


def _pinned(image: str, spec: BuildArtifactSpec) -> str:
    """``image`` by the digest that counted for the key, where it was found out."""
    pinned = spec.toolchain.images if spec.toolchain else []
    digest = next((each.digest for each in pinned if each.image == image), None)
    if digest is None or "@" in image:
        return image
    head, slash, last = image.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"


def _enough(wanted: Resources, memory: str | None) -> Resources:
    if memory is None or (wanted.memory is not None and quantity(wanted.memory) >= quantity(memory)):
        return wanted
    return wanted.model_copy(update={"memory": memory})
