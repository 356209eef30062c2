"""What drifts: the examples of a group of clients under its new concept.

A concept keeps the number of examples, so that a client's plan of steps is that of a client whose
data do not drift. All draws come from the run's seed and the group, or from the generator that is
given, which is a client's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedopt.data.protocol import Examples
from fedopt.seeds import generator

PURPOSE = "drift concept"


@dataclass(frozen=True)
class Group:
    """Clients that share a new concept.

    Args:
        number: 1..count.
        count: number of groups.
        seed: the run's seed.
        classes: number of classes; None: regression.
    """

    number: int
    count: int
    seed: int
    classes: int | None

    def draws(self) -> np.random.Generator:
        """Return the generator of what the group's concept is; the same each time."""
        return generator(self.seed, PURPOSE, self.number)


class Concept:
    """What changes; a subclass says how, and this one changes nothing."""

    needs_classes: ClassVar[bool] = False
    """Whether targets must be classes."""

    needs_images: ClassVar[bool] = False
    """Whether inputs must be images, `[channels, height, width]`."""

    changes_inputs: ClassVar[bool] = False
    """Whether inputs change, for which they must be real numbers, not what a model looks up."""

    moves_examples: ClassVar[bool] = False
    """Whether the n-th example becomes another one, so that scores of examples lose their place."""

    def examples(
        self, examples: Examples, group: Group, amount: float, draws: np.random.Generator
    ) -> Examples:
        """Return examples under the new concept; the arrays given stay as they are.

        Args:
            examples: of one client, or of the test set.
            group: whose concept.
            amount: how far the concept has moved, in (0, 1]; 1 but for incremental drift.
            draws: the client's own generator; the same draws in each round.
        """
        return examples


@dataclass(frozen=True)
class LabelDrift(Concept):
    """Labels change their meaning: y becomes s(y), s a permutation of the classes.

    Incremental drift builds s of exchanges of two classes, one after another: at any time the
    labels are permuted.

    Args:
        change: `permute`: random, no class concerned keeps its place; `shift`: the g-th next of
            the classes concerned in group g; `swap`: random pairs change places.
        classes: share of the classes concerned, at least two, in (0, 1].

    Source: Jothimurugesan et al. 2023, "Federated Learning under Distributed Concept Drift",
        section 6 (label swaps); Gama et al. 2014, section 2 (real concept drift).
    """

    change: str = "permute"
    classes: float = 1.0

    needs_classes: ClassVar[bool] = True

    def permutation(self, group: Group) -> npt.NDArray[np.int64]:
        """Return s, `[classes]`."""
        total = group.classes or 0
        draws = group.draws()
        count = min(total, max(2, round(self.classes * total)))
        chosen = np.sort(draws.permutation(total)[:count])
        places = np.arange(count)
        if self.change == "shift":
            step = 1 + (group.number - 1) % (count - 1)
            moved = np.roll(places, -step)
        else:
            order = draws.permutation(count)
            moved = places.copy()
            if self.change == "swap":
                pairs = order[: count - count % 2].reshape(-1, 2)
                moved[pairs] = pairs[:, ::-1]
            else:  # one cycle through all of them, so that none stays
                moved[order] = np.roll(order, -1)
        found = np.arange(total)
        found[chosen] = chosen[moved]
        return found

    def examples(
        self, examples: Examples, group: Group, amount: float, draws: np.random.Generator
    ) -> Examples:
        """Return the examples with their labels under the new concept."""
        mapping = partial_permutation(self.permutation(group), amount)
        return examples._replace(y=mapping[examples.y])


@dataclass(frozen=True)
class FeatureDrift(Concept):
    """Each feature gets an offset and a factor: x_j becomes (1 + scale a_j) x_j + shift b_j.

    a_j and b_j are standard normal, drawn once for each group. Incremental drift multiplies
    both by the amount.

    Args:
        shift: >= 0.
        scale: >= 0.

    Source: Gama et al. 2014, "A Survey on Concept Drift Adaptation", section 2 (virtual drift).
    """

    shift: float = 0.5
    scale: float = 0.0

    changes_inputs: ClassVar[bool] = True

    def examples(
        self, examples: Examples, group: Group, amount: float, draws: np.random.Generator
    ) -> Examples:
        """Return the examples with their inputs under the new concept."""
        shape, drawn = examples.x.shape[1:], group.draws()
        factor = 1 + amount * self.scale * drawn.standard_normal(shape)
        offset = amount * self.shift * drawn.standard_normal(shape)
        kind = examples.x.dtype
        return examples._replace(x=examples.x * factor.astype(kind) + offset.astype(kind))


