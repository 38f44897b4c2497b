"""``python -m scale``: run the benchmarks, print a table, write JSON."""

import argparse
import asyncio
import gc
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import orjson

from scale.report import Report, Row, machine
from scale.rows import burst, cold, deployments, devices, failover, foreign, latency, noop, placement, store
from scale.sdk import rows as sdk
from scale.sizes import Sizes

BENCHMARKS: dict[str, Callable[[Sizes], Coroutine[Any, Any, Sequence[Row]]]] = {
    "cold": cold.run,
    "foreign": foreign.run,
    "noop": noop.run,
    "burst": burst.run,
    "latency": latency.run,
    "failover": failover.run,
    "placement": placement.run,
    "deployments": deployments.run,
    "devices": devices.run,
    "store": store.run,
    "sdk": sdk.run,
}


def main() -> int:
    """Entry point; returns 1 if a benchmark failed or a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m scale", description="Benchmarks against a real API server.")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="run these alone", metavar="NAME")
    parser.add_argument("--size", type=float, default=1.0, help="fraction of the full sizes (default: 1)")
    parser.add_argument("--json", type=Path, help="where to write the results", metavar="FILE")
    arguments = parser.parse_args()
    sizes = Sizes() if arguments.size == 1 else Sizes().scaled(arguments.size)

    report = Report(machine())
    for name in arguments.only or BENCHMARKS:
        began = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows = asyncio.run(BENCHMARKS[name](sizes))
        except Exception as error:
            traceback.print_exc()
            report.failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            report.rows += rows
        gc.collect()
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(report.table())
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_bytes(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
