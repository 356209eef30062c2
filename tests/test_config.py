"""The configuration: what it accepts, what it refuses and in which words, TOML in and out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedopt.config import CHOICES, DEFAULT_NAMES, Config, from_run_config, load
from fedopt.errors import ConfigError
from fedopt.registry import entries, get
from fedopt.schema import (
    ArrivalTable,
    ClipTable,
    CurriculumTable,
    DeploymentTable,
    FailuresTable,
    GradientTable,
    PrivacyTable,
    SamTable,
    SearchTable,
    SelfPacedTable,
    ServerCurriculumTable,
    ServerSwaTable,
)

positive = st.floats(1e-6, 1e6)
unit = st.floats(0, 1)
below_one = st.floats(0, 1, exclude_max=True)
positive_share = st.floats(0, 1, exclude_min=True)
small = st.integers(1, 10**6)


def optional(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table with any subset of some keys."""
    return st.fixed_dictionaries({}, optional=values)


def named(name: str, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"name": st.just(name)}, optional=values)


def by_schema(
    schema: type[BaseModel], **own: st.SearchStrategy[Any]
) -> dict[str, st.SearchStrategy[Any]]:
    """Values of every key of a schema within its bounds; keys that depend on others are given."""
    found = dict(own)
    for name, field in schema.model_fields.items():
        kinds = [a for a in get_args(field.annotation) if a is not type(None)]
        kind = (
            field.annotation if get_origin(field.annotation) is Literal or not kinds else kinds[0]
        )
        bounds = {
            word: value
            for metadata in field.metadata
            for word in ("gt", "ge", "lt", "le")
            if (value := getattr(metadata, word, None)) is not None
        }
        low = bounds.get("gt", bounds.get("ge", -(10**6) if "le" in bounds else 0))
        high = bounds.get("lt", bounds.get("le", low + 1000))
        if name in found:
            continue
        if get_origin(kind) is Literal:
            found[name] = st.sampled_from(get_args(kind))
        elif kind is bool:
            found[name] = st.booleans()
        elif kind is int:
            found[name] = st.integers(low, high)
        else:
            assert kind is float, f"{schema.__name__}.{name}: {kind}"
            found[name] = st.floats(
                low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds
            )
    return found


def options_of(kind: str, name: str, **own: st.SearchStrategy[Any]) -> Any:
    return by_schema(get(kind, name).options, **own)


LOW_MOMENTUM = {"base_momentum": st.floats(0, 0.5), "max_momentum": st.floats(0.5, 0.99)}
DERIVED = {
    "optimizers": {
        "rprop": {
            "etas": st.just([0.4, 1.3]),
            "step_sizes": st.just([1e-5, 40.0]),
        },
        **{
            name: {}
            for name in (
                "adagrad",
                "rmsprop",
                "lion",
                "nadam",
                "radam",
                "adamax",
                "adadelta",
                "asgd",
                "adafactor",
            )
        },
    },
    "schedules": {
        "multi_step": {"milestones": st.just([3, 10])},
        "cyclical": {
            **LOW_MOMENTUM,
            "base_lr": st.floats(1e-4, 1e-2),
            "max_lr": st.floats(1e-2, 1),
        },
        "one_cycle": LOW_MOMENTUM,
        "swa_cyclic": {"lr1": st.floats(0.1, 1), "lr2": st.floats(1e-3, 0.1)},
        **{
            name: {}
            for name in (
                "constant",
                "step",
                "exponential",
                "inverse_time",
                "polynomial",
                "linear",
                "cosine",
                "cosine_restarts",
                "plateau",
            )
        },
    },
}
"""Entries whose values are made from their schema; given are those that depend on others."""

STRATEGY_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "server_lr": positive,
    "weighting": st.sampled_from(["examples", "uniform"]),
    "partial_work": st.sampled_from(["drop", "keep"]),
}
ADAM_KEYS = {
    "lr": positive,
    "beta1": below_one,
    "beta2": below_one,
    "eps": positive,
    "amsgrad": st.booleans(),
}
SPLIT_KEYS = {"validation_fraction": below_one, "label_noise": below_one}
CUT_KEYS = {"clients": small, "min_examples": st.integers(0, 100)}

