from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedopt.analysis.curves import Settings, panels_of
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.intervals import mean_interval
from fedopt.analysis.plots import convergence_plot, figure_width
from fedopt.analysis.targets import Target
from fedopt.errors import ConfigError

from .test_plots import history, lines


def member(
    seed: int, factor: float = 1.0, strategy: str = "fedavg", rounds: int = 20, **columns: object
) -> StoredRun:
    frame = history(rounds)
    frame["test_accuracy"] = factor * frame["test_accuracy"]
    return StoredRun(
        f"{strategy}{seed}", frame.assign(**columns), {"strategy.name": strategy}, seed
    )


def group(label: str, factors: list[float], strategy: str = "fedavg") -> Group:
    return Group(label, tuple(member(s, f, strategy) for s, f in enumerate(factors)))


def test_a_group_is_its_mean_with_a_band_and_says_how_many() -> None:
    plot = convergence_plot([group("a", [0.8, 0.9, 1.0]), group("b", [0.7])])
    accuracy = plot.figure.axes[1]
    curve = lines(accuracy)["a (n = 3)"]
    values = history()["test_accuracy"].to_numpy()
    assert curve.get_ydata() == pytest.approx(0.9 * values)
    (band,) = accuracy.collections  # none for n = 1
    expected = mean_interval([0.8 * values[-1], 0.9 * values[-1], values[-1]])
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(min(1.0, expected.high or 0))
    data = plot.data[plot.data["metric"] == "test_accuracy"]
    last = data[(data["series"] == "a (n = 3)") & (data["rounds"] == 20)].iloc[0]
    assert (last["low"], last["high"]) == pytest.approx((expected.low, expected.high))
    assert data[data["series"] == "b (n = 1)"]["low"].isna().all()
    legend = plot.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a (n = 3)", "b (n = 1)"]
    assert "95 % t interval" in legend.get_title().get_text()


def test_seeds_on_unequal_places_are_put_on_a_common_grid() -> None:
    one, two = member(0), member(1, bytes_up=history()["bytes_up"] * 1.5)
    plot = convergence_plot([Group("a", (one, two))], x="bytes")
    places = plot.data[plot.data["metric"] == "test_loss"]["bytes"].to_numpy()
    assert places[0] == pytest.approx(4.0)  # where both have begun: 1.5 * 2 + 1 MB
    assert places[-1] == pytest.approx(60.0)  # where the first ends
    assert len(places) > 20


def test_references_are_lines_at_their_final_value() -> None:
    reference = group("centralised", [0.9, 1.0], "centralised")
    panels = panels_of([group("a", [0.8, 0.9]), reference], Settings())
    line = panels[-1].lines[-1]
    assert line.is_reference
    final = history()["test_accuracy"].iloc[-1]
    assert line.y.tolist() == pytest.approx([0.95 * final])
    assert line.label == "centralised, after 20 rounds (n = 2)"
    # They have sent nothing, and need no place on this axis.
    bare = Group("c", (member(0, 0.5, "centralised", bytes_up=0, bytes_down=0),))
    assert panels_of([group("a", [0.8]), bare], Settings("bytes"))[0].lines[-1].is_reference
    alone = panels_of([reference], Settings())
    assert not any(line.is_reference for panel in alone for line in panel.lines)


def test_clients_alone_have_no_common_model_to_be_a_reference() -> None:
    alone = group("local_only", [0.5], "local_only")
    with pytest.raises(ConfigError, match=r"has no common model.*validation_accuracy"):
        panels_of([group("a", [0.8]), alone], Settings())


def test_the_target_is_a_line_and_says_where_it_is_reached() -> None:
    target = Target("test_accuracy", 0.5)
    plot = convergence_plot(
        [group("a", [1.0, 0.9]), group("b", [0.4, 1.0]), group("c", [0.3])], target=target
    )
    texts = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    # 1 - 0.9 / n = 0.5 lies between rounds 1 (0.1) and 2 (0.55), at 1.889; 0.9 of it at 1.904 ...
    first = 1 + (0.5 - 0.1) / 0.45
    second = 2 + (0.5 - 0.9 * 0.55) / (0.9 * (0.7 - 0.55))
    assert texts == [
        f"a (n = 2), 0.5 at {(first + second) / 2:.3g} rounds",
        "b (n = 2), 0.5 reached by 1 of 2",
        "c (n = 1), 0.5 not reached",
    ]
    reached = plot.data[plot.data["kind"] == "reached"]
    assert reached["rounds"].tolist() == pytest.approx([first, second, first])
    axes = plot.figure.axes[1]
    assert lines(axes)["_target"].get_ydata()[0] == 0.5
    assert lines(axes)["_mean_reached"].get_xdata()[0] == pytest.approx((first + second) / 2)
    assert not any(label.startswith("_target") for label in lines(plot.figure.axes[0]))


