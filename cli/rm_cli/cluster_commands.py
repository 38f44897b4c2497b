"""``up``, ``down`` and ``status``: the local Kubernetes."""

import sys
from pathlib import Path

import click
import rm_local_cluster
from rm_local_cluster import LocalClusterError


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout stays for results."""
    click.echo(line, err=True)


@click.command()
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Use this cluster instead of a local one."
)
@click.option("--driver", type=click.Choice(["auto", "existing", "kind", "node"]), default="auto", show_default=True)
@click.option("--outside", is_flag=True, help="Let pods of a node of our own reach what this machine reaches.")
def up(kubeconfig: Path | None, driver: str, outside: bool) -> None:
    """Start a local Kubernetes, or take the one that is named.

    Without --kubeconfig: kind where a Docker engine answers, otherwise a node of our own in namespaces of its own.
    """
    try:
        cluster = rm_local_cluster.up(
            kubeconfig=kubeconfig,
            driver=driver,  # type: ignore[arg-type]
            outside=True if outside else None,
            progress=say,
        )
    except LocalClusterError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"export KUBECONFIG={cluster.kubeconfig}")
    click.echo(f"export PATH={cluster.kubectl.parent}:{cluster.helm.parent}:$PATH")


@click.command()
@click.option("--purge", is_flag=True, help="Remove the images that its node has pulled, too.")
def down(purge: bool) -> None:
    """Stop the local Kubernetes and remove every trace of it but the caches."""
    try:
        rm_local_cluster.down(purge=purge, progress=say)
    except LocalClusterError as error:
        raise click.ClickException(str(error)) from None


@click.command()
def status() -> None:
    """Say what of the local Kubernetes runs."""
    found = rm_local_cluster.status()
    click.echo(f"{found.name}: {found.phase}: {found.message}")
    for component in found.components:
        click.echo(f"  {'ok ' if component.healthy else 'BAD'} {component.name}: {component.message}")
    if found.cluster is not None:
        click.echo(f"  kubeconfig {found.cluster.kubeconfig}")
    sys.exit(0 if found.healthy else 1)
