"""Whether other processes used the machine while something was measured.

Turns in which they did are left out, for all contenders alike. Linux only: elsewhere nothing can
be seen, and nothing is left out.
"""

from __future__ import annotations

import os
from pathlib import Path

FOREIGN_CORES = 0.1
"""Cores' worth of time that others may use in a turn that counts."""
_IDLE = (3, 4)  # idle and waiting for the disk, among the columns of /proc/stat
_COLUMNS = 8


class Watch:
    """Measures what processes other than this one and its descendants use."""

    def __init__(self) -> None:
        self._ticks_a_second = os.sysconf("SC_CLK_TCK")
        self._cores = os.cpu_count() or 1
        self.restart()

    def restart(self) -> None:
        """Begin a turn."""
        self._busy, self._all = _machine_ticks()
        self._own = _own_ticks()

    def foreign_cores(self) -> float:
        """Return the cores' worth of time that others used since the turn began."""
        busy, everything = _machine_ticks()
        elapsed = (everything - self._all) / self._cores
        if elapsed <= 0:
            return 0.0
        return max(0.0, (busy - self._busy) - (_own_ticks() - self._own)) / elapsed


def _machine_ticks() -> tuple[int, int]:
    """Return the ticks in which all cores worked, and all ticks."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError:
        return 0, 0
    ticks = [int(value) for value in line.split()[1 : 1 + _COLUMNS]]
    return sum(ticks) - sum(ticks[i] for i in _IDLE), sum(ticks)


def _own_ticks() -> int:
    """Return the ticks of this process and its descendants, ended children included."""
    tree = descendants(os.getpid())
    return sum(ticks for _, ticks in tree)


def descendants(root: int) -> list[tuple[int, int]]:
    """Return (process id, ticks used, with those of ended children) of a process and its tree."""
    found: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        # Parent, then user, system, and the same of children that were waited for.
        found[int(entry.name)] = (int(fields[1]), sum(int(v) for v in fields[11:15]))
    tree, todo = [], [root]
    while todo:
        pid = todo.pop()
        if pid in found:
            tree.append((pid, found[pid][1]))
            todo += [child for child, (parent, _) in found.items() if parent == pid]
    return tree
