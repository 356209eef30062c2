"""What holds for every command, those that come later included: help, JSON, plain pipes.

A command that is not in `USES` fails `test_every_command_is_used_here`: add words that run it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from fedopt.cli import app

from .command import TINY, execute, fedopt

ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")

USES: dict[str, list[str]] = {
    "run": [*TINY, "--out", "new"],
    "resume": ["run"],
    "verify": ["run"],
    "replay": ["run", "--round", "1", "--client", "CLIENT"],
    "plot": ["run", "--out", "plot.png"],
    "compare": ["run", "other", "--target", "test_accuracy=0.1"],
    "timeline": ["clock", "--rounds", "1-2", "--out", "timeline.png"],
    "lr-range": [*TINY, "--rounds", "3", "--out", "range.png"],
    "schedule": [*TINY, "--out", "schedule.png"],
    "demo": ["--rounds", "2", "--engine", "inline", "--out", "demo"],
    "list": [],
    "explain": ["local.sam.rho"],
    "search": [
        *("engine=inline", "rounds=2", "clients_per_round=2", "partition=iid"),
        *(
            "partition.clients=4",
            "model=dense_supernet",
            "model.depth=1",
            "search.random_samples=1",
        ),
        *("search.retrain_rounds=1", "local.epochs=1", "--out", "search"),
    ],
    "sweep": [
        *(*TINY, "local.optimizer.lr=0.05,0.1"),
        *("--jobs", "1", "--target", "test_accuracy=0.1", "--quiet", "--out", "sweep"),
    ],
    "ablate": [*TINY, "local.sam.rho=0.05", "--seeds", "2", "--jobs", "1", "--out", "ablation"],
    "reproduce": ["--list"],
    "report": ["run", "other", "--out", "comparison.html"],
    "watch": ["run"],
    "export": ["run", "other", "--to", "csv", "--out", "exported"],
    "doctor": ["--no-ray"],
    "init": ["my_project"],
}
"""Command -> words that run it in a folder with the runs `run`, `other` and `clock`.

Commands that do not end stand in `ELSEWHERE`.
"""

ELSEWHERE: dict[str, str] = {
    "dashboard": "tests/commands/test_dashboard.py",
    "deploy": "tests/deployment",
}
"""Command that cannot be run to its end here -> where it is tested."""


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return dict(group.commands)


def with_subcommands() -> dict[str, click.Command]:
    """Return all commands, and those of groups by two words."""
    found: dict[str, click.Command] = {}
    for name, command in commands().items():
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": inner for sub, inner in command.commands.items()}
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every")
    for name, words in (
        ("run", []),
        ("other", ["strategy=scaffold"]),
        ("clock", ["system.devices=log_normal"]),
    ):
        made = fedopt(folder, "run", *TINY, *words, "checkpoint.every=1", "--out", name, "--quiet")
        assert made.code == 0, made.err
    return folder


def words_of(name: str, folder: Path) -> list[str]:
    rows = (folder / "run" / "clients.csv").read_text().splitlines()
    client = rows[1].split(",")[rows[0].split(",").index("client")]
    return [client if word == "CLIENT" else word for word in USES[name]]


def test_every_command_is_used_here() -> None:
    assert set(commands()) == {*USES, *ELSEWHERE}
    assert all((ROOT / place).exists() for place in ELSEWHERE.values())


@pytest.mark.parametrize("name", with_subcommands())
def test_help_shows_an_example_that_the_command_takes(name: str, tmp_path: Path) -> None:
    shown = fedopt(tmp_path, *name.split(), "--help")
    assert shown.code == 0
    assert not CONTROL.search(shown.out)
    text = " ".join(shown.out.split())
    example = re.search(
        rf"Example: (fedopt {re.escape(name)}\b[^\n]*?) (?:Arguments|Options):", text
    )
    assert example, shown.out
    command = with_subcommands()[name]
    words = shlex.split(example[1])[1 + len(name.split()) :]
    if isinstance(command, click.Group):  # the example is of one of its commands
        assert f"{name} {words[0]}" in with_subcommands()
    context = click.Context(command, info_name=name, resilient_parsing=True)
    command.parse_args(context, words)
    assert all(option.help for option in command.params if isinstance(option, click.Option))


LONG = ("ablate", "demo", "search", "sweep")
"""Commands of several runs each, which have tests of their own."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive) if name in LONG else name
        for name in commands()
        if name in USES
    ],
)
def test_piped_output_has_no_control_codes_and_json_is_json_alone(name: str, runs: Path) -> None:
    words = words_of(name, runs)
    has_json = any("--json" in parameter.opts for parameter in commands()[name].params)
    colours = {"FORCE_COLOR": "", "TERM": "xterm-256color"}
    command = [*_command(name), *_in_new_folders(words, "plain")]
    plain = execute(command, runs, **colours)
    assert plain.code == 0, plain.err
    assert not CONTROL.search(plain.out), plain.out
    assert not CONTROL.search(plain.err), plain.err
    if has_json:
        command = [*_command(name), *_in_new_folders(words, "json"), "--json"]
        found = execute(command, runs, **colours)
        assert found.code == 0, found.err
        json.loads(found.out)
        assert "NaN" not in found.out
        assert "Infinity" not in found.out
        assert not CONTROL.search(found.err), found.err


@pytest.mark.parametrize("name", [name for name in commands() if name in USES])
def test_bad_input_leaves_standard_output_empty(name: str, tmp_path: Path) -> None:
    result = fedopt(tmp_path, name, "--no-such-option")
    assert result.code == 2
    assert result.out == ""
    assert not CONTROL.search(result.err)


def _command(name: str) -> list[str]:
    from .command import COMMAND

    return [*COMMAND, name]


def _in_new_folders(words: list[str], suffix: str) -> list[str]:
    """Give results names of their own: nothing is overwritten."""
    changed = list(words)
    for index, word in enumerate(words):
        is_folder = not os.path.splitext(word)[1]
        if index and words[index - 1] == "--out" and is_folder:
            changed[index] = f"{word}-{suffix}"
    return [f"{word}_{suffix}" if word == "my_project" else word for word in changed]
