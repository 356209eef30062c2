"""Hostile clients, for testing what withstands them.

A fixed share of the clients, drawn once, is hostile in every round in which it is sampled:

    label_flip  trains on the labels classes - 1 - y
    sign_flip   sends -scale delta, and so every other vector as long as the model
    noise       adds Gaussian noise that is about scale times as long as its own update
    alie        all hostile clients of the round send mean - z std of their own honest updates,
                coordinate by coordinate: inside the spread of the honest ones, and so hard to tell

The clients' work and what they report of it are those of honest clients.

Source: Tolpegin et al. 2020, "Data Poisoning Attacks Against Federated Learning Systems" (label
flips); Li et al. 2019, "RSA: Byzantine-Robust Stochastic Aggregation Methods" (sign flips);
Blanchard et al. 2017, section 5 (Gaussian); Baruch, Baruch and Goldberg 2019, "A Little Is Enough:
Circumventing Defenses For Distributed Learning", algorithm 3 (ALIE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import ClientUpdate, Senders
from fedopt.client.channel import SentPart
from fedopt.data.population import Examples
from fedopt.seeds import generator


class Attack:
    """What a hostile client does; a subclass changes what it needs."""

    colludes: ClassVar[bool] = False
    """Whether the hostile clients of a round send what they make of all of theirs together."""

    flips_labels: ClassVar[bool] = False
    """Whether `targets` changes anything, for which targets must be classes."""

    def targets(self, targets: Tensor, classes: int) -> Tensor:
        """Return the labels that a hostile client trains on."""
        return targets

    def vectors(self, rows: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return what hostile clients send instead of rows.

        Args:
            rows: their honest vectors, `[H, n]`; may be overwritten.
            generators: one on the CPU for each.
        """
        return rows

    def crafted(self, rows: Tensor) -> Tensor:
        """Return what all hostile clients of a round send, `[n]`, where they collude.

        Args:
            rows: their honest updates, `[H, n]` in float64, in ascending order of the clients.
        """
        raise TypeError(f"{type(self).__name__} does not collude")


class LabelFlip(Attack):
    """Trains on the labels classes - 1 - y.

    Source: Tolpegin et al. 2020.
    """

    flips_labels = True

    def targets(self, targets: Tensor, classes: int) -> Tensor:
        """Return the flipped labels."""
        return classes - 1 - targets


@dataclass(frozen=True)
class SignFlip(Attack):
    """Sends -scale times its vectors.

    Args:
        scale: > 0.

    Source: Li et al. 2019 (RSA), section 4.
    """

    scale: float = 1.0

    def vectors(self, rows: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the vectors turned round."""
        return rows.mul_(-self.scale)


@dataclass(frozen=True)
class ScaledNoise(Attack):
    """Adds Gaussian noise to its vectors.

    Args:
        scale: expected norm of the noise, in norms of the vector, > 0.

    Source: Blanchard et al. 2017, section 5, there of a fixed deviation.
    """

    scale: float = 10.0

    def vectors(self, rows: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the vectors with noise."""
        for row, draws in zip(rows, generators, strict=True):
            noise = torch.randn(len(row), generator=draws, dtype=row.dtype).to(row.device)
            deviation = self.scale * float(torch.linalg.vector_norm(row)) / len(row) ** 0.5
            row.add_(noise, alpha=deviation)
        return rows


@dataclass(frozen=True)
class Alie(Attack):
    """Sends the mean of the hostile clients' updates less z of their standard deviations.

    Args:
        z: standard deviations, > 0. Alone in a round, a hostile client has no deviation to hide
            in, and sends its honest update.

    Source: Baruch et al. 2019, algorithm 3.
    """

    z: float = 1.5
    colludes: ClassVar[bool] = True

    def crafted(self, rows: Tensor) -> Tensor:
        """Return mean - z std."""
        return rows.mean(0).sub_(rows.std(0, correction=0), alpha=self.z)


@dataclass(frozen=True)
class Hostility:
    """Which clients are hostile, and what they do.

    Args:
        attack: what they do.
        clients: their ids, ascending.
        part: which scalars of their vectors are sent.
        classes: number of classes, where the targets are such.
        others: names of vectors that are not as long as the model, and stay as they are.
    """

    attack: Attack
    clients: npt.NDArray[np.int64]
    part: SentPart
    classes: int | None = None
    others: frozenset[str] = frozenset()

    def among(self, clients: Sequence[int]) -> list[int]:
        """Return the places of the hostile ones among some clients."""
        ids = np.asarray(clients, dtype=np.int64)
        return np.flatnonzero(np.isin(ids, self.clients)).tolist()

    def examples(
        self, examples: Examples, clients: Sequence[int], sizes: Sequence[int]
    ) -> Examples:
        """Return the examples on which some clients train.

        Args:
            examples: theirs, one after another.
            clients: ids.
            sizes: examples of each.
        """
        hostile = self.among(clients)
        if not hostile or not self.attack.flips_labels:
            return examples
        assert self.classes is not None
        ends = np.cumsum(sizes)
        targets = np.array(examples.y)
        for place in hostile:
            part = slice(int(ends[place]) - sizes[place], int(ends[place]))
            flipped = self.attack.targets(torch.from_numpy(targets[part]), self.classes)
            targets[part] = flipped.numpy()
        return examples._replace(y=targets)

    def update(self, update: ClientUpdate, senders: Senders) -> ClientUpdate:
        """Return what a group sends, hostile and honest clients.

        Args:
            update: of honest clients.
            senders: who they are.
        """
        hostile = self.among(senders.clients)
        if not hostile or self.attack.colludes:
            return update
        draws = senders.generators("attack")
        terms = dict(update.terms)
        for name, rows in terms.items():
            if name in self.others:
                continue
            theirs = self.part.take(rows[hostile])
            sent = self.attack.vectors(theirs.clone(), [draws[place] for place in hostile])
            terms[name] = rows.clone()
            terms[name][hostile] = self.part.put(rows[hostile], sent)
        return replace(update, terms=terms)


def hostile_clients(
    sizes: npt.NDArray[np.int64], fraction: float, seed: int
) -> npt.NDArray[np.int64]:
    """Return the ids of the hostile clients, ascending: a share of those that have examples.

    Args:
        sizes: training examples of each client, `[N]`.
        fraction: the share, in (0, 1]; of few clients at least one is hostile.
        seed: the run's seed.
    """
    eligible = np.flatnonzero(sizes)
    count = max(1, round(fraction * len(eligible)))
    drawn = generator(seed, "hostile").choice(len(eligible), count, replace=False, shuffle=False)
    return np.sort(eligible[drawn]).astype(np.int64)