KRONECKER_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "lr": positive,
    "damping": positive,
    "fisher": st.sampled_from(["empirical", "mc", "type-2"]),
    "ema": below_one,
    "factor_every": small,
    "inverse_every": small,
    "kl_clip": positive,
    "momentum": below_one,
    "weight_decay": st.floats(0, 10),
    "decoupled_weight_decay": st.booleans(),
    "adapt_damping": st.booleans(),
    "fallback": st.sampled_from(["sgd", "adam"]),
    "fallback_lr": positive,
}
VALUES: dict[str, dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "data": {
        "digits": {**SPLIT_KEYS, "test_fraction": below_one},
        "breast_cancer": {**SPLIT_KEYS, "test_fraction": below_one},
        "fashion_mnist": {**SPLIT_KEYS, "path": st.text()},
        "files": {
            **SPLIT_KEYS,
            "path": st.text(),
            "test_fraction": below_one,
            "task": st.sampled_from(["auto", "classification", "regression"]),
            "scale": positive,
            "shift": st.floats(-1e6, 1e6),
        },
        "sites": {
            **SPLIT_KEYS,
            "path": st.text(),
            "target": st.text(),
            "columns": st.lists(st.text(), max_size=3),
            "labels": st.lists(st.text(), max_size=3),
            "classes": st.integers(2, 10**6),
            "scale": positive,
            "shift": st.floats(-1e6, 1e6),
        },
        "synthetic": {
            **SPLIT_KEYS,
            "alpha": st.floats(0, 10),
            "beta": st.floats(0, 10),
            "variances": st.booleans(),
            "iid": st.booleans(),
            "features": small,
            "classes": st.integers(2, 100),
            "size_log_mean": st.floats(0, 12),
            "size_log_sigma": st.floats(0, 4),
            "size_min": small,
            "test_fraction": below_one,
            "test_clients": small,
        },
    },
    "partition": {
        "iid": CUT_KEYS,
        "dirichlet": {**CUT_KEYS, "alpha": positive},
        "shards": {**CUT_KEYS, "shards_per_client": small},
        "similarity": {**CUT_KEYS, "similarity": unit},
        "quantity": {**CUT_KEYS, "exponent": positive},
        "natural": {},
        "synthetic": {"clients": small},
    },
    "model": {
        "logistic": {"bias": st.booleans()},
        "mlp": {"hidden": st.lists(small, min_size=1, max_size=4), "dropout": below_one},
        "cnn": {
            "channels": st.lists(small, min_size=2, max_size=2),
            "hidden": small,
            "kernel_size": st.sampled_from([3, 5]),
            "groups": small,
            "dropout": below_one,
        },
        "resnet": {
            "depth": st.sampled_from([8, 14, 20, 110]),
            "width": st.sampled_from([2, 4, 64]),
            "groups": st.sampled_from([1, 2]),
        },
        "cell_supernet": {
            "channels": small,
            "cells": small,
            "nodes": small,
            "operations": st.just(["none", "skip_connect"]),
        },
        "dense_supernet": {
            "widths": st.lists(small, min_size=1, max_size=4),
            "activations": st.just(["relu"]),
            "depth": small,
            "skips": st.booleans(),
        },
        "genotype": {"path": st.just("genotype.json")},
    },
    "strategy": {
        "fedavg": STRATEGY_KEYS,
        **{
            name: options_of("strategies", name)
            for name in (
                "fedprox",
                "fedavgm",
                "fedadagrad",
                "fedadam",
                "fedyogi",
                "fednova",
                "feddyn",
                "mimelite",
                "qfedavg",
                "median",
                "trimmed_mean",
                "krum",
                "rfa",
                "fedbn",
                "ditto",
                "local_only",
                "centralised",
            )
        },
        **{
            name: options_of("strategies", name, personal=st.just(["head", "body.0"]))
            for name in ("fedper", "fedrep")
        },
        "scaffold": {
            **STRATEGY_KEYS,
            "weighting": st.just("uniform"),
            "option": st.sampled_from(["I", "II"]),
            "force": st.booleans(),
        },
        "mofedsam": {**STRATEGY_KEYS, "beta": st.floats(1e-3, 1)},
        "fedpm": {**STRATEGY_KEYS, "mu": st.floats(0, 1e3)},
    },
    "local.optimizer": {
        "sgd": {
            "lr": positive,
            "momentum": below_one,
            "dampening": unit,
            "weight_decay": st.floats(0, 10),
        },
        "adam": {**ADAM_KEYS, "weight_decay": st.floats(0, 10)},
        "adamw": {**ADAM_KEYS, "weight_decay": st.floats(0, 10)},
        "kfac": {**KRONECKER_KEYS, "damping_style": st.sampled_from(["factored", "exact"])},
        "ekfac": KRONECKER_KEYS,
        **{n: options_of("optimizers", n, **o) for n, o in DERIVED["optimizers"].items()},
    },
    "local.schedule": {n: options_of("schedules", n, **o) for n, o in DERIVED["schedules"].items()},
    "attack": {entry.name: options_of("attacks", entry.name) for entry in entries("attacks")},
    "drift": {
        "none": {},
        "label": options_of("drifts", "label", share=st.floats(0.01, 1), classes=positive_share),
        "feature": options_of("drifts", "feature", shift=positive),
        "rotation": options_of("drifts", "rotation", degrees=st.floats(1, 360)),
        "prior": options_of("drifts", "prior"),
    },
}
TUPLES: dict[str, dict[str, Any]] = {
    "uniform": {
        "speed": st.just([1.0, 2.0]),
        "downlink": st.just([1.0, 2.0]),
        "uplink": st.just([3.0, 3.0]),
    },
    "classes": {"names": st.just(["laptop", "phone_slow"]), "weights": st.just([1.0, 2.0])},
    "file": {"path": st.text()},
    "trace": {"path": st.text()},
}
for _key, _kind in (
    ("system.devices", "devices"),
    ("system.availability", "availabilities"),
    ("policy", "policies"),
    ("selection", "selections"),
):
    VALUES[_key] = {
        entry.name: options_of(
            _kind, entry.name, **(TUPLES.get(entry.name, {}) if entry.options.model_fields else {})
        )
        for entry in entries(_kind)
    }
VALUES["server.optimizer"] = {"none": {}} | {
    name: keys for name, keys in VALUES["local.optimizer"].items() if name != "kfac"
}
for _way in ("uplink", "downlink"):
    VALUES[f"{_way}.compression"] = {
        entry.name: options_of("codecs", entry.name) for entry in entries("codecs")
    }
"""Table -> entry -> the values its options can take."""

NEEDS_OTHERS = {
    "local.curriculum": {"teacher"},
    "local.self_paced": {"threshold", "quantile"},
    "engine": {"max_client_failures"},
    "evaluation": {"gradients"},
}
"""Keys of tables that are valid only beside others; they have tests of their own."""

CROSS_CHECKED = {"nesterov", "norm"}
"""Options that are valid only beside others; they have tests of their own."""


def choice(key: str) -> st.SearchStrategy[dict[str, Any]]:
    names = [
        n for n in VALUES[key] if n not in ("synthetic", "files", "sites", "genotype", "multi_step")
    ]
    return st.sampled_from(names).flatmap(lambda n: named(n, **VALUES[key][n]))


