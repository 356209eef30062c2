"""Data of studies that no configuration names: made on demand, or read from what is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError

Array = npt.NDArray[Any]
Clients = list[tuple[Array, Array]]

KJV = "FEDOPT_KJV"
"""Environment variable: a text with a verse a line, such as `Ge1:1 In the beginning ...`."""


def needs_fashion_mnist() -> None:
    """Check that Fashion-MNIST can be found.

    Raises:
        ConfigError: it cannot; with the places that were looked at.
    """
    from fedopt.data.fashion_mnist import find_folder

    find_folder(None)


# Data that users have ---------------------------------------------------------------------------

BY_PATH = {"MNIST": "FEDOPT_MNIST", "EMNIST": "FEDOPT_EMNIST", "CIFAR-10": "FEDOPT_CIFAR10"}
"""Data sets that cannot be shipped -> environment variable: a file or folder for `data=files`."""


def is_set(name: str) -> bool:
    """Return whether a user says where a data set of `BY_PATH` is."""
    return bool(os.environ.get(BY_PATH[name]))


def words_of(name: str) -> tuple[str, ...]:
    """Return the words that take a data set of `BY_PATH` from where the user has it."""
    path = json.dumps(os.environ.get(BY_PATH[name], ""))
    return ("data=files", f"data.path={path}", f"data.scale={1 / 255}")


def needs(name: str) -> Callable[[], None]:
    """Return the check that a data set of `BY_PATH` is there.

    It raises ConfigError where its variable is not set, or names nothing.
    """

    def check() -> None:
        variable = BY_PATH[name]
        path = os.environ.get(variable)
        if not path:
            raise ConfigError(
                f"{name} cannot be shipped, and is taken from the file that {variable} names, an "
                ".npz of x, y, test_x and test_y with pixels in 0..255; it is not set"
            )
        if not Path(path).expanduser().exists():
            raise ConfigError(f'"{path}" does not exist', key=variable)

    return check


# Sparse bags of words ---------------------------------------------------------------------------


def zipf_tags(
    seed: int,
    clients: int = 200,
    examples: int = 40,
    words: int = 400,
    tags: int = 8,
    test_examples: int = 2000,
) -> dict[str, Any]:
    """Return clients who tag short texts, each with words of its own.

    Word frequencies follow Zipf's law, so that most words are rare; each client uses some words far
    more than others do. A text is the set of its 12 words; its tag is drawn from the softmax of
    a sparse linear model that is the same for all.

    Args:
        seed: of all draws.
        clients: number of clients.
        examples: texts of each.
        words: size of the vocabulary.
        tags: number of classes.
        test_examples: texts of the test set, by clients who do not train.
    """
    rng = np.random.default_rng([seed, 0x21BF])
    frequency = 1.0 / np.arange(1, words + 1)
    weights = rng.normal(size=(words, tags)) * (rng.random((words, tags)) < 0.3) * 3.0

    def texts(count: int) -> tuple[Array, Array]:
        own = frequency * rng.gamma(0.3, size=words)  # a client's taste
        own /= own.sum()
        x = np.zeros((count, words), np.float32)
        drawn = rng.choice(words, size=(count, 12), p=own)
        x[np.arange(count)[:, None], drawn] = 1.0
        noise = rng.gumbel(size=(count, tags))
        return x, (x @ weights + noise).argmax(axis=1).astype(np.int64)

    population = [texts(examples) for _ in range(clients)]
    parts = [texts(examples) for _ in range(test_examples // examples)]
    test = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {"clients": population, "test": test}


# Characters of a text by its books --------------------------------------------------------------


def needs_kjv() -> None:
    """Check that the King James Bible can be read.

    Raises:
        ConfigError: neither `FEDOPT_KJV` nor Debian's program `bible` gives it.
    """
    path = os.environ.get(KJV)
    if path is not None and not Path(path).is_file():
        raise ConfigError(f'"{path}" is not a file', key=KJV)
    if path is None and shutil.which("bible") is None:
        raise ConfigError(
            f"the King James Bible is not here: {KJV} is not set, and Debian's package bible-kjv "
            "is not installed"
        )


def kjv_text() -> str:
    """Return its verses, one a line, each behind its place.

    Raises:
        ConfigError: as `needs_kjv`.
    """
    needs_kjv()
    path = os.environ.get(KJV)
    if path is not None:
        return Path(path).read_text(encoding="latin-1")
    # With text on its standard input it would prompt.
    done = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("latin-1")


@cache
def kjv_books() -> tuple[dict[str, str], str]:
    """Return the text of each book, and the characters that occur, in order."""
    books: dict[str, list[str]] = {}
    for line in kjv_text().splitlines():
        found = re.match(r"(\d?[A-Za-z]+)\s?\d+:\d+\s+(.*)", line)
        if found:
            books.setdefault(found[1], []).append(found[2])
    if len(books) < 2:
        raise ConfigError("the text has no verses such as `Ge1:1 In the beginning ...`", key=KJV)
    texts = {book: " ".join(verses) for book, verses in books.items()}
    return texts, "".join(sorted(set().union(*texts.values())))


def kjv_characters(
    seed: int, examples: int = 600, context: int = 8, test_examples: int = 4000
) -> dict[str, Any]:
    """Return a client a book, who predicts the next character.

    The last fifth of each book is held out; places are drawn from the seed.

    Args:
        seed: of the draws.
        examples: characters of each book that are trained on.
        context: characters before it that are seen.
        test_examples: of all books together.
    """
    texts, alphabet = kjv_books()
    rng = np.random.default_rng([seed, 0x0B1B])
    place = {character: i for i, character in enumerate(alphabet)}
    clients: Clients = []
    held: Clients = []
    for text in texts.values():
        codes = np.array([place[character] for character in text], np.int64)
        cut = len(codes) * 4 // 5
        for part, count, into in (
            (codes[:cut], examples, clients),
            (codes[cut:], test_examples // len(texts), held),
        ):
            most = len(part) - context
            starts = rng.choice(most, size=min(count, most), replace=False)
            windows = part[starts[:, None] + np.arange(context + 1)]
            into.append((windows[:, :-1], windows[:, -1]))
    test = tuple(np.concatenate(arrays) for arrays in zip(*held, strict=True))

    def model() -> Any:
        from torch import nn

        size = len(alphabet)
        return nn.Sequential(
            nn.Embedding(size, 8),
            nn.Flatten(),
            nn.Linear(8 * context, 64),
            nn.ReLU(),
            nn.Linear(64, size),
        )

    return {"clients": clients, "test": test, "model": model}


# Movements of people ----------------------------------------------------------------------------


def watch_file() -> Path:
    """Return the file of seglearn's smart-watch recordings.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = find_spec("seglearn")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = None if folder is None else next(folder.rglob("watch_dataset.npy"), None)
    if found is None:
        raise ConfigError(
            "the smart-watch recordings are not here: `pip install fedopt[studies]`, or seglearn "
            "itself, brings them"
        )
    return found


