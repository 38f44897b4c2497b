"""`python -m rm_local_cluster.images`: build the images and print their references."""

import argparse
import json
import sys

from ..errors import LocalClusterError
from .catalogue import IMAGES
from .pipeline import build


def main() -> int:
    """Print `name reference` for each image, or one JSON object; progress goes to stderr. 1 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_local_cluster.images", description="Build the project's container images."
    )
    parser.add_argument("names", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; all by default")
    parser.add_argument("--push", metavar="HOST:PORT[/PATH]", help="push them to this registry")
    parser.add_argument("--pull", metavar="HOST:PORT[/PATH]", help="how pods name that registry, where it differs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        references = build(arguments.names or None, push=arguments.push, pull=arguments.pull)
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
