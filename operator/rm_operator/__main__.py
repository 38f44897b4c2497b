"""``python -m rm_operator run``: the operator as a process."""

import argparse
import asyncio
import logging
import sys

from rm_operator.config import Config, InvalidConfig
from rm_operator.kube.auth import ConfigError, load
from rm_operator.runtime import garbage

USAGE_ERROR = 2


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rm_operator", description="The operator of RM Abstract.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run until SIGTERM; configured by the environment (RMA_*, POD_NAME)")
    run.add_argument(
        "--kubeconfig", help="path of a kubeconfig (default: $KUBECONFIG, the pod's service account, ~/.kube)"
    )
    run.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="default: INFO")
    arguments = parser.parse_args(argv)

    level = logging.getLevelNamesMapping()[arguments.log_level]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # kopf tells of each event that it hands over; what matters of it are its warnings.
    logging.getLogger("kopf").setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)
    try:
        config, connection = Config.from_environment(), load(arguments.kubeconfig)
    except (InvalidConfig, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR

    from rm_operator.app import Operator  # noqa: PLC0415 - a mistake in the environment is told without a second's imports

    garbage.begin_loading()
    asyncio.run(Operator(config, connection, loaded=garbage.begin_working).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