def needs_watch() -> None:
    """Check that the recordings are there.

    Raises:
        ConfigError: they are not.
    """
    watch_file()


def watch_people(seed: int, window: int = 128) -> dict[str, Any]:
    """Return a client a person, who knows seven exercises by windows of a smart watch.

    10 people, each with 14 recordings of shoulder exercises, six axes at 50 Hz. A window's inputs
    are mean, deviation, minimum, maximum and mean change of each axis, standardised over all.
    Windows do not overlap.

    Args:
        seed: not used: people are who they are.
        window: samples of a window.
    """
    held = np.load(watch_file(), allow_pickle=True).item()
    features: dict[Any, list[Array]] = {}
    labels: dict[Any, list[Array]] = {}
    for series, label, person in zip(held["X"], held["y"], held["subject"], strict=True):
        values = np.asarray(series, np.float64)[:, -6:]
        count = len(values) // window
        cut = values[: count * window].reshape(count, window, 6)
        told = [
            cut.mean(axis=1),
            cut.std(axis=1),
            cut.min(axis=1),
            cut.max(axis=1),
            np.abs(np.diff(cut, axis=1)).mean(axis=1),
        ]
        features.setdefault(person, []).append(np.concatenate(told, axis=1))
        labels.setdefault(person, []).append(np.full(count, int(label), np.int64))
    every = np.concatenate([np.concatenate(parts) for parts in features.values()])
    mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-9
    clients = [
        (
            ((np.concatenate(features[p]) - mean) / deviation).astype(np.float32),
            np.concatenate(labels[p]),
        )
        for p in sorted(features)
    ]
    return {"clients": clients}