LOCAL = {
    "optimizer_state": st.sampled_from(["reset", "keep", "average"]),
    "nominal_steps": small,
    "batch_size": st.one_of(small, st.just("full")),
    "loss": st.sampled_from(["cross_entropy", "mse", "package.module:function"]),
}
FIXED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "local.sam": by_schema(SamTable, rho=st.floats(1e-3, 10)),
    "local.gradient": by_schema(GradientTable),
    "local.swa": {
        "last_steps": small,
        "last_epochs": positive,  # one of the two, see `trees`
        "decay": st.floats(0.1, 0.9),
    },
    "local.curriculum": by_schema(
        CurriculumTable,
        name=st.sampled_from(["none", "curriculum", "anti", "random"]),
        start=st.just(1.0),  # else all data must be available in time
        score=st.sampled_from(["loss", "margin"]),
        reference=st.sampled_from(["global", "local"]),
        teacher=st.none(),
    ),
    "local.self_paced": by_schema(SelfPacedTable, name=st.just("none")),
    "server.curriculum": by_schema(ServerCurriculumTable, start=st.just(1.0)),
    "uplink.clip": by_schema(ClipTable),
    "uplink.privacy": by_schema(PrivacyTable),
    "arrival": by_schema(ArrivalTable),
    "search": by_schema(SearchTable),
    "server.swa": by_schema(ServerSwaTable, start=st.floats(0, 0.99), every=st.just(1)),
    "system": {
        "stragglers": unit,
        "speed_counts": st.sampled_from(["examples", "operations"]),
    },
    "system.failures": by_schema(FailuresTable),
    "engine": {
        "name": st.sampled_from(["inline", "ray"]),
        "workers": small,
        "training": st.sampled_from(["auto", "loop", "stacked"]),
        "precision": st.sampled_from(["full", "bf16"]),
        "device": st.text(),
        "address": st.text(),
        "block_size": small,
        "on_client_error": st.sampled_from(["fail", "skip"]),
    },
    "evaluation": {
        "every": small,
        "batch_size": small,
        "validation_clients": st.integers(0, 100),
        "unseen_clients": st.one_of(
            st.integers(0, 100), st.floats(0, 1, exclude_min=True, exclude_max=True)
        ),
        "training_clients": st.one_of(st.integers(0, 100), st.floats(0, 1, exclude_min=True)),
        "sharpness_every": st.integers(0, 100),
        "sharpness_examples": st.integers(1, 10_000),
        "sharpness_rho": st.floats(1e-6, 10.0),
    },
    "checkpoint": {"every": st.integers(0, 100), "keep": small, "minutes": positive},
    "deployment": by_schema(DeploymentTable),
}
for _key, _names in NEEDS_OTHERS.items():
    for _name in _names:
        FIXED[_key].pop(_name, None)
TOP: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(-(2**63), 2**63 - 1),
    "rounds": small,
    "clients_per_round": st.one_of(
        small, st.floats(0, 1, exclude_min=True), st.just(1.0), st.just("all")
    ),
    "dtype": st.sampled_from(["float32", "float64"]),
}


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Valid configurations, as a TOML file gives them."""
    tree: dict[str, Any] = draw(optional(**TOP))
    for key in ("data", "partition", "model", "strategy", "drift"):
        if draw(st.booleans()):
            tree[key] = draw(choice(key))
    if draw(st.booleans()):
        local = draw(optional(**LOCAL))
        amount = draw(st.sampled_from(["epochs", "steps", ""]))
        if amount:
            local[amount] = draw(small if amount == "steps" else positive)
        for key in ("local.optimizer", "local.schedule"):
            if draw(st.booleans()):
                local[key.partition(".")[2]] = draw(choice(key))
        tree["local"] = local
    for key, keys in FIXED.items():
        if draw(st.booleans()):
            *parents, last = key.split(".")
            table = tree
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = draw(optional(**keys))
    for way, table in (("local", "curriculum"), ("server", "curriculum")):
        if tree.get(way, {}).get(table):
            tree[way][table].setdefault("name", "none")
            if way == "server":  # a single round reaches no share of the training
                tree.pop("rounds", None)
    if tree.get("uplink", {}).get("clip"):
        tree["uplink"]["clip"].setdefault("norm", 1.0)
    if tree.get("arrival"):
        tree["arrival"].setdefault("share", 0.5)
    if tree.get("uplink", {}).get("privacy"):
        tree["uplink"]["privacy"].setdefault("noise_multiplier", 0.0)
    if "lr" in tree.get("uplink", {}).get("clip", {}):
        tree["uplink"]["clip"].setdefault("quantile", 0.5)
    sam = tree.get("local", {}).get("sam", {})
    if sam.get("adaptive") or sam.get("corrected"):
        sam.setdefault("rho", 0.05)
    swa = tree.get("local", {}).get("swa", {})
    if "last_steps" in swa:
        swa.pop("last_epochs", None)
    schedule = tree.get("local", {}).get("schedule", {})
    if schedule.get("name") == "plateau":
        schedule["metric"] = "train_loss"
    return tree


def nested(key: str, table: dict[str, Any]) -> dict[str, Any]:
    """A tree that holds one table at a dotted key."""
    for part in reversed(key.split(".")):
        table = {part: table}
    return table


def at(tree: dict[str, Any], key: str) -> Any:
    """What a tree holds at a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree


