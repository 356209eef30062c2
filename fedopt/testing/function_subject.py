"""Plain functions as subjects: how models are put together, how clients train, how vectors shrink.

Vectors are numpy arrays or torch tensors in double precision, as the functions want them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch

from fedopt.compression.codecs import error_feedback
from fedopt.testing.kinds import claims_of, with_default
from fedopt.testing.ordering import ordered
from fedopt.testing.subject import keywords_of, name_of, translated
from fedopt.testing.task import NotApplicableError, Task, Trajectory, Vector

Library = Literal["numpy", "torch"]

Aggregate = Callable[..., Any]
"""(server's model `[P]`, clients' models N times `[P]`, their numbers of examples) -> `[P]`."""

Local = Callable[..., Any]
"""(server's model `[P]`, `QuadraticClient`) -> the client's model `[P]`."""

Feedback = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(codec, vector `[P]`, residual `[P]`) -> what arrives and the new residual."""


def weighted_mean(x: Any, models: Sequence[Any], examples: Sequence[int]) -> Any:
    """Return the mean of models, weighted by examples. Source: McMahan et al. 2017, algorithm 1."""
    total = sum(examples)
    return sum((n / total * model for n, model in zip(examples, models, strict=True)), 0 * x)


def plain_sgd(x: Any, client: Any) -> Any:
    """Return a client's model after its local steps of gradient descent from x."""
    w = _numbers(x)
    for _ in range(client.steps):
        w = w - client.lr * client.gradient(w)
    return torch.from_numpy(w) if isinstance(x, torch.Tensor) else w


class FunctionSubject:
    """Functions that make up a federated algorithm.

    A class in the place of `aggregate` or `local` is made anew for each run, with the options of
    the task as keywords, and its object called: so it may remember something.

    Args:
        aggregate: new model from the old one, the clients' models and their examples; None: the
            weighted mean.
        local: a client's model from the server's and a `QuadraticClient`; None: plain SGD.
        codec: through which the clients' changes are sent: a function of a vector `[P]`, or one of
            `fedopt.compression`; None: as they are.
        feedback: one step of error feedback; None: e <- (x + e) - C(x + e).
        kind: what it claims to be.
        name: what it is called; None: the name of the function.
        library: what vectors are, `numpy` or `torch`.

    Raises:
        ValueError: a claim or the library is not known.
    """

    promises_bits = False

    def __init__(
        self,
        aggregate: Aggregate | None = None,
        local: Local | None = None,
        *,
        codec: Any = None,
        feedback: Feedback | None = None,
        kind: str | Sequence[str] = (),
        name: str | None = None,
        library: Library = "numpy",
    ) -> None:
        if library not in ("numpy", "torch"):
            raise ValueError(f'library must be "numpy" or "torch", got "{library}"')
        self._aggregate = aggregate or weighted_mean
        self._local = local or plain_sgd
        self.codec, self._feedback = codec, feedback
        self.library: Library = library
        named = codec if codec is not None else aggregate or local or weighted_mean
        self.name = name or name_of(named)
        self.claims = with_default(claims_of(kind))

    def __repr__(self) -> str:
        return f"FunctionSubject({self.name})"

    def fedavg(self) -> FunctionSubject:
        """Return the weighted mean of plain SGD."""
        return FunctionSubject(kind="fedavg", library=self.library)

    def run(self, task: Task) -> Trajectory:
        """Do a task.

        Raises:
            NotApplicableError: a function takes no such option, or the task needs arrays by name.
        """
        if task.counter or task.head:
            raise NotApplicableError("functions of vectors know no arrays by name")
        if task.cohort is not None:
            raise NotApplicableError("functions do not sample clients")
        aggregate, local = self._made(task)
        clients = task.clients()
        residuals = [self._vector(np.zeros(task.population.size)) for _ in clients]
        draws = Draws(task.seed)
        x = self._vector(task.first)
        models = [task.first]
        for _ in range(task.rounds):
            ends = []
            for client in clients:
                y = local(x, client)
                if self.codec is not None:
                    sent, residuals[client.id] = self.compressed(
                        y - x, residuals[client.id], draws, task.feedback
                    )
                    y = x + sent
                ends.append(y)
            places = ordered(range(len(clients)), task.order)
            examples = [clients[i].examples for i in places]
            x = aggregate(x, [ends[i] for i in places], examples)
            models.append(_numbers(x).reshape(-1))
        return Trajectory(models)

    def stream(self, rows: Vector, feedback: bool, seed: int = 0) -> tuple[Vector, Vector]:
        """Return what arrives of rows that one client sends one after another.

        Args:
            rows: `[T, P]`.
            feedback: whether errors are fed back.
            seed: of the codec's draws.

        Returns:
            What arrives, `[T, P]`, and the last residual, `[P]`.

        Raises:
            NotApplicableError: there is no codec.
        """
        if self.codec is None:
            raise NotApplicableError("there is no codec")
        draws, residual = Draws(seed), self._vector(np.zeros(rows.shape[1]))
        arrived = []
        for row in rows:
            sent, residual = self.compressed(self._vector(row), residual, draws, feedback)
            arrived.append(_numbers(sent))
        return np.array(arrived), _numbers(residual)

    def compressed(
        self, vector: Any, residual: Any, draws: Draws, feedback: bool
    ) -> tuple[Any, Any]:
        """Return what arrives of a vector, and the new residual (unchanged without feedback)."""
        if not feedback:
            return draws.through(self.codec, vector), residual
        if self._feedback is not None:
            return self._feedback(self.codec, vector, residual)
        if hasattr(self.codec, "compress"):
            return draws.fed_back(self.codec, vector, residual)
        wanted = vector + residual
        sent = self.codec(wanted)
        return sent, wanted - sent

    def _made(self, task: Task) -> tuple[Aggregate, Local]:
        """Return both functions, with the options that they take.

        Raises:
            NotApplicableError: neither takes one of the options.
        """
        functions, left = [], dict(task.options)
        for function in (self._aggregate, self._local):
            taken, _ = keywords_of(function)
            mine: dict[str, Any] = {}
            for option in task.options:
                try:
                    mine |= translated({option: task.options[option]}, taken, {}, self.name)
                except NotApplicableError:
                    continue
                left.pop(option, None)
            functions.append(_with(function, mine))
        translated(left, frozenset(), {}, self.name)
        return functions[0], functions[1]

    def _vector(self, values: Vector) -> Any:
        vector = np.array(values, dtype=np.float64)
        return torch.from_numpy(vector) if self.library == "torch" else vector


def _with(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    if inspect.isclass(function):
        made: Any = function(**options)
        return cast(Callable[..., Any], made)
    return partial(function, **options)


class Draws:
    """What codecs of fedopt draw from, one generator for all that a run compresses.

    Args:
        seed: of it.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def through(self, codec: Any, vector: Any) -> Any:
        """Return what arrives of a vector through a function, or a codec of fedopt."""
        if not hasattr(codec, "compress"):
            return codec(vector)
        rows, shapes = _row(vector)
        return _like(codec.compress(rows, [self._generator], shapes).rows[0], vector)

    def fed_back(self, codec: Any, vector: Any, residual: Any) -> tuple[Any, Any]:
        """Return what arrives through a codec of fedopt, and the new residual, by its own rule."""
        rows, shapes = _row(vector)
        left, _ = _row(residual)
        arrived, new = error_feedback(codec, rows, left, [self._generator], shapes)
        return _like(arrived.rows[0], vector), _like(new[0], vector)


def _numbers(vector: Any) -> Vector:
    """Return an array or tensor as an array of its own."""
    if isinstance(vector, torch.Tensor):
        vector = vector.detach().numpy()
    return np.array(vector, dtype=np.float64)


def _row(vector: Any) -> tuple[torch.Tensor, tuple[tuple[int, ...], ...]]:
    """Return a vector as the rows of one client, and its shape: a square matrix where it can be."""
    row = torch.as_tensor(vector, dtype=torch.float64).reshape(1, -1)
    side = round(row.numel() ** 0.5)
    shape = (side, side) if side * side == row.numel() else (row.numel(),)
    return row, (shape,)


def _like(row: torch.Tensor, vector: Any) -> Any:
    return row if isinstance(vector, torch.Tensor) else row.numpy()
