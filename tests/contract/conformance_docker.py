"""Stand-in for the program ``docker``, with its documented commands and options, and no others.

It runs "images", which are directories with a program ``entrypoint``, in a mount namespace of their own; the kernel
does what it does for docker's containers. ``CONTAINERS`` is the directory of what runs: a file per container, with its
process. What is not documented is refused with exit status 125, as docker does.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

CONTAINERS = Path(os.environ["STAND_IN_CONTAINERS"])
REFUSED = 125


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> "None":  # type: ignore[override]
        print(f"docker: {message}\n\nRun 'docker --help' for more information", file=sys.stderr)
        sys.exit(REFUSED)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="docker", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", allow_abbrev=False)
    run.add_argument("--rm", action="store_true")
    run.add_argument("--name", required=True)
    run.add_argument("-v", "--volume", action="append", default=[])
    run.add_argument("-e", "--env", action="append", default=[])
    run.add_argument("--network", default="bridge")
    run.add_argument("--privileged", action="store_true")
    run.add_argument("image")
    run.add_argument("words", nargs=argparse.REMAINDER)
    kill = commands.add_parser("kill")
    kill.add_argument("-s", "--signal", default="KILL")
    kill.add_argument("name")
    remove = commands.add_parser("rm")
    remove.add_argument("-f", "--force", action="store_true")
    remove.add_argument("name")
    for inspect in (
        commands.add_parser("inspect"),
        commands.add_parser("image").add_subparsers().add_parser("inspect"),
    ):
        inspect.add_argument("-f", "--format", required=True)
        inspect.add_argument("name")
    commands.add_parser("pull").add_argument("image")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Starts the container and waits for it, as without ``--detach``."""
    # The directory over which a volume is mounted is the container's own, and not this machine's.
    steps = ["set -e", "mount -t tmpfs none /var/lib"]
    for volume in options.volume:
        source, target = map(shlex.quote, volume.split(":"))
        steps += [f"mkdir -p {target}", f"mount --bind {source} {target}"]
    steps.append(f"exec {shlex.join([f'{options.image}/entrypoint', *options.words])}")
    # A container has no environment but its own.
    environment = {"PATH": os.environ["PATH"], **dict(pair.split("=", 1) for pair in options.env)}
    argv = ["unshare", "--mount", "sh", "-c", "\n".join(steps)]
    process = subprocess.Popen(argv, env=environment, start_new_session=True)
    file = CONTAINERS / options.name
    file.write_text(str(process.pid))
    code = process.wait()
    file.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def main() -> int:
    options = parse(sys.argv[1:])
    if options.command == "run":
        return run(options)
    if options.command == "pull":
        print(f"pull access denied for {options.image}, repository does not exist", file=sys.stderr)
        return 1
    if options.command == "image":
        return 0 if (Path(options.name) / "entrypoint").exists() else 1
    file = CONTAINERS / options.name
    if not file.exists():
        print(f"Error response from daemon: No such container: {options.name}", file=sys.stderr)
        return 1
    if options.command == "inspect":
        if options.format != "{{.State.Pid}}":
            return REFUSED
        print(file.read_text())
    elif options.command == "kill":
        os.kill(int(file.read_text()), signal.Signals[f"SIG{options.signal.removeprefix('SIG')}"])
    else:
        os.killpg(int(file.read_text()), signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
