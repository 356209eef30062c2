"""The papers' algorithms on quadratic clients, written out: what subjects are compared with.

Each function returns the models before the first round and after each, as a `Trajectory` has them.
Everything is in double precision, plain loops over rounds, clients and steps. All clients take
part in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedopt.testing.task import Task, Vector

Step = Callable[[Vector, Vector], Vector]


def local_steps(
    task: Task,
    client: int,
    x: Vector,
    *,
    mu: float = 0.0,
    correction: Vector | float = 0.0,
    scale: float = 1.0,
    steps: int | None = None,
) -> Vector:
    """Return y after y <- y - lr (scale g_i(y) + correction + mu (y - x)) from y = x, `[P]`.

    Args:
        task: the task.
        client: i.
        x: where it starts, `[P]`.
        mu: weight of the proximal term.
        correction: added to each gradient, `[P]`.
        scale: of the gradient.
        steps: how many; None: those of the task.
    """
    a, b = task.population.curvature[client], task.population.optimum[client]
    y = x.copy()
    for _ in range(task.steps_of(client) if steps is None else steps):
        y = y - task.lr * (scale * a * (y - b) + correction + mu * (y - x))
    return y


def moved(task: Task, mu: float = 0.0) -> Vector:
    """Return the share of its way that a client moves in a round, `[N, P]`.

    A client's change is exactly s_i (t_i - x), where t_i = (a_i b_i + mu x) / (a_i + mu) is the
    optimum of its local objective and s_i = 1 - (1 - lr (a_i + mu))^K; so it is
    s_i a_i / (a_i + mu) (b_i - x), of which this is the factor.
    """
    a = task.population.curvature
    steps = np.array([task.steps_of(i) for i in range(len(a))])[:, None]
    share: Vector = (1 - (1 - task.lr * (a + mu)) ** steps) * a / (a + mu)
    return share


def fixed_point(task: Task, weights: Vector, mu: float = 0.0) -> Vector:
    """Return where averaging with local steps stands still, `[P]`: sum p s b / sum p s."""
    pull = weights[:, None] * moved(task, mu)
    point: Vector = (pull * task.population.optimum).sum(0) / pull.sum(0)
    return point


def mean_changes(task: Task, x: Vector, weights: Vector, mu: float = 0.0) -> Vector:
    """Return the weighted mean of the clients' changes from x, `[P]`."""
    models = [local_steps(task, i, x, mu=mu) for i in range(task.population.clients)]
    change: Vector = sum(
        (p * (y - x) for p, y in zip(weights, models, strict=True)), np.zeros_like(x)
    )
    return change


def averaging(task: Task, step: Step, weights: Vector | None = None) -> list[Vector]:
    """Return the models of a server that steps along the mean change.

    Args:
        task: the task.
        step: new model from (old model, mean change).
        weights: of the clients, `[N]`; None: their shares of the examples.
    """
    shares = task.population.shares if weights is None else weights
    models = [task.first]
    for _ in range(task.rounds):
        models.append(step(models[-1], mean_changes(task, models[-1], shares)))
    return models


def fedavg(task: Task) -> list[Vector]:
    """Return the models of federated averaging. Source: McMahan et al. 2017, algorithm 1."""
    return averaging(task, lambda x, change: x + change)


def fedprox(task: Task, mu: float) -> list[Vector]:
    """Return the models of FedProx. Source: Li et al. 2020, algorithm 2."""
    models = [task.first]
    for _ in range(task.rounds):
        x = models[-1]
        models.append(x + mean_changes(task, x, task.population.shares, mu))
    return models


def fedavgm(task: Task, server_lr: float, momentum: float) -> list[Vector]:
    """Return the models of m <- beta m + D; x <- x + lr m. Source: Hsu et al. 2019."""
    m = np.zeros_like(task.first)

    def step(x: Vector, change: Vector) -> Vector:
        nonlocal m
        m = momentum * m + change
        return x + server_lr * m

    return averaging(task, step)


def adaptive(
    task: Task, rule: str, server_lr: float, beta1: float, beta2: float, tau: float
) -> list[Vector]:
    """Return the models of an adaptive server. Source: Reddi et al. 2021, algorithm 2.

    Args:
        task: the task.
        rule: how v grows: `adagrad`, `adam` or `yogi`.
        server_lr: eta.
        beta1: decay of m.
        beta2: decay of v.
        tau: added to the root of v, which starts at tau^2.
    """
    m, v = np.zeros_like(task.first), np.full_like(task.first, tau**2)

    def step(x: Vector, change: Vector) -> Vector:
        nonlocal m, v
        m = beta1 * m + (1 - beta1) * change
        square = change**2
        if rule == "adagrad":
            v = v + square
        elif rule == "adam":
            v = beta2 * v + (1 - beta2) * square
        else:
            v = v - (1 - beta2) * square * np.sign(v - square)
        return x + server_lr * m / (np.sqrt(v) + tau)

    return averaging(task, step)


