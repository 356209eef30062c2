"""FedDyn against FedAvg, FedProx and SCAFFOLD, by rounds to an accuracy."""

from __future__ import annotations

from fedopt.analysis.targets import Target
from fedopt.studies.data import needs_fashion_mnist
from fedopt.studies.results import Results, all_of, decided, every_arm_above, ratio_to_target
from fedopt.studies.study import (
    Arm,
    Claim,
    Condition,
    Drawing,
    Finding,
    Quick,
    Study,
    Tuning,
    best,
    final,
    mean_over,
    to_target,
)

BASE = """\
rounds = 150
clients_per_round = 10

[data]
name = "fashion_mnist"

[partition]
name = "dirichlet"
clients = 100

[model]
name = "mlp"
hidden = [200, 100]

[local]
epochs = 5.0
batch_size = 50

[local.optimizer]
name = "sgd"
lr = 0.1
weight_decay = 1e-4

[checkpoint]
every = 0
"""

TARGET = Target("test_accuracy", 0.84)
ROUNDS = to_target(TARGET, name="rounds to 0.84")
SOON = to_target(Target("test_accuracy", 0.8), name="rounds to 0.8")
FINAL, BEST = final("test_accuracy"), best("test_accuracy")
LEVELS = (("IID", "partition=iid"), ("Dirichlet 0.6", "0.6"), ("Dirichlet 0.3", "0.3"))
RATES = (("local.optimizer.lr=0.03",), ("local.optimizer.lr=0.1",))


def condition(name: str, value: str) -> Condition:
    """Return how the labels are spread."""
    words = (value, "partition.clients=100") if "=" in value else (f"partition.alpha={value}",)
    return Condition(name, words)


def fewer_rounds(results: Results) -> Finding:
    """Check that FedDyn needs no more rounds than FedAvg where labels are spread unevenly."""
    findings = []
    for name, _ in LEVELS[1:]:
        ratio = ratio_to_target(results, name, "FedDyn", "FedAvg", SOON.name)
        if ratio is not None:
            findings.append((name, decided(ratio.value >= 1, str(ratio))))
    return all_of(findings)


def more_accurate(results: Results) -> Finding:
    """Check that FedDyn ends at a higher accuracy than FedAvg and FedProx."""
    findings = []
    arms = ("FedDyn", "FedAvg", "FedProx")
    for name in results.conditions(*arms):
        known = results.means(name, arms, BEST.name)
        if len(known) == len(arms):
            text = ", ".join(f"{arm} {value:.3f}" for arm, value in known.items())
            findings.append((name, decided(known["FedDyn"] >= max(known.values()), text)))
    return all_of(findings)


STUDY = Study(
    name="feddyn",
    title="FedDyn's dynamic regulariser",
    source="Acar et al. 2021, Federated Learning Based on Dynamic Regularization, tables 1 and 2",
    question="""
FedDyn changes every client's objective from round to round so that the clients' optima become the
server's. 100 clients, 10 a round, 5 local epochs, labels spread evenly and by Dirichlet shares:
does it need fewer rounds than FedAvg, FedProx and SCAFFOLD?
""",
    differs=(
        "Fashion-MNIST in place of MNIST, EMNIST, CIFAR and Shakespeare, with targets of its own.",
        "alpha is tuned over {0.01, 0.1}, step sizes over {0.03, 0.1}; the paper's rates decay.",
        "150 rounds.",
    ),
    base=BASE,
    conditions=tuple(condition(name, value) for name, value in LEVELS),
    arms=(
        Arm("FedAvg", ("strategy=fedavg",), RATES),
        Arm("FedProx", ("strategy=fedprox", "strategy.mu=0.01"), RATES),
        Arm("SCAFFOLD", ("strategy=scaffold",), RATES),
        Arm(
            "FedDyn",
            ("strategy=feddyn",),
            tuple((*rate, f"strategy.alpha={a}") for rate in RATES for a in (0.01, 0.1)),
        ),
    ),
    measures=(SOON, ROUNDS, FINAL, BEST),
    seeds=(0, 1, 2),
    claims=(
        Claim(
            "FedDyn needs no more rounds than FedAvg where labels are spread unevenly",
            fewer_rounds,
            paper="tables 1 and 2: 2 to 4 times fewer",
        ),
        Claim("FedDyn reaches the highest accuracy", more_accurate, paper="tables 1 and 2"),
        Claim(
            "Every method learns: more than 0.7 on Dirichlet 0.3",
            lambda r: every_arm_above(r, "Dirichlet 0.3", BEST.name, 0.7),
            is_robust=True,
        ),
    ),
    tuning=Tuning(mean_over("test_accuracy", 0.0), seeds=(1000,)),
    drawings=(Drawing("accuracy", "test_accuracy", "Test accuracy", target=TARGET.value),),
    quick=Quick(
        words=("rounds=10", "local.epochs=1"),
        seeds=(0, 1),
        conditions=("Dirichlet 0.3",),
        grids={
            "FedAvg": RATES[1:],
            "FedProx": RATES[1:],
            "SCAFFOLD": RATES[1:],
            "FedDyn": (("local.optimizer.lr=0.1", "strategy.alpha=0.1"),),
        },
    ),
    needs=needs_fashion_mnist,
    seconds=(9100, 20),
)
