"""The code in the documentation runs: Python, TOML, `fedopt` commands, and what they print.

What cannot run here is listed: programs in `NOT_RUN`, and blocks behind a comment `not run: why`.
A block `console` has commands behind `$`, and below each what it prints.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from sweep.in_process import Pretended, in_process
from typer.testing import CliRunner

from fedopt import registry
from fedopt.cli import app
from fedopt.config import load

from .pages import PAGES, ROOT, Block, blocks, name

SHELL = ("sh", "bash")
# Appended to the commands, so that each is really run but ends soon; later words win.
QUICK = {
    "run": ["rounds=2", "engine.name=inline", "checkpoint.every=1", "--quiet"],
    "demo": ["--rounds", "2", "--engine", "inline", "--quiet"],
    "resume": ["--quiet"],
    "sweep": ["rounds=2", "--quiet"],
    "ablate": ["rounds=2", "--quiet", "--seeds", "2"],
    "doctor": ["--no-ray"],
    "lr-range": ["--rounds", "6"],
    "search": [
        *("rounds=1", "search.retrain_rounds=1", "search.random_samples=1"),
        *("clients_per_round=2", "local.batch_size=64", "model.nodes=1", "--quiet"),
    ],
    "reproduce": ["--quick", "--quiet"],
}
ONCE = ("sweep", "ablate")  # take a key once
STARTS = ("up", "status", "submit", "stop", "down", "logs")
"""Commands of `fedopt deploy` that need running processes: their words are checked here, and
tests/deployment/test_processes.py runs them."""
_FILE = re.compile(r"# (\w+\.py)\n")

NOT_RUN = {
    "make": "installs, or runs the tests",
    "pip": "installs",
    "apt-get": "installs",
    "source": "changes the shell",
    "export": "changes the shell",
    "cd": "changes the shell",
    "flwr": "Flower's own command, in tests/e2e/test_flower.py",
    "flower-superlink": "a server of Flower, in tests/e2e/test_flower.py",
    "flower-supernode": "a node of Flower, in tests/e2e/test_flower.py",
    "docker": "needs a daemon",
    "mkdir": "makes a folder for what is not run",
    "printf": "writes a file for what is not run",
    "openssl": "makes certificates",
    "python": "studies, benchmarks and generators take minutes; they have tests of their own",
    "pytest": "the tests themselves",
    ".ci/run": "all checks",
    "git": "needs a repository",
}
"""Programs of shell blocks that are not run here -> why."""

LANGUAGES = {"python", "toml", "console", "", "text", "json", "ini", "yaml", "html", "dockerfile"}

PAGES_WITH_CODE = [
    page
    for page in PAGES
    if any(b.language in ("python", "toml", "console", *SHELL) for b in blocks(page))
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
        if block.is_marked:
            continue
        if block.language == "python":
            _run_python(page, block, folder, names)
        elif block.language == "toml":
            _load(block)
        elif block.language == "console":
            _run_console(page, block)
        elif block.language in SHELL:
            for command in _commands(block):
                _run_command(page, block, command)


def test_what_is_not_run_is_listed() -> None:
    unlisted = [
        f"{name(page)}:{block.line}: {words[0]}"
        for page in PAGES
        for block in blocks(page)
        if block.language in SHELL and not block.is_marked
        for words in _lines(block)
        if Path(words[0]).name not in ("fedopt", *NOT_RUN) and words[0] not in NOT_RUN
    ]
    assert not unlisted
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages <= LANGUAGES | set(SHELL)


def _load(block: Block) -> None:
    """Load a configuration, where the block is one: its tables are known."""
    tree = tomllib.loads(block.text)
    assert tree
    if not {"project", "tool", "superlink"} & set(tree):  # a configuration of ours
        load(None, **tree)


def _run_console(page: Path, block: Block) -> None:
    """Run each command behind `$`; it prints the lines below it, in order."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        program, *words = shlex.split(line)
        assert program == "fedopt"
        result = CliRunner().invoke(app, words)
        printed = " ".join(result.output.split())
        said = f"{name(page)}:{block.line}: {line}\n{result.output}"
        assert " ".join(expected.split()) in printed, said
        assert (result.exit_code == 0) == ("error:" not in expected), said


def _run_python(page: Path, block: Block, folder: Path, names: dict[str, object]) -> None:
    """Execute a block among the names of those before it, or write the file that it is."""
    where = f"{name(page)}:{block.line}"
    code = compile(block.text, where, "exec")
    file = _FILE.match(block.text)
    if file:
        (folder / file[1]).write_text(block.text, encoding="utf-8")
    else:
        exec(code, names)  # the documentation is ours


def _lines(block: Block) -> list[list[str]]:
    """Return the words of each command, without settings of variables before it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    bare = [list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), line)) for line in words]
    return [line for line in bare if line]


def _commands(block: Block) -> list[list[str]]:
    return [line[1:] for line in _lines(block) if Path(line[0]).name == "fedopt"]


def _check_words(page: Path, block: Block, command: list[str]) -> None:
    """Check that a command takes its words, without running it."""
    found: Any = typer.main.get_command(app)
    words = list(command)
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    try:
        found.make_context(found.name, words)
    except click.UsageError as error:
        pytest.fail(f"{name(page)}:{block.line}: {' '.join(command)}: {error.format_message()}")


def _run_command(page: Path, block: Block, command: list[str]) -> None:
    subcommand, *words = command
    if subcommand == "deploy" and words[0] in STARTS:
        _check_words(page, block, command)
        return
    extra = QUICK.get(subcommand, [])
    if subcommand in ONCE:
        given = {word.partition("=")[0] for word in extra if "=" in word}
        words = [word for word in words if word.partition("=")[0] not in given]
    result = CliRunner().invoke(app, [subcommand, *words, *extra])
    said = f"{name(page)}:{block.line}: fedopt {' '.join(command)}\n{result.output}"
    assert result.exit_code == 0, said
