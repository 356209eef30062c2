"""Each client's change of a round, and means of them that hostile clients cannot move far.

Changes are read in pieces of coordinates, so that besides the changes themselves little memory is
needed. Few stay in the replies that brought them; many go through a file, into which workers write
a group's as soon as it has trained, and which the server maps: then neither holds more than a
piece. Everything is computed in double precision
over the clients in ascending order, so that neither the order of replies nor the number of
workers enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedopt.client.trainer import Changes

PIECE_SCALARS = 2**22
"""Scalars of a piece in double precision: 32 MiB."""


@dataclass
class Updates:
    """The changes of a round's clients.

    Args:
        clients: ids, ascending once `sort` was called.
        weights: of each client, `[K]`.
        rows: change of the parameters of each client, `[P]` each.
        buffers: change of the buffers of each client, `[Q]` each in float64.
    """

    clients: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)

    def extend(self, part: Changes, spooled: Tensor | None) -> None:
        """Take in the changes that a reply brings, or whose rows in a mapped file it names."""
        self.clients.extend(part.clients)
        self.weights.extend(part.weights)
        self.buffers.extend(part.buffers)
        if part.places:
            assert spooled is not None
            self.rows.extend(spooled[place] for place in part.places)
        else:
            self.rows.extend(part.rows)

    def sort(self) -> None:
        """Put the clients in ascending order."""
        order = sorted(range(len(self.clients)), key=lambda i: self.clients[i])
        self.clients = [self.clients[i] for i in order]
        self.weights = [self.weights[i] for i in order]
        self.rows = [self.rows[i] for i in order]
        self.buffers = [self.buffers[i] for i in order]

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def size(self) -> int:
        """P, the length of a change."""
        return len(self.rows[0])

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield all changes piece by piece: which coordinates, and `[K, piece]` in float64."""
        width = max(1, PIECE_SCALARS // max(1, len(self)))
        for first in range(0, self.size, width):
            part = slice(first, first + width)
            yield part, torch.stack([row[part] for row in self.rows]).double()

    def coordinates(self, mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return a mean of each coordinate alone, of changes `[P]` and of buffers `[Q]`.

        Args:
            mean: `[K, n]` -> `[n]`.
        """
        found = torch.empty(self.size, dtype=torch.float64)
        for part, values in self.pieces():
            found[part] = mean(values)
        return found, mean(torch.stack(self.buffers)) if len(self.buffers[0]) else self.buffers[0]

    def combined(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of changes `[P]` and of buffers `[Q]` with weights `[K]`."""
        return self.coordinates(lambda values: weights @ values)

    def gram(self) -> Tensor:
        """Return the inner products of the changes less their coordinate-wise median, `[K, K]`.

        Less their mean, a hostile client that is far off would take the others' digits with it.
        """
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for _, values in self.pieces():
            values -= median(values)
            total += values @ values.T
        return total


def median(values: Tensor) -> Tensor:
    """Return the median of each column of `[K, n]`; of an even number the mean of the middle two.

    Source: Yin et al. 2018, definition 1.
    """
    ordered = values.sort(0).values
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (ordered[low] + ordered[high]) / 2


def trimmed_mean(values: Tensor, beta: float) -> Tensor:
    """Return the mean of each column of `[K, n]` without floor(beta K) values at each end.

    Args:
        values: `[K, n]`.
        beta: in [0, 0.5).

    Source: Yin et al. 2018, definition 2.
    """
    cut = math.floor(beta * len(values))
    return values.sort(0).values[cut : len(values) - cut].mean(0)


def krum_scores(gram: Tensor, hostile: int) -> Tensor:
    """Return each client's sum of squared distances to its K - hostile - 2 nearest others, `[K]`.

    Args:
        gram: inner products of the changes less some vector, `[K, K]`.
        hostile: clients that may be hostile; K >= hostile + 3.

    Source: Blanchard et al. 2017, section 4.
    """
    squares = gram.diagonal()
    distances = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * gram).clamp_min(0)
    distances.fill_diagonal_(torch.inf)
    neighbours = len(gram) - hostile - 2
    return distances.sort(1).values[:, :neighbours].sum(1)


def geometric_median_weights(
    gram: Tensor, weights: Sequence[float], iterations: int, tolerance: float, smoothing: float
) -> Tensor:
    """Return the weights `[K]`, of sum 1, with which the changes add up to their geometric median.

    Weiszfeld's algorithm, smoothed: w_k = a_k / max(nu, |v - d_k|), v the mean with these weights.
    It begins at the mean of the changes cut to their median length: the mean itself is as far off
    as one hostile client likes, and each step makes up for a factor only. Neither may it stop by
    the sum of distances, which is the hostile ones'.

    Args:
        gram: inner products of the changes less a vector in their midst, `[K, K]`.
        weights: a, of each client, > 0.
        iterations: the most steps.
        tolerance: largest change of a weight at which it stops.
        smoothing: nu, > 0.

    Source: Pillutla, Kakade and Harchaoui 2022, algorithm 2.
    """
    a = torch.tensor(weights, dtype=torch.float64)
    a = a / a.sum()
    lengths = gram.diagonal().sqrt()
    share = a * (median(lengths) / lengths).nan_to_num(1.0).clamp_max(1)
    for _ in range(iterations):
        product = gram @ share
        squares = gram.diagonal() - 2 * product + share @ product
        last, share = share, a / squares.clamp_min(0).sqrt().clamp_min(smoothing)
        share = share / share.sum()
        if float((share - last).abs().max()) <= tolerance:
            break
    return share
