"""Runs whose data drift, whose clients join late, or of which some never train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.data.population import Examples
from fedopt.drift.concepts import Concept
from fedopt.errors import ConfigError
from fedopt.evolving import make_arrival
from fedopt.experiment import Experiment
from fedopt.run import execute, preview
from fedopt.server.arrival import Arrival

LABEL = {"name": "label", "share": 0.7, "groups": 2, "start": 3, "stagger": 1}
DRIFTS: dict[str, dict[str, Any]] = {
    "label": LABEL,
    "gradual label": {**LABEL, "kind": "gradual", "length": 4},
    "incremental label": {**LABEL, "kind": "incremental", "length": 4},
    "recurring label": {**LABEL, "kind": "recurring", "period": 1},
    "feature": {"name": "feature", "scale": 0.5, "kind": "incremental", "length": 3, "start": 2},
    "rotation": {"name": "rotation", "groups": 3, "degrees": 270.0, "start": 2},
    "prior": {"name": "prior", "kind": "gradual", "length": 5, "start": 2},
}
EVERYTHING: dict[str, Any] = {
    "drift": DRIFTS["gradual label"],
    "arrival": {"share": 0.5, "first": 2, "last": 5},
    "evaluation": {"unseen_clients": 0.2, "validation_clients": 5},
    "data": {"validation_fraction": 0.2},
}


def tables(**more: Any) -> dict[str, Any]:
    return {
        "rounds": 6,
        "clients_per_round": 5,
        "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [16]},
        "local": {"epochs": 1},
        "engine": {"name": "inline"},
        **more,
    }


def make(**more: Any) -> Experiment:
    return Experiment.from_config(load(None, **tables(**more)))


def simulate(**more: Any) -> fedopt.Run:
    return fedopt.simulate(tables(**more))


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Experiment.from_config(load(None, words, **tables()))
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Drift --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)
def test_engines_agree(drift: dict[str, Any]) -> None:
    weights = [
        simulate(drift=drift, dtype="float64", engine={"name": "inline", "training": training})
        .parameters()["1.weight"]
        .double()
        for training in ("loop", "stacked")
    ]
    assert torch.allclose(*weights, atol=1e-9)  # float64, other order of additions


def test_drift_moves_the_model_from_its_start_on() -> None:
    plain = simulate().history
    for name, drift in DRIFTS.items():
        history = simulate(drift=drift).history
        same = (history["train_loss"] == plain["train_loss"]).tolist()
        start = drift["start"]
        assert all(same[: start - 1]), name
        assert not any(same[start:]), name
        old = history["drift_test_loss"] == history["test_loss"]
        assert old.tolist()[: start - 1] == [True] * (start - 1), name


def test_the_training_reads_the_examples_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make(drift=DRIFTS["gradual label"])
    trainer_of = Experiment.trainer
    seen: list[tuple[int, list[int], Examples]] = []

    def spying(self: Experiment) -> Any:
        trainer = trainer_of(self)
        train = trainer.engine.train

        def spy(start: Any, round: int, plans: Any, examples: Examples, terms: Any) -> Any:
            copied = Examples(np.array(examples.x), np.array(examples.y))
            seen.append((round, [plan.client for plan in plans], copied))
            return train(start, round, plans, examples, terms)

        monkeypatch.setattr(trainer.engine, "train", spy)
        return trainer

    monkeypatch.setattr(Experiment, "trainer", spying)
    execute(experiment, None, SilentProgress())
    assert {round for round, _, _ in seen} == set(range(1, 7))
    drift, clean = experiment.drift, experiment.population
    assert drift is not None
    for round, clients, examples in seen:
        parts = [drift.examples(clean.train(c), c, round, 0) for c in clients]
        assert np.array_equal(examples.y, np.concatenate([part.y for part in parts]))
        assert np.array_equal(examples.x, np.concatenate([part.x for part in parts]))


def test_validation_splits_drift_with_their_clients() -> None:
    """Inputs as they were, labels permuted: a model that ignores the change loses on them."""
    common: dict[str, Any] = {
        "data": {"validation_fraction": 0.3},
        "evaluation": {"validation_clients": 20},
        "local": {"steps": 1, "optimizer": {"name": "sgd", "lr": 1e-9}},
        "rounds": 4,
    }
    plain = simulate(**common).history
    drifted = simulate(**common, drift={"name": "label", "change": "shift", "start": 3}).history
    columns = ["validation_loss", "validation_accuracy"]
    assert drifted[columns][:2].equals(plain[columns][:2])
    assert (drifted[columns][2:] != plain[columns][2:]).all(axis=None)
    # Of a model that hardly moves, the test columns stay on the old concept.
    assert np.allclose(drifted["test_loss"], plain["test_loss"], atol=1e-6)
    assert (drifted["drift_test_loss"] != drifted["test_loss"]).tolist() == [False] * 2 + [True] * 2


def test_groups_and_the_course_are_recorded() -> None:
    run = simulate(drift=LABEL)
    assert run.summary["drift"] == {
        "kind": "sudden",
        "clients": 14,
        "groups": [7, 7],
        "first_rounds": [3, 4],
    }
    assert run.history["drift"].tolist() == [0, 0, 0.5, 1, 1, 1]
    groups = run.clients.groupby("client")["drift_group"].unique()
    assert all(len(found) == 1 for found in groups)
    assert set(run.clients["drift_group"]) == {0, 1, 2}
    plain = simulate()
    assert plain.history["drift"].isna().all()
    assert set(plain.clients["drift_group"]) == {0}


def test_a_drift_that_comes_back_finds_the_old_concept() -> None:
    drift = {"name": "label", "kind": "recurring", "start": 2, "period": 2}
    history = simulate(drift=drift).history
    assert history["drift"].tolist() == [0, 1, 1, 0, 0, 1]
    same = history["drift_test_loss"] == history["test_loss"]
    assert same.tolist() == [True, False, False, True, True, False]


def test_centralised_training_sees_the_clients_drift() -> None:
    common: dict[str, Any] = {"strategy": "centralised", "drift": LABEL}
    experiment = make(**common)
    assert experiment.drift is not None
    for round in (1, 3, 5):
        pooled = experiment.population_at(round).train(0)
        clients = np.flatnonzero(experiment.members.sizes).tolist()
        parts = [
            experiment.drift.examples(experiment.members.train(c), c, round, 0) for c in clients
        ]
        assert np.array_equal(pooled.y, np.concatenate([part.y for part in parts]))
    history = simulate(**common).history
    assert history["drift_test_loss"].iloc[-1] != history["test_loss"].iloc[-1]


def test_hostile_clients_flip_what_they_see() -> None:
    """The attack turns the labels of the round's concept, not those of the first."""
    attack = {"name": "label_flip", "fraction": 1.0}
    drift = {"name": "label", "change": "shift", "start": 1}
    experiment = make(drift=drift, attack=attack)
    plans = [
        type("Plan", (), {"client": c, "examples": experiment.population.sizes[c]}) for c in (1, 2)
    ]
    found = experiment.trainer()._examples(1, plans)  # type: ignore[arg-type]
    clean = experiment.population.train_many([1, 2])
    assert np.array_equal(found.y, 9 - (clean.y + 1) % 10)