@given(trees())
def test_configurations_survive_toml_and_json(tree: dict[str, Any]) -> None:
    config = Config.from_tree(tree)
    assert Config.from_tree(tomllib.loads(config.to_toml())) == config
    assert Config.from_tree(json.loads(json.dumps(config.dump()))) == config
    dumped = config.dump()
    for key, value in tree.items():
        for inner, given_value in (value if isinstance(value, dict) else {}).items():
            if not isinstance(given_value, dict):
                assert dumped[key][inner] == given_value, f"{key}.{inner}"
                continue
            for name, value_inside in given_value.items():
                assert dumped[key][inner][name] == value_inside, f"{key}.{inner}.{name}"
        if not isinstance(value, dict):
            assert dumped[key] == value, key


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, names in VALUES.items() for name in names]
)
@settings(max_examples=20)
@given(data=st.data())
def test_every_option_of_every_entry_survives_toml(
    key: str, name: str, data: st.DataObject
) -> None:
    table = data.draw(st.fixed_dictionaries({"name": st.just(name), **VALUES[key][name]}))
    if name == "plateau":
        table["metric"] = "train_loss"
    tree = nested(key, table)
    config = Config.from_tree(tree)
    again = Config.from_tree(tomllib.loads(config.to_toml()))
    assert again == config
    dumped = again.dump()
    got = at(dumped, key)
    assert {option: got[option] for option in table} == table


def test_the_property_tests_leave_no_key_out() -> None:
    for key, names in VALUES.items():
        for entry in entries(CHOICES[key]):
            missing = set(entry.options.model_fields) - set(names[entry.name]) - CROSS_CHECKED
            assert not missing, f"{key}.{entry.name}: {missing}"
    for key, keys in FIXED.items():
        assert set(keys) | NEEDS_OTHERS.get(key, set()) == set(Config.TABLES[key].model_fields), key
    assert {*FIXED, "local"} == set(Config.TABLES)
    defaults = Config()
    assert set(TOP) == set(type(defaults.run).model_fields)
    assert {*LOCAL, "epochs", "steps"} == set(type(defaults.local).model_fields)


def test_options_that_need_others_survive_toml() -> None:
    tree = {
        "model": {"name": "cnn", "norm": "group", "groups": 4},
        "local": {"optimizer": {"name": "sgd", "momentum": 0.5, "nesterov": True}},
    }
    config = Config.from_tree(tree)
    assert Config.from_tree(tomllib.loads(config.to_toml())) == config
    assert config.model.dump()["norm"] == "group"
    assert config.optimizer.dump()["nesterov"] is True


def test_the_defaults_are_valid_and_complete() -> None:
    config = Config.from_tree({})
    assert config.local.epochs == 5
    assert Config.from_tree(tomllib.loads(config.to_toml())) == config
    assert {key: config.dump()[key]["name"] for key in ("data", "strategy")} == {
        "data": DEFAULT_NAMES["data"],
        "strategy": DEFAULT_NAMES["strategy"],
    }
    assert config.partition.dump()["alpha"] == 0.1


# What is refused, and in which words --------------------------------------------------------------


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


