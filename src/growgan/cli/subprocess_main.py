"""Runs the command line in a subprocess that dies with its parent.

    python -m growgan.cli.subprocess_main PARENT_PID ARGUMENT...

A subprocess that outlives its parent would keep its run directory locked, so that no other worker
could resume the run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when its parent dies. Other systems have no such signal.

    If the parent is dead already, exit at once.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def main(arguments: Sequence[str]) -> int:
    """Run a command. The first argument is the id of the parent process."""
    parent_pid, *command = arguments
    die_with_parent(int(parent_pid))
    # The import takes seconds, in which the parent may die.
    from growgan.cli.app import main as run_command

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
