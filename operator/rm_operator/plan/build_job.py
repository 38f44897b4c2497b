"""The Jobs of one build attempt: fetch (our image), the profile's steps (vendor images), push (our image).

Steps that need a device and steps that do not run in Jobs of their own, one after the other, so that no device waits
for a compiler. What a Job leaves for the next one goes through the store. Most attempts are one Job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rm_api import names
from rm_api.build_steps import Step
from rm_api.kinds import BuildArtifactSpec

from rm_operator.plan import build_step, pods
from rm_operator.plan.key import build_variables
from rm_operator.plan.model import Object, Settings, name_of, namespace_of, owner_reference
from rm_operator.plan.sharing import FETCH, FETCH_CONFIG

_VOLUMES = ["bin", "tmp", "model", "work", "output", "cache"]


@dataclass(frozen=True)
class Devices:
    """Where a stage finds the device that its steps need."""

    accelerator: str
    limits: Mapping[str, str]
    """Extended resources that a step is limited to: the devices that the result is for."""
    node_selector: Mapping[str, str]
    tolerations: Sequence[dict[str, Any]]
    ways: Sequence[Sequence[dict[str, Any]]] = ()
    """Ways in which a node says that it has the versions that the result is for, each as expressions of an affinity."""
    announced: bool = False
    """The device plugin is ours, which tells a container what it gave it: the step's launcher looks at it first."""


@dataclass(frozen=True)
class Run:
    """One Job of an attempt."""

    attempt: int
    stage: int = 0
    """Index in ``stages``."""
    memory: str | None = None
    """Memory of the steps, where what they name was not enough."""
    excluded: tuple[str, ...] = ()
    """Nodes that cannot run it."""
    avoided: tuple[str, ...] = ()
    """Nodes that should not, if there are others: it failed there for no known reason."""
    devices: Devices | None = None
    """Of a stage on a device."""
    accelerators: tuple[str, ...] = ()
    """Kinds of accelerators that nodes may have; a stage without a device leaves such nodes to those who serve."""


def stages(spec: BuildArtifactSpec) -> tuple[tuple[Step, ...], ...]:
    """The steps of each Job of an attempt, in order."""
    return tuple(tuple(group) for _, group in groupby(spec.steps, key=lambda step: step.requires_device))


def on_device(spec: BuildArtifactSpec, stage: int) -> bool:
    """True if the stage needs a device."""
    return stages(spec)[stage][0].requires_device


def needs_device(spec: BuildArtifactSpec) -> bool:
    """True if any stage does."""
    return any(step.requires_device for step in spec.steps)


def job_name(artifact_name: str, run: Run) -> str:
    """Name of a Job: the artifact's hash and the attempt's number, so that making it twice makes it once."""
    name = f"b-{artifact_name.removeprefix('a-')}-{run.attempt}"
    return f"{name}-{run.stage + 1}" if run.stage else name


def input_container(name: str) -> str:
    """Name of the container that fetches an input."""
    return f"input-{name.lower().replace('_', '-').rstrip('-')}"


def stage_reference(host: str, namespace: str, name: str, stage: int) -> str:
    """Where the stage leaves what the next one goes on with."""
    return f"{host}/{names.artifact_repository(namespace, name)}:{names.STAGE_TAG.format(stage + 1)}"


def variables(spec: BuildArtifactSpec) -> dict[str, str]:
    """Values of the variables that a step may name."""
    inputs = [each.name for each in spec.inputs] + ([names.INPUT_FROM] if spec.base else [])
    return {
        "MODEL_DIR": names.MODEL_DIR,
        "OUTPUT": names.OUTPUT_DIR,
        "WORK": names.WORK_DIR,
        "CACHE_DIR": names.CACHE_DIR,
        **build_variables(spec.target, spec.dtype, spec.shape, spec.dtype_name),
        **{names.input_variable(name): f"{names.INPUTS_DIR}/{name}" for name in inputs},
    }


def render(artifact: Object, spec: BuildArtifactSpec, run: Run, settings: Settings) -> dict[str, Any]:
    """The Job in full."""
    name, namespace = name_of(artifact), namespace_of(artifact)
    builder = _Builder(spec, namespace, name, settings)
    steps = stages(spec)
    last = run.stage == len(steps) - 1
    label = pods.labels(
        names.ROLE_BUILD,
        **{names.LABEL_ARTIFACT: name, names.LABEL_ATTEMPT: str(run.attempt), names.LABEL_PROFILE: spec.profile},
        **({names.LABEL_STAGE: str(run.stage + 1)} if len(steps) > 1 else {}),
        **({names.LABEL_ACCELERATOR: run.devices.accelerator} if run.devices else {}),
    )
    return pods.job(
        name=job_name(name, run),
        namespace=namespace,
        owners=[owner_reference(artifact, controller=True)],
        label=label,
        deadline=spec.timeout_seconds,
        template=pods.pod_spec(
            init_containers=[
                pods.install_launcher(settings),
                *(builder.check() if run.stage == 0 else []),
                builder.fetch(weights=True),
                *builder.inputs(before_check=False),
                *(builder.inputs(before_check=True) if run.stage else []),
                *(builder.earlier(run.stage) if run.stage else builder.config()),
                *(
                    container
                    for step in steps[run.stage]
                    for container in build_step.containers(
                        step,
                        spec,
                        variables(spec),
                        settings,
                        run.memory,
                        run.devices.limits if run.devices else {},
                        announced=run.devices is not None and run.devices.announced,
                    )
                ),
                *(builder.probe() if last else []),
            ],
            containers=[builder.push() if last else builder.push_stage(run.stage)],
            pod_volumes=builder.volumes(),
            **_where(run),
        ),
    )


