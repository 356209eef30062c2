"""FedProx on synthetic devices: what stragglers' partial work and the proximal term bring."""

from __future__ import annotations

from fedopt.studies.results import (
    NOT_RUN,
    Results,
    all_of,
    better_by_interval,
    better_on_every_seed,
    decided,
)
from fedopt.studies.study import (
    Arm,
    Claim,
    Condition,
    Drawing,
    Finding,
    Quick,
    Study,
    final,
    mean_over,
    worst_over,
)

BASE = """\
rounds = 200
clients_per_round = 10

[data]
name = "synthetic"

[partition]
name = "synthetic"
clients = 30

[model]
name = "logistic"

[local]
epochs = 20.0
batch_size = 10

[local.optimizer]
name = "sgd"
lr = 0.01

[evaluation]
training_clients = 30
gradients = true

[engine]
block_size = 10

[checkpoint]
every = 0
"""

DATA = (
    ("IID", "data.iid=true"),
    ("(0, 0)", "data.alpha=0.0 data.beta=0.0"),
    ("(0.5, 0.5)", "data.alpha=0.5 data.beta=0.5"),
    ("(1, 1)", "data.alpha=1.0 data.beta=1.0"),
)
SHARES = (0, 50, 90)
MUS = (0.001, 0.01, 0.1, 1.0)
NON_IID = tuple(name for name, _ in DATA[1:])


def named(data: str, share: int) -> str:
    """Return the name of a condition."""
    return f"{data}, {share} % stragglers"


def settings(*shares: int) -> tuple[str, ...]:
    """Return the names of the conditions with some shares of stragglers."""
    return tuple(named(data, share) for share in shares for data, _ in DATA)


def prox(mu: float) -> str:
    """Return the name of FedProx with a mu."""
    return f"FedProx, mu {mu:g}"


OBJECTIVE = final("objective", "final training loss")
ACCURACY = final("test_accuracy", "final test accuracy")
EARLY = mean_over("test_accuracy", 10, 100, "test accuracy, rounds 11 to 100")
SPREAD = mean_over(
    "gradient_variance", 0.5, 1.0, "gradient variance, last half", ".3f", better="lower"
)
DISSIMILARITY = mean_over(
    "gradient_dissimilarity", 0.5, 1.0, "gradient dissimilarity, last half", ".2f", better="lower"
)
WORST = worst_over("objective", 0.5, "highest training loss, last half", ".3f")


def dropping_loses(results: Results) -> Finding:
    """Check that keeping partial work beats dropping it, at 90 % stragglers."""
    return all_of(
        [
            (
                data,
                better_by_interval(
                    results, named(data, 90), prox(0), "FedAvg, drops", OBJECTIVE.name
                ),
            )
            for data in NON_IID
            if results.has(named(data, 90), prox(0), "FedAvg, drops")
        ]
    )


def mu_steadies(results: Results) -> Finding:
    """Check that mu = 1 lowers the variance of the devices' gradients on (1, 1)."""
    return all_of(
        [
            (
                f"{share} %",
                better_on_every_seed(
                    results, named("(1, 1)", share), prox(1.0), prox(0), SPREAD.name
                ),
            )
            for share in SHARES
            if results.has(named("(1, 1)", share), prox(1.0), prox(0))
        ]
    )


def best_mu_gains(results: Results) -> Finding:
    """Return what the best mu gains over dropping in accuracy at 90 % stragglers, data by data."""
    gains, parts = [], []
    for data in NON_IID:
        condition = named(data, 90)
        base = results.means(condition, ["FedAvg, drops"], ACCURACY.name)
        known = results.means(condition, [prox(mu) for mu in MUS], ACCURACY.name)
        if not base or not known:
            continue
        best = max(known, key=known.__getitem__)
        gains.append(100 * (known[best] - base["FedAvg, drops"]))
        parts.append(f"{data}: {gains[-1]:+.1f} ({best})")
    if not gains:
        return NOT_RUN
    mean = sum(gains) / len(gains)
    text = f"{mean:+.1f} points on average; {'; '.join(parts)}"
    return decided(mean >= 22, text)


CLAIMS = (
    Claim(
        "At 90 % stragglers on (1, 1), mu = 1 has a lower final training loss than dropping, on "
        "every seed",
        lambda r: better_on_every_seed(
            r, named("(1, 1)", 90), prox(1.0), "FedAvg, drops", OBJECTIVE.name
        ),
        paper="figure 1, bottom right",
        is_robust=True,
    ),
    Claim(
        "At 90 % stragglers on (1, 1), mu = 1 is more accurate than dropping over rounds 11 to "
        "100, on every seed",
        lambda r: better_on_every_seed(
            r, named("(1, 1)", 90), prox(1.0), "FedAvg, drops", EARLY.name
        ),
        paper="figure 7",
        is_robust=True,
    ),
    Claim(
        "On IID data, mu = 1 slows learning: its training loss is higher than that of mu = 0, on "
        "every seed",
        lambda r: better_on_every_seed(r, named("IID", 0), prox(0), prox(1.0), OBJECTIVE.name),
        paper="figure 2, left",
        is_robust=True,
    ),
    Claim(
        "At 90 % stragglers, keeping partial work (mu = 0) has a lower final training loss than "
        "dropping it, on data that differ",
        dropping_loses,
        paper="figure 1",
    ),
    Claim(
        "On (1, 1), mu = 1 lowers the variance of the devices' gradients, on every seed",
        mu_steadies,
        paper="figure 2, bottom",
    ),
    Claim(
        "At 90 % stragglers, FedProx gains 22 points of test accuracy over FedAvg on average",
        best_mu_gains,
        paper="22 points, over five data sets, at their stopping rule",
    ),
)