def test_a_target_of_another_metric_gets_a_panel() -> None:
    one = Group("a", (member(0, validation_accuracy=np.linspace(0, 1, 20)),))
    panels = panels_of([one, one], Settings(target=Target("validation_accuracy", 0.5)))
    assert [panel.metric for panel in panels] == [
        "test_loss",
        "test_accuracy",
        "validation_accuracy",
    ]


def test_smoothing_is_asked_for_and_said() -> None:
    noisy = member(0, test_accuracy=np.tile([0.4, 0.6], 10))
    rough = convergence_plot([Group("a", (noisy, member(1)))])
    assert "smooth" not in rough.figure.legends[0].get_title().get_text()
    two, target = [Group("a", (noisy,)), group("b", [0.9])], Target("test_accuracy", 0.55)
    plot = convergence_plot(two, smooth=5, target=target)
    assert "running mean over 5 evaluations" in plot.figure.legends[0].get_title().get_text()
    curve = lines(plot.figure.axes[1])["a (n = 1)"].get_ydata()
    assert np.ptp(curve[2:-2]) < 0.05
    assert plot.figure.legends[0].get_texts()[0].get_text().endswith("0.55 at 1.75 rounds")
    alone = convergence_plot([Group("a", (noisy,), False)], metrics=["test_accuracy"], smooth=3)
    assert "running mean" in alone.figure.get_supxlabel()
    for window in (0, 2):
        with pytest.raises(ConfigError, match="odd number"):
            convergence_plot([group("a", [0.9])], smooth=window)


def test_logarithmic_axes_refuse_what_has_no_logarithm() -> None:
    plot = convergence_plot([group("a", [0.9]), group("b", [0.8])], log="xy")
    assert {axes.get_xscale() for axes in plot.figure.axes} == {"log"}
    assert {axes.get_yscale() for axes in plot.figure.axes} == {"log"}
    zero = Group("z", (member(0, bytes_up=0, bytes_down=0),))
    with pytest.raises(ConfigError, match=r'--log x: "z \(n = 1\)" has 0 MB .*--x such as rounds'):
        convergence_plot([zero, group("a", [0.9])], x="bytes", log="x")
    below = Group("n", (member(0, test_loss=-1.0),))
    with pytest.raises(ConfigError, match=r"--log y: .* test loss of -1, .*--metric"):
        convergence_plot([below, group("a", [0.9])], log="y")
    with pytest.raises(ConfigError, match='got "z"; use x, y, xy, none or auto'):
        convergence_plot([zero], log="z")


def test_a_band_below_zero_is_cut_by_a_logarithmic_axis() -> None:
    wide = Group("a", (member(0, test_loss=np.geomspace(10, 0.01, 20)), member(1, test_loss=5.0)))
    axes = convergence_plot([wide], metrics=["test_loss"], log="y").figure.axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] > 0


@pytest.mark.parametrize(
    ("width", "inches"), [("column", 3.3), ("text", 7.0), ("5.5", 5.5), (6.75, 6.75)]
)
def test_widths_are_those_of_a_page(width: str | float, inches: float, tmp_path: Path) -> None:
    plot = convergence_plot([group("a", [0.9, 0.8])], width=width)
    assert plot.figure.get_figwidth() == inches
    files = plot.save(tmp_path / "a.svg")
    assert [path.name for path in files] == ["a.svg", "a.csv"]
    assert f'width="{inches * 72:g}' in (tmp_path / "a.svg").read_text()
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table) == ["metric", "series", "kind", "runs", "rounds", "value", "low", "high"]
    assert plot.save(tmp_path / "b.pdf", with_data=False) == [tmp_path / "b.pdf"]
    assert not (tmp_path / "b.csv").exists()
    across = {axes.get_subplotspec().get_gridspec().ncols for axes in plot.figure.axes}
    assert across == ({1} if inches < 5 else {2})


def test_other_widths_are_refused() -> None:
    for width in ("colum", "1", "99"):
        with pytest.raises(ConfigError, match="use column"):
            figure_width(width)


def test_words_stand_for_columns() -> None:
    unseen = {f"unseen_accuracy_{name}": 0.1 for name in ("mean", "worst10", "variance")}
    run = Group("a", (member(0, test_ece=0.1, test_mce=0.2, test_brier=0.3, **unseen),))
    metrics = ["calibration", "distribution", "accuracy", "test_ece"]
    assert [panel.metric for panel in panels_of([run], Settings(), metrics)] == [
        "test_ece",
        "test_mce",
        "test_brier",
        "unseen_accuracy_mean",
        "unseen_accuracy_worst10",
        "unseen_accuracy_variance",
        "test_accuracy",
    ]
    with pytest.raises(ConfigError, match=r"--metric validation_accuracy_mean: .* did not measure"):
        panels_of([group("a", [0.9])], Settings(), ["distribution"])
    with pytest.raises(ConfigError, match='Did you mean "calibration"'):
        panels_of([run], Settings(), ["calibratoin"])