class Doubling(Concept):
    """A drift of the user's: inputs are multiplied."""

    changes_inputs = True

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def examples(self, examples: Examples, group: Any, amount: float, draws: Any) -> Examples:
        """Return the examples with their inputs multiplied."""
        return examples._replace(x=examples.x * np.float32(self.by**amount))


def test_a_drift_by_path_takes_its_options() -> None:
    drift = {"name": f"{__name__}:Doubling", "by": 3.0, "start": 2, "share": 0.5}
    experiment = make(drift=drift)
    assert experiment.drift is not None
    client = int(np.flatnonzero(experiment.drift.groups)[0])
    found = experiment.population_at(2).train(client).x
    assert np.array_equal(found, experiment.population.train(client).x * np.float32(3))
    assert "by" in experiment.config.to_toml()


@pytest.mark.parametrize("name", list(DRIFTS))
def test_resumed_mid_drift_to_the_bit(name: str, tmp_path: Path) -> None:
    resumes(tmp_path, drift=DRIFTS[name])


def resumes(folder: Path, **more: Any) -> None:
    def run(name: str, rounds: int, resume: bool = False) -> fedopt.Run:
        experiment = make(**{"checkpoint": {"every": 1}, **more, "rounds": rounds})
        return execute(experiment, folder / name, SilentProgress(), resume=resume)

    whole = run("whole", 6)
    run("broken", 4)
    resumed = run("broken", 6, resume=True)
    columns = [column for column in whole.history if column != "wall_seconds"]
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert resumed.history[columns].equals(whole.history[columns])
    assert resumed.clients.equals(whole.clients)


