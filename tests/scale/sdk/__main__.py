"""``python -m scale.sdk``: run the SDK's benchmark alone, print a table, write JSON. It needs no API server."""

import argparse
import json
import sys
from pathlib import Path

from scale.report import Report, machine
from scale.sdk.rows import measure


def main() -> int:
    """Entry point; returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m scale.sdk", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the results", metavar="FILE")
    parser.add_argument("--repeat", type=int, default=7, help="processes for each measurement (default: 7)")
    arguments = parser.parse_args()
    report = Report(machine())
    report.rows += measure(arguments.repeat)
    print(report.table())
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.to_json(), indent=2))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
