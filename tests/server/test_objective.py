"""The global objective and the clients' gradients, beside what torch computes from all the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quadratics import clients, line, simulate
from resuming import assert_resumes
from torch import Tensor, nn

import fedopt
from fedopt.config import load
from fedopt.data.population import Examples
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.models.layout import ModelState
from fedopt.run import in_memory
from fedopt.server.evaluation import Evaluator

COLUMNS = ["objective", "gradient_variance", "gradient_dissimilarity"]
ALL = {"training_clients": 1.0, "gradients": True, "every": 1}

Pair = tuple[Tensor, Tensor]


def drawn(sizes: Any, features: int = 3, outputs: int = 2) -> list[Pair]:
    """Clients of several sizes, each with a line of its own."""
    rng = torch.Generator().manual_seed(5)
    out = []
    for n in sizes:
        x = torch.randn(n, features, generator=rng, dtype=torch.float64)
        w = torch.randn(outputs, features, generator=rng, dtype=torch.float64)
        out.append((x, x @ w.T + 0.1))
    return out


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def expected(model: nn.Module, loss: Any, data: list[Pair]) -> list[float]:
    """Return the three columns by their definitions, from all gradients at once."""
    model = model.double().eval()
    sizes = torch.tensor([len(y) for _, y in data], dtype=torch.float64)
    shares = sizes / sizes.sum()
    losses, gradients = [], []
    for x, y in data:
        value = loss(model(x), y)
        found = torch.autograd.grad(value, list(model.parameters()))
        losses.append(value.detach())
        gradients.append(torch.cat([g.flatten() for g in found]))
    rows = torch.stack(gradients)
    mean = shares @ rows
    squares = shares @ rows.square().sum(1)
    return [
        float(shares @ torch.stack(losses)),
        float(shares @ (rows - mean).square().sum(1)),
        math.sqrt(squares / mean.square().sum()),
    ]


def at(run: fedopt.Run, round: int, model: Any) -> nn.Module:
    """Return the model after a round."""
    module = model().double()
    module.load_state_dict(run.parameters(round))
    return module


@pytest.mark.parametrize("batch_size", [4, 1024])
def test_the_columns_are_what_their_definitions_give(batch_size: int) -> None:
    """With sizes that batches of four divide and do not, in one block a client and in several."""
    data = drawn([7, 1, 4, 12, 3] + [2] * 40)
    run = simulate(
        {"name": "fedprox", "mu": 0.1},
        data,
        model=linear,
        loss=nn.functional.mse_loss,
        rounds=3,
        keep_parameters=True,
        clients_per_round=4,
        evaluation={**ALL, "batch_size": batch_size},
    )
    for row in run.history.to_dict("records"):
        wanted = expected(at(run, row["round"], linear), nn.functional.mse_loss, data)
        # Sums of some hundred products in float64, in another order.
        np.testing.assert_allclose([row[c] for c in COLUMNS], wanted, rtol=1e-12)
    assert (run.history["objective"] != run.history["train_loss"]).all()
    assert run.summary["best"]["objective"]["value"] == run.history["objective"].min()
    assert run.summary["final"]["objective"] == run.history["objective"].iloc[-1]


def test_two_quadratics_by_hand() -> None:
    """f_1 = (w - 1)^2 / 2 of one example, f_2 = 10 (w + 1)^2 / 2 of two equal ones, at w = 1/2."""

    def half() -> nn.Module:
        model = line()
        nn.init.constant_(model.weight, 0.5)  # type: ignore[arg-type]
        return model

    (first, (x, y)) = clients()
    run = simulate(
        {"name": "fedavg"},
        [first, (x.repeat(2, 1), y.repeat(2, 1))],
        model=half,
        rounds=1,
        local={"optimizer": {"name": "sgd", "lr": 1e-300}},
        evaluation=ALL,
    )
    # Gradients -1/2 and 15 with the weights 1/3 and 2/3: a mean of 59/6.
    values = run.history.iloc[0]
    objective = (0.125 + 2 * 11.25) / 3
    mean, squares = 59 / 6, (0.25 + 2 * 225) / 3
    found = [values[c] for c in COLUMNS]
    wanted = [objective, squares - mean**2, math.sqrt(squares) / mean]
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_clients_with_the_same_data_do_not_differ() -> None:
    """Sums of equal numbers are exact for powers of two; else they round, by some 1e-16."""
    for sizes, tolerance in (([8] * 4, 0.0), ([5] * 7, 2e-15)):
        data = drawn(sizes[:1]) * len(sizes)
        run = simulate(
            {"name": "fedavg"},
            data,
            model=linear,
            loss=nn.functional.mse_loss,
            rounds=2,
            keep_parameters=True,
            evaluation=ALL,
        )
        for row in run.history.to_dict("records"):
            model = at(run, row["round"], linear)
            gradients = torch.autograd.grad(
                nn.functional.mse_loss(model(data[0][0]), data[0][1]), list(model.parameters())
            )
            norm = sum(float(g.square().sum()) for g in gradients)
            assert 0 <= row["gradient_variance"] <= tolerance * norm
            assert 1 <= row["gradient_dissimilarity"] <= 1 + tolerance


def test_no_dissimilarity_where_the_gradients_cancel() -> None:
    run = simulate({"name": "fedavg"}, clients((2.0, 2.0), (1.0, -1.0)), rounds=2, evaluation=ALL)
    assert run.history["gradient_dissimilarity"].isna().all()
    assert run.history["gradient_variance"].tolist() == pytest.approx([4.0, 4.0], rel=1e-14)
    assert run.summary["final"]["gradient_dissimilarity"] is None


def test_losses_alone_where_no_gradients_are_wanted() -> None:
    one = simulate({"name": "fedavg"}, rounds=2, evaluation={**ALL, "gradients": False}).history
    both = simulate({"name": "fedavg"}, rounds=2, evaluation=ALL).history
    assert one["objective"].equals(both["objective"])
    assert one[COLUMNS[1:]].isna().all(axis=None)
    assert both[COLUMNS].notna().all(axis=None)


def test_measured_when_evaluation_is_due() -> None:
    run = simulate({"name": "fedavg"}, rounds=5, evaluation={**ALL, "every": 2})
    for column in COLUMNS:
        assert run.history[column].notna().tolist() == [False, True, False, True, True]


def test_some_clients_are_drawn_afresh_each_time_and_all_are_all() -> None:
    a, b = (1.0, 2.0, 3.0, 4.0), (1.0, -1.0, 0.5, -2.0)
    objectives = {}
    for wanted in (2, 0.5, 4, 1.0, 100):
        run = simulate(
            {"name": "fedavg"},
            clients(a, b),
            rounds=6,
            keep_parameters=True,
            evaluation={"every": 1, "training_clients": wanted},
        )
        objectives[wanted] = run.history["objective"].tolist()
    assert objectives[2] == objectives[0.5]
    assert objectives[4] == objectives[1.0] == objectives[100]
    drawn_pairs = set()
    for round, value in enumerate(objectives[2], start=1):
        w = float(run.parameters(round)["weight"])
        losses = [s / 2 * (w - o) ** 2 for s, o in zip(a, b, strict=True)]
        pairs = {(i, j): (losses[i] + losses[j]) / 2 for j in range(4) for i in range(j)}
        drawn_pairs |= {pair for pair, mean in pairs.items() if math.isclose(value, mean)}
    assert len(drawn_pairs) > 1


# The model --------------------------------------------------------------------------------------


def noisy() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)
    )


def test_the_model_is_in_evaluation_mode_and_stays_as_it_is() -> None:
    """Dropout is off, BatchNorm uses the server's statistics; nothing else of the run changes."""
    data = drawn([6, 9, 4])
    settings: dict[str, Any] = {
        "model": noisy,
        "loss": nn.functional.mse_loss,
        "rounds": 2,
        "local": {"steps": 2, "batch_size": 3},
        "keep_parameters": True,
    }
    for option in ("I", "II"):
        strategy = {"name": "scaffold", "option": option}
        run = simulate(strategy, data, evaluation=ALL, **settings)
        plain = simulate(strategy, data, evaluation={"every": 1}, **settings)
        for row in run.history.to_dict("records"):
            wanted = expected(at(run, row["round"], noisy), nn.functional.mse_loss, data)
            np.testing.assert_allclose([row[c] for c in COLUMNS], wanted, rtol=1e-12)
        others = [c for c in run.history if c not in (*COLUMNS, "wall_seconds")]
        assert run.history[others].equals(plain.history[others])  # the bytes among them


