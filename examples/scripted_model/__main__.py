"""`python -m scripted_model DIR`: write the model."""

import argparse
from pathlib import Path

from .texts import VARIANTS
from .write import DEFAULT_SEED, write_model


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(
        prog="python -m scripted_model", description="Write a small Llama with known answers."
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write; made if it is missing")
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="other weights, same answers (default: %(default)s)"
    )
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="which model (default: %(default)s)")
    arguments = parser.parse_args()
    write_model(arguments.directory, seed=arguments.seed, variant=arguments.variant)
    print(f"wrote the {arguments.variant} model to {arguments.directory}")


if __name__ == "__main__":
    main()
