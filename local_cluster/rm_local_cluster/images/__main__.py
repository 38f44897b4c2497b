"""`python -m rm_local_cluster.images`: build the images and print their references."""

import argparse
import json
import sys

from ..errors import LocalClusterError
from . import bills
from .catalogue import IMAGES
from .pipeline import build


def main() -> int:
    """Print `name reference` for each image, or one JSON object; progress goes to stderr. 1 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_local_cluster.images", description="Build the project's container images."
    )
    parser.add_argument(
        "names", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; by default all but deepspeed"
    )
    parser.add_argument("--push", metavar="HOST:PORT[/PATH]", help="push them to this registry")
    parser.add_argument("--pull", metavar="HOST:PORT[/PATH]", help="how pods name that registry, where it differs")
    parser.add_argument(
        "--attach-bills", action="store_true",
        help="attach each image's bill of materials to it in the registry; $NETRC names a file with its credentials",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.attach_bills and not arguments.push:
        parser.error("--attach-bills needs --push: bills are attached in a registry")
    try:
        references = build(arguments.names or None, push=arguments.push, pull=arguments.pull)
        if arguments.attach_bills:
            bills.attach(arguments.push, references)
    except LocalClusterError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(references, indent=1))
    else:
        for name, reference in references.items():
            print(name, reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