BAD = {
    "rounds=0": "rounds",
    "rounds=-3": "rounds",
    "rounds=true": "rounds",
    "rounds='5'": "rounds",
    "rounds=2.5": "rounds",
    "rounds.deep=1": "rounds",
    "seed=9223372036854775808": "seed",
    "seed=x": "seed",
    "clients_per_round=0": "clients_per_round",
    "clients_per_round=0.0": "clients_per_round",
    "clients_per_round=1.5": "clients_per_round",
    "clients_per_round=true": "clients_per_round",
    "clients_per_round=some": "clients_per_round",
    "dtype=float16": "dtype",
    "data.test_fraction=1.0": "data.test_fraction",
    "data=3": "data",
    "data=files": "data.path",
    "partition.alpha=0": "partition.alpha",
    "partition.alpha=true": "partition.alpha",
    "partition.clients=many": "partition.clients",
    "strategy.name=7": "strategy.name",
    "local=3": "local",
    "local.epochs=0": "local.epochs",
    "local.steps=1.5": "local.steps",
    "local.batch_size=0": "local.batch_size",
    "local.batch_size=half": "local.batch_size",
    "local.loss=3": "local.loss",
    "local.optimizer=3": "local.optimizer",
    "local.optimizer.lr=-1": "local.optimizer.lr",
    "local.optimizer.lr=nan": "local.optimizer.lr",
    "local.optimizer.lr=inf": "local.optimizer.lr",
    "local.optimizer.lr=true": "local.optimizer.lr",
    "local.optimizer.lr='0.1'": "local.optimizer.lr",
    "local.optimizer.momentum=1": "local.optimizer.momentum",
    "local.optimizer.nesterov=1": "local.optimizer.nesterov",
    "local.optimizer.nesterov=true": "local.optimizer.nesterov",
    "local.optimizer_state=keeps": "local.optimizer_state",
    "local.optimizer_state=true": "local.optimizer_state",
    "local.nominal_steps=0": "local.nominal_steps",
    "local.nominal_steps=2.5": "local.nominal_steps",
    "local.sam=0.05": "local.sam",
    "local.sam.rho=-0.1": "local.sam.rho",
    "local.sam.rho=nan": "local.sam.rho",
    "local.sam.eta=-1": "local.sam.eta",
    "local.sam.adaptive=1": "local.sam.adaptive",
    "local.sam.adaptive=true": "local.sam.adaptive",
    "local.sam.corrected=true": "local.sam.corrected",
    "local.gradient=3": "local.gradient",
    "local.gradient.penalty=-1": "local.gradient.penalty",
    "local.gradient.skip_norm=-1": "local.gradient.skip_norm",
    "local.gradient.skip_nonfinite=1": "local.gradient.skip_nonfinite",
    "local.gradient.clip_norm=0": "local.gradient.clip_norm",
    "local.gradient.clip_value=0": "local.gradient.clip_value",
    "local.gradient.noise_eta=0": "local.gradient.noise_eta",
    "local.gradient.noise_gamma=-0.1": "local.gradient.noise_gamma",
    "local.swa=true": "local.swa",
    "local.swa.last_steps=0": "local.swa.last_steps",
    "local.swa.last_epochs=0": "local.swa.last_epochs",
    "local.swa.decay=0": "local.swa.decay",
    "local.swa.decay=1.0": "local.swa.decay",
    "local.schedule=3": "local.schedule",
    "local.schedule.scope=epoch": "local.schedule.scope",
    "local.schedule.warmup=-1": "local.schedule.warmup",
    "local.schedule.warmup_start_factor=0": "local.schedule.warmup_start_factor",
    "local.schedule=multi_step": "local.schedule.milestones",
    "local.schedule=plateau": "evaluation.validation_clients",
    "server=3": "server",
    "server.lr=1": "server.lr",
    "server.swa=3": "server.swa",
    "server.swa.start=0": "server.swa.start",
    "server.swa.start=1.0": "server.swa.start",
    "server.swa.start=-0.1": "server.swa.start",
    "server.swa.start=true": "server.swa.start",
    "server.swa.start=201": "server.swa.start",
    "server.swa.every=0": "server.swa.every",
    "server.swa.decay=1.0": "server.swa.decay",
    "server.swa.batch_norm_clients=0": "server.swa.batch_norm_clients",
    "engine.precision=fp8": "engine.precision",
    "model.hidden=[]": "model.hidden",
    "model.hidden=[8, 0]": "model.hidden",
    "model.hidden=[true]": "model.hidden",
    "model.hidden=['a', 'b']": "model.hidden",
    "model.dropout=1": "model.dropout",
    "system.stragglers=1.1": "system.stragglers",
    "system.stragglers=true": "system.stragglers",
    "engine=3": "engine",
    "engine.workers=0": "engine.workers",
    "evaluation=3": "evaluation",
    "evaluation.every=0": "evaluation.every",
    "evaluation.unseen_clients=-1": "evaluation.unseen_clients",
    "evaluation.unseen_clients=0.0": "evaluation.unseen_clients",
    "evaluation.unseen_clients=1.0": "evaluation.unseen_clients",
    "evaluation.unseen_clients=true": "evaluation.unseen_clients",
    "evaluation.training_clients=-1": "evaluation.training_clients",
    "evaluation.training_clients=0.0": "evaluation.training_clients",
    "evaluation.training_clients=1.01": "evaluation.training_clients",
    "evaluation.training_clients=true": "evaluation.training_clients",
    "evaluation.gradients=true": "evaluation.gradients",
    "drift=3": "drift",
    "drift.start=3": "drift.start",
    "drift={name='label', share=0.0}": "drift.share",
    "drift={name='label', start=0}": "drift.start",
    "drift={name='label', kind='abrupt'}": "drift.kind",
    "drift={name='label', change='turn'}": "drift.change",
    "drift={name='prior', kind='incremental'}": "drift.kind",
    "drift={name='feature', shift=0}": "drift.shift",
    "drift={name='rotation', degrees=0}": "drift.degrees",
    "drift={name='rotation', degrees=361}": "drift.degrees",
    "arrival=0.5": "arrival",
    "arrival.share=1.0": "arrival.share",
    "arrival.first=5": "arrival.share",
    "arrival={share=0.5, first=1}": "arrival.first",
    "arrival={share=0.5, pattern='wave'}": "arrival.pattern",
    "checkpoint.every=-1": "checkpoint.every",
    "checkpoint.keep=0": "checkpoint.keep",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_are_blamed_on_their_key_once(override: str) -> None:
    text, key = message(override), BAD[override]
    assert text.startswith(f"{key}: ")
    assert text.count(f"{key}:") == 1
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["strategy=fedprox", "strategy.mu=-1"], "strategy.mu"),
        (["strategy=scaffold", "strategy.weighting=examples"], "strategy.weighting"),
        (["model=cnn", "model.norm=group", "model.groups=7"], "model.groups"),
        (["model=cnn", "model.channels=[0, 8]"], "model.channels"),
        (["model=cnn", "model.channels=[8]"], "model.channels"),
        (["model=cnn", "model.channels=[8, 8, 8]"], "model.channels"),
        (["model=cnn", "model.kernel_size=4"], "model.kernel_size"),
        (["local.epochs=1", "local.steps=2"], "local.steps"),
        (["local.swa.last_steps=2", "local.swa.last_epochs=1"], "local.swa.last_epochs"),
    ],
)
def test_bad_combinations_are_blamed_on_one_key(overrides: list[str], key: str) -> None:
    text = message(*overrides)
    assert text.startswith(f"{key}: ")
    assert text.count(key) == 1
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("stratgy=fedavg", "stratgy", "strategy"),
        ("round=3", "round", "rounds"),
        ("engine.worker=2", "engine.worker", "workers"),
        ("local.epoch=2", "local.epoch", "epochs"),
        ("local.optimizer.momentun=0.9", "local.optimizer.momentun", "momentum"),
        ("strategy.weight=uniform", "strategy.weight", "weighting"),
        ("strategy=scafold", "strategy.name", "scaffold"),
        ("data=digit", "data.name", "digits"),
        ("partition=dirichle", "partition.name", "dirichlet"),
        ("model=mpl", "model.name", "mlp"),
        ("local.optimizer=adamm", "local.optimizer.name", "adam"),
        ("engine=inlin", "engine.name", "inline"),
        ("engine.on_client_error=skp", "engine.on_client_error", "skip"),
        ("local.optimizer_state=kep", "local.optimizer_state", "keep"),
        ("local.schedule=onecycle", "local.schedule.name", "one_cycle"),
        ("local.schedule=cossine", "local.schedule.name", "cosine"),
        ("local.schedule.scope=acros", "local.schedule.scope", "across"),
        ("local.sam.roh=0.1", "local.sam.roh", "rho"),
        ("local.samm.rho=0.1", "local.samm", "sam"),
        ("local.gradient.clipnorm=1", "local.gradient.clipnorm", "clip_norm"),
        ("local.swa.last_step=1", "local.swa.last_step", "last_steps"),
        ("server.swaa.start=1", "server.swaa", "swa"),
        ("server.swa.strat=1", "server.swa.strat", "start"),
        ("strategy=mofedsan", "strategy.name", "mofedsam"),
        ("drift=labels", "drift.name", "label"),
        ("arrival.shares=0.5", "arrival.shares", "share"),
    ],
)
def test_misspelt_words_bring_the_nearest(override: str, key: str, nearest: str) -> None:
    text = message(override)
    assert text.startswith(f"{key}: ")
    assert f'Did you mean "{nearest}"?' in text


