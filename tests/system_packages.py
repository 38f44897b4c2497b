"""Programs of the system that tests need: found, or installed where that is a matter of one command."""

import fcntl
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rm_local_cluster import packages


def need(commands: Mapping[str, str]) -> None:
    """Have these commands, from the Debian packages that are named (several with blanks between).

    Where one is missing and cannot be installed, this fails and says what to install: a test that needs it would be
    no test without it.
    """
    with Path(tempfile.gettempdir(), "rm-abstract-packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = sorted(
            {name for command, names in commands.items() if not shutil.which(command) for name in names.split()}
        )
        if not missing:
            return
        assert packages.can_install(), f"install what these Debian packages hold: {' '.join(missing)}"
        packages.install(missing, print)
