"""The code in the documentation runs: Python blocks, and every `fedopt` command."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep.in_process import Pretended, in_process
from typer.testing import CliRunner

from fedopt import registry
from fedopt.cli import app

from .pages import PAGES, ROOT, Block, blocks, name

SHELL = ("sh", "bash")
# Appended to the commands, so that each is really run but ends soon; later words win.
QUICK = {
    "run": ["rounds=2", "engine.name=inline", "checkpoint.every=1", "--quiet"],
    "demo": ["--rounds", "2", "--engine", "inline", "--quiet"],
    "resume": ["--quiet"],
    "sweep": ["rounds=2", "--quiet"],
    "ablate": ["rounds=2", "--quiet", "--seeds", "2"],
}
ONCE = ("sweep", "ablate")  # take a key once
_FILE = re.compile(r"# (\w+\.py)\n")

PAGES_WITH_CODE = [
    page for page in PAGES if any(b.language in ("python", *SHELL) for b in blocks(page))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty working folder, from which modules can be imported.

    Modules imported from there and what they registered are forgotten afterwards.
    """
    registry.fill()
    for kind, table in registry._entries.items():
        monkeypatch.setitem(registry._entries, kind, dict(table))
    shutil.copytree(ROOT / "simulations", tmp_path / "simulations")
    # Runs of sweeps are not trained here: tests of their own do that.
    monkeypatch.setattr("fedopt.sweep.drive.Child", in_process(Pretended))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - known:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name)
def test_code_of_a_page_runs(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            _run_python(page, block, folder, names)
        elif block.language in SHELL:
            for command in _commands(block):
                _run_command(page, block, command)


def _run_python(page: Path, block: Block, folder: Path, names: dict[str, object]) -> None:
    """Execute a block among the names of those before it, or write the file that it is."""
    where = f"{name(page)}:{block.line}"
    code = compile(block.text, where, "exec")
    file = _FILE.match(block.text)
    if file:
        (folder / file[1]).write_text(block.text, encoding="utf-8")
    else:
        exec(code, names)  # the documentation is ours


def _commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and Path(line[0]).name == "fedopt"]


def _run_command(page: Path, block: Block, command: list[str]) -> None:
    subcommand, *words = command
    extra = QUICK.get(subcommand, [])
    if subcommand in ONCE:
        given = {word.partition("=")[0] for word in extra if "=" in word}
        words = [word for word in words if word.partition("=")[0] not in given]
    result = CliRunner().invoke(app, [subcommand, *words, *extra])
    said = f"{name(page)}:{block.line}: fedopt {' '.join(command)}\n{result.output}"
    assert result.exit_code == 0, said
