"""`fedopt report` from the shell: one run, several, and what it refuses."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from tests.analysis.growing import GrowingRun


@pytest.fixture
def runs(tmp_path):
    for name in ("one", "two"):
        run = GrowingRun(tmp_path / "runs" / name)
        for accuracy in (0.2, 0.4):
            run.grow(accuracy)
        run.end()
    return tmp_path / "runs"


def invoke(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_one_run_several_runs_and_a_folder_of_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(runs / "one", "--target", "test_accuracy=0.3")
    assert result.output.strip() == str(runs / "one" / "report.html")
    assert "test_accuracy=0.3" in (runs / "one" / "report.html").read_text()
    assert invoke(runs).output.strip() == str(runs / "report.html")
    assert invoke(runs / "one", runs / "two").output.strip() == "comparison.html"
    result = invoke(runs, "--out", "named.html", "--title", "A <name>")
    assert result.exit_code == 0
    assert "A &lt;name&gt;" in (tmp_path / "named.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "test_accuracy"], "METRIC=VALUE"),
        (["--target", "test_acuracy=0.9"], "test_accuracy"),
        (["--target", "train_loss=0.9"], "neither more nor less"),
        (["--out", "report.pdf"], ".html"),
    ],
)
def test_bad_input_is_named(runs, words, says):
    result = invoke(runs, *words)
    assert result.exit_code == 2
    assert says in result.output
    assert not (runs / "report.html").exists()
