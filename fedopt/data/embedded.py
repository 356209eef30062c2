"""The two small datasets inside the package; `assets/ATTRIBUTION.md` says whose they are."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np

from fedopt.data.catalogue import BreastCancerOptions, DigitsOptions
from fedopt.data.dataset import Dataset, split_test
from fedopt.data.partitioners import AnyArray


def load_digits(options: DigitsOptions, seed: int) -> Dataset:
    """Return the 1,797 images of digits, [1, 8, 8], pixels 0..16 scaled to 0..1.

    Args:
        options: the share of test examples.
        seed: seed of the split. The file is in writer order, so the split shuffles.

    Source: UCI Optical Recognition of Handwritten Digits (test part), as in scikit-learn.
    """
    x, y = read_embedded("digits.npz")
    dataset = Dataset(
        name="digits",
        x=x,
        y=y,
        classes=10,
        scale=1 / 16,
        source="Alpaydin and Kaynak (1998), UCI, as in scikit-learn's load_digits",
    )
    return split_test(dataset, options.test_fraction, seed)


def load_breast_cancer(options: BreastCancerOptions, seed: int) -> Dataset:
    """Return the 569 tumours, [30], each feature standardised over the training examples.

    Args:
        options: the share of test examples.
        seed: seed of the split.

    Source: UCI Breast Cancer Wisconsin (Diagnostic), as in scikit-learn.
    """
    x, y = read_embedded("breast_cancer.npz")
    dataset = split_test(
        Dataset(
            name="breast_cancer",
            x=x,
            y=y,
            classes=2,
            source="Wolberg, Street and Mangasarian (1995), UCI, as in scikit-learn's "
            "load_breast_cancer",
        ),
        options.test_fraction,
        seed,
    )
    wide = x.astype(np.float64)
    train = wide if dataset.rows is None else wide[dataset.rows]
    standard = ((wide - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)
    test_x = None if dataset.test_x is None else standard
    return replace(dataset, x=standard, test_x=test_x)


def read_embedded(name: str) -> tuple[AnyArray, AnyArray]:
    """Return inputs and targets of a file in `assets/`, as they are there."""
    with (
        resources.files("fedopt.data").joinpath("assets", name).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return arrays["x"], arrays["y"]
