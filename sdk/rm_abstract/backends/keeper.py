"""Runs a program for as long as whoever started this lives: ``python keeper.py PROGRAM ARGUMENTS``.

Standard input is a pipe from that process: however it ends, the pipe ends too. Then the program gets SIGTERM, and after
a while all of its process group SIGKILL. Only the standard library: this is started as a file, not as a module.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 20


def main() -> int:
    """Run the program and return its exit code. Must be the leader of a process group."""
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        program.terminate()
        try:
            program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # an engine that died leaves its workers behind
    return code


if __name__ == "__main__":
    sys.exit(main())
