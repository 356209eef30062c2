"""Data that studies make, and data that users bring."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

import fedopt
from fedopt.errors import ConfigError
from fedopt.studies import data
from fedopt.studies.catalogue import every_study, study_of
from fedopt.studies.command import _with_data
from fedopt.studies.tasks import whole


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A file of 28 x 28 images with 62 classes, named as EMNIST and as MNIST; studies read anew."""
    rng = np.random.default_rng(0)
    path = tmp_path / "of a user.npz"
    arrays = {
        "x": rng.integers(0, 256, (1240, 28, 28), dtype=np.uint8),
        "y": np.arange(1240) % 62,
        "test_x": rng.integers(0, 256, (124, 28, 28), dtype=np.uint8),
        "test_y": np.arange(124) % 62,
    }
    np.savez(path, **arrays)
    modules = ["scaffold_similarity", "fedavg_mnist", "flat_minima"]
    found = [importlib.import_module(f"fedopt.studies.catalogue.{name}") for name in modules]
    with monkeypatch.context() as changed:
        for variable in ("FEDOPT_EMNIST", "FEDOPT_MNIST"):
            changed.setenv(variable, str(path))
        yield [importlib.reload(module) for module in found]
    for module in found:
        importlib.reload(module)


@pytest.mark.parametrize(
    ("name", "condition"),
    [("scaffold-similarity", "EMNIST, 0 % alike, 5 epochs"), ("fedavg-mnist", "MNIST, 2NN, IID")],
)
def test_what_a_user_brings_is_a_condition_more(images, name, condition):
    form, left_out = _with_data(whole(study_of(name)))
    assert not [line for line in left_out if "MNIST" in line]
    (found,) = (c for c in form.study.conditions if c.name == condition)
    arm = form.study.arms_of(found)[0]
    config = form.config((*found.words, *arm.words, "rounds=1", "clients_per_round=2"), 0)
    run = fedopt.simulate(config)
    assert run.config.data.name == "files"
    assert run.history["test_loss"].notna().all()


def test_what_is_not_there_is_left_out_with_a_reason(monkeypatch):
    for variable in data.BY_PATH.values():
        monkeypatch.delenv(variable, raising=False)
    study = study_of("scaffold-similarity")
    form, left_out = _with_data(whole(study))
    named = [c.name for c in form.study.conditions]
    assert named
    assert not any("EMNIST" in name for name in named)
    (line,) = (line for line in left_out if "EMNIST" in line)
    assert line.startswith("12 conditions (EMNIST, 0 % alike, 1 epoch and others) left out: ")
    assert "FEDOPT_EMNIST" in line


def test_a_path_that_leads_nowhere_is_refused(monkeypatch):
    monkeypatch.setenv("FEDOPT_CIFAR10", "/nowhere/cifar.npz")
    with pytest.raises(ConfigError, match=re.escape('"/nowhere/cifar.npz" does not exist')):
        data.needs("CIFAR-10")()


MAKERS = (data.zipf_tags, data.kjv_characters, data.watch_people, data.tumours, data.rare_clinics)


def test_every_maker_of_data_is_tried():
    used = {c.maker for s in every_study() for c in s.conditions if c.maker is not None}
    assert {maker for maker in used if maker.__module__ == data.__name__} == set(MAKERS)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_made_data_is_that_of_its_seed(maker):
    try:
        first, again, other = maker(3), maker(3), maker(4)
    except ConfigError as error:
        pytest.skip(f"data are missing: {error}")
    same = [np.array_equal(a, b) for a, b in zip(arrays(first), arrays(again), strict=True)]
    assert all(same)
    if "seed: not used" not in (maker.__doc__ or ""):
        assert not all(map(np.array_equal, arrays(first), arrays(other)))


def arrays(made):
    pairs = [*made["clients"], made["test"]] if "test" in made else made["clients"]
    return [array for pair in pairs for array in pair]


@pytest.mark.parametrize(
    ("maker", "clients", "share"), [(data.tumours, 10, 0.1), (data.rare_clinics, 20, 0.05)]
)
def test_the_ill_are_as_rare_as_said_and_unequally_spread(maker, clients, share):
    made = maker(0)
    labels = [y for _, y in made["clients"]]
    assert len(labels) == clients
    for found in (np.concatenate(labels), made["test"][1]):
        assert found.mean() == pytest.approx(share, abs=0.006)
    ill = [int(y.sum()) for y in labels]
    assert min(ill) < 2 < max(ill)