# A rare disease ---------------------------------------------------------------------------------


def tumours(seed: int, clinics: int = 10, share: float = 0.1) -> dict[str, Any]:
    """Return clinics that see few malignant tumours, and unequally many.

    The embedded breast-cancer data, half of it for testing. Of the malignant examples of either
    half so many are kept that they are `share` of it. In the training half they are spread over
    the clinics by Dirichlet(0.5) shares; benign ones evenly.

    Args:
        seed: of the split and the draws.
        clinics: number of clients.
        share: of malignant examples, in (0, 0.35).
    """
    from fedopt.data.embedded import read_embedded

    x, y = read_embedded("breast_cancer.npz")
    rng = np.random.default_rng([seed, 0xD15E])
    order = rng.permutation(len(x))
    rare = 0 if (y == 0).sum() < (y == 1).sum() else 1
    halves = []
    for half in np.array_split(order, 2):
        healthy, ill = half[y[half] != rare], half[y[half] == rare]
        halves.append((healthy, ill[: round(len(healthy) * share / (1 - share))]))
    (healthy, ill), test = halves
    rows = np.concatenate([healthy, ill])
    x = ((x - x[rows].mean(axis=0)) / x[rows].std(axis=0)).astype(np.float32)
    labels = (y == rare).astype(np.int64)
    parts = zip(np.array_split(healthy, clinics), _spread(ill, clinics, rng), strict=True)
    clients = [np.concatenate(part) for part in parts]
    held = np.concatenate(test)
    return {"clients": [(x[c], labels[c]) for c in clients], "test": (x[held], labels[held])}


def rare_clinics(
    seed: int,
    clinics: int = 20,
    patients: int = 100,
    share: float = 0.05,
    features: int = 10,
    test_patients: int = 4000,
) -> dict[str, Any]:
    """Return clinics with made-up patients, few of them ill, with machines that differ.

    Healthy values are N(m_k, 1) with a mean of clinic k, m_k ~ N(0, 0.5^2). The illness has two
    forms: it moves the first three values up by 1.5, or down, so that no linear rule finds both.
    The ill are spread over the clinics by Dirichlet(0.5) shares. Patients of the test set are of
    clinics that do not train.

    Args:
        seed: of all draws.
        clinics: number of clients.
        patients: healthy ones of each.
        share: of the ill, in (0, 1).
        features: values of a patient, >= 3.
        test_patients: about so many, a hundred a clinic.
    """
    rng = np.random.default_rng([seed, 0xC11C])

    def of(healthy: int, ill: int) -> tuple[Array, Array]:
        x = rng.normal(size=(healthy + ill, features)) + 0.5 * rng.normal(size=features)
        x[healthy:, :3] += 1.5 * rng.choice([-1.0, 1.0], size=(ill, 1))
        labels = np.repeat([0, 1], [healthy, ill])
        return x.astype(np.float32), labels

    def of_all(count: int) -> Clients:
        total = round(count * patients * share / (1 - share))
        return [of(patients, len(part)) for part in _spread(np.arange(total), count, rng)]

    clients, held = of_all(clinics), of_all(test_patients // patients)
    test = tuple(np.concatenate(arrays) for arrays in zip(*held, strict=True))
    return {"clients": clients, "test": test}


def _spread(rows: Array, clinics: int, rng: np.random.Generator) -> list[Array]:
    """Return rows in parts with Dirichlet(0.5) shares, one a clinic; a part may be empty."""
    shares = rng.dirichlet(np.full(clinics, 0.5))
    return np.split(rows, np.round(np.cumsum(shares) * len(rows)).astype(int)[:-1])