def test_everything_resumes_to_the_bit(tmp_path: Path) -> None:
    more = {**EVERYTHING, "arrival": {"share": 0.5, "first": 2, "last": 4}}
    resumes(tmp_path, **more, strategy="scaffold", server={"swa": {"start": 2}})


def test_two_workers_give_the_bits_of_one() -> None:
    more = {**EVERYTHING, "strategy": "scaffold"}
    more["evaluation"] = {**EVERYTHING["evaluation"], "batch_size": 100}
    inline = simulate(**more)
    ray = simulate(**more, engine={"name": "ray", "workers": 2})
    assert inline.summary["model_sha256"] == ray.summary["model_sha256"]
    columns = [column for column in inline.history if column != "wall_seconds"]
    assert inline.history[columns].equals(ray.history[columns])
    assert inline.clients.equals(ray.clients)


# Clients that join --------------------------------------------------------------------------------


def test_uniform_arrival_in_closed_form() -> None:
    arrival = Arrival(100, 0.6, first=3, last=8, seed=1)
    assert [arrival.joined(r) for r in range(1, 11)] == [40, 40, 50, 60, 70, 80, 90, 100, 100, 100]


def test_waves_in_closed_form() -> None:
    arrival = Arrival(100, 0.6, first=3, last=7, pattern="step", waves=3, seed=1)
    assert arrival.wave_rounds() == [3, 5, 7]
    assert [arrival.joined(r) for r in range(1, 9)] == [40, 40, 60, 60, 80, 80, 100, 100]
    alone = Arrival(10, 0.5, first=4, last=9, pattern="step", waves=1)
    assert [alone.joined(r) for r in (3, 4)] == [5, 10]


@given(
    st.integers(2, 300),
    st.floats(0, 0.99),
    st.integers(2, 20),
    st.integers(0, 30),
    st.sampled_from(["uniform", "step"]),
    st.integers(1, 50),
)
def test_who_has_joined_stays_and_all_have_at_last(
    clients: int, share: float, first: int, span: int, pattern: str, waves: int
) -> None:
    arrival = Arrival(clients, share, first, first + span, pattern, waves, seed=5)
    counts = [arrival.joined(round) for round in range(1, first + span + 3)]
    assert counts == sorted(counts)
    assert counts[: first - 1] == [arrival.founders] * (first - 1)
    assert counts[first + span - 1] == clients
    assert sorted(arrival.pool(first + span).tolist()) == list(range(clients))
    middle = set(arrival.pool(first).tolist())
    assert middle == {p for p in range(clients) if arrival.is_there(first, p)}


@pytest.mark.parametrize("pattern", ["uniform", "step"])
def test_nobody_trains_or_is_asked_before_joining(pattern: str) -> None:
    arrival = {"share": 0.7, "first": 3, "last": 6, "pattern": pattern, "waves": 2}
    more: dict[str, Any] = {
        "arrival": arrival,
        "clients_per_round": "all",
        "data": {"validation_fraction": 0.2},
        "evaluation": {"validation_clients": 20},
    }
    experiment = make(**more)
    found = experiment.arrival
    assert found is not None
    run = simulate(**more)
    sizes = [int(n) for n in run.history["joined_clients"]]
    assert sizes == [found.joined(round) for round in range(1, 7)]
    eligible = np.flatnonzero(experiment.population.sizes)
    for round in range(1, 7):
        trained = run.clients[run.clients["round"] == round]["client"].tolist()
        assert trained == sorted(eligible[found.pool(round)].tolist())


