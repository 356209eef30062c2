from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.columns import names as column_names
from fedopt.analysis.comparison import comparison
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.targets import Target
from fedopt.cli import app
from fedopt.config import Config, load
from fedopt.errors import ConfigError
from fedopt.sweep import drive
from fedopt.sweep.ablation import (
    ALONE,
    BASELINE,
    IN_WHOLE,
    INTERACTION,
    TOGETHER,
    WHOLE,
    default_target,
    delivered,
    effects_of,
    variants_of,
)
from fedopt.sweep.space import read_space
from fedopt.sweep.techniques import TECHNIQUES, read_instead, techniques_of, without

from .in_process import TASK, InProcess, Pretended, in_process

RECIPE = {
    "strategy": "strategy=scaffold",
    "local.optimizer.momentum": "local.optimizer.momentum=0.5",
    "local.schedule": "local.schedule=cosine",
    "local.sam": "local.sam.rho=0.05",
    "local.gradient.clip_norm": "local.gradient.clip_norm=1.0",
    "local.gradient.noise_eta": "local.gradient.noise_eta=0.01",
    "local.swa": "local.swa.last_steps=2",
    "local.curriculum": "local.curriculum=curriculum",
    "server.swa": "server.swa.start=0.5",
    "uplink.compression": "uplink.compression=qsgd",
}
OTHERS = {
    "local.optimizer": "local.optimizer=adam",
    "local.optimizer.weight_decay": "local.optimizer.weight_decay=0.1",
    "local.gradient.penalty": "local.gradient.penalty=0.1",
    "local.gradient.skip_norm": "local.gradient.skip_norm=9.0",
    "local.gradient.skip_nonfinite": "local.gradient.skip_nonfinite=true",
    "local.gradient.clip_value": "local.gradient.clip_value=1.0",
    "local.optimizer_state": "local.optimizer_state=keep",
    "local.self_paced": 'local.self_paced={name="hard",threshold=1.0}',
    "server.optimizer": "server.optimizer=sgd",
    "server.curriculum": "server.curriculum=curriculum",
    "uplink.clip": "uplink.clip.norm=1.0",
    "uplink.privacy": "uplink.privacy.noise_multiplier=0.1",
    "downlink.compression": "downlink.compression=quantise",
    "policy": 'policy={name="deadline",seconds=9.0}',
    "selection": "selection=size",
}


def frame(accuracy: list[float]) -> pd.DataFrame:
    """A history of these accuracies, the only thing measured."""
    table = pd.DataFrame({name: [math.nan] * len(accuracy) for name in column_names(ROUND_COLUMNS)})
    table["round"] = range(1, len(accuracy) + 1)
    return table.assign(test_accuracy=accuracy)


def recipe(*words: str) -> Config:
    return load(None, list(words))


def names(config: Config) -> list[str]:
    return [technique.name for technique in techniques_of(config)]


def test_techniques_are_found_against_the_defaults() -> None:
    assert names(recipe()) == []
    assert names(recipe(*RECIPE.values())) == list(RECIPE)
    # The task is no technique.
    task = ["rounds=7", "data=breast_cancer", "partition.alpha=1.0", "model.hidden=[8]"]
    assert names(recipe(*task, "local.epochs=1", "local.optimizer.lr=0.5", "attack=none")) == []


def test_every_technique_is_known_by_its_name_and_can_be_left_out() -> None:
    words = {**RECIPE, **OTHERS}
    assert set(words) == {technique.name for technique in TECHNIQUES}
    for technique in TECHNIQUES:
        try:
            config = recipe(words[technique.name])
        except ConfigError as error:
            pytest.fail(f"{technique.name}: {error}")
        assert names(config) == [technique.name]
        assert without(config, [technique]) == recipe()


def test_one_is_left_out_and_the_others_stay_as_they_are() -> None:
    config = recipe(*RECIPE.values())
    for technique in techniques_of(config):
        rest = [word for name, word in RECIPE.items() if name != technique.name]
        assert without(config, [technique]) == recipe(*rest)
    assert without(config, techniques_of(config)) == recipe()


def test_other_values_than_the_defaults_may_stand_instead() -> None:
    config = recipe("local.optimizer=adam", "local.optimizer.lr=0.001", "local.sam.rho=0.1")
    instead = read_instead(read_space(["local.optimizer.lr=0.3", "local.schedule=cosine"]))
    adam, sam = techniques_of(config)
    assert without(config, [adam], instead) == recipe("local.optimizer.lr=0.3", "local.sam.rho=0.1")
    assert without(config, [sam], instead).optimizer == config.optimizer
    with pytest.raises(ConfigError, match="belongs to no technique"):
        read_instead(read_space(["rounds=3"]))
    with pytest.raises(ConfigError, match="needs one value"):
        read_instead(read_space(["local.sam.rho=0.1,0.2"]))


def test_variants_are_run_once_each() -> None:
    one = variants_of(recipe("local.sam.rho=0.1"), {})
    assert list(one.configs) == [WHOLE, BASELINE]
    assert one.found("only local.sam") == WHOLE
    assert one.found("without local.sam") == BASELINE
    two = variants_of(recipe("local.sam.rho=0.1", "strategy=scaffold"), {})
    assert list(two.configs) == [WHOLE, BASELINE, "without strategy", "without local.sam"]
    assert two.found("only local.sam") == "without strategy"
    three = variants_of(recipe(*list(RECIPE.values())[:3]), {})
    assert len(three.configs) == 8
    with pytest.raises(ConfigError, match="uses no technique"):
        variants_of(recipe(), {})


