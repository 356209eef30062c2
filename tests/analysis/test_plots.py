from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from fedopt.analysis import plots
from fedopt.analysis.columns import ROUND_COLUMNS, names
from fedopt.analysis.plots import convergence_figure, save_figure
from fedopt.errors import ConfigError


def history(rounds: int = 20, accuracy: bool = True, every: int = 1) -> pd.DataFrame:
    number = np.arange(1, rounds + 1)
    frame = pd.DataFrame({name: np.full(rounds, np.nan) for name in names(ROUND_COLUMNS)})
    frame["round"] = number
    frame["train_loss"] = 1.0 / number
    measured = number % every == 0
    frame["test_loss"] = np.where(measured, 1.1 / number, np.nan)
    if accuracy:
        frame["test_accuracy"] = np.where(measured, 1 - 0.9 / number, np.nan)
    frame["bytes_up"] = 2_000_000 * number
    frame["bytes_down"] = 1_000_000 * number
    frame["wall_seconds"] = 0.5 * number
    frame["client_steps"] = 100 * number
    return frame


def lines(axes) -> dict[str, matplotlib.lines.Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_run_has_two_losses_and_an_accuracy() -> None:
    figure = convergence_figure([("a", history())], title="a title")
    loss, accuracy = figure.axes
    assert list(lines(loss)) == ["train", "test"]
    assert len({line.get_linestyle() for line in loss.get_lines()}) == 2
    assert list(lines(accuracy)) == ["test", "_best"]
    assert loss.get_xlabel() == accuracy.get_xlabel() == "communication rounds"
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "test accuracy")
    assert legend(figure) == ["train", "test"]
    assert accuracy.texts[0].get_text() == "best 0.955"
    assert lines(accuracy)["_best"].get_xydata().tolist() == [[20, 1 - 0.9 / 20]]
    assert figure.get_suptitle() == "a title"
    assert figure.get_size_inches().tolist() == [7.0, 2.8]
    assert figure.get_dpi() == 200


def test_missing_cells_are_skipped() -> None:
    frame = history(20, every=5)
    frame.loc[3, "train_loss"] = np.inf
    figure = convergence_figure([("a", frame)])
    test, train = lines(figure.axes[0])["test"], lines(figure.axes[0])["train"]
    assert test.get_xdata().tolist() == [5, 10, 15, 20]
    assert test.get_ydata().tolist() == [1.1 / n for n in (5, 10, 15, 20)]
    assert test.get_marker() != ""  # few points are shown as points
    assert 4 not in train.get_xdata()
    assert len(train.get_xdata()) == 19


@pytest.mark.parametrize(
    ("x", "last", "label"),
    [
        ("rounds", 20, "communication rounds"),
        ("bytes", 60.0, "MB sent up and down"),
        ("wall", 10.0, "wall-clock seconds"),
        ("steps", 2000, "local steps, summed over clients"),
    ],
)
def test_horizontal_axes(x: str, last: float, label: str) -> None:
    figure = convergence_figure([("a", history())], x=x)
    assert lines(figure.axes[0])["test"].get_xdata()[-1] == pytest.approx(last)
    assert figure.axes[0].get_xlabel() == label


def test_simulated_seconds_need_a_virtual_clock() -> None:
    frame = history()
    with pytest.raises(ConfigError, match=r'"a" has no virtual clock .* use --x wall'):
        convergence_figure([("a", frame)], x="seconds")
    frame["sim_seconds"] = 3.0 * frame["round"]
    figure = convergence_figure([("a", frame)], x="seconds")
    assert figure.axes[0].get_xlabel() == "simulated seconds"


def test_several_runs_are_told_apart() -> None:
    figure = convergence_figure([(name, history()) for name in ("_a", "b$", "b$")], x="bytes")
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("test loss", "test accuracy")
    assert len({line.get_color() for line in loss.get_lines()}) == 3
    assert legend(figure) == [f"{name} (best 0.955)" for name in ("_a", "b$", "b$")]
    many = convergence_figure([(f"r{n}", history()) for n in range(20)])
    looks = {
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in many.axes[0].get_lines()
    }
    assert len(looks) == 20
    assert many.get_figheight() > 2.8


def test_runs_share_an_axis_only_for_what_all_measured() -> None:
    bare = history(accuracy=False)
    bare["test_loss"] = np.nan
    figure = convergence_figure([("a", history()), ("b", bare)])
    assert [axes.get_ylabel() for axes in figure.axes] == ["train loss"]
    bare["train_loss"] = np.nan
    with pytest.raises(ConfigError, match="in common"):
        convergence_figure([("a", history()), ("b", bare)])


