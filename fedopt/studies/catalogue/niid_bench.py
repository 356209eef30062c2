"""What non-IID splits do to four strategies: the collapse on one label a client."""

from __future__ import annotations

from fedopt.studies.data import needs_fashion_mnist
from fedopt.studies.results import NOT_RUN, Results, better_on_every_seed, decided, seed_by_seed
from fedopt.studies.study import (
    Arm,
    Claim,
    Condition,
    Drawing,
    Finding,
    Quick,
    Study,
    best,
    deviation_over,
    final,
)

BASE = """\
rounds = 50
clients_per_round = "all"

[data]
name = "fashion_mnist"

[partition]
name = "shards"
clients = 10

[model]
name = "mlp"
hidden = [100]

[local]
epochs = 10.0
batch_size = 64

[local.optimizer]
name = "sgd"
lr = 0.01
momentum = 0.9
weight_decay = 1e-5

[checkpoint]
every = 0
"""

FINAL = final("test_accuracy")
BEST = best("test_accuracy")
RESTLESS = deviation_over("test_accuracy", 0.5, "deviation of the accuracy, last half")
ONE, TWO, THREE = "1 label", "2 labels", "3 labels"
METHODS = ("FedAvg", "FedProx", "SCAFFOLD", "FedNova")


def collapse(results: Results) -> Finding:
    """Check that one label a client costs every method much of its accuracy."""
    parts, holds = [], True
    for arm in METHODS:
        if not (results.has(ONE, arm) and results.has("IID", arm)):
            continue
        even, one = results.mean("IID", arm, FINAL.name), results.values(ONE, arm, FINAL.name)
        if even is None:
            return Finding("not shown", f"{arm} diverged on IID data")
        low = [0.1 if v is None or v < 0 else v for v in one]
        mean = sum(low) / len(low)
        holds = holds and mean < even.mean - 0.1
        parts.append(f"{arm}: {mean:.3f} against {even.mean:.3f}")
    return decided(holds, "; ".join(parts)) if parts else NOT_RUN


def scaffold_at_chance(results: Results) -> Finding:
    """Check that SCAFFOLD stays at chance with one label a client."""
    if not results.has(ONE, "SCAFFOLD"):
        return NOT_RUN
    values = results.values(ONE, "SCAFFOLD", FINAL.name)
    shown = ", ".join("diverged" if v is None or v < 0 else f"{v:.3f}" for v in values)
    at_chance = all(v is None or v < 0.15 for v in values)
    return decided(at_chance, shown)


def two_beat_one(results: Results) -> Finding:
    """Check that FedAvg gains from a second label, seed by seed."""
    if not (results.has(ONE, "FedAvg") and results.has(TWO, "FedAvg")):
        return NOT_RUN
    two, one = (results.values(split, "FedAvg", FINAL.name) for split in (TWO, ONE))
    return seed_by_seed(two, one, FINAL)


STUDY = Study(
    name="niid-bench",
    title="Splits that break strategies",
    source="Li et al. 2022, Federated Learning on Non-IID Data Silos (NIID-Bench), table 3",
    question="""
Ten silos, all of them in every round, ten local epochs. Each has one, two or three labels, or
Dirichlet shares, or IID labels in unequal numbers. Which strategy survives which split?
""",
    differs=(
        "A network of one hidden layer of 100 in place of their CNN, so that all of it runs "
        "on a CPU.",
        "FedProx has mu = 0.01; they tune it.",
        "SCAFFOLD's control variates are divided by the sum of the effective rates, momentum "
        "included; theirs by the plain rate, which makes them ten times too large.",
    ),
    base=BASE,
    conditions=(
        Condition("IID", ("partition=iid", "partition.clients=10")),
        Condition(ONE, ("partition.shards_per_client=1",)),
        Condition(TWO, ("partition.shards_per_client=2",)),
        Condition(THREE, ("partition.shards_per_client=3",)),
        Condition(
            "Dirichlet 0.5", ("partition=dirichlet", "partition.clients=10", "partition.alpha=0.5")
        ),
        Condition("unequal sizes", ("partition=quantity", "partition.clients=10")),
    ),
    arms=(
        Arm("FedAvg", ("strategy=fedavg",)),
        Arm("FedProx", ("strategy=fedprox", "strategy.mu=0.01")),
        Arm("SCAFFOLD", ("strategy=scaffold",)),
        Arm("FedNova", ("strategy=fednova",)),
    ),
    measures=(FINAL, BEST, RESTLESS),
    seeds=(0, 1, 2),
    claims=(
        Claim(
            "With one label a client every strategy loses more than 10 points against IID data",
            collapse,
            paper="table 3, #C = 1",
            is_robust=True,
        ),
        Claim(
            "With one label a client SCAFFOLD stays at chance",
            scaffold_at_chance,
            paper="table 3: 9.93 % on MNIST",
        ),
        Claim(
            "FedAvg is more accurate with two labels a client than with one, on every seed",
            two_beat_one,
            paper="table 3",
        ),
        Claim(
            "SCAFFOLD is more accurate than FedAvg on Dirichlet 0.5, on every seed",
            lambda r: better_on_every_seed(r, "Dirichlet 0.5", "SCAFFOLD", "FedAvg", FINAL.name),
            paper="table 3",
        ),
    ),
    drawings=(Drawing("accuracy", "test_accuracy", "Test accuracy by split"),),
    quick=Quick(
        words=("rounds=4", "local.epochs=0.25", "local.batch_size=16"),
        seeds=(0, 1),
        conditions=("IID", ONE),
        arms=("FedAvg", "SCAFFOLD"),
    ),
    needs=needs_fashion_mnist,
    seconds=(25_000, 23),
)