def test_what_cannot_be_left_out_alone_is_told() -> None:
    paced = 'local.curriculum={name="curriculum",reference="global"}'
    found = variants_of(recipe("strategy=scaffold", paced), {})
    assert not found.refused
    private = ["uplink.clip.norm=1.0", "uplink.clip.quantile=0.5", "local.sam.rho=0.1"]
    assert not variants_of(recipe(*private), {}).refused


def group(label: str, finals: list[float], seeds: list[int] | None = None) -> Group:
    runs = [
        StoredRun(label, frame(np.linspace(0, final, 5).tolist()), {}, seed)
        for seed, final in zip(seeds or range(len(finals)), finals, strict=True)
    ]
    return Group(label, tuple(runs))


def test_effects_are_paired_differences_of_the_right_variants() -> None:
    variants = variants_of(
        recipe("local.sam.rho=0.1", "strategy=scaffold", "local.schedule=cosine"), {}
    )
    rng = np.random.default_rng(0)
    finals = {label: rng.uniform(0.6, 0.9, size=4) for label in variants.configs}
    groups = [group(label, values.tolist()) for label, values in finals.items()]
    found = comparison(groups, ["test_accuracy"], Target("test_accuracy", 0.5), BASELINE)
    effects = {
        (e.technique, e.role, e.quantity): e.difference
        for e in effects_of(found, variants, "test_accuracy")
    }
    rounds = {label: 1 + 4 * 0.5 / values for label, values in finals.items()}
    for quantity, table in (("final test_accuracy", finals), ("rounds", rounds)):
        only = [table[f"only {name}"] for name in ("strategy", "local.schedule", "local.sam")]
        pairs = {
            ("local.sam", IN_WHOLE): table[WHOLE] - table["without local.sam"],
            ("local.sam", ALONE): table["only local.sam"] - table[BASELINE],
            ("all", TOGETHER): table[WHOLE] - table[BASELINE],
            ("all", INTERACTION): table[WHOLE]
            - table[BASELINE]
            - sum(o - table[BASELINE] for o in only),
        }
        for (technique, role), differences in pairs.items():
            d = effects[technique, role, quantity]
            assert d is not None
            assert d.interval is not None
            low, high = stats.t.interval(
                0.95, 3, loc=differences.mean(), scale=stats.sem(differences)
            )
            assert (d.mean, d.interval.low, d.interval.high) == pytest.approx(
                (differences.mean(), low, high), rel=1e-6
            )
    assert effects["local.sam", ALONE, "sim_seconds"] is None, "nobody measured it"


def test_a_variant_that_failed_leaves_its_effect_out() -> None:
    variants = variants_of(recipe("local.sam.rho=0.1", "strategy=scaffold"), {})
    groups = [group(WHOLE, [0.8, 0.9]), group(BASELINE, [0.7, 0.8])]
    found = comparison(groups, ["test_accuracy"], Target("test_accuracy", 0.5), BASELINE)
    effects = effects_of(found, variants, "test_accuracy")
    missing = {
        (e.technique, e.role) for e in effects if e.difference is None and e.quantity == "rounds"
    }
    assert missing == {
        *((t, r) for t in ("local.sam", "strategy") for r in (IN_WHOLE, ALONE)),
        ("all", INTERACTION),
    }


def test_the_default_target_is_what_the_baseline_ends_with() -> None:
    found = comparison([group(BASELINE, [0.91239, 0.91239])], ["test_accuracy"])
    assert default_target(found, "test_accuracy") == Target("test_accuracy", 0.9123)


def test_an_averaged_model_is_what_is_delivered() -> None:
    run = group("a", [0.8]).runs[0]
    history = run.history.assign(swa_test_accuracy=[np.nan] * 3 + [0.85, 0.86])
    one = Group("a", (StoredRun("a", history, {}, 0),))
    plain = delivered(one, recipe())
    assert plain is one
    averaged = delivered(one, recipe("server.swa.start=0.5")).histories[0]["test_accuracy"]
    assert averaged.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.85, 0.86])
    assert history["test_accuracy"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


def test_an_ablation_from_words_to_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here: type[InProcess] = in_process(Pretended)
    monkeypatch.setattr(drive, "Child", here)
    monkeypatch.setattr(drive, "_POLL", 0.0)
    monkeypatch.chdir(tmp_path)
    words = ["ablate", *TASK, "strategy=scaffold", "local.sam.rho=0.05", "seed=5"]
    result = CliRunner().invoke(app, [*words, "--seeds", "2", "--out", "out", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["techniques"] == ["strategy", "local.sam"]
    assert len(here.calls) == 4 * 2
    assert {point["seeds"] for point in summary["points"]} == {"5 6"}
    rows = pd.read_csv("out/ablation.csv")
    assert set(rows["role"]) == {IN_WHOLE, ALONE, TOGETHER, INTERACTION}
    for name in ("ablation.md", "effects.png", "effects.csv", "convergence.png", "results.csv"):
        assert (Path("out") / name).stat().st_size
    text = CliRunner().invoke(app, [*words, "--seeds", "2", "--out", "out"])
    assert text.exit_code == 0
    assert len(here.calls) == 8
    assert "\x1b" not in text.output
    more = CliRunner().invoke(app, [*words, "--seeds", "3", "--out", "out"])
    assert more.exit_code == 2
    assert "seeds: 5,6 there, 5,6,7 here" in more.stderr
    assert CliRunner().invoke(app, ["ablate", "seed=0,1"]).exit_code == 2
    assert CliRunner().invoke(app, ["ablate", *TASK]).exit_code == 2