SCHEDULES = {
    "one_cycle pct_start=0": ("pct_start", "got 0;", "(0, 1)"),
    "one_cycle pct_start=1": ("pct_start", "got 1;", "(0, 1)"),
    "one_cycle div_factor=0.5": ("div_factor", "got 0.5;", ">= 1"),
    "one_cycle warmup=3": ("warmup", "its own warm-up"),
    "one_cycle base_momentum=0.96": ("base_momentum", "<= max_momentum = 0.95", "got 0.96"),
    "one_cycle total_steps=5": ("total_steps", "Known: scope, max_lr"),
    "cyclical base_lr=0.2 max_lr=0.1": ("max_lr", ">= base_lr = 0.2", "got 0.1"),
    "cyclical mode=triangle": ("mode", "got 'triangle'", 'Did you mean "triangular"?'),
    "swa_cyclic lr1=0.1 lr2=0.2": ("lr2", "<= lr1 = 0.1", "got 0.2"),
    "multi_step milestones=[3,3]": ("milestones", "rising integers >= 1", "got [3, 3]"),
    "cosine T_max=0": ("T_max", "got 0;", ">= 1"),
    "cosine t_max=9": ("t_max", "unknown key", 'Did you mean "T_max"?'),
    "step gamma=1.1": ("gamma", "got 1.1;", "(0, 1]"),
    "plateau factor=1.0": ("factor", "got 1.0;", "(0, 1)"),
    "plateau scope=across": ("scope", "got 'across'", "'round'"),
    "plateau warmup=3": ("warmup", "no warm-up"),
    "plateau metric=loss": ("metric", "got 'loss'", "'validation_loss'"),
}
"""A schedule with options -> the key to blame, and what the message says besides."""


@pytest.mark.parametrize("case", SCHEDULES)
def test_options_of_schedules_are_refused_with_their_range(case: str) -> None:
    name, *options = case.split()
    key, *says = SCHEDULES[case]
    text = message(f"local.schedule={name}", *(f"local.schedule.{o}" for o in options))
    assert text.startswith(f"local.schedule.{key}: ")
    assert len(text.splitlines()) == 1
    assert not [word for word in says if word not in text], text


SAM, KEEP, MOMENTUM = "local.sam.rho=0.05", "local.optimizer_state=keep", "local.optimizer.momentum"
ADAM, SCAFFOLD, MOFEDSAM = "local.optimizer=adam", "strategy=scaffold", "strategy=mofedsam"
CYCLES = "local.schedule.cycle_momentum=true"

