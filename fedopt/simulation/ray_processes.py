"""The processes that a Ray of ours consists of, so that a start that fails leaves none behind.

`ray.shutdown` stops what `ray.init` has finished starting. Where that fails or is interrupted on
the way, the processes so far are children of ours that nobody else would stop before we end: in a
notebook that may be never.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

GRACE_SECONDS = 5.0
"""How long processes may take to end before they are killed."""


@contextlib.contextmanager
def none_left_on_failure() -> Iterator[None]:
    """Stop the Ray processes that a block has started, where the block raises."""
    before = ray_children()
    try:
        yield
    except BaseException:
        import ray

        with contextlib.suppress(Exception):
            ray.shutdown()
        stop(ray_children() - before)
        raise


def ray_children() -> set[int]:
    """Return the ids of the children of this process that belong to a Ray; empty without /proc."""
    own = os.getpid()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold blanks; state and parent stand behind it.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == own and state != "Z" and b"ray" in command:
            found.add(int(folder.name))
    return found


def stop(processes: set[int]) -> None:
    """End processes, at first in peace."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        ends = time.monotonic() + GRACE_SECONDS
        while processes and time.monotonic() < ends:
            processes = processes & ray_children()
            time.sleep(0.02)
        if not processes:
            return
