"""``rm-abstract``: one entry point for people and for our containers."""

import importlib
from collections.abc import Mapping

import click

# Command → module and attribute. A module is imported when its command is called: its extra may not be installed.
_COMMANDS: Mapping[str, str] = {
    "up": "rm_cli.cluster_commands:up",
    "down": "rm_cli.cluster_commands:down",
    "status": "rm_cli.cluster_commands:status",
    "doctor": "rm_cli.doctor_command:doctor",
    "demo": "rm_cli.demo:demo",
    "plan": "rm_cli.placement_commands:plan",
    "explain": "rm_cli.placement_commands:explain",
    "artifacts": "rm_cli.artifact_commands:artifacts",
    "conformance": "rm_cli.conformance_commands:conformance",
    "models": "rm_cli.runtime_commands:models",
    "resolve": "rm_cli.runtime_commands:resolve",
    "fetch": "rm_cli.runtime_commands:fetch",
    "config": "rm_cli.runtime_commands:config",
    "push": "rm_cli.runtime_commands:push",
    "stage": "rm_cli.stage_commands:stage",
    "serve": "rm_cli.runtime_commands:serve",
    "engine-command": "rm_cli.runtime_commands:engine_command",
    "relay": "rm_cli.runtime_commands:relay",
    "plugins": "rm_cli.plugin_commands:plugins",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{cmd_name} needs the Python package {error.name}, which is not installed here; "
                "pip install 'rm-abstract[cli,runtime]'"
            ) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Help must not import every command to tell its first line.
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARIES[name]) for name in _COMMANDS])


_SUMMARIES: Mapping[str, str] = {
    "up": "Start a local Kubernetes, or take the one that is named.",
    "down": "Stop the local Kubernetes and remove every trace of it.",
    "status": "Say what of the local Kubernetes runs.",
    "doctor": "Say what this machine lacks to run it, or what is wrong with the image that this runs in.",
    "demo": "Set everything up and serve a model from a compiled artifact.",
    "plan": "Say where a model would run, and why, without applying anything.",
    "explain": "Say why a deployed model runs where it runs.",
    "artifacts": "List compiled models, watch builds, and carry them to a cluster without a network.",
    "conformance": "Test a device plugin, in any language, against the rules of the kubelet.",
    "models": "Put models into an OCI registry.",
    "resolve": "Find out what a model is (in a resolve Job).",
    "fetch": "Fetch a model, an artifact or another input (in init containers).",
    "config": "Make a compiler's configuration file of a template (in a build Job).",
    "push": "Put an artifact into the store (in a build Job).",
    "stage": "Hand what a build has come to from one Job to the next.",
    "serve": "Serve an artifact with the OpenAI API (in a serving pod).",
    "engine-command": "Work out how an engine's own server is started (in a serving pod).",
    "relay": "Hand requests on to an endpoint outside the cluster (in a serving pod).",
    "plugins": "List plugins for accelerators, and install those of a signed index.",
}


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rm-abstract")
def main() -> None:
    """Compiles and serves large language models on any accelerator."""