TOGETHER: dict[str, tuple[list[str], list[str]]] = {
    "nothing to keep": (
        [KEEP],
        ["local.optimizer_state: ", '"keep"', "sgd without momentum", '"reset"', "momentum > 0"],
    ),
    "nothing to average": (
        ["local.optimizer_state=average"],
        ["local.optimizer_state: ", '"average"', "sgd without momentum", '"reset"'],
    ),
    "state of torch's own": (
        [KEEP, "local.optimizer=nadam"],
        ["local.optimizer_state: ", '"keep"', '"nadam"', '"reset"', "adam, adamw"],
    ),
    "option II with adam": (
        [SCAFFOLD, ADAM],
        ["strategy.option: ", 'got "II"', "Adam does not allow", 'use "I"', "sgd"],
    ),
    "option II with torch's own": (
        [SCAFFOLD, "local.optimizer=radam"],
        ["strategy.option: ", "RAdam does not allow", 'use "I"'],
    ),
    "option II with kept momentum": (
        [SCAFFOLD, KEEP, f"{MOMENTUM}=0.9"],
        ["strategy.option: ", 'got "II"', "momentum of earlier rounds", '"keep"', 'use "I"'],
    ),
    "mofedsam without sam": (
        [MOFEDSAM],
        ["local.sam.rho: ", "got 0", "mofedsam", "> 0"],
    ),
    "mofedsam with adam": (
        [MOFEDSAM, SAM, ADAM],
        ["local.optimizer.name: ", "Adam", "mofedsam", "use sgd"],
    ),
    "mofedsam with kept momentum": (
        [MOFEDSAM, SAM, KEEP, f"{MOMENTUM}=0.9"],
        ["local.optimizer_state: ", 'got "keep"', "mofedsam", 'use "reset"'],
    ),
    "momentum of zero cycled": (
        ["local.schedule=one_cycle", CYCLES],
        ["local.schedule.cycle_momentum: ", "got true", "sgd", "it is 0", "use false"],
    ),
    "no momentum cycled": (
        ["local.schedule=cyclical", CYCLES, "local.optimizer=adagrad"],
        ["local.schedule.cycle_momentum: ", "got true", "adagrad", "use false"],
    ),
    "lower rate above the optimizer's": (
        ["local.schedule=cyclical", "local.schedule.base_lr=0.2"],
        ["local.schedule.base_lr: ", "<= max_lr = 0.1", "got 0.2"],
    ),
    "least rate above the optimizer's": (
        ["local.schedule=cosine", "local.schedule.eta_min=1.0"],
        ["local.schedule.eta_min: ", "<= lr = 0.1", "got 1"],
    ),
    "optimizer that evaluates the loss": (
        ["local.optimizer=torch.optim:LBFGS"],
        ["local.optimizer.name: ", '"torch.optim:LBFGS"', "closure"],
    ),
    "no such class": (
        ["local.optimizer=torch.optim:Adamm"],
        ["local.optimizer.name: ", 'no "Adamm"', 'Did you mean "Adam"?'],
    ),
    "no optimizer": (
        ["local.optimizer=torch.nn:Linear"],
        ["local.optimizer.name: ", '"torch.nn:Linear"', "torch.optim.Optimizer"],
    ),
    "option of a class": (
        ["local.optimizer=torch.optim:RAdam", "local.optimizer.betaz=3"],
        ["local.optimizer.betaz: ", "got 3", 'Did you mean "betas"?', "Known: lr, betas"],
    ),
    "rate of a class": (
        ["local.optimizer=torch.optim:RAdam", "local.optimizer.lr=-1"],
        ["local.optimizer.lr: ", "got -1", "> 0"],
    ),
    "validation without splits": (
        ["evaluation.validation_clients=3"],
        ["evaluation.validation_clients: ", "got 3", "data.validation_fraction > 0"],
    ),
    "plateau without validation": (
        ["local.schedule=plateau"],
        ["evaluation.validation_clients: ", "got 0", '"validation_loss"', '"train_loss"'],
    ),
    "bf16 of float64": (
        ["engine.precision=bf16", "dtype=float64"],
        ["engine.precision: ", '"bf16"', '"float32"', '"float64"'],
    ),
    "averaging after the end": (
        ["server.swa.start=9", "rounds=8"],
        ["server.swa.start: got 9", "round 9", "last is 8", "1..8", "smaller share"],
    ),
}
"""What tables refuse of each other: words of the command line -> what the message says."""


@pytest.mark.parametrize("case", TOGETHER)
def test_techniques_that_do_not_go_together_are_refused_with_the_reason(case: str) -> None:
    from fedopt.experiment import Experiment

    overrides, says = TOGETHER[case]
    with pytest.raises(ConfigError) as caught:
        Experiment.from_config(load(None, ["model=logistic", *overrides]))
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert text.startswith(says[0])
    assert len(text.splitlines()) == 1
    assert not [word for word in says if word not in text], text


@pytest.mark.parametrize(
    "overrides",
    [
        [KEEP, f"{MOMENTUM}=0.9"],
        [KEEP, ADAM],
        [SCAFFOLD, f"{MOMENTUM}=0.9"],
        [SCAFFOLD, ADAM, "strategy.option=I"],
        [SCAFFOLD, KEEP, f"{MOMENTUM}=0.9", "strategy.option=I"],
        [SCAFFOLD, SAM, "local.swa.last_steps=2"],
        [MOFEDSAM, SAM, f"{MOMENTUM}=0.9"],
        ["local.schedule=one_cycle", CYCLES, ADAM],
        ["local.schedule=one_cycle"],
        ["local.schedule=plateau", "local.schedule.metric=train_loss"],
        ["local.schedule=cyclical", "local.schedule.base_lr=0.2", "local.optimizer.lr=0.3"],
        ["server.swa.decay=0.9"],
        ["server.swa.start=200"],
    ],
)
def test_their_neighbours_are_allowed(overrides: list[str]) -> None:
    from fedopt.experiment import Experiment

    Experiment.from_config(load(None, ["model=logistic", *overrides]))


def test_several_problems_are_reported_together() -> None:
    text = message("rounds=0", "seed=x", "strategy=nothing", "extra=1", "local.optimizer.lr=-1")
    keys = ("rounds:", "seed:", "strategy.name:", "extra:", "local.optimizer.lr:")
    assert all(sum(line.startswith(key) for line in text.splitlines()) == 1 for key in keys)
    assert len(text.splitlines()) == len(keys)


@pytest.mark.parametrize("text", ["=1", "rounds", "", " =3"])
def test_overrides_have_a_form(text: str) -> None:
    assert "key=value" in message(text)


def test_a_value_is_not_a_table() -> None:
    assert '"local.epochs" is a value' in message("local.epochs=3", "local.epochs.deep=1")


# Sources over sources -----------------------------------------------------------------------------


def test_a_bare_word_names_a_table() -> None:
    config = load(None, ["strategy=scaffold", "engine=inline", "local.optimizer=adam"])
    assert (config.strategy.name, config.engine.name) == ("scaffold", "inline")
    assert config.optimizer.name == "adam"
    assert load(None, strategy="scaffold").strategy == config.strategy


