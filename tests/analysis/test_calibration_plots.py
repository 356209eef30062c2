from __future__ import annotations

import itertools
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

import fedopt
from fedopt.analysis.calibration import Calibration, measure_calibration
from fedopt.analysis.calibration_plots import reliability_figure
from fedopt.analysis.client_plots import client_figure
from fedopt.analysis.distribution import client_distribution
from fedopt.analysis.metrics import (
    classification_metrics,
    maximum_calibration_error,
    reliability,
    temperature_scale,
)
from fedopt.analysis.plots import save_figure
from fedopt.analysis.sharpness import sam_ball_increase, top_hessian_eigenvalue
from fedopt.calibration import MOST_CLIENTS, MOST_EXAMPLES, validation_sample
from fedopt.config import Config
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.seeds import torch_generator


def outputs(examples: int = 600, factor: float = 3.0, seed: int = 0):
    """Over-confident logits and the targets that their third would predict."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(examples, 5, generator=random, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=random).squeeze(1)
    return factor * logits, targets


# Calibration ---------------------------------------------------------------------------------


def test_calibration_holds_the_metrics_before_and_after_scaling() -> None:
    logits, targets = outputs()
    held_out = outputs(seed=1)
    found = measure_calibration(logits, targets, held_out)
    plain = classification_metrics(logits, targets)
    assert [found.ece, found.mce, found.brier, found.loss] == [
        plain[name] for name in ("ece", "mce", "brier", "loss")
    ]
    assert found.temperature == temperature_scale(*held_out)
    scaled = classification_metrics(logits / found.temperature, targets)
    assert (found.ece_scaled, found.loss_scaled) == (scaled["ece"], scaled["loss"])
    assert found.temperature_fitted_on == 600
    assert found.loss_scaled < found.loss
    assert found.ece_scaled < found.ece
    assert list(found.facts()) == [field.name for field in fields(Calibration)]


def test_without_a_temperature_the_scaled_values_are_none() -> None:
    logits, targets = outputs()
    for held_out in (None, (logits[:0], targets[:0])):
        found = measure_calibration(logits, targets, held_out)
        assert (found.temperature, found.ece_scaled, found.loss_scaled) == (None, None, None)
        assert found.temperature_fitted_on == 0
    # All predictions right: the loss has no minimum.
    certain = measure_calibration(logits, targets, (logits, logits.argmax(1)))
    assert (certain.temperature, certain.ece_scaled) == (None, None)
    assert certain.temperature_fitted_on == 600
    assert certain.ece == measure_calibration(logits, targets).ece
    logits[0, targets[0]] = float("-inf")
    assert measure_calibration(logits, targets).loss is None
    json.dumps(Calibration().facts(), allow_nan=False)


# Reliability diagram -------------------------------------------------------------------------


def texts(figure) -> str:
    return "\n".join(axes.get_title(loc="left") for axes in figure.axes)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_diagram_shows_bins_gaps_and_numbers(tmp_path: Path) -> None:
    logits, targets = outputs()
    calibration = measure_calibration(logits, targets, outputs(seed=1))
    figure = reliability_figure(logits, targets, calibration, "a $trange title\nin two lines")
    top, bottom = figure.axes
    bins = reliability(logits.softmax(1), targets)
    accuracy, gap = top.containers
    filled = bins.counts > 0
    heights = np.array([bar.get_height() for bar in accuracy])
    np.testing.assert_array_equal(heights[filled], bins.accuracy[filled])
    # 1e-12: accuracy + (confidence - accuracy) in float64.
    ends = np.array([bar.get_y() + bar.get_height() for bar in gap])
    np.testing.assert_allclose(ends[filled], bins.confidence[filled], atol=1e-12)
    shares = [bar.get_height() for bar in bottom.containers[0]]
    assert sum(shares) == pytest.approx(1.0)
    scaled = reliability((logits / calibration.temperature).softmax(1), targets)
    line = next(line for line in top.get_lines() if str(line.get_label()).startswith("after"))
    np.testing.assert_array_equal(line.get_ydata(), scaled.accuracy[scaled.counts > 0])
    means = {line.get_label(): line.get_xdata()[0] for line in bottom.get_lines()}
    top_probability, predicted = logits.softmax(1).max(1)
    assert means["mean confidence"] == pytest.approx(float(top_probability.mean()))
    assert means["mean accuracy"] == pytest.approx(float((predicted == targets).double().mean()))
    assert f"ECE {calibration.ece:.4f}   MCE {calibration.mce:.4f}" in texts(figure)
    assert f"NLL {calibration.loss_scaled:.4f}" in texts(figure)
    assert "fitted on 600 validation examples" in texts(figure)
    assert len(legend(figure)) == 6
    assert figure.get_suptitle() == "a $trange title\nin two lines"
    path = save_figure(figure, tmp_path / "a.png")
    again = save_figure(reliability_figure(logits, targets, calibration), tmp_path / "b.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert again.read_bytes() != path.read_bytes()


def test_the_diagram_says_why_there_is_no_temperature() -> None:
    logits, targets = outputs()
    figure = reliability_figure(logits, targets)
    assert "no temperature: there are no validation examples" in texts(figure)
    assert not any(label.startswith("after") for label in legend(figure))
    certain = measure_calibration(logits, targets, (logits, logits.argmax(1)))
    assert "no minimum of the loss on\n600 validation" in texts(
        reliability_figure(logits, targets, certain)
    )


def test_nothing_of_the_diagram_overlaps_or_is_cut() -> None:
    logits, targets = outputs()
    calibration = measure_calibration(logits, targets, outputs(seed=1))
    title = "a strategy of a long name on a data set of a long name, after 1,000 rounds"
    figure = reliability_figure(logits, targets, calibration, title)
    FigureCanvasAgg(figure).draw()
    top, bottom = figure.axes
    title_box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    boxes = [
        title_box,
        *(axes.get_tightbbox() for axes in (top, bottom)),
        figure.legends[0].get_window_extent(),
    ]
    for above, below in itertools.pairwise(boxes):
        assert above.y0 >= below.y1 - 1
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


# Clients -------------------------------------------------------------------------------------


def spread_history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "round": [1, 2, 3],
            "validation_accuracy_mean": [0.5, np.nan, 0.9],
            "validation_accuracy_worst10": [0.1, np.nan, 0.6],
            "validation_accuracy_variance": [0.04, np.nan, 0.04],
        }
    )


def test_the_clients_figure_has_mean_tail_and_a_band_within_one() -> None:
    figure = client_figure(spread_history(), "a title")
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert drawn["mean"].get_xydata().tolist() == [[1, 0.5], [3, 0.9]]
    assert drawn["worst 10 %"].get_ydata().tolist() == [0.1, 0.6]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.3, 1.0))
    assert len(client_figure(spread_history()[:1]).axes[0].containers) == 1
    for bare in (spread_history()[1:2], spread_history()[["round"]]):
        with pytest.raises(ConfigError, match=r"evaluation\.validation_clients"):
            client_figure(bare)


# Runs ----------------------------------------------------------------------------------------

SETTINGS = {
    "rounds": 5,
    "clients_per_round": 4,
    "data": {"validation_fraction": 0.3},
    "partition": {"clients": 12},
    "model": {"name": "mlp", "hidden": [8], "dropout": 0.3},
    "local": {"epochs": 1},
    "engine": {"name": "inline"},
    "dtype": "float64",
    "evaluation": {
        "every": 2,
        "validation_clients": 12,
        "sharpness_every": 3,
        "sharpness_examples": 50,
        "sharpness_rho": 0.1,
        "batch_size": 20,
    },
}
MEASURED = {
    **{key: [2, 4, 5] for key in ("test_loss", "test_mce", "test_ece", "test_brier")},
    **{key: [3, 5] for key in ("test_sharpness", "test_ball_increase")},
    **{
        key: [2, 4, 5]
        for key in [f"validation_accuracy_{name}" for name in ("mean", "worst10", "variance")]
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedopt.Run:
    folder = tmp_path_factory.mktemp("calibration") / "run"
    return fedopt.simulate(SETTINGS, out=folder, keep_parameters=True)


@pytest.fixture(scope="module")
def experiment(run: fedopt.Run) -> Experiment:
    return Experiment.from_config(run.config)


def model_after(experiment: Experiment, run: fedopt.Run, number: int) -> nn.Module:
    model = experiment.build_model().eval()
    model.load_state_dict(run.parameters(number))
    return model


def tensors(examples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(examples.x), torch.from_numpy(examples.y)


def cell(run: fedopt.Run, number: int, column: str) -> float:
    return float(run.history.set_index("round").loc[number, column])


def test_rounds_have_what_was_measured_in_them_and_nothing_else(run: fedopt.Run) -> None:
    for column, rounds in MEASURED.items():
        values = run.history.set_index("round")[column]
        assert values.dropna().index.tolist() == rounds, column
        assert np.isfinite(values.dropna()).all()
    final = run.summary["final"]
    assert final["test_sharpness"] == cell(run, 5, "test_sharpness")
    assert final["validation_accuracy_mean"] == cell(run, 5, "validation_accuracy_mean")


@pytest.mark.parametrize("number", [2, 5])
def test_test_metrics_equal_a_recomputation(run, experiment, number: int) -> None:
    inputs, targets = tensors(experiment.population.test())
    with torch.no_grad():
        logits = model_after(experiment, run, number)(inputs)
    # 1e-12: float64 matrix products over batches of another size.
    assert cell(run, number, "test_mce") == pytest.approx(
        maximum_calibration_error(logits.softmax(1), targets), abs=1e-12
    )


@pytest.mark.parametrize("number", [3, 5])
def test_sharpness_equals_a_recomputation(run, experiment, number: int) -> None:
    model = model_after(experiment, run, number)
    inputs, targets = (part[:50] for part in tensors(experiment.population.test()))

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    exact = top_hessian_eigenvalue(loss, parameters, size, 0.0)
    same = torch_generator(run.config.seed, "sharpness")
    # 1e-10: three batches of 20, 20 and 10 here, one of 50 there, in float64.
    assert cell(run, number, "test_sharpness") == pytest.approx(
        top_hessian_eigenvalue(loss, parameters, generator=same), rel=1e-10
    )
    assert cell(run, number, "test_sharpness") == pytest.approx(exact, rel=1e-3)
    assert cell(run, number, "test_ball_increase") == pytest.approx(
        sam_ball_increase(loss, parameters, 0.1), rel=1e-10
    )


def test_the_distribution_over_clients_equals_a_recomputation(run, experiment) -> None:
    model = model_after(experiment, run, 4)
    accuracies = []
    for client in range(experiment.population.clients):
        inputs, targets = tensors(experiment.population.validation(client))
        if len(targets):
            accuracies.append(float((model(inputs).argmax(1) == targets).double().mean()))
    assert len(accuracies) > 1
    expected = client_distribution(accuracies)
    for name in ("mean", "worst10", "variance"):
        assert cell(run, 4, f"validation_accuracy_{name}") == getattr(expected, name)


def test_the_summary_holds_the_calibration_of_the_final_model(run, experiment) -> None:
    found = run.summary["calibration"]
    model = model_after(experiment, run, 5)
    inputs, targets = tensors(experiment.population.test())
    held_out = [tensors(experiment.population.validation(c)) for c in range(12)]
    x, y = (torch.cat(parts) for parts in zip(*held_out, strict=True))
    with torch.no_grad():
        expected = measure_calibration(model(inputs), targets, (model(x), y))
    # 1e-9: the temperature amplifies the rounding of the logits, 1e-15.
    assert found == pytest.approx(expected.facts(), rel=1e-9)
    assert found["ece"] == run.summary["final"]["test_ece"]
    assert found["temperature_fitted_on"] == len(y)
    assert run.dir is not None
    assert json.loads((run.dir / "summary.json").read_text())["calibration"] == found
    assert (run.dir / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_plain_run_measures_no_sharpness_and_draws_nothing_without_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("not asked for")

    monkeypatch.setattr("fedopt.server.evaluation.top_hessian_eigenvalue", never)
    monkeypatch.setattr("fedopt.analysis.plots.save_figure", never)
    plain = {**SETTINGS, "data": {"validation_fraction": 0.0}, "evaluation": {}, "rounds": 2}
    run = fedopt.simulate(plain)
    assert run.history["test_mce"].notna().all()
    for column in ("test_sharpness", "test_ball_increase", "validation_accuracy_mean"):
        assert run.history[column].isna().all()
    found = run.summary["calibration"]
    assert found["ece"] == run.summary["final"]["test_ece"]
    assert (found["temperature"], found["temperature_fitted_on"]) == (None, 0)


def test_regression_has_sharpness_but_no_calibration(tmp_path: Path) -> None:
    inputs = np.linspace(-1, 1, 20)[:, None]
    run = fedopt.simulate(
        clients=[(inputs, 2 * inputs), (inputs, inputs)],
        test=(inputs, inputs),
        model=lambda: nn.Linear(1, 1, bias=False),
        loss=nn.functional.mse_loss,
        rounds=2,
        clients_per_round=None,
        dtype="float64",
        engine={"name": "inline"},
        evaluation={"sharpness_every": 1},
        out=tmp_path / "run",
    )
    # The Hessian of mean (w x - y)^2 is 2 mean x^2. 1e-9: float64.
    curvature = 2 * float((inputs**2).mean())
    assert run.history["test_sharpness"].tolist() == pytest.approx([curvature] * 2, rel=1e-9)
    assert run.history["test_mce"].isna().all()
    assert run.summary["calibration"] == Calibration().facts()
    assert not (tmp_path / "run" / "reliability.png").exists()


def test_batchnorm_statistics_are_those_of_the_model_and_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    examples = random.normal(size=(40, 3)), random.integers(0, 2, 40)
    settings = {
        "clients": [examples, examples],
        "test": examples,
        "rounds": 2,
        "clients_per_round": None,
        "dtype": "float64",
        "engine": {"name": "inline"},
        "local": {"steps": 2},
        "model": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    }
    plain = fedopt.simulate(**settings)
    sharp = fedopt.simulate(**settings, evaluation={"sharpness_every": 1})
    assert np.isfinite(sharp.history["test_sharpness"]).all()
    assert sharp.summary["model_sha256"] == plain.summary["model_sha256"]
    assert sharp.history["test_loss"].tolist() == plain.history["test_loss"].tolist()


def test_the_sample_for_the_temperature_is_bounded_and_the_seeds() -> None:
    def population(clients: int):
        tables = {
            "data": {"name": "synthetic", "validation_fraction": 0.5},
            "partition": {"name": "synthetic", "clients": clients},
        }
        return Experiment.from_config(Config.from_tree({**tables, "seed": 1})).population

    many = population(2 * MOST_CLIENTS)
    asked: list[int] = []
    validation = many.validation
    many.validation = lambda client: (asked.append(client), validation(client))[1]  # type: ignore
    sample = validation_sample(many, 3)
    assert sample is not None
    assert len(asked) == len(set(asked)) == MOST_CLIENTS
    assert asked == sorted(asked)
    assert 0 < sample.size == len(sample.y) <= MOST_EXAMPLES
    again, other = validation_sample(many, 3), validation_sample(many, 4)
    assert np.array_equal(sample.x, again.x)
    assert not np.array_equal(sample.y, other.y)


def test_the_command_draws_any_real_column(run: fedopt.Run, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fedopt.cli import app

    path = tmp_path / "metrics.png"
    words = ["plot", str(run.dir), "--out", str(path), "--x", "bytes"]
    metrics = ["--metric", "test_sharpness", "--metric", "validation_accuracy_worst10"]
    assert CliRunner().invoke(app, [*words, *metrics]).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(app, [*words, "--metric", "test_sharpnes"])
    assert wrong.exit_code == 2
    assert 'Did you mean "test_sharpness"' in wrong.output