def test_a_cohort_is_drawn_among_those_that_are_there() -> None:
    more: dict[str, Any] = {"arrival": {"share": 0.5, "first": 5, "last": 6}, "rounds": 6}
    found = make(**more).arrival
    assert found is not None
    run = simulate(**more)
    early = run.clients[run.clients["round"] < 5]["client"]
    assert set(early) <= set(found.order[:10].tolist())
    assert len(set(early)) > 5  # of ten, in four rounds of five
    assert (run.clients.groupby("round").size() == 5).all()


def test_without_arrival_the_cohorts_are_what_they_were() -> None:
    assert simulate(arrival={"share": 0.0}).clients.equals(simulate().clients)


# Clients that never train -------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "feddyn", "ditto", "centralised"])
@pytest.mark.parametrize("wanted", [4, 0.2])
def test_unseen_clients_never_train(strategy: str, wanted: int | float) -> None:
    more: dict[str, Any] = {
        "strategy": strategy,
        "clients_per_round": "all",
        "data": {"validation_fraction": 0.2},
        "evaluation": {"unseen_clients": wanted, "validation_clients": 20},
    }
    experiment = make(**more)
    unseen = experiment.unseen
    assert len(unseen) == 4
    run = simulate(**more)
    assert run.summary["unseen_clients"] == 4
    if strategy == "centralised":
        clean = make(**{**more, "evaluation": {}})
        assert set(run.clients["examples"]) == {
            int(clean.population.sizes[0] - experiment.members.all_sizes[unseen].sum())  # type: ignore[attr-defined]
        }
    else:
        everyone = set(range(20)) - set(unseen.tolist())
        assert set(run.clients["client"]) == everyone
    assert run.history["unseen_accuracy"].notna().all()


def test_unseen_clients_are_measured_on_all_of_their_training_data() -> None:
    more: dict[str, Any] = {
        "evaluation": {"unseen_clients": 12, "every": 2},
        "rounds": 3,
        "drift": {"name": "label", "start": 3},
        "clients_per_round": 3,
    }
    run = simulate(**more)
    assert run.history["unseen_loss"].notna().tolist() == [False, True, True]
    experiment = make(**more)
    model = experiment.build_model()
    model.load_state_dict(run.parameters())
    model.eval()
    rows = []
    for client in experiment.unseen.tolist():
        examples = experiment.population_at(3).train(client)
        assert examples.size == experiment.population.all_sizes[client]  # type: ignore[attr-defined]
        with torch.no_grad():
            output = model(torch.from_numpy(examples.x))
        targets = torch.from_numpy(examples.y)
        loss = float(torch.nn.functional.cross_entropy(output, targets))
        rows.append((examples.size, loss, float((output.argmax(1) == targets).double().mean())))
    sizes, losses, accuracies = (np.array(column) for column in zip(*rows, strict=True))
    last = run.history.iloc[-1]
    assert last["unseen_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert last["unseen_accuracy"] == pytest.approx(np.average(accuracies, weights=sizes))
    assert last["unseen_accuracy_mean"] == pytest.approx(accuracies.mean())
    assert last["unseen_accuracy_worst10"] == pytest.approx(np.sort(accuracies)[:2].mean())
    assert last["unseen_accuracy_variance"] == pytest.approx(accuracies.var())


def test_a_file_of_scores_tells_of_all_clients(tmp_path: Path) -> None:
    sizes = make().population.sizes
    path = tmp_path / "scores.npy"
    np.save(path, np.arange(int(sizes.sum())))
    curriculum = {"name": "curriculum", "score": str(path), "start": 1.0}
    experiment = make(local={"curriculum": curriculum}, evaluation={"unseen_clients": 5})
    found = experiment.selecting.curriculum
    assert found is not None
    assert found.user is not None
    for client in range(20):
        labels = experiment.population.train(client).y
        first = int(sizes[:client].sum())
        expected = np.arange(first, first + int(sizes[client]))
        assert np.array_equal(found.user(client, None, labels), expected)


def test_unseen_clients_do_not_depend_on_the_strategy_or_the_rounds() -> None:
    found = [
        make(**more, evaluation={"unseen_clients": 5}).unseen.tolist()
        for more in ({}, {"strategy": "scaffold"}, {"rounds": 9}, {"strategy": "centralised"})
    ]
    assert all(one == found[0] for one in found)
    assert make(evaluation={"unseen_clients": 5}, seed=1).unseen.tolist() != found[0]


def test_clients_in_memory_can_drift_join_and_be_held_out() -> None:
    draws = np.random.default_rng(0)
    clients = [
        (draws.normal(size=(12, 4)).astype("float32"), draws.integers(3, size=12))
        for _ in range(10)
    ]
    run = fedopt.simulate(
        clients=clients,
        model=lambda: torch.nn.Linear(4, 3),
        rounds=4,
        clients_per_round=2,
        engine={"name": "inline"},
        local={"epochs": 1},
        drift={"name": "feature", "start": 2},
        arrival={"share": 0.5},
        evaluation={"unseen_clients": 3},
    )
    assert len(set(run.clients["client"])) <= 7
    assert run.history["drift_test_loss"].isna().all()  # there is no test set
    assert run.history["unseen_loss"].notna().all()


def test_integers_can_be_looked_up_by_unseen_and_pooled_clients() -> None:
    draws = np.random.default_rng(0)
    clients = [(draws.integers(5, size=(8, 2)), draws.integers(3, size=8)) for _ in range(6)]

    def model() -> torch.nn.Module:
        embedding = torch.nn.Embedding(5, 4)
        return torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(8, 3))

    for strategy in ("fedavg", "centralised"):
        run = fedopt.simulate(
            clients=clients,
            model=model,
            strategy=strategy,
            rounds=2,
            clients_per_round=2,
            engine={"name": "inline"},
            evaluation={"unseen_clients": 1},
        )
        assert run.history["unseen_loss"].notna().all()
    with pytest.raises(ConfigError, match=r"drift\.name: .*looks its inputs up"):
        fedopt.simulate(
            clients=clients, model=model, rounds=2, clients_per_round=2, drift={"name": "feature"}
        )


