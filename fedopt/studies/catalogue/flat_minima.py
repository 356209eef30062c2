"""Flat minima in federated learning: SAM on the clients, averaging on the server."""

from __future__ import annotations

from fedopt.studies.data import needs, needs_fashion_mnist, words_of
from fedopt.studies.results import (
    Results,
    all_of,
    better_by_interval,
    better_on_every_seed,
    in_every_condition,
)
from fedopt.studies.study import (
    Arm,
    Claim,
    Condition,
    Drawing,
    Finding,
    Quick,
    Study,
    Tuning,
    Words,
    deviation_over,
    final,
    mean_over,
)

BASE = """\
rounds = 400
clients_per_round = 5

[data]
name = "fashion_mnist"

[partition]
name = "shards"
clients = 100
shards_per_client = 1

[model]
name = "mlp"
hidden = [100]

[local]
epochs = 1.0
batch_size = 64

[local.optimizer]
name = "sgd"
lr = 0.03

[evaluation]
every = 2
sharpness_every = 400

[checkpoint]
every = 0
"""

ONE = "one label a client"
SOME = "Dirichlet 0.1"
DIRICHLET = ("partition=dirichlet", "partition.clients=100", "partition.alpha=0.1")
CIFAR = (
    *words_of("CIFAR-10"),
    *("model=cnn", "model.channels=[64,64]", "model.hidden=384"),
    *("rounds=10000", "local.optimizer.lr=0.01", "evaluation.every=50"),
    "evaluation.sharpness_every=10000",
)
LATE = mean_over("test_accuracy", 0.9, 1.0, "test accuracy, last tenth")
RESTLESS = deviation_over("test_accuracy", 0.75, "deviation of the accuracy, last quarter")
ECE = final("test_ece", "final ECE", better="lower")
SHARPNESS = final("test_sharpness", "largest eigenvalue of the Hessian", ".2f", better="lower")
FINAL_LOSS = final("test_loss", "final test loss")
CYCLE = (
    "local.schedule=swa_cyclic",
    "local.schedule.cycle=5",
    "server.swa.start=0.75",
    "server.swa.every=5",
)
RHOS: tuple[Words, ...] = tuple((f"local.sam.rho={rho}",) for rho in (0.02, 0.05, 0.1))
ADAPTIVE_RHOS: tuple[Words, ...] = tuple((f"local.sam.rho={rho}",) for rho in (0.2, 0.5, 1.0))


def swa_helps(results: Results, measure: str) -> Finding:
    """Check that the averaged model is better than the last one."""
    return in_every_condition(results, "FedAvg + SWA", "FedAvg", measure)


def steadier(results: Results) -> Finding:
    """Check that the averaged model changes less from round to round, on every seed."""
    arms = "FedAvg + SWA", "FedAvg"
    return in_every_condition(results, *arms, RESTLESS.name, better_on_every_seed)


def sam_helps(results: Results, measure: str) -> Finding:
    """Check that SAM or ASAM is better than plain local steps."""
    findings = []
    for condition in results.conditions("FedAvg", "FedSAM", "FedASAM"):
        for arm in ("FedSAM", "FedASAM"):
            found = better_by_interval(results, condition, arm, "FedAvg", measure)
            findings.append((f"{condition}, {arm}", found))
    return all_of(findings)


STUDY = Study(
    name="flat-minima",
    title="Seeking flat minima",
    source="Caldarola et al. 2022, Improving Generalization in Federated Learning by Seeking Flat "
    "Minima, tables 1 to 3",
    question="""
Where every client has one label, the server's accuracy jumps from round to round. Does it help to
look for flat minima: SAM or ASAM in the clients' steps, and the mean of the server's last models
(SWA) with a cyclic rate?
""",
    differs=(
        "Fashion-MNIST and one hidden layer of 100 in place of CIFAR and a CNN; 400 rounds in "
        "place of 10,000 and more. Where FEDOPT_CIFAR10 names CIFAR-10, a CNN is trained on it "
        "for 10,000 rounds as well.",
        "The smallest split is one label a client (alpha = 0 there), the other Dirichlet(0.1).",
        "Sharpness is the largest eigenvalue of the Hessian of the test loss.",
    ),
    base=BASE,
    conditions=(
        Condition(ONE, needs=needs_fashion_mnist),
        Condition(SOME, DIRICHLET, needs=needs_fashion_mnist),
        Condition(f"CIFAR-10, {ONE}", CIFAR, needs=needs("CIFAR-10")),
        Condition(f"CIFAR-10, {SOME}", (*CIFAR, *DIRICHLET), needs=needs("CIFAR-10")),
    ),
    arms=(
        Arm("FedAvg"),
        Arm("FedSAM", (), RHOS),
        Arm("FedASAM", ("local.sam.adaptive=true",), ADAPTIVE_RHOS),
        Arm("FedAvg + SWA", CYCLE, is_averaged=True),
        Arm("FedASAM + SWA", ("local.sam.adaptive=true", *CYCLE), ADAPTIVE_RHOS, is_averaged=True),
    ),
    measures=(LATE, RESTLESS, FINAL_LOSS, ECE, SHARPNESS),
    seeds=(0, 1, 2, 3, 4),
    claims=(
        Claim(
            "Server SWA is more accurate than the last model",
            lambda r: swa_helps(r, LATE.name),
            paper="table 1",
        ),
        Claim(
            "Server SWA steadies the accuracy from round to round",
            steadier,
            paper="figure 3",
            is_robust=True,
        ),
        Claim(
            "SAM and ASAM are more accurate than plain local steps",
            lambda r: sam_helps(r, LATE.name),
            paper="table 1",
        ),
        Claim(
            "SAM and ASAM end where the loss is flatter",
            lambda r: sam_helps(r, SHARPNESS.name),
            paper="table 3",
        ),
    ),
    tuning=Tuning(LATE, seeds=(1000,)),
    drawings=(Drawing("accuracy", "test_accuracy", "Test accuracy"),),
    quick=Quick(
        words=("rounds=80", "evaluation.sharpness_every=0"),
        seeds=(0, 1),
        conditions=(ONE,),
        arms=("FedAvg", "FedAvg + SWA"),
    ),
    seconds=(2_500, 18),
)
