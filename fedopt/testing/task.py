"""What a subject is asked to do, and what comes back: quadratic clients, a task, a trajectory.

Client i minimises f_i(w) = 1/2 sum_p a_ip (w_p - b_ip)^2. Its gradient, its local steps and the
optimum of all clients together are known in closed form, so that every answer can be computed
beside the subject. Letters of shapes: N clients, P parameters, R rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
"""Numbers in double precision, of any shape."""

Order = Literal["sent", "reversed", "rotated"]
"""The order in which a round's replies reach the server."""

ORDERS: tuple[Order, ...] = ("sent", "reversed", "rotated")


class NotApplicableError(Exception):
    """A check does not concern a subject; the message says why. It is no failure."""


@dataclass(frozen=True, eq=False)
class Quadratics:
    """Clients f_i(w) = 1/2 sum_p a_ip (w_p - b_ip)^2.

    Args:
        curvature: a, `[N, P]`, > 0.
        optimum: b, `[N, P]`, each client's own optimum.
        examples: n_i of each client, >= 1; all of a client's examples are the same.

    Raises:
        ValueError: shapes do not fit each other, or a number is out of range.
    """

    curvature: Vector
    optimum: Vector
    examples: tuple[int, ...]

    def __post_init__(self) -> None:
        a, b = self.curvature, self.optimum
        if a.ndim != 2 or a.shape != b.shape or len(self.examples) != len(a) or not a.size:
            raise ValueError(
                f"curvature and optimum must be [N, P] with N examples, got {a.shape}, {b.shape} "
                f"and {len(self.examples)}"
            )
        if not (a > 0).all() or min(self.examples) < 1:
            raise ValueError("curvatures must be > 0 and examples >= 1")

    @classmethod
    def of(
        cls,
        curvature: Sequence[float] | Sequence[Sequence[float]],
        optimum: Sequence[float] | Sequence[Sequence[float]],
        examples: Sequence[int] | None = None,
    ) -> Quadratics:
        """Return clients from numbers, one a client (P = 1) or P a client.

        Args:
            curvature: a, `[N]` or `[N, P]`.
            optimum: b, `[N]` or `[N, P]`.
            examples: n, `[N]`; None: one each.
        """
        a, b = (np.array(values, dtype=np.float64) for values in (curvature, optimum))
        counts = (1,) * len(a) if examples is None else tuple(examples)
        return cls(a.reshape(len(a), -1), b.reshape(len(b), -1), counts)

    @property
    def clients(self) -> int:
        """N."""
        return len(self.curvature)

    @property
    def size(self) -> int:
        """P."""
        return int(self.curvature.shape[1])

    @property
    def shares(self) -> Vector:
        """The clients' shares of all examples, `[N]`."""
        counts = np.array(self.examples, dtype=np.float64)
        shares: Vector = counts / counts.sum()
        return shares

    def best(self, weights: Vector | None = None) -> Vector:
        """Return the minimum of the mean of the clients' losses, `[P]`.

        Args:
            weights: of the clients in the mean, `[N]`; None: equal.
        """
        share = np.ones(self.clients) if weights is None else weights
        weighted = share[:, None] * self.curvature
        best: Vector = (weighted * self.optimum).sum(0) / weighted.sum(0)
        return best


@dataclass(frozen=True, eq=False)
class Task:
    """Some rounds on some quadratic clients.

    Args:
        population: the clients.
        rounds: R, >= 1.
        steps: local steps of each client a round, along its full gradient, >= 1.
        lr: the clients' learning rate, plain SGD, > 0.
        per_example: whether client i takes n_i steps a round, one for each example, in the place
            of `steps`.
        start: the first model, `[P]`; None: zeros.
        cohort: clients a round; None: all.
        order: how the replies of a round are ordered.
        counter: whether the model has an integer buffer beside its parameters, as BatchNorm has
            (`num_batches_tracked`), to which each local step adds one.
        head: how many of the P parameters, the last ones, are an array of their own, `head.weight`
            in a normalisation layer, the others being `body.weight`; 0: all are `weight`.
        options: the strategy's options, by the names in `OPTIONS`.
        feedback: whether compressed updates carry error feedback.
        seed: of whatever is random.
    """

    population: Quadratics
    rounds: int = 1
    steps: int = 4
    lr: float = 0.05
    per_example: bool = False
    start: Vector | None = None
    cohort: int | None = None
    order: Order = "sent"
    counter: bool = False
    head: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    feedback: bool = False
    seed: int = 0

    @property
    def first(self) -> Vector:
        """The first model, `[P]`."""
        if self.start is None:
            return np.zeros(self.population.size)
        return np.array(self.start, dtype=np.float64)

    def steps_of(self, client: int) -> int:
        """Return the local steps of a client."""
        return self.population.examples[client] if self.per_example else self.steps

    def clients(self) -> list[QuadraticClient]:
        """Return the clients one by one."""
        population = self.population
        return [
            QuadraticClient(
                i,
                population.curvature[i],
                population.optimum[i],
                population.examples[i],
                self.steps_of(i),
                self.lr,
            )
            for i in range(population.clients)
        ]

    def with_options(self, **options: Any) -> Task:
        """Return the task with options besides those that it has."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True, eq=False)
class QuadraticClient:
    """What one client knows.

    Args:
        id: in 0..N-1.
        curvature: a_i, `[P]`.
        optimum: b_i, `[P]`.
        examples: n_i.
        steps: local steps a round.
        lr: learning rate.
    """

    id: int
    curvature: Vector
    optimum: Vector
    examples: int
    steps: int
    lr: float

    def gradient(self, w: Vector) -> Vector:
        """Return the gradient at w, `[P]`."""
        gradient: Vector = self.curvature * (w - self.optimum)
        return gradient

    def loss(self, w: Vector) -> float:
        """Return the loss at w."""
        return float(0.5 * (self.curvature * np.square(w - self.optimum)).sum())


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a subject made of a task.

    Args:
        models: the server's model before the first round and after each, R + 1 times `[P]`.
        counter: the model's integer buffer after the last round, as it is; None without one.
        states: what server and clients remember after each round, R dictionaries of `[P]` (the
            server's) and `[N, P]` (the clients', `client_...`); None where that is not known.
    """

    models: list[Vector]
    counter: npt.NDArray[Any] | None = None
    states: list[dict[str, Vector]] | None = None

    @property
    def last(self) -> Vector:
        """The model after the last round, `[P]`."""
        return self.models[-1]

    def state(self, name: str) -> list[Vector]:
        """Return one entry of the state after each round.

        Raises:
            NotApplicableError: the subject does not tell its state.
            KeyError: it tells it, but has no such entry.
        """
        if self.states is None:
            raise NotApplicableError(f"the subject does not tell its state ({name})")
        if not all(name in state for state in self.states):
            raise KeyError(f'the state has no "{name}"; it has {", ".join(self.states[-1])}')
        return [state[name] for state in self.states]