def test_a_gradient_in_batches_is_that_of_the_whole() -> None:
    data = drawn([11])
    for size in (1, 4, 11, 100):
        setup = in_memory(
            load(None, evaluation={"batch_size": size}, dtype="float64", clients_per_round=1),
            linear,
            nn.functional.mse_loss,
            data,
        )
        evaluator = Evaluator(setup)
        flat = torch.cat([p.detach().flatten() for p in linear().double().parameters()])
        state = ModelState(flat, torch.zeros(0, dtype=torch.float64))
        examples = Examples(*(part.numpy() for part in data[0]))
        measured, gradient = evaluator.gradient(state, examples)
        model = linear().double()
        loss = nn.functional.mse_loss(model(data[0][0]), data[0][1])
        loss.backward()
        whole = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        assert measured == evaluator.measure(state, examples)
        torch.testing.assert_close(gradient, whole, rtol=1e-13, atol=1e-15)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(1, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("model", [Recurrent, lambda: nn.Sequential(nn.Linear(3, 2, bias=False))])
def test_classifiers_in_single_precision(model: Any) -> None:
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(n, 3)), rng.integers(0, 2, n)) for n in (4, 9, 5)]
    run = fedopt.simulate(
        model=model,
        clients=data,
        rounds=2,
        clients_per_round=2,
        keep_parameters=True,
        local={"epochs": 1},
        engine={"name": "inline"},
        evaluation=ALL,
    )
    tensors = [(torch.tensor(x), torch.tensor(y)) for x, y in data]
    wanted = expected(at(run, 2, model), nn.functional.cross_entropy, tensors)
    found = [run.history[c].iloc[-1] for c in COLUMNS]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)  # passes in float32


