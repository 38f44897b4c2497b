"""``plugins``: those that are installed, and those that an index of the community offers."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from rm_abstract.core.community_index import Index
    from rm_abstract.core.errors import WorkloadError

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def plugins() -> None:
    """Plugins for accelerators: installed ones, and those of a signed index."""


def _fail(error: "WorkloadError") -> None:
    click.echo(f"{error.reason}: {error}", err=True)
    sys.exit(error.code)


def _index_options(command: F) -> F:
    """Which index, and whom to believe."""
    for option in (
        click.option(
            "--threshold", type=click.IntRange(1), default=1, show_default=True, help="Keys that must have signed."
        ),
        click.option(
            "--key",
            "keys",
            type=_FILE,
            multiple=True,
            required=True,
            envvar="RM_PLUGIN_INDEX_KEYS",
            help=f"PEM file of a trusted Ed25519 public key; RM_PLUGIN_INDEX_KEYS names several with {os.pathsep!r}.",
        ),
        click.option(
            "--index", "location", required=True, envvar="RM_PLUGIN_INDEX", help="Path or https URL of the index."
        ),
    ):
        command = option(command)
    return command


def _open(location: str, keys: tuple[Path, ...], threshold: int) -> "Index":
    from rm_abstract.core.community_index import load_public_key, open_index

    return open_index(location, [load_public_key(key) for key in keys], threshold=threshold)


@plugins.command("list")
@click.option("--available", is_flag=True, help="Only those that can be used here.")
@click.option("--probe", is_flag=True, help="Have those that are available look at their devices.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_command(available: bool, probe: bool, output: str) -> None:
    """List the installed plugins, the best first."""
    from rm_abstract.core.plugin import list_plugins

    found = list_plugins(available_only=available, probe=probe)
    if output == "json":
        click.echo(json.dumps(found, indent=1))
        return
    for name, about in found.items():
        state = f"FAILED: {about['error']}" if about["error"] else "available" if about["available"] else "not here"
        click.echo(f"{name:24} {about['version']:12} {','.join(about['device_types']):12} {state}")


@plugins.command()
@click.argument("text", default="")
@_index_options
def search(text: str, location: str, keys: tuple[Path, ...], threshold: int) -> None:
    """Search the index for plugins that have every word of TEXT; all of them, without it."""
    from rm_abstract.core.errors import WorkloadError

    try:
        for plugin in _open(location, keys, threshold).search(text):
            newest = plugin.releases[0].version if plugin.releases else "-"
            click.echo(f"{plugin.name:24} {newest!s:12} {','.join(plugin.device_types):12} {plugin.summary}")
    except WorkloadError as error:
        _fail(error)


@plugins.command()
@click.argument("name")
@_index_options
def show(name: str, location: str, keys: tuple[Path, ...], threshold: int) -> None:
    """Show what the index says of the plugin NAME, and which of its releases can be installed here."""
    from rm_abstract.core.errors import WorkloadError

    try:
        index = _open(location, keys, threshold)
        plugin = index.plugin(name)
        click.echo(f"{plugin.name}: {plugin.summary}")
        for label, value in (
            ("vendor", plugin.vendor),
            ("homepage", plugin.homepage),
            ("devices", ", ".join(plugin.device_types)),
            ("index", f"{index.name}, version {index.version}, good until {index.expires.isoformat()}"),
        ):
            if value:
                click.echo(f"  {label:9} {value}")
        for release in plugin.releases:
            click.echo(f"  {release.version!s:9} {release.obstacle(name) or 'can be installed'}")
            for one in release.requirements:
                click.echo(f"            {one.name}=={one.version} {' '.join(one.hashes)}")
    except WorkloadError as error:
        _fail(error)


@plugins.command()
@click.argument("name")
@click.option("--version", "versions", default="", help="A range, such as ^1.2; the newest that works, without it.")
@click.option("--python", default=sys.executable, help="Into whose environment; that of this command, without it.")
@click.option("--target", type=click.Path(file_okay=False, path_type=Path), help="A directory instead.")
@_index_options
def install(
    name: str, versions: str, python: str, target: Path | None, location: str, keys: tuple[Path, ...], threshold: int
) -> None:
    """Install the plugin NAME: exactly the files whose hashes were signed."""
    from rm_abstract.core.community_install import install as run
    from rm_abstract.core.errors import WorkloadError

    try:
        release = run(_open(location, keys, threshold), name, versions, python=python, target=target)
    except WorkloadError as error:
        _fail(error)
    else:
        click.echo(f"{name} {release.version} is installed")


@plugins.command("sign-index")
@click.argument("file", type=_FILE)
@click.option("--key", "keys", type=_FILE, multiple=True, required=True, help="PEM file of an Ed25519 private key.")
@click.option("--out", type=_FILE, required=True, help="Where the signed index goes.")
def sign_index(file: Path, keys: tuple[Path, ...], out: Path) -> None:
    """Sign the index in FILE, or add signatures to one that is signed."""
    from rm_abstract.core.community_index import key_id, load_private_key, sign
    from rm_abstract.core.errors import BadInput, WorkloadError

    try:
        private = [load_private_key(key) for key in keys]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error.strerror}") from None
        signed = sign(content, private)
        part = out.with_name(f".{out.name}.part")
        part.write_bytes(signed)
        part.replace(out)
    except WorkloadError as error:
        _fail(error)
    else:
        click.echo(f"{out} is signed by {', '.join(key_id(key.public_key()) for key in private)}")
