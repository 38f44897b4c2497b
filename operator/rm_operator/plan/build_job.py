"""The Job of one build attempt: fetch the model (our image), the profile's steps (vendor images), push (our image)."""

from typing import Any

from rm_api import names
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import Step

from rm_operator.plan import pods
from rm_operator.plan.key import build_variables
from rm_operator.plan.model import Object, Settings, name_of, namespace_of, owner_reference

_STEP_VOLUMES = ["bin", "tmp", "model", "work", "output", "cache"]


def job_name(artifact_name: str, attempt: int) -> str:
    """Name of an attempt's Job: the artifact's hash and the attempt's number, so that making it twice makes it once."""
    return f"b-{artifact_name.removeprefix('a-')}-{attempt}"


def variables(spec: BuildArtifactSpec) -> dict[str, str]:
    """Values of the variables that a step may name."""
    return {
        "MODEL_DIR": names.MODEL_DIR,
        "OUTPUT": names.OUTPUT_DIR,
        "WORK": names.WORK_DIR,
        "CACHE_DIR": names.CACHE_DIR,
        **build_variables(spec.target, spec.dtype, spec.shape),
    }


def render(artifact: Object, spec: BuildArtifactSpec, attempt: int, settings: Settings) -> dict[str, Any]:
    """The Job in full."""
    name, namespace = name_of(artifact), namespace_of(artifact)
    source_environment, source_mounts, source_volumes = pods.source_access(settings, spec.model.credentials_secret)
    fetch = pods.container(
        "fetch",
        settings.images.runtime,
        [
            "rm-abstract", "fetch", "model",
            f"--source={pods.literal(spec.model.source)}",
            f"--revision={pods.literal(spec.model.revision)}",
            f"--weights-digest={spec.model.weights_digest}",
            f"--dest={names.MODEL_DIR}",
        ],
        settings,
        mounted=[*pods.mounts(["tmp", "model"]), *source_mounts],
        environment=pods.env(source_environment),
        compute={"requests": {"cpu": "100m", "memory": "256Mi"}},
    )  # fmt: skip
    probe = [_probe(spec, settings)] if spec.probe else []
    reference = f"{settings.store.host}/{names.artifact_repository(namespace, name)}:{names.ARTIFACT_TAG}"
    push = pods.container(
        "push",
        settings.images.runtime,
        [
            "rm-abstract", "push",
            f"--dir={names.OUTPUT_DIR}",
            f"--reference={reference}",
            f"--key={spec.key}",
            f"--format={spec.format}",
            *(f"--product={pods.literal(product)}" for product in spec.target.products),
            *(f"--driver={pods.literal(driver)}" for driver in spec.drivers),
        ],
        settings,
        mounted=pods.mounts(["tmp", "output"]),
        environment=pods.env(_store_environment(settings)),
        compute={"requests": {"cpu": "100m", "memory": "256Mi"}},
    )  # fmt: skip
    label = pods.labels(names.ROLE_BUILD, **{names.LABEL_ARTIFACT: name, names.LABEL_ATTEMPT: str(attempt)})
    return pods.job(
        name=job_name(name, attempt),
        namespace=namespace,
        owners=[owner_reference(artifact, controller=True)],
        label=label,
        deadline=spec.timeout_seconds,
        template=pods.pod_spec(
            init_containers=[
                pods.install_launcher(settings),
                fetch,
                *(_step(step, spec, settings) for step in spec.steps),
                *probe,
            ],
            containers=[push],
            pod_volumes=[*pods.volumes(_STEP_VOLUMES, size_limit=str(spec.scratch)), *source_volumes],
        ),
    )


def _step(step: Step, spec: BuildArtifactSpec, settings: Settings) -> dict[str, Any]:
    command = [names.LAUNCHER, "run", f"--name={step.name}"]
    command += [f"--output={pods.literal(output)}" for output in step.outputs]
    if step.success_pattern:
        command.append(f"--success-pattern={pods.literal(step.success_pattern)}")
    if step.failure_pattern:
        command.append(f"--failure-pattern={pods.literal(step.failure_pattern)}")
    command += [f"--exit-code={mapping.code}={mapping.meaning}" for mapping in spec.exit_codes]
    command += ["--", *map(pods.literal, [*step.command, *step.args])]
    return pods.container(
        step.name,
        step.image,
        command,
        settings,
        mounted=pods.mounts(_STEP_VOLUMES, read_only=["bin", "model"]),
        environment=pods.env(variables(spec), step.env),
        compute=pods.resources(step.resources),
        workingDir=names.WORK_DIR,
    )


def _probe(spec: BuildArtifactSpec, settings: Settings) -> dict[str, Any]:
    assert spec.probe is not None
    return pods.container(
        "probe",
        spec.probe.image,
        [names.LAUNCHER, "run", "--name=probe", "--", *map(pods.literal, spec.probe.command)],
        settings,
        mounted=pods.mounts(_STEP_VOLUMES, read_only=["bin", "model", "output"]),
        environment=pods.env(variables(spec)),
        workingDir=names.WORK_DIR,
    )


def _store_environment(settings: Settings) -> dict[str, str]:
    return {"RMA_PLAIN_HTTP_HOSTS": settings.store.host} if settings.store.plain_http else {}
