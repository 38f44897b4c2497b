"""``rm-abstract demo``: the main job on a real Kubernetes, from nothing to an answer."""

import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import rm_local_cluster
from rm_local_cluster import Cluster, LocalClusterError

from rm_cli import placement_text, release
from rm_cli.cluster_commands import say
from rm_cli.kubectl import CommandFailed, Kubectl, condition, wait_until

NAMESPACE = "rm-abstract-demo"
QUESTION = [{"role": "user", "content": "Tell me a story about the sea."}]
SCRIPTED = "the scripted model (a small Llama with chosen weights)"
IMAGES = (*release.CHART_IMAGES, "device-plugin", "openvino", "openvino-compiler")
_WIDTH = 160
"""Columns of the table of candidates."""


@click.command()
@click.option("--model", metavar="URI", help=f"The model to serve, such as hf://Qwen/Qwen3-0.6B. [default: {SCRIPTED}]")
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Use this cluster instead of a local one."
)
@click.option("--timeout", default=900, show_default=True, help="Seconds to wait for the model to be served.")
def demo(model: str | None, kubeconfig: Path | None, timeout: int) -> None:
    """Set everything up and serve a model from an artifact that a Job compiled for a simulated NPU."""
    try:
        _demo(model, kubeconfig, timeout)
    except (LocalClusterError, CommandFailed) as error:
        raise click.ClickException(str(error)) from None


def _demo(model: str | None, kubeconfig: Path | None, timeout: int) -> None:
    watch = _Stopwatch()
    # A model from a hub is read by a pod, which has to get there.
    cluster = rm_local_cluster.up(kubeconfig=kubeconfig, outside=True if model else None, progress=say)
    watch.lap("cluster")
    references = release.build_images(cluster, say, IMAGES)
    watch.lap("images")
    release.install(cluster, references)
    watch.lap("chart")
    everything = Kubectl(cluster)
    for name in ("accelerator", "build-profile", "cpu"):
        everything.apply(*release.example(f"simulated-npu/{name}.yaml", references))
    everything.run("wait", "--for=condition=Ready", "accel/simulated-npu", "accel/cpu", "--timeout=120s", timeout=130)
    watch.lap("devices")
    source = model or _scripted_model(cluster)
    watch.lap("model")

    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    everything.apply(namespace)
    kubectl = Kubectl(cluster, NAMESPACE)
    _clear(kubectl)
    first = _serve(kubectl, "hello", source, timeout)
    answer = kubectl.post(
        "hello:http", "/v1/chat/completions",
        {"model": "hello", "messages": QUESTION, "max_tokens": 64, "temperature": 0},
    )  # fmt: skip
    jobs_before = _build_jobs(kubectl)
    again = _serve(kubectl, "hello-again", source, timeout)

    click.echo("\n== Placement")
    click.echo(placement_text.text(placement_text.answer_of(first), _WIDTH))
    click.echo("\n== Stages of hello (seconds)")
    click.echo(stages(first, kubectl.get("bart", first["status"]["artifact"])))
    click.echo("\n== Completion")
    click.echo(f"  > {QUESTION[0]['content']}")
    click.echo(f"  {answer['choices'][0]['message']['content']}")
    click.echo("\n== Applied again as hello-again")
    reused = again["status"]["artifact"] == first["status"]["artifact"] and _build_jobs(kubectl) == jobs_before
    if not reused:
        raise CommandFailed("hello-again did not reuse the artifact of hello")
    click.echo(f"  artifact {again['status']['artifact']} reused, no second compile Job")
    click.echo(stages(again, None))
    click.echo("\n== Set-up (seconds)")
    click.echo(str(watch))
    click.echo(f"\n  kubectl --kubeconfig {cluster.kubeconfig} -n {NAMESPACE} get mdep,bart,pods")


def _scripted_model(cluster: Cluster) -> str:
    from scripted_model import write_model

    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        return release.ModelRegistry(cluster).push(Path(directory), "models/scripted-llama", "1")


def _clear(kubectl: Kubectl) -> None:
    """Removes what an earlier demo deployed, but for its artifacts; returns once its devices are free."""
    kubectl.run("delete", "mdep", "--all")
    serving = "rm-abstract.io/role=serve"
    wait_until("pods of an earlier demo are left", lambda: not kubectl.list("pods", selector=serving), timeout=120)


def _build_jobs(kubectl: Kubectl) -> int:
    # Attempts are counted where they outlive their Jobs.
    return sum(artifact["status"]["attempts"] for artifact in kubectl.list("bart"))


def _serve(kubectl: Kubectl, name: str, source: str, timeout: int) -> dict[str, Any]:
    """Applies a ModelDeployment and returns it once it is Ready, telling its progress."""
    deployment = {
        "apiVersion": "rm-abstract.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"source": source}, "workload": {"inputTokens": 256, "outputTokens": 64}},
    }
    kubectl.apply(deployment)
    say(f"ModelDeployment {name} applied")
    told: dict[str, str] = {}

    def ready() -> dict[str, Any] | None:
        current = kubectl.get("mdep", name)
        state = condition(current, "Ready")
        line = f"  {state.get('reason', 'Pending')}: {state.get('message', '')}"
        if told.get("line") != line:
            told["line"] = line
            say(line)
        if condition(current, "Stalled"):
            raise CommandFailed(f"{name} cannot be served: {state.get('message')}")
        return current if state.get("status") == "True" else None

    found: dict[str, Any] = wait_until(f"{name} is not Ready", ready, timeout=timeout)
    return found


def stages(deployment: dict[str, Any], artifact: dict[str, Any] | None) -> str:
    """How long each stage of a deployment took, from the transitions in its status."""
    moment = datetime.fromisoformat(deployment["metadata"]["creationTimestamp"])
    lines = []
    for title, name in (
        ("resolve", "ModelResolved"),
        ("place", "Placed"),
        ("build", "ArtifactReady"),
        ("start", "Available"),
    ):
        reached = datetime.fromisoformat(condition(deployment, name)["lastTransitionTime"])
        reached = max(reached, moment)
        lines.append(f"  {title:<10} {(reached - moment).total_seconds():>7.0f}")
        moment = reached
        if name == "ArtifactReady" and artifact is not None:
            spent = (artifact["status"].get("stageSeconds") or {}).items()
            lines += [f"    {stage:<10} {float(seconds):>5.0f}" for stage, seconds in spent]
    return "\n".join(lines)


class _Stopwatch:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        now = self._clock()
        self._laps.append((name, now - self._last))
        self._last = now

    def __str__(self) -> str:
        return "\n".join(f"  {name:<10} {seconds:>7.1f}" for name, seconds in self._laps)
