"""Completion as a shell asks for it: through the environment, and through bash's own function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from fedopt.cli import app
from fedopt.completion import config_words, run_folders
from fedopt.config import CHOICES
from fedopt.keys import keys, tables
from fedopt.registry import KINDS, entries

STRATEGIES = [entry.name for entry in entries("strategies")]


def asked(folder: Path, **environ: str) -> list[str]:
    """Return the lines that `fedopt` answers to a shell."""
    program = "import sys; sys.argv = ['fedopt']; from fedopt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def bash(folder: Path, *words: str) -> list[str]:
    """Return what bash is answered; the last word is the one that is typed."""
    return asked(
        folder,
        _FEDOPT_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(("fedopt", *words)),
        COMP_CWORD=str(len(words)),
    )


def test_bash_gets_values_behind_the_sign_that_it_cuts_at(tmp_path: Path) -> None:
    assert bash(tmp_path, "run", "strategy", "=", "sc") == ["scaffold"]
    assert bash(tmp_path, "run", "strategy", "=") == STRATEGIES
    assert bash(tmp_path, "run", "strategy", "=", "scaffold", "strategy.option", "=") == ["I", "II"]


def test_bash_gets_keys_and_goes_on_with_the_values_of_the_only_one(tmp_path: Path) -> None:
    assert bash(tmp_path, "run", "strategy.na") == [f"strategy.name={name}" for name in STRATEGIES]
    assert {"local.sam.", "local.epochs="} <= set(bash(tmp_path, "run", "loc"))
    assert bash(tmp_path, "run", "strategy", "=", "fedprox", "strategy.mu") == [
        "strategy.mu=",
        "strategy.mu_step=",
    ]


def test_lists_go_on_behind_a_comma(tmp_path: Path) -> None:
    assert bash(tmp_path, "sweep", "strategy", "=", "fedavg,scaf") == ["fedavg,scaffold"]
    offered = bash(tmp_path, "sweep", "seed", "=", "0,1", "strategy", "=", "fedavg,")
    assert offered == [f"fedavg,{name}" for name in STRATEGIES if name != "fedavg"]
    assert bash(tmp_path, "sweep", "strategy", "=", "fedavg,scaffold", "rounds") == [
        "rounds=200",
        "rounds=400",
    ]


def test_subcommands(tmp_path: Path) -> None:
    assert bash(tmp_path, "deploy", "sub") == ["submit"]


def test_zsh_and_fish_get_whole_words_with_descriptions(tmp_path: Path) -> None:
    words = {"_TYPER_COMPLETE_ARGS": "fedopt run strategy=sc"}
    (line,) = asked(tmp_path, _FEDOPT_COMPLETE="complete_zsh", **words)
    assert '"strategy=scaffold":"control variates' in line
    (line,) = asked(
        tmp_path,
        _FEDOPT_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        **words,
    )
    assert line.startswith("strategy=scaffold\tcontrol variates")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_function_fills_compreply(tmp_path: Path) -> None:
    script = tmp_path / "fedopt"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'fedopt'\n"
        "from fedopt.cli import main\nmain()\n"
    )
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(command: list[str], **more: str) -> str:
        return subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, check=True
        ).stdout

    off = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    program = (
        f"{run(['fedopt', '--show-completion', 'bash'], **off)}\n"
        "COMP_WORDS=(fedopt run local.optimizer = ra); COMP_CWORD=4\n"
        "_fedopt_completion fedopt\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    assert run(["bash", "--norc", "-c", program]).splitlines() == ["radam"]


def test_every_key_can_be_reached_by_typing_it() -> None:
    for key in keys():
        offered = config_words(key.path)
        assert any(word.startswith(key.path) for word, _ in offered), key.path
        assert all(word.startswith(key.path) for word, _ in offered)


@pytest.mark.parametrize("table", CHOICES)
def test_names_of_every_choice_are_offered(table: str) -> None:
    offered = [word for word, _ in config_words(f"{table}=")]
    assert offered == [word.replace(".name=", "=") for word, _ in config_words(f"{table}.name=")]
    assert offered
    assert all(text for _, text in config_words(f"{table}="))


def test_tables_come_before_their_keys() -> None:
    offered = [word for word, _ in config_words("")]
    assert "local." in offered
    assert not any(word.startswith("local.e") for word in offered)
    assert {table.partition(".")[0] for table in tables()} <= {
        word.rstrip(".=") for word in offered
    }


def test_folders_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("runs/one", "runs/two", "alone", "deep/er/run"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "rounds.csv").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [word for word, _ in run_folders("")] == ["alone", "deep/", "runs/one", "runs/two"]
    assert [word for word, _ in run_folders("runs/t")] == ["runs/two"]
    assert [word for word, _ in run_folders("deep/")] == ["deep/er/run"]
    assert [word for word, _ in run_folders(f"{tmp_path}/al")] == [f"{tmp_path}/alone"]
    assert run_folders("nowhere/") == []
    assert bash(tmp_path, "resume", "runs/") == ["runs/one", "runs/two"]
    assert bash(tmp_path, "plot", "runs/one", "runs/") == ["runs/two"]


def test_files_of_configurations(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").touch()
    (tmp_path / "simulations").mkdir()
    (tmp_path / "simulations" / "own.toml").touch()
    assert bash(tmp_path, "run", "di") == ["digits.toml"]
    assert bash(tmp_path, "run", "sim") == ["simulations/own.toml"]


def test_kinds_and_what_can_be_explained(tmp_path: Path) -> None:
    assert bash(tmp_path, "list", "") == list(KINDS)
    assert bash(tmp_path, "explain", "local.sam.r") == ["local.sam.rho"]


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return dict(group.commands)


@pytest.mark.parametrize("name", commands())
def test_runs_and_configurations_complete_in_every_command(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Argument) and parameter.name in (
            *("run_dir", "run_dirs", "places"),
        ):
            assert bash(tmp_path, name, "ru") == ["run"]
        if isinstance(parameter, click.Argument) and parameter.name == "arguments":
            assert bash(tmp_path, name, "strategy", "=", "scaf") == ["scaffold"]


def test_completing_imports_no_torch() -> None:
    program = (
        "import sys; from fedopt.completion import config_words; config_words('strategy=');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'flwr', 'ray', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
