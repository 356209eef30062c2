"""The range test is training at growing rates; a schedule's figure shows the rates of a run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fedopt
from fedopt.analysis.progress import SilentProgress, make_progress
from fedopt.analysis.schedule_plots import range_figure, schedule_figure
from fedopt.cli import app
from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.lr_range import range_test
from fedopt.schedule_figure import draw_schedule
from fedopt.schedules import momenta, values
from fedopt.schedules.range_test import suggest

SMALL = ["engine=inline", "partition.clients=10", "clients_per_round=4", "local.epochs=1"]


def test_each_round_is_one_of_the_run_at_its_rate() -> None:
    found = range_test(load(None, SMALL), 0.01, 0.1, 5, SilentProgress())
    np.testing.assert_allclose(found.rates, np.geomspace(0.01, 0.1, 5))
    first = fedopt.simulate(load(None, [*SMALL, "rounds=1", "local.optimizer.lr=0.01"]))
    assert found.losses[0] == first.history["train_loss"][0]
    # From the second round on the rate is another, so the loss is.
    second = fedopt.simulate(load(None, [*SMALL, "rounds=2", "local.optimizer.lr=0.01"]))
    assert found.losses[1] != second.history["train_loss"][1]
    assert np.isfinite(found.losses).all()


def test_it_ends_where_training_diverges() -> None:
    found = range_test(load(None, SMALL), 0.005, 100, 30, SilentProgress())
    assert len(found.rates) < 30
    assert found.suggestion.max_lr is not None
    assert found.suggestion.max_lr < found.rates[-1]
    text = found.text()
    assert "1Cycle" in text
    assert "base_lr" in text


def test_it_is_shown_and_silent_when_asked() -> None:
    stream = io.StringIO()
    range_test(load(None, SMALL), 0.01, 0.1, 3, make_progress(False, stream))
    assert "round" in stream.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "rounds", "words"),
    [(0.0, 1.0, 9, "--low"), (1.0, 0.5, 9, "--low.*high 0.5"), (0.1, 1.0, 2, "--rounds.*got 2")],
)
def test_bad_bounds_are_refused(low: float, high: float, rounds: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        range_test(load(None, SMALL), low, high, rounds, SilentProgress())


def test_the_commands_write_their_figures(tmp_path: Path) -> None:
    runner = CliRunner()
    picture = tmp_path / "range.png"
    words = ["--low", "0.01", "--high", "0.1", "--rounds", "3", "--quiet", "--out", str(picture)]
    done = runner.invoke(app, ["lr-range", *SMALL, *words])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = tmp_path / "schedule.svg"
    done = runner.invoke(
        app, ["schedule", *SMALL, "local.schedule=one_cycle", "rounds=3", "--out", str(drawn)]
    )
    assert done.exit_code == 0, done.output
    assert b"<svg" in drawn.read_bytes()
    done = runner.invoke(
        app, ["schedule", "local.schedule=plateau", "local.schedule.metric=train_loss"]
    )
    assert done.exit_code == 2
    assert "cannot be drawn beforehand" in done.output


@pytest.mark.parametrize(("scope", "points"), [("round", 6), ("within", 60), ("across", 60)])
def test_the_figure_shows_the_rates_of_the_run(scope: str, points: int) -> None:
    words = [
        "rounds=6",
        "local.nominal_steps=10",
        "local.optimizer.momentum=0.9",
        "local.schedule=one_cycle",
        f"local.schedule.scope={scope}",
    ]
    figure = draw_schedule(Experiment.from_config(load(None, [*SMALL, *words])))
    rates, cycled = (axes.lines[0].get_ydata() for axes in figure.axes)
    assert len(rates) == points
    span = 10 if scope == "within" else points
    expected, momentum = values("one_cycle", span, 0.1), momenta("one_cycle", span, 0.1)
    assert momentum is not None
    np.testing.assert_allclose(np.asarray(rates)[:span], expected)
    np.testing.assert_allclose(np.asarray(cycled)[:span], momentum)


def test_figures_bear_a_single_point_and_a_curve_without_bounds() -> None:
    schedule_figure(np.array([0.1]), title="one").canvas.draw()
    rates, losses = np.geomspace(0.1, 1, 5), np.full(5, np.nan)
    range_figure(rates, losses, suggest(rates, losses)).canvas.draw()
