"""``python -m rm_operator run``: the operator as a process."""

import argparse
import asyncio
import gc
import logging
import sys

from rm_operator.config import Config, InvalidConfig
from rm_operator.kube.auth import ConfigError, load

USAGE_ERROR = 2
GC_THRESHOLDS = (50_000, 20, 20)


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

    _tune_garbage_collection()
    asyncio.run(Operator(config, connection).run())
    return 0


def _tune_garbage_collection() -> None:
    """Have the collector leave alone what was loaded, and look at what comes less often.

    Decoded lists are trees of many small objects without cycles: at the default thresholds the collector runs through
    all of them, and through every module, many times a second during a start.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


if __name__ == "__main__":
    sys.exit(main())