def drawings() -> tuple[Drawing, ...]:
    """Return the figures: the paper's figure 1 by share of stragglers, and its figure 2."""
    arms = ("FedAvg, drops", prox(0), prox(1.0))
    losses = tuple(
        Drawing(
            f"loss_{share}",
            "objective",
            f"Training loss over all devices with {share} % stragglers (figure 1)",
            conditions=settings(share),
            arms=arms,
        )
        for share in SHARES
    )
    accuracies = Drawing(
        "accuracy_90",
        "test_accuracy",
        "Test accuracy with 90 % stragglers (figure 7)",
        conditions=settings(90),
        arms=arms,
    )
    variance = Drawing(
        "variance_0",
        "gradient_variance",
        "Variance of the devices' gradients, no stragglers (figure 2)",
        conditions=settings(0),
        arms=arms,
    )
    dissimilarity = Drawing(
        "dissimilarity_0",
        "gradient_dissimilarity",
        "Dissimilarity B of the devices' gradients (definition 3), no stragglers",
        conditions=settings(0),
        arms=arms,
    )
    return (*losses, accuracies, variance, dissimilarity)


STUDY = Study(
    name="fedprox-synthetic",
    title="FedProx on synthetic devices with stragglers",
    source="Li et al. 2020, Federated Optimization in Heterogeneous Networks, figures 1, 2 and 7",
    question="""
30 devices, each with a model and an input law of its own, so that local training drifts apart;
(a, b) says how far models and inputs differ. A straggler does only a part of its 20 local epochs:
FedAvg drops it, FedProx keeps what it did. Does keeping partial work help, and does the proximal
term `mu / 2 |w - x|^2` help on top?
""",
    differs=(
        "Data are drawn anew for each seed, with the generator of the paper's published code; the "
        "paper shows one draw. A verdict compares within a seed.",
        "With 90 % stragglers every mu of the paper's grid {0.001, 0.01, 0.1, 1} is reported; the "
        "paper shows the best. With 0 and 50 % only 0 and 1, the best on such data in the paper.",
        "Without stragglers FedAvg drops nobody and is FedProx with mu = 0, to the bit: it is not "
        "run twice.",
        "The paper's 22 points are an average over five data sets, three of which are not "
        "synthetic, each at the round where its stopping rule ends training. Here they are taken "
        "over the three synthetic sets that differ, after 200 rounds.",
        "The paper's sampling picks devices in proportion to their data and averages their models "
        "equally in its theory, and the other way round in its experiments; here devices are "
        "drawn evenly and averaged by examples, as in its experiments.",
    ),
    base=BASE,
    conditions=tuple(
        Condition(named(data, share), (*words.split(), f"system.stragglers={share / 100}"))
        for share in SHARES
        for data, words in DATA
    ),
    arms=(
        Arm("FedAvg, drops", ("strategy=fedavg",), conditions=settings(50, 90)),
        *(
            Arm(
                prox(mu),
                ("strategy=fedprox", f"strategy.mu={mu}"),
                conditions=settings(*SHARES) if mu in (0, 1) else settings(90),
            )
            for mu in (0, *MUS)
        ),
    ),
    measures=(OBJECTIVE, ACCURACY, EARLY, WORST, SPREAD, DISSIMILARITY),
    seeds=(0, 1, 2),
    claims=CLAIMS,
    drawings=drawings(),
    quick=Quick(
        words=("rounds=14",),
        seeds=(0, 1),
        conditions=(named("IID", 0), named("(1, 1)", 90)),
        arms=("FedAvg, drops", prox(0), prox(1.0)),
    ),
    seconds=(3251, 20),
    reading="""
On data that differ, mu = 1 does what the paper says: on (1, 1) with 90 % stragglers it ends lower
than dropping on every seed, learns sooner, and its curves are smooth where those of the others
jump. The gradients of the devices agree more with it. On IID data it only slows learning.

Keeping partial work alone (mu = 0) is another matter. It learns much faster than dropping (rounds
11 to 100), but after 200 rounds the two ends lie within each other's intervals: with three draws
of the data, whose difficulty varies more than the methods do, no difference in the final loss is
shown.

The 22 points are not reached: at the end mu = 1 gains 6 to 9 points over dropping on these three
data sets. Over rounds 11 to 100 the gap is 15 to 24 points. The paper's number is of five data
sets, each at the round where its stopping rule ends, and between the two.
""",
)