class _Builder:
    """Our own containers of a build."""

    def __init__(self, spec: BuildArtifactSpec, namespace: str, name: str, settings: Settings) -> None:
        self._spec = spec
        self._settings = settings
        self._namespace = namespace
        self._name = name
        model = spec.model
        self._environment, self._mounts, self._volumes = pods.source_access(
            settings, model.source, model.credentials_secret
        )
        # Whose Secret it is thought of the model's source, and need not have what an input's takes.
        self._inputs = [
            pods.source_access(settings, each.source, model.credentials_secret, optional=True) for each in spec.inputs
        ]
        self._store_environment, self._store_mounts, self._store_volumes = pods.store_access(settings)

    def check(self) -> list[dict[str, Any]]:
        """The dry run, on all of the model but its weights, before anything is fetched that is large."""
        check = self._spec.check
        if check is None:
            return []
        judged = [*build_step.patterns(check), *build_step.exit_codes(self._spec)]
        command = [names.LAUNCHER, "run", "--name=check", "--failure-meaning=UnsupportedModel", *judged]
        container = pods.container(
            "check",
            check.image,
            [*command, "--", *map(pods.literal, check.command)],
            self._settings,
            mounted=pods.mounts(
                [*_VOLUMES, *(["inputs"] if self._before_check else [])], read_only=["bin", "model", "inputs"]
            ),
            environment=pods.env(variables(self._spec), check.env),
            workingDir=names.WORK_DIR,
        )
        return [self.fetch(weights=False), *self.inputs(before_check=True), container]

    @property
    def _before_check(self) -> set[str]:
        """Inputs that the check names."""
        check = self._spec.check
        texts = [] if check is None else [*check.command, *(variable.value for variable in check.env)]
        named = {variable for text in texts for variable in names.variables_in(text)}
        known = [each.name for each in self._spec.inputs] + ([names.INPUT_FROM] if self._spec.base else [])
        return {name for name in known if names.input_variable(name) in named}

    def fetch(self, *, weights: bool) -> dict[str, Any]:
        """Fetches the model."""
        model = self._spec.model
        return pods.fetch_model(
            FETCH if weights else FETCH_CONFIG, model.source, model.revision,
            pods.digests_of(model, model.code_digest), self._settings,
            environment=self._environment, further_mounts=self._mounts, weights=weights,
            shared=self._namespace == self._settings.builds_namespace,
        )  # fmt: skip

    def inputs(self, *, before_check: bool) -> list[dict[str, Any]]:
        """Fetches what else the build reads: what the check names, or all the rest."""
        early = self._before_check
        fetched = [
            self._ours(
                input_container(each.name),
                [
                    "rm-abstract", "fetch", "input",
                    f"--source={pods.literal(each.source)}",
                    f"--digest={each.digest}",
                    f"--dest={names.INPUTS_DIR}/{each.name}",
                ],
                ["tmp", "inputs"],
                environment=environment,
                further_mounts=further_mounts,
            )
            for each, (environment, further_mounts, _) in zip(self._spec.inputs, self._inputs, strict=True)
            if (each.name in early) is before_check
        ]  # fmt: skip
        base = self._spec.base
        if base is not None and (names.INPUT_FROM in early) is before_check:
            command = [
                "rm-abstract", "fetch", "artifact",
                f"--reference={base.location}",
                f"--key={base.key}",
                f"--dest={names.INPUTS_DIR}/{names.INPUT_FROM}",
            ]  # fmt: skip
            fetched.append(self._ours("base", command, ["tmp", "inputs"]))
        return fetched

    def earlier(self, stage: int) -> list[dict[str, Any]]:
        """Fetches what the stage before left."""
        command = [
            "rm-abstract", "stage", "fetch",
            f"--reference={stage_reference(self._settings.store.host, self._namespace, self._name, stage - 1)}",
            f"--key={self._spec.key}",
            f"--stage={stage}",
            *_STAGE_DIRECTORIES,
        ]  # fmt: skip
        return [self._ours("earlier", command, ["tmp", "work", "output", "cache"])]

    def config(self) -> list[dict[str, Any]]:
        """Writes the compiler's configuration file."""
        template = self._spec.config_template
        if template is None:
            return []
        container = self._ours(
            "config",
            ["rm-abstract", "config", f"--format={template.format}", f"--dest={names.WORK_DIR}/{template.path}"],
            ["tmp", "work"],
        )
        content = {names.ENV_CONFIG_TEMPLATE: pods.literal(template.content)}
        return [{**container, "env": [*container["env"], *pods.env({**variables(self._spec), **content})]}]

    def probe(self) -> list[dict[str, Any]]:
        """The check of the result."""
        probe = self._spec.probe
        if probe is None:
            return []
        return [
            pods.container(
                "probe",
                probe.image,
                [names.LAUNCHER, "run", "--name=probe", "--", *map(pods.literal, probe.command)],
                self._settings,
                mounted=pods.mounts(_VOLUMES, read_only=["bin", "model", "output"]),
                environment=pods.env(variables(self._spec)),
                workingDir=names.WORK_DIR,
            )
        ]

    def push(self) -> dict[str, Any]:
        """Pushes the result."""
        spec = self._spec
        repository = f"{self._settings.store.host}/{names.artifact_repository(self._namespace, self._name)}"
        command = [
            "rm-abstract", "push",
            f"--dir={names.OUTPUT_DIR}",
            f"--reference={repository}:{names.ARTIFACT_TAG}",
            f"--key={spec.key}",
            f"--format={spec.format}",
            *(f"--product={pods.literal(product)}" for product in spec.target.products),
            *(f"--driver={pods.literal(driver)}" for driver in spec.drivers),
        ]  # fmt: skip
        return self._ours("push", command, ["tmp", "output"])

    def push_stage(self, stage: int) -> dict[str, Any]:
        """Pushes what the next stage goes on with."""
        command = [
            "rm-abstract", "stage", "push",
            f"--reference={stage_reference(self._settings.store.host, self._namespace, self._name, stage)}",
            f"--key={self._spec.key}",
            f"--stage={stage + 1}",
            *_STAGE_DIRECTORIES,
        ]  # fmt: skip
        return self._ours("push", command, ["tmp", "work", "output", "cache"])

    def volumes(self) -> list[dict[str, Any]]:
        """Volumes of the pod."""
        spec = self._spec
        wanted = [*_VOLUMES, "shm", *(["inputs"] if spec.inputs or spec.base else [])]
        secrets = [
            {"name": f"secret-{number}", "secret": {"secretName": secret.name, "defaultMode": 0o440}}
            for number, secret in enumerate(spec.secret_refs)
        ]
        read = [volume for _, _, each in self._inputs for volume in each] + self._volumes
        # Each once: what the model's source needs is needed by inputs of its kind, too.
        sources = {volume["name"]: volume for volume in read}.values()
        of_source = [*sources, *pods.node_cache_volumes(self._settings)]
        return [*pods.volumes(wanted, size_limit=str(spec.scratch)), *of_source, *self._store_volumes, *secrets]

    def _ours(
        self, name: str, command: list[str], mounted: list[str], *, environment: Mapping[str, str] | None = None,
        further_mounts: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        return pods.container(
            name,
            self._settings.images.runtime,
            command,
            self._settings,
            mounted=[*pods.mounts(mounted), *self._store_mounts, *further_mounts],
            environment=pods.env({**self._store_environment, **(environment or {})}),
            compute={"requests": {"cpu": "100m", "memory": "256Mi"}},
        )


_STAGE_DIRECTORIES = tuple(
    f"--dir={name}={path}"
    for name, path in (("work", names.WORK_DIR), ("output", names.OUTPUT_DIR), ("cache", names.CACHE_DIR))
)


def _where(run: Run) -> dict[str, Any]:
    """Fields of a pod's spec by which the scheduler finds a node."""
    required: list[dict[str, Any]] = []
    preferred: list[dict[str, Any]] = []
    if run.excluded:
        required.append({"key": names.LABEL_HOSTNAME, "operator": "NotIn", "values": list(run.excluded)})
    if run.avoided:
        term = {"key": names.LABEL_HOSTNAME, "operator": "NotIn", "values": list(run.avoided)}
        preferred.append({"weight": 100, "preference": {"matchExpressions": [term]}})
    if run.devices is None and run.accelerators:
        # A compiler that needs no device leaves the nodes with devices to those who serve, where there are others.
        labels = (f"{names.NODE_LABEL_DRIVER}/{accelerator}" for accelerator in run.accelerators)
        terms = [{"key": label, "operator": "DoesNotExist"} for label in labels]
        preferred.append({"weight": 50, "preference": {"matchExpressions": terms}})
    affinity: dict[str, Any] = {}
    ways = [[*way, *required] for way in (run.devices.ways if run.devices else ()) or [[]]]
    if any(ways):
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [{"matchExpressions": way} for way in ways]
        }
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    where: dict[str, Any] = {"affinity": {"nodeAffinity": affinity}} if affinity else {}
    if run.devices is not None:
        if run.devices.node_selector:
            where["nodeSelector"] = dict(run.devices.node_selector)
        if run.devices.tolerations:
            where["tolerations"] = [dict(each) for each in run.devices.tolerations]
    return where
