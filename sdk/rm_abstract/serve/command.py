"""The command of an engine that has a server of its own, for rma-launch to run in the engine's image."""

import json
from pathlib import Path
from typing import Any

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, get_registry
from rm_abstract.core.resource import BuildArtifact


def open_artifact(plugin_name: str, directory: Path) -> tuple[Plugin, BuildArtifact]:
    """The plugin, and the artifact that it serves. Raises ArtifactMismatch where it does not serve such."""
    plugin = get_registry().get_plugin(plugin_name)
    artifact = BuildArtifact.read(directory)
    formats = plugin.metadata().formats
    if artifact.format not in formats:
        raise ArtifactMismatch(
            f"plugin {plugin_name} serves {', '.join(formats)}, but the artifact is {artifact.format}"
        )
    return plugin, artifact


def engine_command(
    plugin_name: str, directory: Path, config: BackendConfig, *, served_name: str, port: int
) -> dict[str, Any]:
    """``argv`` and ``env`` of the server, in which ``${NAME}`` is a variable that is known where it is started.

    Neither the engine nor a device has to be here. Raises WorkloadError; BadInput for an engine without a server.
    """
    plugin, artifact = open_artifact(plugin_name, directory)
    prepared = plugin.prepare_resource(artifact, config)
    argv = plugin.serve_command(prepared, served_name=served_name, port=port)
    if argv is None:
        raise BadInput(f"the engine of plugin {plugin_name} has no server of its own; `rm-abstract serve` serves it")
    return {"argv": argv, "env": dict(plugin.serve_environment(prepared))}


def write_command(command: dict[str, Any], path: Path) -> None:
    """Write the command to ``path``, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(command, indent=1), encoding="utf-8")
    part.replace(path)
