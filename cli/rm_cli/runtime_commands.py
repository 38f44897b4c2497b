"""Commands that a workload's images run, such as ``resolve``, ``fetch``, ``push`` and ``serve``; and ``models``."""

import os
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rm_api.conditions import Reason
from rm_api.names import ENV_CONFIG_TEMPLATE, ENV_REMOTE_CA, ENV_REMOTE_TOKEN_FILE, SERVE_PORT
from rm_api.report import Report

_DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_DESTINATION: Final = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--source",
    required=True,
    help="hf://organisation/model, oci://registry/repository:tag, https://host/directory/, s3://bucket/prefix or "
    "pvc://claim/directory",
)
@click.option("--revision", help="Branch, tag, commit or digest; what the source is now, without it.")
def resolve(source: str, revision: str | None) -> None:
    """Report what the model at SOURCE is: revision, figures, digests."""
    from rm_abstract.reporting import run_reported
    from rm_abstract.sources import resolve_model

    def action() -> Report:
        facts = resolve_model(source, revision)
        return Report(
            reason=Reason.RESOLVED, digest=facts["weightsDigest"], sizeBytes=facts["weightBytes"], facts=facts
        )

    sys.exit(run_reported(action))


@click.group()
def fetch() -> None:
    """Fetch a model, an artifact or another input of a build, complete or not at all."""


@fetch.command("model")
@click.option("--source", required=True, help="As for resolve.")
@click.option("--revision", required=True, help="The revision that resolve reported.")
@click.option("--weights-digest", required=True, help="The digest of the weights that resolve reported.")
@click.option("--config-digest", help="The digest of config.json and what goes with it that resolve reported.")
@click.option("--tensors-digest", help="The digest of the tensors' names, shapes and formats that resolve reported.")
@click.option("--scales-digest", help="The digest of the scales that resolve reported.")
@click.option("--code-digest", help="The digest of the model's own code that resolve reported; no code without it.")
@click.option("--dest", "destination", type=_DESTINATION, required=True, help="An empty directory.")
@click.option("--no-weights", is_flag=True, help="All files but the weights, whose digests are not checked then.")
@click.option(
    "--shared", is_flag=True, help="For a result that others share: no code of the model's, only what digests cover."
)
def fetch_model_command(
    source: str,
    revision: str,
    weights_digest: str,
    config_digest: str | None,
    tensors_digest: str | None,
    scales_digest: str | None,
    code_digest: str | None,
    destination: Path,
    *,
    no_weights: bool,
    shared: bool,
) -> None:
    """Fetch a model at a revision, and check that it is what was resolved."""
    from rm_abstract.reporting import run_reported
    from rm_abstract.sources import Expected, fetch_model
    from rm_abstract.sources.node_cache import NodeCache

    def action() -> Report:
        checked = None if no_weights else weights_digest
        expected = Expected(config=config_digest, tensors=tensors_digest, scales=scales_digest, code=code_digest)
        cache = None if no_weights else NodeCache.from_environment()
        with closing(cache) if cache else nullcontext():
            size = fetch_model(source, revision, checked, destination, expected, shared=shared, cache=cache)
        facts = {"nodeCache": cache.facts()} if cache else {}
        return Report(reason=Reason.READY, digest=checked or "", sizeBytes=size, facts=facts)

    sys.exit(run_reported(action))


@fetch.command("input")
@click.option("--source", required=True, help="A file of https://, or all files of hf://, oci:// or s3://.")
@click.option("--digest", required=True, help="SHA-256 of the file; of several, of the JSON [[name,digest],…], sorted.")
@click.option(
    "--dest", "destination", type=_DESTINATION, required=True, help="A directory that is not there, or empty."
)
def fetch_input_command(source: str, digest: str, destination: Path) -> None:
    """Fetch what else a build reads, and check its content."""
    from rm_abstract.reporting import run_reported
    from rm_abstract.sources.inputs import fetch_input

    def action() -> Report:
        size = fetch_input(source, digest, destination)
        return Report(reason=Reason.READY, digest=digest, sizeBytes=size)

    sys.exit(run_reported(action))