@dataclass(frozen=True)
class RotationDrift(Concept):
    """Images turn counter-clockwise about their centre, group g of G by g / G of the degrees.

    Values between pixels are interpolated bilinearly; beyond the border they are the border's.
    Incremental drift multiplies the angle by the amount.

    Args:
        degrees: rotation of the last group.

    Source: Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning", section 6
        (rotated MNIST).
    """

    degrees: float = 90.0

    changes_inputs: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True

    def examples(
        self, examples: Examples, group: Group, amount: float, draws: np.random.Generator
    ) -> Examples:
        """Return the examples with their images turned."""
        degrees = amount * self.degrees * group.number / group.count
        return examples._replace(x=rotated(examples.x, degrees))


@dataclass(frozen=True)
class PriorDrift(Concept):
    """Classes become more or less frequent, each group by frequencies of its own.

    The frequencies p of the group are drawn once from a Dirichlet distribution. A client's
    examples are drawn anew from among its own, with replacement: a class that it has with
    probability in proportion to p, then an example of the class uniformly.

    Args:
        alpha: concentration of the Dirichlet distribution, > 0.

    Source: Gama et al. 2014, "A Survey on Concept Drift Adaptation", section 2 (prior drift).
    """

    alpha: float = 0.5

    needs_classes: ClassVar[bool] = True
    moves_examples: ClassVar[bool] = True

    def frequencies(self, group: Group) -> npt.NDArray[np.float64]:
        """Return p, `[classes]`, > 0 to within the smallest number."""
        drawn = group.draws().dirichlet(np.full(group.classes or 1, self.alpha))
        return np.maximum(drawn, np.finfo(np.float64).tiny)

    def examples(
        self, examples: Examples, group: Group, amount: float, draws: np.random.Generator
    ) -> Examples:
        """Return as many examples, drawn by the new frequencies."""
        if not examples.size:
            return examples
        frequencies = self.frequencies(group)
        counts = np.bincount(examples.y, minlength=len(frequencies))
        chances = frequencies[examples.y] / counts[examples.y]
        chosen = draws.choice(examples.size, examples.size, p=chances / chances.sum())
        return Examples(examples.x[chosen], examples.y[chosen])


def partial_permutation(permutation: npt.NDArray[np.int64], amount: float) -> npt.NDArray[np.int64]:
    """Return a permutation on the way to another: the first of its exchanges of two, `[n]`.

    Args:
        permutation: where the way ends, `[n]`.
        amount: share of the exchanges, in [0, 1], rounded down.
    """
    steps, reached = [], np.arange(len(permutation))
    for place in range(len(permutation)):
        if reached[place] != permutation[place]:
            other = int(np.flatnonzero(reached == permutation[place])[0])
            reached[[place, other]] = reached[[other, place]]
            steps.append((place, other))
    found = np.arange(len(permutation))
    for place, other in steps[: int(amount * len(steps) + 1e-9)]:
        found[[place, other]] = found[[other, place]]
    return found


def rotated(images: npt.NDArray[np.generic], degrees: float) -> npt.NDArray[np.generic]:
    """Return images turned counter-clockwise about their centre.

    Quarter turns of square images move pixels and change none.

    Args:
        images: `[..., height, width]`, floating point.
        degrees: any angle.
    """
    height, width = images.shape[-2:]
    angle = np.deg2rad(degrees)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    down, right = rows - (height - 1) / 2, columns - (width - 1) / 2
    # Where each pixel of the turned image comes from; rows count downwards.
    source_row = np.cos(angle) * down + np.sin(angle) * right + (height - 1) / 2
    source_column = np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2
    row, row_part, next_row = _neighbours(source_row, height)
    column, column_part, next_column = _neighbours(source_column, width)
    kind = images.dtype
    corners = (
        (row, column, (1 - row_part) * (1 - column_part)),
        (row, next_column, (1 - row_part) * column_part),
        (next_row, column, row_part * (1 - column_part)),
        (next_row, next_column, row_part * column_part),
    )
    turned = np.zeros_like(images)
    for i, j, weight in corners:
        turned += images[..., i, j] * weight.astype(kind)
    return turned


def _neighbours(
    places: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the pixel below each place, the part of the way to the next one, and that one."""
    inside = np.clip(np.round(places, 9), 0, size - 1)
    below = np.floor(inside).astype(np.int64)
    return below, inside - below, np.minimum(below + 1, size - 1)