@pytest.mark.parametrize(
    "order",
    list(itertools.permutations(["strategy=fedprox", "strategy.mu=0.7", "strategy.server_lr=2"])),
)
def test_the_order_of_name_and_options_does_not_matter(order: list[str]) -> None:
    options = load(None, order).strategy.dump()
    assert (options["name"], options["mu"], options["server_lr"]) == ("fedprox", 0.7, 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(
        "rounds = 7\n"
        "[strategy]\nname = 'fedprox'\nmu = 0.5\nserver_lr = 0.9\n"
        "[partition]\nalpha = 0.3\nclients = 12\n"
        "[local]\nepochs = 2\n[local.optimizer]\nlr = 0.4\n"
        "[engine]\nname = 'ray'\nblock_size = 3\n"
    )
    return path


@pytest.mark.parametrize("override", ["strategy=scaffold", "strategy.name=scaffold"])
def test_a_new_name_drops_the_options_of_the_old(file: Path, override: str) -> None:
    assert load(file).strategy.dump()["mu"] == 0.5
    config = load(file, [override])
    assert config.strategy == load(None, ["strategy=scaffold"]).strategy
    assert load(file, [override, "strategy.server_lr=0.5"]).strategy.dump()["server_lr"] == 0.5


@pytest.mark.parametrize("override", ["strategy=fedprox", "strategy.name=fedprox"])
def test_the_same_name_keeps_the_options(file: Path, override: str) -> None:
    assert load(file, [override]).strategy == load(file).strategy


def test_naming_the_default_entry_keeps_the_options_of_the_file(file: Path) -> None:
    config = load(file, ["partition=dirichlet", "local.optimizer=sgd"])
    assert config.partition.dump()["alpha"] == 0.3
    assert config.optimizer.dump()["lr"] == 0.4


def test_another_engine_keeps_what_all_engines_share(file: Path) -> None:
    """The block size is part of the bits: it must not go with the engine's name."""
    config = load(file, ["engine=inline"])
    assert (config.engine.name, config.engine.block_size) == ("inline", 3)


def test_keywords_go_over_overrides_over_the_file(file: Path) -> None:
    config = load(file, ["rounds=8", "strategy.mu=0.6"], rounds=9, strategy={"mu": 0.8})
    assert config.rounds == 9
    assert config.strategy.dump() == {**load(file).strategy.dump(), "mu": 0.8}
    assert config.local.epochs == 2


def test_options_can_be_added_to_a_bare_word(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text("strategy = 'fedprox'\n")
    assert load(path, ["strategy.mu=0.25"]).strategy.dump()["mu"] == 0.25
    assert load(path, strategy={"mu": 0.25}).strategy.dump()["mu"] == 0.25


def test_reading_does_not_change_what_was_given() -> None:
    tree = {"strategy": {"name": "fedprox", "mu": 0.5}, "local": {"optimizer": {"lr": 0.2}}}
    copy = json.loads(json.dumps(tree))
    load(None, ["rounds=3"], **tree)
    Config.from_tree(tree)
    assert tree == copy


def test_a_missing_file_names_its_neighbour(file: Path) -> None:
    with pytest.raises(ConfigError, match=r'does not exist\. Did you mean "experiment\.toml"'):
        load(file.with_name("experiments.toml"))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("rounds = = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml.* is not TOML"):
        load(tmp_path / "broken.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_counts_fractions_and_all_are_told_apart() -> None:
    assert load(None, ["clients_per_round=1"]).run.clients_per_round == 1
    assert isinstance(load(None, ["clients_per_round=1"]).run.clients_per_round, int)
    assert isinstance(load(None, ["clients_per_round=1.0"]).run.clients_per_round, float)
    assert load(None, ["clients_per_round=all"]).run.clients_per_round == "all"
    text = load(None, clients_per_round=1.0).to_toml()
    assert isinstance(Config.from_tree(tomllib.loads(text)).run.clients_per_round, float)


def test_the_full_batch_has_a_word() -> None:
    config = load(None, ["local.batch_size=full"])
    assert config.local.batch_size is None
    assert config.dump()["local"]["batch_size"] == "full"
    assert load(None, local={"batch_size": None}) == config


def test_numbers_of_numpy_are_numbers() -> None:
    config = load(None, seed=np.int64(3), local={"optimizer": {"lr": np.float64(0.5)}})
    assert config == load(None, seed=3, local={"optimizer": {"lr": 0.5}})


def test_synthetic_data_and_devices_imply_each_other() -> None:
    for override in ("data=synthetic", "partition=synthetic"):
        config = load(None, [override])
        assert (config.data.name, config.partition.name) == ("synthetic", "synthetic")
    assert load(None, ["data=synthetic", "partition.clients=7"]).partition.dump() == {
        "name": "synthetic",
        "clients": 7,
    }


def test_a_model_by_path_takes_any_option() -> None:
    config = load(None, ["model=package.module:factory", "model.depth=3", "model.widths=[1, 2]"])
    assert config.model.dump() == {
        "name": "package.module:factory",
        "depth": 3,
        "widths": [1, 2],
    }
    assert Config.from_tree(tomllib.loads(config.to_toml())) == config


def test_a_flower_run_config_is_read(file: Path) -> None:
    flat = {
        "config-file": str(file),
        "out": "somewhere",
        "rounds": 3,
        "strategy.name": "fedprox",
        "local.optimizer.lr": 0.25,
    }
    config = from_run_config(flat)
    assert config.rounds == 3
    assert config.strategy.dump()["mu"] == 0.5
    assert config.optimizer.dump()["lr"] == 0.25
    assert from_run_config({"config-file": "", "rounds": 3}) == load(None, ["rounds=3"])
    with pytest.raises(ConfigError, match=r'roundz: unknown key\. Did you mean "rounds"'):
        from_run_config({"roundz": 3})


def test_a_name_in_a_flower_run_config_drops_the_options_of_the_file(file: Path) -> None:
    config = from_run_config({"config-file": str(file), "strategy.name": "scaffold"})
    assert config.strategy == load(None, ["strategy=scaffold"]).strategy


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "import fedopt, fedopt.cli, fedopt.config, fedopt.registry\n"
        "fedopt.config.load(None, ['strategy=scaffold', 'model=cnn'])\n"
        "heavy = {'torch', 'flwr', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