# With the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1.0, 1])
def test_a_resumed_run_has_the_same_columns(tmp_path: Path, wanted: float) -> None:
    assert_resumes(
        tmp_path,
        {"name": "fedprox", "mu": 0.3},
        evaluation={"every": 2, "training_clients": wanted, "gradients": True},
    )


def digits(**more: Any) -> dict[str, Any]:
    return {
        "rounds": 3,
        "clients_per_round": 3,
        "partition": {"name": "dirichlet", "clients": 8, "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [8]},
        "local": {"epochs": 1},
        "engine": {"name": "inline"},
        "data": {"validation_fraction": 0.2},
        **more,
    }


def test_drift_arrivals_and_clients_that_never_train() -> None:
    """The data are those of the round, of clients that have joined and may train."""
    tables = digits(
        dtype="float64",
        drift={"name": "label", "start": 2},
        arrival={"share": 0.5, "first": 3},
        evaluation={**ALL, "unseen_clients": 2, "validation_clients": 2},
    )
    run = fedopt.simulate(tables, keep_parameters=True)
    setup = Experiment.from_config(load(None, **tables))
    evaluator = Evaluator(setup)
    assert setup.arrival is not None
    for row in run.history.to_dict("records"):
        round = row["round"]
        population = setup.population_at(round)
        there = [
            client
            for place, client in enumerate(np.flatnonzero(setup.population.sizes).tolist())
            if setup.arrival.is_there(round, place)
        ]
        assert not set(there) & set(setup.unseen.tolist())
        assert len(there) == row["joined_clients"] < 8
        state = evaluator.layout.state(run.parameters(round))
        measured = [evaluator.measure(state, population.train(client)) for client in there]
        total = sum(m.examples for m in measured)
        mean = math.fsum(m.examples * m.loss for m in measured) / total
        assert row["objective"] == pytest.approx(mean, rel=1e-12)
        assert not math.isnan(row["unseen_loss"] + row["validation_loss"])


def test_one_model_is_measured_beside_the_clients_own() -> None:
    """Ditto's shared model is FedAvg's, whatever its clients keep."""
    evaluation = {**ALL, "validation_clients": 8}
    ditto, fedavg = (
        fedopt.simulate(digits(strategy={"name": name}, evaluation=evaluation)).history
        for name in ("ditto", "fedavg")
    )
    assert ditto[COLUMNS].equals(fedavg[COLUMNS])
    assert not ditto["validation_loss"].equals(fedavg["validation_loss"])


def test_all_clients_as_one_have_the_same_objective() -> None:
    tables = digits(strategy={"name": "centralised"}, evaluation={"training_clients": 1.0})
    run = fedopt.simulate(tables)
    setup = Experiment.from_config(load(None, **tables))
    evaluator = Evaluator(setup)
    state = evaluator.layout.state(run.parameters())
    clients_of = setup.members
    measured = [evaluator.measure(state, clients_of.train(c)) for c in range(8)]
    mean = sum(m.examples * m.loss for m in measured) / sum(m.examples for m in measured)
    assert run.history["objective"].iloc[-1] == pytest.approx(mean, rel=1e-6)  # float32 passes
    assert run.history[COLUMNS[1:]].isna().all(axis=None)


# What is refused --------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "negative": (
        ["evaluation.training_clients=-1"],
        ["evaluation.training_clients: ", "count must be >= 0", "-1"],
    ),
    "a share above one": (
        ["evaluation.training_clients=1.5"],
        ["evaluation.training_clients: ", "share must be in (0, 1]", "1.5"],
    ),
    "a share of zero": (
        ["evaluation.training_clients=0.0"],
        ["evaluation.training_clients: ", "share must be in (0, 1]"],
    ),
    "a word": (["evaluation.training_clients=all"], ["evaluation.training_clients: ", "'all'"]),
    "true": (["evaluation.training_clients=true"], ["evaluation.training_clients: "]),
    "gradients of nobody": (
        ["evaluation.gradients=true"],
        ["evaluation.gradients: got true", "training_clients > 0"],
    ),
    "gradients as a number": (
        ["evaluation.training_clients=1.0", "evaluation.gradients=1"],
        ["evaluation.gradients: got 1"],
    ),
    "models of their own": (
        ["strategy=local_only", "evaluation.validation_clients=5", "evaluation.training_clients=3"],
        ["evaluation.training_clients: got 3 with local_only", "no global model"],
    ),
    "parts of their own": (
        ["strategy=fedper", "evaluation.validation_clients=5", "evaluation.training_clients=1.0"],
        ["evaluation.training_clients: got 1.0 with fedper", "no global model"],
    ),
    "gradients of all as one": (
        ["strategy=centralised", "evaluation.training_clients=1.0", "evaluation.gradients=true"],
        ["evaluation.gradients: got true with centralised", "no gradients of single clients"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_with_the_reason(case: str) -> None:
    words, says = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        Experiment.from_config(load(None, words, data={"validation_fraction": 0.2}))
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert text.startswith(says[0])
    assert len(text.splitlines()) == 1
    assert not [word for word in says if word not in text], text
