"""``artifacts``: what is compiled, how far it is, and moving it to a cluster without a network."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml
from rm_abstract.core.errors import WorkloadError
from rm_api.names import ORPHANS_CONFIG_MAP, ORPHANS_KEY

from rm_cli import artifact_list, orphan_list
from rm_cli.kubectl import CommandFailed, Kubectl, named_cluster
from rm_cli.store_access import Store, applied

STALLED = 3
"""Exit status of ``watch`` where an artifact will not be ready by itself."""
TIMED_OUT = 4
"""Exit status of ``watch`` where the time was up before it was told how it ends."""

_ARTIFACTS = "buildartifacts.rm-abstract.io"
_DEPLOYMENTS = "modeldeployments.rm-abstract.io"
_KUBECONFIG = click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The cluster; by default that of KUBECONFIG, else the local one.",
)
_NAMESPACE = click.option("-n", "--namespace", default="default", show_default=True)


@click.group()
def artifacts() -> None:
    """Compiled models: list them, watch them being built, carry them to another cluster."""


@artifacts.command("ls")
@_NAMESPACE
@click.option("-A", "--all-namespaces", is_flag=True)
@_KUBECONFIG
@click.option("-o", "--output", "format_", type=click.Choice(["text", "json", "yaml"]), default="text")
def list_command(namespace: str, all_namespaces: bool, kubeconfig: Path | None, format_: str) -> None:
    """List the artifacts of a namespace, and those that it shares with others; or of all namespaces."""
    try:
        kubectl = Kubectl(named_cluster(kubeconfig), None if all_namespaces else namespace)
        scope = ["--all-namespaces"] if all_namespaces else []
        items = json.loads(kubectl.run("get", _ARTIFACTS, "-o", "json", *scope))["items"]
        items += [] if all_namespaces else _shared_by(kubectl)
    except CommandFailed as error:
        raise click.ClickException(str(error)) from None
    rows = sorted(map(artifact_list.row, items), key=lambda row: (row.namespace, row.profile, row.name))
    if format_ == "text":
        click.echo(artifact_list.table(rows, datetime.now(UTC)) if rows else "There are no artifacts.")
        return
    whole = [row.to_json() for row in rows]
    click.echo(json.dumps(whole, indent=2) if format_ == "json" else yaml.safe_dump(whole, sort_keys=False).rstrip())


def _shared_by(kubectl: Kubectl) -> list[dict[str, Any]]:
    """The artifacts of other namespaces that deployments of this one use, as far as one may see them."""
    statuses = [each.get("status") or {} for each in kubectl.list(_DEPLOYMENTS)]
    wanted = {(each["artifactNamespace"], each.get("artifact")) for each in statuses if each.get("artifactNamespace")}
    found = []
    for namespace in sorted({namespace for namespace, _ in wanted}):
        try:
            there = replace(kubectl, namespace=namespace).list(_ARTIFACTS)
        except CommandFailed as error:
            names = ", ".join(sorted(str(name) for where, name in wanted if where == namespace))
            _say(f"not listed: {names} in namespace {namespace}: {error}")
            continue
        found += [each for each in there if (namespace, each["metadata"]["name"]) in wanted]
    return found


@artifacts.command()
@click.option("--system-namespace", default="rm-abstract-system", show_default=True, help="Where the operator runs.")
@_KUBECONFIG
@click.option("-o", "--output", "format_", type=click.Choice(["text", "json", "yaml"]), default="text")
def orphans(system_namespace: str, kubeconfig: Path | None, format_: str) -> None:
    """List what the artifact store has and no object of the cluster names, and when it goes.

    The operator looks once a day. Nothing is changed by this command.
    """
    try:
        kubectl = Kubectl(named_cluster(kubeconfig), system_namespace)
        written = kubectl.get("configmap", ORPHANS_CONFIG_MAP)
    except CommandFailed as error:
        raise click.ClickException(str(error)) from None
    found = orphan_list.read(((written or {}).get("data") or {}).get(ORPHANS_KEY, ""))
    if format_ == "text":
        click.echo(orphan_list.table(found))
        return
    whole = orphan_list.to_json(found)
    click.echo(json.dumps(whole, indent=2) if format_ == "json" else yaml.safe_dump(whole, sort_keys=False).rstrip())


@artifacts.command()
@click.argument("names", nargs=-1)
@click.option("--deployment", help="Watch what this ModelDeployment waits for.")
@_NAMESPACE
@click.option("--timeout", type=click.FloatRange(0), help="Seconds; without it, until all of them have ended.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@_KUBECONFIG
def watch(
    names: tuple[str, ...],
    deployment: str | None,
    namespace: str,
    timeout: float | None,
    interval: float,
    kubeconfig: Path | None,
) -> None:
    """Say how far the artifacts NAMES are, or all of the namespace, until each is Ready or Stalled.

    Ends with 0 if all are Ready, with 3 if one is Stalled, and with 4 if the time is up.
    """
    if names and deployment:
        raise click.UsageError("name artifacts, or a deployment, not both")
    try:
        kubectl = Kubectl(named_cluster(kubeconfig), namespace)
        sys.exit(_watch(kubectl, names, deployment, timeout, interval))
    except CommandFailed as error:
        raise click.ClickException(str(error)) from None


def _watch(
    kubectl: Kubectl, names: tuple[str, ...], deployment: str | None, timeout: float | None, interval: float
) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    said: dict[str, str] = {}
    while True:
        found = _watched(kubectl, names, deployment)
        for each in found or ():
            line = artifact_list.progress(each, datetime.now(UTC))
            # What changes by itself, with the time, is told once in a while; what happens is told when it does.
            if _event(each) != said.get(each["metadata"]["name"]) or sys.stdout.isatty():
                click.echo(line)
                said[each["metadata"]["name"]] = _event(each)
        if found is not None and artifact_list.settled(found):
            stalled = [each for each in found if artifact_list.state(each) == "Stalled"]
            for each in stalled:
                for line in artifact_list.log_tail(each):
                    click.echo(f"  {line}")
            return STALLED if stalled else 0
        if deadline is not None and time.monotonic() >= deadline:
            click.echo("the time is up, and not all of them have ended", err=True)
            return TIMED_OUT
        time.sleep(interval)


def _event(artifact: dict[str, Any]) -> str:
    """What is told again only if it is another one."""
    status = artifact.get("status") or {}
    ready = [each for each in status.get("conditions") or () if each["type"] == "Ready"]
    said = [(each["status"], each["reason"], each.get("message")) for each in ready]
    return json.dumps([said, status.get("stage"), status.get("attempts")])


def _watched(kubectl: Kubectl, names: tuple[str, ...], deployment: str | None) -> list[dict[str, Any]] | None:
    """The artifacts that are watched; None while a deployment has not asked for one yet."""
    if deployment is not None:
        found = kubectl.get(_DEPLOYMENTS, deployment)
        if found is None:
            raise CommandFailed(f"there is no ModelDeployment {deployment} in namespace {kubectl.namespace}")
        status = found.get("status") or {}
        wanted = status.get("artifact")
        there = replace(kubectl, namespace=status.get("artifactNamespace") or kubectl.namespace)
        artifact = there.get(_ARTIFACTS, wanted) if wanted else None
        return None if artifact is None else [artifact]
    items = kubectl.list(_ARTIFACTS)
    if not names:
        return items
    known = {each["metadata"]["name"]: each for each in items}
    missing = [name for name in names if name not in known]
    if missing:
        raise CommandFailed(f"there is no artifact {', '.join(missing)} in namespace {kubectl.namespace}")
    return [known[name] for name in names]


@artifacts.command("export")
@click.argument("deployments", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All deployments of the namespace.")
@_NAMESPACE
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    help="An empty directory, one that an export began, or a file that ends with .tar.",
)  # fmt: skip
@click.option(
    "--registry",
    help="HOST of the artifact store as this machine reaches it. [default: through the cluster's API server, where the "
    "chart runs the store; else by the name that pods use]",
)
@click.option("--no-weights", is_flag=True, help="Leave the models out; the artifacts must have the weights in them.")
@_KUBECONFIG
def export_command(
    deployments: tuple[str, ...],
    everything: bool,
    namespace: str,
    output: Path,
    registry: str | None,
    no_weights: bool,
    kubeconfig: Path | None,
) -> None:
    """Put DEPLOYMENTS, each NAME or NAMESPACE/NAME, into a bundle with all that they need elsewhere.

    A bundle is an OCI image layout: models, artifacts, profiles, accelerators, deployments, and the list of images.
    One that was ended in the middle goes on where it ended when the same is run again.
    """
    from rm_cli import offline_export

    if everything == bool(deployments):
        raise click.UsageError("name the deployments to export, or give --all")
    wanted: dict[str, list[str]] = {namespace: []} if everything else {}
    for each in deployments:
        of, _, name = each.rpartition("/")
        wanted.setdefault(of or namespace, []).append(name)
    try:
        cluster = named_cluster(kubeconfig)
        selection = offline_export.merged(
            [
                offline_export.select(Kubectl(cluster, of), names, weights=not no_weights, say=_say)
                for of, names in wanted.items()
            ]
        )
        needed = offline_export.images(selection, Kubectl(cluster), _say)
        with _way(Kubectl(cluster), registry):
            offline_export.write(selection, needed, output, weights=not no_weights, registry=registry, say=_say)
    except (WorkloadError, CommandFailed) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error}") from None
    without = sum(each.digest is None for each in needed)
    click.echo(
        f"{output}: {len(selection.deployments)} deployments, {len(selection.artifacts)} artifacts, "
        f"{len(selection.profiles)} profiles, {len(selection.accelerators)} accelerators; "
        f"{len(needed)} images are listed{f', {without} of them without a digest' if without else ''}"
    )


@artifacts.command("import")
@click.argument("path", metavar="BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--registry",
    help="HOST of the artifact store, as this machine reaches it. [default: through the cluster's API "
    "server, where the chart runs the store]",
)
@click.option(
    "--registry-for-pods", help="HOST of it as pods reach it; what the operator there was told, or --registry."
)
@click.option("--models", help="HOST/PATH of another registry for the models, if the store is for artifacts alone.")
@click.option("--image-registry", help="HOST[/PATH] that the images were copied to; without it their names stay.")
@click.option("--credentials-secret", help="Secret by which pods read the models, in each deployment's namespace.")
@click.option("--force-conflicts", is_flag=True, help="Take over objects that are there and say otherwise.")
@click.option("--dry-run", is_flag=True, help="Verify the bundle, ask the API server, change nothing else.")
@_KUBECONFIG
def import_command(
    path: Path,
    registry: str | None,
    registry_for_pods: str | None,
    models: str | None,
    image_registry: str | None,
    credentials_secret: str | None,
    force_conflicts: bool,
    dry_run: bool,
    kubeconfig: Path | None,
) -> None:
    """Verify BUNDLE, push what it holds, and apply its objects, so that the operator there builds nothing.

    One that was ended in the middle goes on where it ended when the same is run again.
    """
    from rm_abstract.store.bundle import Bundle

    from rm_cli import offline_import

    if "/" in (registry or "") or "/" in (registry_for_pods or ""):
        raise click.UsageError("the artifact store is a HOST or HOST:PORT; a path is for --models and --image-registry")
    try:
        bundle = Bundle(path)
        kubectl = Kubectl(named_cluster(kubeconfig))
        told = offline_import.operator_store(kubectl, _say)
        there = None if registry else Store.find(kubectl)
        if there is not None:
            registry = there.host
        if registry is None:
            raise CommandFailed("no store that the chart runs is found there: say where it is with --registry")
        store = registry_for_pods or told or registry
        if told is not None and told != store:
            raise CommandFailed(f"the operator there keeps artifacts at {told}, not at {store}: --registry-for-pods")
        target = offline_import.Target(
            registry, store, models or registry, models or store, image_registry, credentials_secret
        )
        todo = offline_import.prepare(bundle, target)
        size = bundle.layout.verify()
        _say(f"{path}: {artifact_list.size(size)}, every digest is right")
        offline_import.check(todo, kubectl, force=force_conflicts, dry_run=dry_run)
        if not dry_run:
            with _way(kubectl, None if there else registry):
                pushed = offline_import.push(todo, _say)
            _say(f"{pushed} pushed, {len(bundle.contents.models) + len(bundle.contents.artifacts) - pushed} were there")
            offline_import.apply(todo, kubectl, force=force_conflicts)
    except (WorkloadError, CommandFailed) as error:
        raise click.ClickException(str(error)) from None
    if copies := todo.copies():
        click.echo("Images that nodes there must be able to pull; names that stay the same are for a mirror:")
        for source, name in copies:
            click.echo(f"  {source}{'' if name == source.partition('@')[0] else f' -> {name}'}")
    for each in bundle.contents.deployments:
        click.echo(f"{'would apply' if dry_run else 'applied'} {each.namespace}/{each.name}")


@contextmanager
def _way(kubectl: Kubectl, registry: str | None) -> Iterator[None]:
    """The way to the store of the cluster, unless one is named or the chart runs none."""
    store = None if registry else Store.find(kubectl)
    if store is None:
        yield
        return
    with store.reached(kubectl) as variables, applied(variables):
        yield


def _say(line: str) -> None:
    click.echo(line, err=True)
