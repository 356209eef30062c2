from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from fedopt.analysis.groups import Group, group_runs, read_stored, run_folders, stored
from fedopt.analysis.store import RunWriter
from fedopt.config import load
from fedopt.errors import ConfigError


def run(*words: str, name: str = "a"):
    return stored(name, pd.DataFrame(), load(None, list(words)).dump())


def labels(*words_of_runs: str) -> list[str]:
    runs = [run(*words.split(), name=f"runs/{i}") for i, words in enumerate(words_of_runs)]
    return [group.label for group in group_runs(runs)]


def test_runs_that_differ_in_the_seed_alone_are_a_group() -> None:
    runs = [
        run(f"strategy={strategy}", f"seed={seed}", name=f"{strategy}{seed}")
        for seed in (0, 1)
        for strategy in ("fedavg", "scaffold")
    ]
    groups = group_runs(runs)
    assert [(g.label, g.n) for g in groups] == [("fedavg", 2), ("scaffold", 2)]
    assert [[r.name for r in g.runs] for g in groups] == [
        ["fedavg0", "fedavg1"],
        ["scaffold0", "scaffold1"],
    ]
    apart = group_runs(runs, by_seed=False)
    assert [g.label for g in apart] == [r.name for r in runs]


def test_where_a_run_is_computed_does_not_matter() -> None:
    words = ("engine=inline", "engine.workers=3", "checkpoint.every=7")
    groups = group_runs([run("seed=0"), run("seed=1", *words)])
    assert [g.n for g in groups] == [2]
    assert len(group_runs([run("seed=0"), run("seed=1", "engine.block_size=3")])) == 2


def test_a_seed_never_counts_twice() -> None:
    runs = [run("seed=0", name="x"), run("seed=1", name="y"), run("seed=0", name="z")]
    groups = group_runs(runs)
    assert [[r.name for r in g.runs] for g in groups] == [["x", "y"], ["z"]]
    assert len({g.label for g in groups}) == 2
    assert all(name in g.label for name, g in zip("xz", groups, strict=True))


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["strategy=fedavg", "strategy=scaffold"], ["fedavg", "scaffold"]),
        (["strategy=fedprox"], ["fedprox"]),
        (
            ["strategy=fedprox strategy.mu=0.1", "strategy=fedprox strategy.mu=1.0"],
            ["mu=0.1", "mu=1"],
        ),
        (
            # The options of one strategy say nothing beside another's name.
            ["strategy=fedavg", "strategy=fedprox strategy.mu=1.0", "strategy=fedprox"],
            ["fedavg", "fedprox, mu=1", "fedprox, mu=0.1"],
        ),
        (
            ["local.optimizer.lr=0.1", "local.optimizer.lr=0.01 strategy=fedadam"],
            ["fedavg, lr=0.1", "fedadam, lr=0.01"],
        ),
        (["local.gradient.clip_norm=1.0", ""], ["gradient.clip_norm=1", "gradient.clip_norm=none"]),
        (["model.hidden=[64]", "model.hidden=[32,32]"], ["hidden=[64]", "hidden=[32, 32]"]),
        (["local.schedule=cosine", ""], ["schedule=cosine", "schedule=constant"]),
        (
            ["local.batch_size=5 evaluation.batch_size=7", ""],
            [
                "batch_size=5, evaluation.batch_size=7",
                "batch_size=10, evaluation.batch_size=1024",
            ],
        ),
    ],
)
def test_labels_say_what_differs(runs: list[str], expected: list[str]) -> None:
    assert labels(*runs) == expected


def test_runs_without_a_configuration_keep_their_names(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "bare") as writer:
        writer.add_round({"round": 1, "test_accuracy": 0.5})
    runs = [read_stored(tmp_path / "bare"), read_stored(tmp_path / "bare")]
    assert [g.label for g in group_runs(runs)] == [str(tmp_path / "bare")] * 2


def test_folders_of_sweeps_stand_for_their_finished_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name, status in (("b", "completed"), ("a", "completed"), ("c", "interrupted")):
        with RunWriter(sweep / "runs" / name) as writer:
            writer.write_json("summary.json", {"status": status})
    with pytest.raises(ConfigError, match=r"no rounds\.csv"):
        read_stored(sweep)
    (sweep / "sweep.json").write_text(json.dumps({}))
    folders, notes = run_folders([sweep, tmp_path / "other"])
    assert folders == [sweep / "runs" / "a", sweep / "runs" / "b", tmp_path / "other"]
    assert notes == [f"{sweep}: 1 of 3 runs is not finished and left out"]
    for name in "ab":
        (sweep / "runs" / name / "summary.json").unlink()
    with pytest.raises(ConfigError, match="without a finished run"):
        run_folders([sweep])


def test_references_are_known_by_their_strategy() -> None:
    assert Group("c", (run("strategy=centralised"),)).is_reference
    assert not Group("f", (run(),)).is_reference
