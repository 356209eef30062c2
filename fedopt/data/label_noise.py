"""Wrong labels on purpose: symmetric noise on the labels that clients train on."""

from __future__ import annotations

import numpy as np

from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.errors import ConfigError
from fedopt.seeds import generator

KEY = "data.label_noise"


def flip_labels(
    labels: AnyArray, classes: int | None, share: float, seed: int, *ids: int
) -> IntArray:
    """Replace each label, with probability `share`, by one that is uniform over the other classes.

    The draw of an example depends on the seed and on its place in `labels`, not on which client
    holds it or on what the labels are.

    Args:
        labels: labels in 0..classes-1, [M].
        classes: number of classes, >= 2; None: regression.
        share: probability that a label is wrong, in [0, 1).
        seed: seed of the draws.
        ids: tell arrays of one seed apart.

    Returns:
        The labels with their noise, [M] int64.

    Raises:
        ConfigError: the share is out of range, or there are no other classes.

    Source: van Rooyen, Menon and Williamson (2015), Learning with Symmetric Label Noise.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"must be in [0, 1), got {share}", key=KEY)
    if classes is None or classes < 2:
        what = "regression targets have no classes" if classes is None else "there is one class"
        raise ConfigError(f"got {share}, but {what}", key=KEY)
    rng = generator(seed, "label noise", *ids)
    wrong = rng.random(len(labels)) < share
    others = rng.integers(1, classes, len(labels))
    clean = np.asarray(labels, dtype=np.int64)
    return np.where(wrong, (clean + others) % classes, clean)
