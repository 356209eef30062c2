"""`fedopt init`: the project runs and passes its own test; nothing is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedopt import project
from fedopt.errors import ConfigError, RunError
from fedopt.project import check_name, make_project

QUICK = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}


def execute(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=QUICK,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects")
    result = execute(folder, "fedopt", "init", "my_study", "--json")
    assert result.returncode == 0, result.stderr
    files = json.loads(result.stdout)["files"]
    assert files == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return folder / "my_study"


def test_it_runs_as_it_is_with_parts_of_its_own(made: Path) -> None:
    result = execute(made, "fedopt", "run", "experiment.toml", "rounds=5", "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    (config,) = made.glob("runs/*/config.toml")
    text = config.read_text()
    for part in ("my_study.model:network", "my_study.strategy:LimitedFedAvg", "data/my_study.npz"):
        assert part in text


def test_workers_find_its_parts(made: Path) -> None:
    words = ["experiment.toml", "rounds=2", "engine.name=ray", "engine.workers=1", "--quiet"]
    result = execute(made, "fedopt", "run", *words, "--out", "runs/ray", "--json")
    assert result.returncode == 0, result.stderr
    same = execute(made, "fedopt", "run", "experiment.toml", "rounds=2", "--quiet", "--json")
    digests = [json.loads(done.stdout)["model_sha256"] for done in (result, same)]
    assert digests[0] == digests[1]


def test_its_own_test_passes(made: Path) -> None:
    result = execute(made, "pytest", "-q", "-p", "no:cacheprovider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout


def test_its_data_are_those_of_its_script(made: Path) -> None:
    before = (made / "data" / "my_study.npz").read_bytes()
    assert execute(made, "my_study.data").returncode == 0
    assert (made / "data" / "my_study.npz").read_bytes()[:200] == before[:200]


def test_its_code_is_in_style(made: Path) -> None:
    pytest.importorskip("ruff")
    rules = ["--isolated", "--select", "E,F,I,UP,B,SIM,RUF", "--line-length", "100"]
    assert execute(made, "ruff", "check", *rules, ".").stdout.startswith("All checks passed")
    formatted = execute(
        made, "ruff", "format", "--isolated", "--check", "--line-length", "100", "."
    )
    assert formatted.returncode == 0, formatted.stdout


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    target = tmp_path / "mine"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("text")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is there already"):
        make_project("mine", tmp_path)
    assert os.listdir(tmp_path) == ["mine"]
    assert execute(tmp_path, "fedopt", "init", "mine").returncode == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("my-study", '"my_study"'),
        ("2x", '"project_2x"'),
        ("class", '"my_class"'),
        ("torch", '"my_torch"'),
        ("random", '"my_random"'),
        ("fedopt", '"my_fedopt"'),
        ("print", '"my_print"'),
        ("a/b", '"a_b"'),
        ("../up", '"up"'),
        ("", "no digit first"),
        ("---", "no digit first"),
    ],
)
def test_names_that_no_package_should_have_are_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name)
    assert hint in str(caught.value)


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, name: str) -> None:
        folder.mkdir()
        (folder / "README.md").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(project, "_write", full)
    with pytest.raises(RunError, match="No space left"):
        make_project("mine", tmp_path)
    assert not os.listdir(tmp_path)
