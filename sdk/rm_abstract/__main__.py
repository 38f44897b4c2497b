"""``python -m rm_abstract SCRIPT ARGUMENTS``: run a script on the device that RM_DEVICE names, without changing it."""

import runpy
import sys
from pathlib import Path

from rm_abstract.core.controller import init, shutdown
from rm_abstract.core.errors import WorkloadError

_USAGE = """\
usage: RM_DEVICE=DEVICE python -m rm_abstract [-v] SCRIPT [ARGUMENTS]

Runs SCRIPT as `python SCRIPT ARGUMENTS` does, after rm_abstract.init(). DEVICE is auto, a type or a plugin's name with
or without a number (cpu, gpu:0, npu:0), or remote:URL. RM_CACHE_DIR says where compiled models are kept; -v shows what
is done."""


def main() -> int:
    """Run the script that the arguments name, and return the exit code: 0, or that of an init that fails."""
    arguments = sys.argv[1:]
    verbose = arguments[:1] in (["-v"], ["--verbose"])
    arguments = arguments[verbose:]
    if not arguments or arguments[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"rm_abstract: there is no script {script}", file=sys.stderr)
        return 2
    try:
        init(verbose=verbose)
    except WorkloadError as error:
        print(f"rm_abstract: {error}", file=sys.stderr)
        return error.code
    sys.argv = arguments
    sys.path[0] = str(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