def test_regression_has_one_panel_and_a_wide_range_is_logarithmic() -> None:
    frame = history(accuracy=False)
    frame["train_loss"] = 10.0 ** -frame["round"]
    frame["test_loss"] = np.nan
    figure = convergence_figure([("a", frame)])
    assert len(figure.axes) == 1
    assert figure.axes[0].get_ylabel() == "train loss"
    assert figure.axes[0].get_yscale() == "log"
    assert not figure.legends


def test_one_round_is_a_point(tmp_path: Path) -> None:
    figure = convergence_figure([("a", history(1))])
    assert all(line.get_marker() not in ("", "None") for line in figure.axes[0].get_lines())
    save_figure(figure, tmp_path / "one.png")


def test_accuracy_ticks_stay_within_one() -> None:
    figure = convergence_figure([("a", history(200))])
    assert figure.axes[1].get_yticks().max() <= 1


@pytest.mark.parametrize(
    ("runs", "x", "words"),
    [
        ([], "rounds", "no run to plot"),
        ([("a", history(0))], "rounds", '"a" has no finished round'),
        ([("a", history())], "second", '"second" is not known. Did you mean "seconds"'),
        ([("a", history()[["round"]])], "rounds", "neither a loss nor an accuracy"),
    ],
)
def test_what_cannot_be_drawn_is_refused(runs, x: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        convergence_figure(runs, x=x)


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_are_saved_by_suffix_and_reproducibly(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    settings = dict(matplotlib.rcParams)
    first = save_figure(convergence_figure([("a", history())]), tmp_path / f"1.{suffix}")
    second = save_figure(
        convergence_figure([("a", history())]), str(tmp_path / f"2.{suffix.upper()}")
    )
    assert first.read_bytes().startswith(magic)
    assert first.read_bytes() == second.read_bytes()
    assert dict(matplotlib.rcParams) == settings
    assert len(list(tmp_path.iterdir())) == 2


def test_metrics_are_drawn_a_panel_each() -> None:
    frame = history()
    for name in ("test_ece", "test_sharpness", "validation_accuracy_worst10"):
        frame[name] = np.where(frame["round"] % 5 == 0, 0.5 + 0.01 * frame["round"], np.nan)
    metrics = ["test_ece", "test_sharpness", "test_ece", "validation_accuracy_worst10"]
    figure = convergence_figure([("a", frame)], metrics=metrics)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "test ece",
        "test sharpness",
        "validation accuracy worst10",
    ]
    assert figure.get_size_inches().tolist() == [7.0, 5.6]
    assert lines(figure.axes[1])["a"].get_xdata().tolist() == [5, 10, 15, 20]
    assert lines(figure.axes[1])["a"].get_ydata().tolist() == [0.55, 0.6, 0.65, 0.7]
    assert not figure.axes[1].texts, "only what is better when higher has a best"
    assert figure.axes[2].texts[0].get_text() == "best 0.700"
    assert not figure.legends
    two = convergence_figure([("a", frame), ("b", frame)], x="bytes", metrics=["test_ece"])
    assert legend(two) == ["a", "b"]


@pytest.mark.parametrize("name", [c.name for c in ROUND_COLUMNS if c.kind == "real"])
def test_every_real_column_can_be_drawn(name: str) -> None:
    frame = history()
    frame[name] = -1.0 * frame["round"]
    assert len(convergence_figure([("a", frame)], metrics=[name]).axes) == 1


def test_metrics_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'"test_eec" is not known\. Did you mean "test_ece"'):
        convergence_figure([("a", history())], metrics=["test_eec"])
    with pytest.raises(ConfigError, match='"clients" is not known'):
        convergence_figure([("a", history())], metrics=["clients"])
    with pytest.raises(ConfigError, match='--metric test_mce: run "a" did not measure it'):
        convergence_figure([("a", history())], metrics=["test_mce"])


def test_other_formats_are_refused(tmp_path: Path) -> None:
    figure = convergence_figure([("a", history())])
    for name in ("a.jpg", "a"):
        with pytest.raises(ConfigError, match=r"must end in \.png, \.svg, \.pdf"):
            save_figure(figure, tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_imports_are_light() -> None:
    program = (
        "import sys, fedopt.analysis as a\n"
        "a.RunWriter(None).add_round({'round': 1}); a.summarise([]); a.ROUND_COLUMNS\n"
        "a.make_progress\n"
        "heavy = {'torch', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "a.convergence_figure\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert all(hasattr(a, name) for name in a.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(plots.__file__).parents[2])