# What is refused ----------------------------------------------------------------------------------


CANCER = ["data=breast_cancer", "partition=iid"]
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "after the last round": (
        ["drift=label", "drift.start=7"],
        ["drift.start: ", "got 7", "last round is 6", "1..6"],
    ),
    "a group that never starts": (
        ["drift=label", "drift.groups=3", "drift.start=4", "drift.stagger=2"],
        ["drift.stagger: ", "got 2", "round 8", "at most 1"],
    ),
    "more groups than clients": (
        ["drift=label", "drift.share=0.2", "drift.groups=5"],
        ["drift.groups: ", "got 5", "only 4 clients drift", "at most 4"],
    ),
    "no images": (
        ["drift=rotation", *CANCER],
        ["drift.name: ", '"rotation"', "images", "[30]", '"feature"'],
    ),
    "no such class": (
        ["drift.name=torch:Driftt"],
        ["drift.name: ", 'no "Driftt"'],
    ),
    "no concept": (["drift.name=torch.nn:Identity"], ["drift.name: ", "Concept"]),
    "nobody left": (
        ["evaluation.unseen_clients=20"],
        ["evaluation.unseen_clients: ", "got 20", "none of the 20", "at most 19"],
    ),
    "more than there are": (
        ["evaluation.unseen_clients=200"],
        ["evaluation.unseen_clients: ", "got 200", "at most 19"],
    ),
    "almost nobody left": (
        ["evaluation.unseen_clients=0.9"],
        ["clients_per_round: ", "got 5", "only 2 clients"],
    ),
    "a part of the model of their own": (
        [
            "strategy=fedper",
            "strategy.personal=['3']",
            "evaluation.unseen_clients=2",
            "evaluation.validation_clients=5",
            "data.validation_fraction=0.2",
        ],
        ["evaluation.unseen_clients: ", "fedper", "those that never train have none"],
    ),
    "joining after the last round": (
        ["arrival.share=0.5", "arrival.first=7"],
        ["arrival.first: ", "got 7", "last round is 6", "2..6"],
    ),
    "joining too late": (
        ["arrival.share=0.5", "arrival.last=9"],
        ["arrival.last: ", "got 9", "2..6"],
    ),
    "last before first": (
        ["arrival.share=0.5", "arrival.first=5", "arrival.last=4"],
        ["arrival.last: ", "got 4", "5..6"],
    ),
    "nobody at first": (
        ["arrival.share=0.98"],
        ["arrival.share: ", "none of 20 clients", "smaller share"],
    ),
    "too few at first": (
        ["arrival.share=0.8"],
        ["clients_per_round: ", "got 5", "only 4 clients", "at most 4", "arrival.share"],
    ),
    "a curriculum over clients": (
        ["arrival.share=0.5", "server.curriculum=random"],
        ["arrival: ", "server.curriculum"],
    ),
    "all clients as one": (
        ["arrival.share=0.5", "strategy=centralised"],
        ["arrival: ", "centralised"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(case: str) -> None:
    words, says = REFUSED[case]
    text = refusal(*words)
    assert text.startswith(says[0])
    assert not [word for word in says if word not in text], text


@pytest.mark.parametrize("name", ["label", "prior"])
def test_real_targets_have_no_labels_to_drift(name: str) -> None:
    pairs = [(np.ones((4, 1)), np.ones((4, 1)))] * 3
    with pytest.raises(ConfigError, match=rf'drift\.name: got "{name}", .*real targets'):
        fedopt.simulate(
            clients=pairs,
            model=lambda: torch.nn.Linear(1, 1),
            loss=torch.nn.functional.mse_loss,
            rounds=2,
            clients_per_round=1,
            drift={"name": name},
        )


def test_scores_of_examples_do_not_go_with_examples_drawn_anew(tmp_path: Path) -> None:
    sizes = make().population.sizes
    path = tmp_path / "scores.npy"
    np.save(path, np.zeros(int(sizes.sum())))
    words = ["drift=prior", "local.curriculum=curriculum", f"local.curriculum.score={path}"]
    assert refusal(*words).startswith('drift.name: got "prior"')
    assert make(
        drift={"name": "label"},
        local={"curriculum": {"name": "curriculum", "score": str(path), "start": 1.0}},
    )


def test_an_accountant_counts_on_the_same_clients() -> None:
    words = ["arrival.share=0.5", "uplink.privacy.noise_multiplier=1.0"]
    with pytest.raises(ConfigError, match=r"^arrival: got 0.5, .*uplink\.privacy.*accountant"):
        make_arrival(load(None, words, **tables()), np.full(20, 5))


def test_the_neighbours_of_what_is_refused_run() -> None:
    for words in (
        ["drift=label", "drift.start=6"],
        ["drift=label", "drift.groups=3", "drift.start=4", "drift.stagger=1"],
        ["drift=feature", *CANCER],
        ["evaluation.unseen_clients=15"],
        ["arrival.share=0.75", "arrival.first=6", "arrival.last=6"],
    ):
        Experiment.from_config(load(None, words, **tables()))


@pytest.mark.parametrize("policy", ["synchronous", "over_selection", "fedbuff"])
def test_on_the_virtual_clock_too_nobody_begins_before_joining(policy: str) -> None:
    more: dict[str, Any] = {
        "arrival": {"share": 0.5, "first": 3, "last": 6},
        "system": {"devices": {"name": "uniform"}},
        "policy": policy,
    }
    experiment = make(**more)
    found, eligible = experiment.arrival, np.flatnonzero(experiment.population.sizes)
    assert found is not None
    for _, row in simulate(**more).clients.iterrows():
        assert found.is_there(row["round"], int(np.searchsorted(eligible, row["client"])))


def test_what_is_written_of_the_population_counts_the_unseen(tmp_path: Path) -> None:
    evaluation = {"unseen_clients": 5}
    plain, held = make(), make(evaluation=evaluation)
    assert held.everyone.sizes.tolist() == plain.population.sizes.tolist()
    assert preview(held)["clients never trained on"] == 5
    assert preview(held)["clients without examples"] == 0
    for strategy in ("fedavg", "centralised"):
        one, other = (
            execute(make(strategy=strategy, **more), tmp_path / name, SilentProgress())
            for name, more in (
                (f"{strategy} plain", {}),
                (f"{strategy} held", {"evaluation": evaluation}),
            )
        )
        assert one.summary["population"] == other.summary["population"]