@fetch.command("artifact")
@click.option("--reference", required=True, help="HOST/REPOSITORY@sha256:…")
@click.option("--key", required=True, help="The key that the artifact must be of.")
@click.option("--dest", "destination", type=_DESTINATION, required=True, help="An empty directory.")
def fetch_artifact_command(reference: str, key: str, destination: Path) -> None:
    """Fetch an artifact by digest, and check all of it."""
    from rm_abstract.reporting import run_reported
    from rm_abstract.store import ArtifactStore, Reference

    def action() -> Report:
        with ArtifactStore() as store:
            artifact = store.pull(reference, destination, key=key)
        size = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file() and not path.is_symlink())
        return Report(
            reason=Reason.READY,
            digest=Reference.of_store(reference).digest,
            sizeBytes=size,
            versions=dict(artifact.versions),
        )

    sys.exit(run_reported(action))


@click.command()
@click.option("--format", "format_", required=True, help="What the file is written in: JSON, YAML, TOML or INI.")
@click.option("--dest", "destination", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file.")
def config(format_: str, destination: Path) -> None:
    """Make a compiler's configuration file of the template in $RMA_CONFIG_TEMPLATE and the variables beside it."""
    from rm_abstract.core.errors import BadInput
    from rm_abstract.reporting import run_reported
    from rm_api import config_template

    def action() -> Report:
        environment = dict(os.environ)
        template = environment.pop(ENV_CONFIG_TEMPLATE, None)
        if template is None:
            raise BadInput(f"{ENV_CONFIG_TEMPLATE} is not set; it is the template", reason=Reason.INVALID_SPEC)
        try:
            content = config_template.render(format_, template, environment).encode()
        except config_template.TemplateInvalid as error:
            raise BadInput(f"the template of {destination.name}: {error}", reason=Reason.INVALID_SPEC) from error
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = destination.with_name(f".{destination.name}.part")
        part.write_bytes(content)
        part.replace(destination)
        return Report(reason=Reason.READY, sizeBytes=len(content))

    sys.exit(run_reported(action))


def _versions(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, separator, version in pairs:
        if not (name and separator and version):
            raise click.BadParameter(f"{name!r} is not NAME=VERSION")
    return {name: version for name, _, version in pairs}


@click.command()
@click.option("--dir", "directory", type=_DIRECTORY, required=True, help="The compiled model.")
@click.option("--reference", required=True, help="HOST/REPOSITORY:TAG")
@click.option("--key", required=True, help="The artifact's key.")
@click.option("--format", "format_", required=True, help="Its format, by which a runtime plugin knows it.")
@click.option("--product", "products", multiple=True, help="A product that it runs on; any, without it.")
@click.option("--driver", "drivers", multiple=True, help="A driver version that loads it; any, without it.")
@click.option("--version", "versions", multiple=True, callback=_versions, help="NAME=VERSION of a tool that made it.")
def push(
    directory: Path,
    reference: str,
    key: str,
    format_: str,
    products: tuple[str, ...],
    drivers: tuple[str, ...],
    versions: dict[str, str],
) -> None:
    """Push a compiled model to the artifact store."""
    from rm_abstract.core.resource import BuildArtifact
    from rm_abstract.reporting import run_reported
    from rm_abstract.store import ArtifactStore

    def action() -> Report:
        artifact = BuildArtifact(directory, key, format_, products, drivers, versions)
        with ArtifactStore() as store:
            pushed = store.push(artifact, reference)
        return Report(reason=Reason.BUILT, digest=pushed.digest, sizeBytes=pushed.size_bytes, versions=versions)

    sys.exit(run_reported(action))


_Command = TypeVar("_Command", bound=Callable[..., Any])
_COUNT: Final = click.IntRange(1)
_SERVED: Final = (
    click.option("--plugin", required=True, help="Name of the runtime plugin."),
    click.option("--artifact", type=_DESTINATION, required=True, help="Directory of the artifact."),
    click.option("--model", type=_DIRECTORY, help="The model, where its weights are not in the artifact."),
    click.option("--served-name", required=True, help="Name of the model in the API."),
    click.option("--port", type=click.IntRange(1, 65535), default=SERVE_PORT, show_default=True),
    click.option(
        "--max-sequence-length", type=_COUNT, help="Tokens of prompt and answer; the model's own limit, without it."
    ),
    click.option("--prefill-chunk", type=_COUNT, help="Tokens of prompts in one pass; as the engine does, without it."),
    click.option(
        "--tensor-parallel", type=_COUNT, default=1, show_default=True, help="Devices that compute one layer together."
    ),
    click.option(
        "--pipeline-parallel", type=_COUNT, default=1, show_default=True,
        help="Groups of devices that have the layers one after the other.",
    ),
)  # fmt: skip


def _served(command: _Command) -> _Command:
    """The options of all commands that serve an artifact."""
    for option in reversed(_SERVED):
        command = option(command)
    return command


@click.command()
@_served
@click.option("--max-batch", type=_COUNT, default=8, show_default=True, help="Answers that are generated at a time.")
@click.option("--max-queue", type=click.IntRange(0), help="Answers that may wait; four times --max-batch, without it.")
def serve(
    plugin: str,
    artifact: Path,
    served_name: str,
    *,
    port: int,
    max_batch: int,
    max_queue: int | None,
    max_sequence_length: int | None,
    prefill_chunk: int | None,
    tensor_parallel: int,
    pipeline_parallel: int,
    model: Path | None,
) -> None:
    """Serve an artifact with the OpenAI API."""
    from rm_abstract.serve.main import serve as run

    sys.exit(
        run(
            plugin,
            artifact,
            served_name,
            port=port,
            max_batch=max_batch,
            max_queue=max_queue,
            max_sequence_length=max_sequence_length,
            model=model,
            prefill_chunk=prefill_chunk,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
        )
    )


@click.command()
@click.option("--endpoint", required=True, help="The proxy of the endpoint, such as https://remote-x.system.svc:8443.")
@click.option("--model", required=True, help="Name of the model at the endpoint.")
@click.option("--served-name", required=True, help="Name of the model in the API.")
@click.option("--port", type=click.IntRange(1, 65535), default=SERVE_PORT, show_default=True)
def relay(endpoint: str, model: str, served_name: str, port: int) -> None:
    """Hand requests on to an endpoint outside the cluster, through its proxy.

    RMA_REMOTE_TOKEN_FILE names the file with the token that the proxy takes, RMA_REMOTE_CA has its authorities as PEM.
    """
    from rm_abstract.serve.relay import relay as run

    token = os.environ.get(ENV_REMOTE_TOKEN_FILE)
    authorities = os.environ.get(ENV_REMOTE_CA, "")
    sys.exit(run(endpoint, model, served_name, port=port, token_file=Path(token) if token else None, ca=authorities))


@click.command("engine-command")
@_served
@click.option("--max-batch", type=_COUNT, help="Answers that are generated at a time; as the engine has it, without.")
@click.option("--dtype", default="", help="Number format to compute in, such as bf16.")
@click.option("--prefix-caching/--no-prefix-caching", default=None, help="Keep what was computed of prompts, or not.")
@click.option("--trust-remote-code", is_flag=True, help="Have the engine run code that comes with the model.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file for rma-launch."
)
def engine_command(
    plugin: str, artifact: Path, served_name: str, *, port: int, max_batch: int | None, model: Path | None,
    max_sequence_length: int | None, dtype: str, tensor_parallel: int, pipeline_parallel: int,
    prefill_chunk: int | None, prefix_caching: bool | None, trust_remote_code: bool, output: Path,
) -> None:  # fmt: skip
    """Work out the command of an engine's own server, which need not be here."""
    from rm_abstract.core.plugin import BackendConfig
    from rm_abstract.reporting import run_reported
    from rm_abstract.serve import command

    config = BackendConfig(
        dtype=dtype,
        max_batch_size=max_batch,
        max_sequence_length=max_sequence_length,
        model=model,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        prefill_chunk=prefill_chunk,
        prefix_caching=prefix_caching,
        trust_remote_code=trust_remote_code,
    )

    def action() -> Report:
        made = command.engine_command(plugin, artifact, config, served_name=served_name, port=port)
        command.write_command(made, output)
        return Report(reason=Reason.READY)

    sys.exit(run_reported(action))


@click.group()
def models() -> None:
    """Models in OCI registries."""


@models.command("push")
@click.argument("directory", type=_DIRECTORY)
@click.argument("reference")
def push_model_command(directory: Path, reference: str) -> None:
    """Push the model in DIRECTORY to REFERENCE, such as oci://registry.example.com/models/name:v1."""
    from rm_abstract.core.errors import WorkloadError
    from rm_abstract.store import push_model

    try:
        click.echo(push_model(directory, reference))
    except WorkloadError as error:
        click.echo(f"{error.reason}: {error}", err=True)
        sys.exit(error.code)
