"""Personalised strategies: the shared part is averaged, the rest is each client's own training."""

from __future__ import annotations

from fedopt.testing import reference
from fedopt.testing.check import Check, Measurement, compare, compare_rounds
from fedopt.testing.checks.populations import ROUNDED, ROUNDING, START, UNEQUAL
from fedopt.testing.subject import Subject
from fedopt.testing.task import Quadratics, Task, Vector

HEAD, ROUNDS, STEPS = 1, 4, 6
PERSONAL = "client_personal"
"""What clients keep, `[N, ...]`, in the state of a trajectory."""

TASK = Task(UNEQUAL, rounds=ROUNDS, steps=STEPS, start=START, head=HEAD)
WHOLE = Task(UNEQUAL, rounds=ROUNDS, steps=STEPS, start=START)


def _own(steps: int) -> Vector:
    """Return the clients' models after steps of their own, `[N, P]`."""
    a, b = UNEQUAL.curvature, UNEQUAL.optimum
    own: Vector = b + (1 - WHOLE.lr * a) ** steps * (START - b)
    return own


def _body(population: Quadratics, steps: int) -> list[Vector]:
    """Return federated averaging of the shared parameters."""
    size = population.size - HEAD
    shared = Quadratics(
        population.curvature[:, :size], population.optimum[:, :size], population.examples
    )
    return reference.fedavg(Task(shared, rounds=ROUNDS, steps=steps, start=START[:size]))


def personal_body(subject: Subject) -> Measurement:
    """Compare the shared part with federated averaging of it alone."""
    models = [model[:-HEAD] for model in subject.run(TASK).models]
    return compare_rounds(_body(UNEQUAL, STEPS), models, "the shared part")


def personal_head(subject: Subject) -> Measurement:
    """Compare the clients' heads with their own training over all rounds."""
    expected = _own(ROUNDS * STEPS)[:, -HEAD:]
    return compare(expected, subject.run(TASK).state(PERSONAL)[-1], "the clients' heads")


def fedrep_body(subject: Subject) -> Measurement:
    """Compare the shared part with federated averaging of half the steps."""
    run = subject.run(TASK.with_options(head_share=0.5))
    models = [model[:-HEAD] for model in run.models]
    return compare_rounds(_body(UNEQUAL, STEPS // 2), models, "the shared part")


def fedrep_head(subject: Subject) -> Measurement:
    """Compare the clients' heads with half the steps of their own training."""
    run = subject.run(TASK.with_options(head_share=0.5))
    expected = _own(ROUNDS * STEPS // 2)[:, -HEAD:]
    return compare(expected, run.state(PERSONAL)[-1], "the clients' heads")


def server_head(subject: Subject) -> Measurement:
    """Compare the server's part that stays with the clients with what it was at first."""
    run = subject.run(TASK)
    return compare(run.models[0][-HEAD:], run.last[-HEAD:], "the server's head")


def ditto_alone(subject: Subject) -> Measurement:
    """Compare personal models without a pull with clients that train alone."""
    run = subject.run(WHOLE.with_options(lam=0.0))
    return compare(_own(ROUNDS * STEPS), run.state(PERSONAL)[-1], "the personal models")


def ditto_rounds(subject: Subject) -> Measurement:
    """Compare personal models that are pulled to the shared one with the paper's."""
    lam = 0.8
    run = subject.run(WHOLE.with_options(lam=lam))
    shared = reference.fedavg(WHOLE)
    a, b = UNEQUAL.curvature, UNEQUAL.optimum
    own = START + 0 * b
    for x in shared[:-1]:
        for _ in range(STEPS):
            own = own - WHOLE.lr * (a * (own - b) + lam * (own - x))
    return compare(own, run.state(PERSONAL)[-1], "the personal models")


def local_only_server(subject: Subject) -> Measurement:
    """Compare the server's model with what it was at first."""
    return compare_rounds([WHOLE.first] * (ROUNDS + 1), subject.run(WHOLE).models)


def local_only_clients(subject: Subject) -> Measurement:
    """Compare the clients' models with their own training over all rounds."""
    expected = _own(ROUNDS * STEPS)
    return compare(expected, subject.run(WHOLE).state(PERSONAL)[-1], "the clients' models")


ALONE = "v <- v - lr g_i(v), R K times: v = b_i + (1 - lr a_i)^(R K) (x_0 - b_i)"


def _check(
    name: str,
    kinds: tuple[str, ...],
    statement: str,
    formula: str,
    source: str,
    measure: object,
) -> Check:
    assert callable(measure)
    return Check(name, statement, formula, source, kinds, ROUNDING, ROUNDED, measure)


CHECKS = (
    _check(
        "personal_body",
        ("fedbn", "fedper"),
        "the shared part is averaged as if there were no other",
        "body <- sum_i p_i body_i",
        "Arivazhagan et al. 2019, algorithm 2; Li et al. 2021 (FedBN), algorithm 1",
        personal_body,
    ),
    _check(
        "personal_head",
        ("fedbn", "fedper"),
        "what stays with a client is trained by it alone, and goes on from round to round",
        ALONE,
        "Arivazhagan et al. 2019, algorithm 1; Li et al. 2021 (FedBN), algorithm 1",
        personal_head,
    ),
    _check(
        "fedrep_body",
        ("fedrep",),
        "the shared part is averaged after its share of the steps",
        "body <- sum_i p_i body_i, each after (1 - head_share) K steps",
        "Collins et al. 2021, algorithm 1",
        fedrep_body,
    ),
    _check(
        "fedrep_head",
        ("fedrep",),
        "the head is trained by its client alone, in its share of the steps",
        "v = b_i + (1 - lr a_i)^(R K head_share) (x_0 - b_i)",
        "Collins et al. 2021, algorithm 1",
        fedrep_head,
    ),
    _check(
        "server_head",
        ("fedbn", "fedper", "fedrep"),
        "what stays with the clients never reaches the server",
        "head of x_t = head of x_0",
        "Arivazhagan et al. 2019, algorithm 2",
        server_head,
    ),
    _check(
        "ditto_alone",
        ("ditto",),
        "personal models without a pull are those of clients that train alone",
        ALONE,
        "Li et al. 2021 (Ditto), algorithm 1, lambda = 0",
        ditto_alone,
    ),
    _check(
        "ditto_rounds",
        ("ditto",),
        "personal models are pulled to the shared model of the round",
        "v <- v - lr (g_i(v) + lambda (v - x))",
        "Li et al. 2021 (Ditto), algorithm 1",
        ditto_rounds,
    ),
    _check(
        "local_only_server",
        ("local_only",),
        "nothing reaches the server",
        "x_t = x_0",
        "McMahan et al. 2017 (no communication)",
        local_only_server,
    ),
    _check(
        "local_only_clients",
        ("local_only",),
        "each client's model is its own training over all rounds",
        ALONE,
        "McMahan et al. 2017 (no communication)",
        local_only_clients,
    ),
)
