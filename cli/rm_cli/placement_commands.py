"""``plan`` and ``explain``: where a model would run, or runs, and why."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import ModelFacts
from rm_api.placement import Placement
from rm_operator.plan.placement import PlacementRequest, ProfileView, place
from rm_operator.plan.version_probe import UNDER_WAY

from rm_cli.kubectl import CommandFailed, Kubectl, named_cluster
from rm_cli.placement_input import BadInput, Deployment, Input, facts_of, read, read_facts, resolve_facts
from rm_cli.placement_text import answer_of, text

NOWHERE = 3
"""Exit status where everything was understood and nothing can take the model."""

_KINDS = "acceleratorresources.rm-abstract.io,buildprofiles.rm-abstract.io"
_DEPLOYMENTS = "modeldeployments.rm-abstract.io"
_PATH = click.Path(exists=True, path_type=Path)
_KUBECONFIG = click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The cluster to ask; by default that of KUBECONFIG, else the local one.",
)
_FORMAT = click.option("-o", "--output", "format_", type=click.Choice(["text", "json", "yaml"]), default="text")


@click.command()
@click.option(
    "-f", "--filename", "paths", type=_PATH, multiple=True, required=True, help="File or directory; repeatable."
)
@click.option(
    "--model-facts",
    "--facts",
    "facts_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the model is: YAML or JSON as rm-abstract resolve reports it.",
)
@click.option("--resolve", is_flag=True, help="Ask the model's source what the model is; its weights are not read.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Where a deployment names none.")
@_KUBECONFIG
@_FORMAT
def plan(
    paths: tuple[Path, ...],
    facts_file: Path | None,
    resolve: bool,
    namespace: str,
    kubeconfig: Path | None,
    format_: str,
) -> None:
    """Say where ModelDeployments of files would run, and why; nothing is applied.

    Accelerators and profiles come from the files too, or from the cluster if the files have no accelerator. What a
    model is comes from --model-facts, from its source with --resolve, from the status in the file, or from the cluster.
    Ends with 3 if one has no place.
    """
    if facts_file is not None and resolve:
        raise click.UsageError("give --model-facts or --resolve, not both")
    try:
        given = read(paths, namespace)
        if not given.deployments:
            raise BadInput("the files have no ModelDeployment; give one with -f")
        answers = [_plan(each, given, facts_file, resolve, kubeconfig) for each in given.deployments]
    except (BadInput, CommandFailed) as error:
        raise click.ClickException(str(error)) from None
    _print(answers, format_)


@click.command()
@click.argument("name")
@click.option("-n", "--namespace", default="default", show_default=True)
@_KUBECONFIG
@_FORMAT
def explain(name: str, namespace: str, kubeconfig: Path | None, format_: str) -> None:
    """Say why the ModelDeployment NAME runs where it runs. Ends with 3 if it has no place."""
    try:
        found = Kubectl(named_cluster(kubeconfig), namespace).get(_DEPLOYMENTS, name)
    except (BadInput, CommandFailed) as error:
        raise click.ClickException(str(error)) from None
    if found is None:
        raise click.ClickException(f"there is no ModelDeployment {name} in namespace {namespace}")
    _print([answer_of(found)], format_)


def _plan(
    deployment: Deployment, given: Input, facts_file: Path | None, resolve: bool, kubeconfig: Path | None
) -> dict[str, Any]:
    live: Mapping[str, Any] = deployment.status
    known = Input(accelerators=given.accelerators, profiles=given.profiles)
    if not given.accelerators:
        kubectl = Kubectl(named_cluster(kubeconfig), deployment.namespace)
        listed = json.loads(kubectl.run("get", _KINDS, "-o", "json"))
        known = Input(profiles=dict(given.profiles), strict=False)
        for item in listed["items"]:
            if item["kind"] != "BuildProfile" or item["metadata"]["name"] not in given.profiles:
                known.add(item, "the cluster", deployment.namespace)
        live = live or (kubectl.get(_DEPLOYMENTS, deployment.name) or {}).get("status") or {}
    before = live.get("placement") or {}
    result = place(
        PlacementRequest(
            deployment=deployment.name,
            spec=deployment.spec,
            facts=_facts(deployment, live, facts_file, resolve),
            accelerators=tuple(known.accelerators.values()),
            profiles=tuple(known.profiles.values()),
            current=before.get("chosen"),
            current_policy=before.get("policy"),
            namespace=deployment.namespace,
        )
    )
    placement = Placement(
        policy=deployment.spec.policy.type,
        chosen=result.chosen,
        profile=result.profile,
        candidates=list(result.candidates),
    )
    placed = {
        "type": ConditionType.PLACED.value, "status": str(result.chosen is not None), "reason": result.reason.value,
        "message": result.message,
    }  # fmt: skip
    metadata = {"name": deployment.name, "namespace": deployment.namespace}
    answer = answer_of({"metadata": metadata, "status": {"placement": placement.to_wire(), "conditions": [placed]}})
    answer["status"]["conditions"] += _unknown_toolchains(result.profile, known.profiles)
    return answer


def _unknown_toolchains(profile: str | None, profiles: Mapping[str, ProfileView]) -> list[dict[str, str]]:
    """What cannot be told of the artifact without a cluster: versions that profiles have probed there."""
    unknown: dict[str, str] = {}
    while profile is not None and profile in profiles and profile not in unknown:
        view = profiles[profile]
        if view.awaited:
            unknown[profile] = "" if view.reason == UNDER_WAY else f" ({view.reason})"
        profile = view.spec.from_profile
    if not unknown:
        return []
    named = ", ".join(f"{name}{why}" for name, why in unknown.items())
    message = (
        f"versions and images of the toolchain are not known yet: {named}; a cluster probes them before anything is "
        "built, and they decide which artifact it is"
    )
    return [
        {"type": ConditionType.ARTIFACT_READY.value, "status": "Unknown", "reason": Reason.PROBING.value,
         "message": message}
    ]  # fmt: skip


def _facts(deployment: Deployment, live: Mapping[str, Any], facts_file: Path | None, resolve: bool) -> ModelFacts:
    source = deployment.spec.model.source
    if facts_file is not None:
        return read_facts(facts_file, source)
    if resolve:
        return resolve_facts(source, deployment.spec.model.revision)
    known = live.get("model")
    if known and known.get("source") == source:
        return facts_of(known, f"status.model of {deployment.name}")
    raise BadInput(
        f"it is not known what {source} is: give --resolve, or --model-facts FILE with what "
        f"`rm-abstract resolve --source {source}` reports, or plan a ModelDeployment that the cluster has resolved"
    )


def _print(answers: Sequence[dict[str, Any]], format_: str) -> None:
    if format_ == "text":
        width = shutil.get_terminal_size((160, 24)).columns
        click.echo("\n\n".join(text(each, width) for each in answers))
    else:
        whole = answers[0] if len(answers) == 1 else {"apiVersion": "v1", "kind": "List", "items": list(answers)}
        as_yaml = yaml.safe_dump(whole, sort_keys=False).rstrip()
        click.echo(json.dumps(whole, indent=2) if format_ == "json" else as_yaml)
    if not all((each["status"].get("placement") or {}).get("chosen") for each in answers):
        sys.exit(NOWHERE)