def scaffold(task: Task, option: str) -> tuple[list[Vector], list[Vector], list[Vector]]:
    """Return SCAFFOLD's models, and c `[P]` and c_i `[N, P]` after each round.

    Source: Karimireddy et al. 2020, algorithm 1, with server rate 1 and uniform means.
    """
    population = task.population
    models, c = [task.first], np.zeros(population.size)
    c_i = np.zeros((population.clients, population.size))
    server, clients = [], []
    for _ in range(task.rounds):
        x = models[-1]
        ends, new = [], c_i.copy()
        for i in range(population.clients):
            y = local_steps(task, i, x, correction=c - c_i[i])
            if option == "I":
                new[i] = population.curvature[i] * (x - population.optimum[i])
            else:
                new[i] = c_i[i] - c + (x - y) / (task.steps_of(i) * task.lr)
            ends.append(y)
        c, c_i = c + (new - c_i).mean(0), new
        models.append(np.mean(ends, axis=0))
        server.append(c)
        clients.append(c_i)
    return models, server, clients


def fednova(task: Task) -> list[Vector]:
    """Return FedNova's models for plain SGD. Source: Wang et al. 2020, algorithm 1."""
    population, p = task.population, task.population.shares
    tau = np.array([task.steps_of(i) for i in range(population.clients)], dtype=np.float64)
    models = [task.first]
    for _ in range(task.rounds):
        x = models[-1]
        directions = [(local_steps(task, i, x) - x) / tau[i] for i in range(population.clients)]
        models.append(x + (p @ tau) * (p[:, None] * np.array(directions)).sum(0))
    return models


def feddyn(task: Task, alpha: float) -> tuple[list[Vector], list[Vector]]:
    """Return FedDyn's models and h `[P]` after each round.

    Source: Acar et al. 2021, algorithm 1, the clients' optima approached by local steps.
    """
    population = task.population
    models, h = [task.first], np.zeros(population.size)
    linear = np.zeros((population.clients, population.size))
    states = []
    for _ in range(task.rounds):
        x = models[-1]
        ends = np.array(
            [
                local_steps(task, i, x, mu=alpha, correction=-linear[i])
                for i in range(population.clients)
            ]
        )
        linear = linear - alpha * (ends - x)
        h = h - alpha / population.clients * (ends - x).sum(0)
        models.append(ends.mean(0) - h / alpha)
        states.append(h)
    return models, states


def mimelite(task: Task, beta1: float) -> list[Vector]:
    """Return MimeLite's models with momentum. Source: Karimireddy et al. 2021, algorithm 1."""
    population, p = task.population, task.population.shares
    models, m = [task.first], np.zeros(population.size)
    for _ in range(task.rounds):
        x = models[-1]
        ends = [
            local_steps(task, i, x, scale=1 - beta1, correction=beta1 * m)
            for i in range(population.clients)
        ]
        gradient = (p[:, None] * population.curvature * (x - population.optimum)).sum(0)
        m = (1 - beta1) * gradient + beta1 * m
        models.append((p[:, None] * np.array(ends)).sum(0))
    return models


def qfedavg(task: Task, q: float, lipschitz: float) -> list[Vector]:
    """Return q-FedAvg's models for clients of equal weight. Source: Li et al. 2020 (q-FFL)."""
    models = [task.first]
    for _ in range(task.rounds):
        x, up, down = models[-1], np.zeros(task.population.size), 0.0
        for client in task.clients():
            change = lipschitz * (x - local_steps(task, client.id, x))
            loss = client.loss(x)
            up = up + loss**q * change
            down += q * loss ** (q - 1) * float(change @ change) + lipschitz * loss**q
        models.append(x - up / down)
    return models


def client_models(task: Task) -> Vector:
    """Return the clients' models after one round of plain training, `[N, P]`."""
    clients = range(task.population.clients)
    return np.array([local_steps(task, i, task.first) for i in clients])


def trimmed_mean(models: Vector, beta: float) -> Vector:
    """Return the mean without floor(beta N) values at each end, `[P]`. Source: Yin et al. 2018."""
    cut = math.floor(beta * len(models))
    mean: Vector = np.sort(models, axis=0)[cut : len(models) - cut].mean(0)
    return mean


def krum(models: Vector, hostile: int) -> Vector:
    """Return the model with the smallest score, `[P]`. Source: Blanchard et al. 2017, section 4."""
    squares = np.square(models[:, None] - models[None]).sum(2)
    np.fill_diagonal(squares, np.inf)
    nearest = np.sort(squares, axis=1)[:, : len(models) - hostile - 2]
    chosen: Vector = models[int(nearest.sum(1).argmin())]
    return chosen


def geometric_median(models: Vector, weights: Vector) -> Vector:
    """Return the point of least weighted sum of distances, `[P]`, by many Weiszfeld steps."""
    point: Vector = np.median(models, axis=0)
    for _ in range(10_000):
        share = weights / np.maximum(np.linalg.norm(models - point, axis=1), 1e-12)
        new: Vector = (share[:, None] * models).sum(0) / share.sum()
        if np.abs(new - point).max() < 1e-15:
            break
        point = new
    return point
