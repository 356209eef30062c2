from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt import atomic
from fedopt.analysis import store
from fedopt.analysis.columns import CLIENT_COLUMNS, ROUND_COLUMNS, markdown_table, names
from fedopt.analysis.store import (
    RunWriter,
    default_directory,
    read_clients,
    read_history,
    read_summary,
)
from fedopt.errors import ConfigError, RunError

REALS = [column.name for column in ROUND_COLUMNS if column.kind == "real"]
INTEGERS = [c.name for c in ROUND_COLUMNS if c.kind == "integer" and c.name != "round"]
rows = st.lists(
    st.fixed_dictionaries(
        {},
        optional={name: st.none() | st.floats(width=64) for name in REALS}
        | {name: st.integers(0, 2**53) for name in INTEGERS},
    ),
    max_size=6,
)


def cohort(round_: int, clients: int = 3) -> dict[str, list[object]]:
    return {
        "round": [round_] * clients,
        "client": list(range(clients)),
        "status": ["trained"] * clients,
        "train_loss": [0.1 * round_] * clients,
    }


def record(directory: Path | None, rounds: int) -> RunWriter:
    writer = RunWriter(directory)
    for number in range(1, rounds + 1):
        writer.add_clients(cohort(number))
        writer.add_round({"round": number, "train_loss": 1 / number, "bytes_up": 4 * number})
    return writer


def test_columns_are_the_contract() -> None:
    """Columns may be added; those of before keep their names and their order."""
    rounds, clients = names(ROUND_COLUMNS), names(CLIENT_COLUMNS)
    before = [
        "round",
        "train_loss",
        "test_loss",
        "test_accuracy",
        "test_ece",
        "test_mce",
        "test_brier",
        "test_sharpness",
        "test_ball_increase",
        "validation_loss",
        "validation_accuracy",
        "validation_accuracy_mean",
        "validation_accuracy_worst10",
        "validation_accuracy_variance",
        "swa_test_loss",
        "swa_test_accuracy",
        "swa_test_ece",
        "swa_test_mce",
        "swa_test_brier",
        "lr",
        "clients",
        "dropped_clients",
        "failed_clients",
        "skipped_steps",
        "architecture_entropy",
        "skip_connections",
        "available_share",
        "selected_share",
        "clip_norm",
        "epsilon",
        "bytes_up",
        "bytes_down",
        "sim_seconds",
        "wall_seconds",
        "client_steps",
        "client_gradients",
        "model_sha256",
    ]
    assert [name for name in rounds if name in before] == before
    assert rounds[-1] == "model_sha256"
    totals = [
        "bytes_up",
        "bytes_down",
        "sim_seconds",
        "wall_seconds",
        "client_steps",
        "client_gradients",
    ]
    cumulative = [c.name for c in ROUND_COLUMNS if c.cumulative]
    assert [name for name in cumulative if name in totals] == totals
    first = (
        "round,client,status,examples,steps,planned_steps,train_loss,update_norm,weight,"
        "skipped_steps,lr_sum,available_share,selected_share,bytes_up,bytes_down"
    )
    assert ",".join(clients).startswith(first)
    table = markdown_table(ROUND_COLUMNS).splitlines()
    assert len(table) == 2 + len(ROUND_COLUMNS)
    assert all(line.count(" | ") == 3 for line in table)


@settings(max_examples=40, deadline=None)
@given(written=rows)
def test_rounds_come_back_bit_for_bit(tmp_path_factory, written) -> None:
    folder = tmp_path_factory.mktemp("run") / "run"
    writers = [RunWriter(folder), RunWriter(None)]
    for writer in writers:
        for number, row in enumerate(written, start=1):
            writer.add_round({"round": number, **row})
        writer.close()
    read = read_history(folder)
    assert list(read) == list(names(ROUND_COLUMNS))
    assert read["round"].tolist() == list(range(1, len(written) + 1))
    for index, row in enumerate(written):
        for name in REALS + INTEGERS:
            value, got = row.get(name), read[name].iloc[index]
            if value is None or math.isnan(value):
                assert math.isnan(got)
                assert writers[0].rows[index][name] is None
            else:
                assert float(got).hex() == float(value).hex()
                assert writers[0].rows[index][name] == value
    for writer in writers:
        pd.testing.assert_frame_equal(writer.history(), read, check_exact=True)
    before = writers[0].rows
    resumed = RunWriter.resume(folder, len(written))
    assert resumed.rows == before
    resumed.close()


def test_each_line_is_on_disk_when_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    assert (tmp_path / "rounds.csv").read_text() == ",".join(names(ROUND_COLUMNS)) + "\n"
    assert read_history(tmp_path).empty
    writer.add_round({"round": 1, "train_loss": 0.1, "test_loss": None, "test_ece": math.nan})
    assert (tmp_path / "rounds.csv").read_text().splitlines()[1] == "1,0.1" + "," * (
        len(ROUND_COLUMNS) - 2
    )
    writer.close()


def test_clients_take_lists_arrays_and_tensors(tmp_path: Path) -> None:
    losses = np.array([0.1, np.nan, 3.5], np.float32)
    with RunWriter(tmp_path) as writer:
        writer.add_clients(
            {
                "round": np.full(3, 2),
                "client": torch.tensor([4, 5, 6]),
                "status": ["trained", "partial", "failed"],
                "steps": [3, None, 0],
                "train_loss": losses,
                "weight": (1, 2, 3),
            }
        )
        writer.add_clients({"round": [], "client": []})
    frame = read_clients(tmp_path)
    assert frame["client"].tolist() == [4, 5, 6]
    assert frame["status"].tolist() == ["trained", "partial", "failed"]
    np.testing.assert_array_equal(frame["train_loss"], losses.astype(np.float64))
    np.testing.assert_array_equal(frame["steps"], [3, np.nan, 0])
    assert frame["update_norm"].isna().all()
    assert frame.dtypes[["round", "client"]].tolist() == ["int64", "int64"]


def test_a_thousand_clients_take_milliseconds(tmp_path: Path) -> None:
    n = 1000
    columns = {
        "round": [1] * n,
        "client": list(range(n)),
        "status": ["trained"] * n,
        "examples": [50] * n,
        "steps": [5] * n,
        "planned_steps": [5] * n,
        "train_loss": np.random.default_rng(0).random(n),
        "update_norm": np.random.default_rng(1).random(n),
        "weight": [50.0] * n,
    }
    with RunWriter(tmp_path) as writer:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            writer.add_clients(columns)
            seconds.append(time.perf_counter() - began)
    # Measured about 3 ms; the room is for machines that are busy with other work.
    assert min(seconds) < 0.02


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"round": 3, "test_acuracy": 1.0}, 'Did you mean "test_accuracy"'),
        ({"test_loss": 1.0}, "round is missing"),
        ({"round": 2}, "round 2 is recorded already"),
        ({"round": 1}, "round 1 comes after round 2"),
        ({"round": 3, "clients": 1.5}, "clients: "),
        ({"round": 3, "test_loss": "low"}, "test_loss: "),
    ],
)
def test_a_bad_row_is_refused_and_leaves_no_trace(tmp_path: Path, row, words: str) -> None:
    writer = record(tmp_path, 2)
    before = (tmp_path / "rounds.csv").read_bytes()
    with pytest.raises(ValueError, match=words):
        writer.add_round(row)
    assert (tmp_path / "rounds.csv").read_bytes() == before
    assert len(writer.rows) == 2
    writer.close()


def test_bad_clients_are_refused() -> None:
    writer = RunWriter(None)
    with pytest.raises(ValueError, match="equally long"):
        writer.add_clients({"round": [1, 1], "client": [0]})
    with pytest.raises(ValueError, match="status: 'late' is not one of trained"):
        writer.add_clients({"round": [1], "status": ["late"]})
    assert writer.clients().empty


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with record(None, 3) as writer:
        assert writer.write_config("seed = 0\n") is None
        assert writer.write_json("summary.json", {}) is None
        assert writer.write_bytes("model.safetensors", b"") is None
        writer.truncate(2)
        assert [row["round"] for row in writer.rows] == [1, 2]
    assert writer.history()["train_loss"].tolist() == [1.0, 0.5]
    assert len(writer.clients()) == 6
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 1, 3, 4, 9])
def test_truncate_is_the_shorter_run(tmp_path: Path, after: int) -> None:
    record(tmp_path / "short", min(after, 4)).close()
    writer = record(tmp_path / "long", 4)
    for _ in range(2):
        writer.truncate(after)
        for name in ("rounds.csv", "clients.csv"):
            expected = (tmp_path / "short" / name).read_bytes()
            assert (tmp_path / "long" / name).read_bytes() == expected
    if after < 4:
        writer.add_round({"round": after + 1})
        assert len(read_history(tmp_path / "long")) == after + 1
    writer.close()
    assert sorted(os.listdir(tmp_path / "long")) == ["clients.csv", "rounds.csv"]


@pytest.mark.parametrize("cut", [1, 2, 5, 16])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    record(tmp_path, 3).close()
    for name in ("rounds.csv", "clients.csv"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
    assert read_history(tmp_path)["round"].tolist() == [1, 2]
    assert len(read_clients(tmp_path)) == 8
    with RunWriter.resume(tmp_path, 2) as writer:
        writer.add_clients(cohort(3))
        writer.add_round({"round": 3, "train_loss": 1 / 3, "bytes_up": 12})
    record(tmp_path / "whole", 3).close()
    for name in ("rounds.csv", "clients.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_damage_elsewhere_is_an_error(tmp_path: Path) -> None:
    record(tmp_path, 3).close()
    path = tmp_path / "rounds.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\0\0\0\n", *lines[2:]]))
    with pytest.raises(ConfigError, match=r"line 2 of .*rounds\.csv is damaged"):
        RunWriter.resume(tmp_path, 3)
    with pytest.raises(ConfigError, match=r"rounds\.csv is damaged"):
        read_history(tmp_path)
    path.write_bytes(b"".join([lines[0], lines[1][:-4] + b"\n", *lines[2:]]))
    with pytest.raises(ConfigError, match=r"not all of its lines are whole"):
        read_history(tmp_path)
    path.write_text("round,loss\n1,2\n")
    with pytest.raises(ConfigError, match="lacks the columns train_loss, "):
        read_history(tmp_path)


def test_a_run_resumes_only_where_it_got_to(tmp_path: Path) -> None:
    record(tmp_path, 3).close()
    with pytest.raises(ConfigError, match=r"ends with round 3.*after round 5"):
        RunWriter.resume(tmp_path, 5)


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run", 1).close()
    with pytest.raises(ConfigError, match=r"^out: .*holds a run already.*fedopt resume") as error:
        RunWriter(tmp_path / "run")
    assert error.value.key == "out"
    assert len(read_history(tmp_path / "run")) == 1
    with pytest.raises(ConfigError, match=r"^out: .*not empty. Give a folder that is empty"):
        RunWriter(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^out: .*is a file"):
        RunWriter(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"^out: cannot make the folder"):
        RunWriter(tmp_path / "file" / "run")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    with RunWriter(tmp_path) as writer:
        path = writer.write_text("model.txt", "old\n")
        assert path == tmp_path / "model.txt"
        assert writer.write_bytes("checkpoints/1/state.bin", b"\0") is not None
        files = sorted(tmp_path.rglob("*"))
        for broken in ("replace", "fsync"):

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(atomic.os, broken, fail)
                with pytest.raises(RunError, match=r"cannot write .*model\.txt: No space left"):
                    writer.write_text("model.txt", "new\n")
            assert path.read_text() == "old\n"
            assert sorted(tmp_path.rglob("*")) == files
        writer.write_text("model.txt", "new\n")
        assert path.read_bytes() == b"new\n"


def test_no_temporary_file_is_left_by_an_interrupt(tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(tmp_path / "x", b"x")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with RunWriter(tmp_path / "run") as writer, pytest.raises(ValueError, match="inside"):
        writer.write_text(name, "")


def test_json_is_strict(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "inf": [-math.inf, 1],
        "half": np.float32(0.5),
        "tensor": torch.tensor([1.0, math.nan]),
        "count": np.int64(3),
        "dir": Path("a/b"),
        "yes": True,
        "none": None,
        "text": "µ",
    }
    with RunWriter(tmp_path) as writer:
        writer.write_json("summary.json", value)
        with pytest.raises(TypeError, match="cannot write a set"):
            writer.write_json("summary.json", {"a": {1}})
        with pytest.raises(TypeError, match="keys must be text"):
            writer.write_json("summary.json", {1: 2})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    expected = {
        "nan": None,
        "inf": [None, 1],
        "half": 0.5,
        "tensor": [1.0, None],
        "count": 3,
        "dir": "a/b",
        "yes": True,
        "none": None,
        "text": "µ",
    }
    assert json.loads(text, parse_constant=refuse) == expected
    assert read_summary(tmp_path) == expected


def test_what_is_not_a_run_is_named_with_the_nearest_that_is(tmp_path: Path) -> None:
    record(tmp_path / "scaffold_s0", 1).close()
    (tmp_path / "scaffold_s9").mkdir()
    for read in (read_history, read_clients, read_summary):
        with pytest.raises(ConfigError, match=r'scafold_s0 does not exist.*"scaffold_s0"'):
            read(tmp_path / "scafold_s0")
    with pytest.raises(ConfigError, match=r'has no rounds.csv. Did you mean "scaffold_s0"'):
        read_history(tmp_path / "scaffold_s9")
    with pytest.raises(ConfigError, match=r"Name a run in it, such as .*scaffold_s0"):
        read_history(tmp_path)
    with pytest.raises(ConfigError, match=r"is a file"):
        read_history(tmp_path / "scaffold_s0" / "rounds.csv")
    with pytest.raises(ConfigError, match=r"no summary.json.*fedopt resume"):
        read_summary(tmp_path / "scaffold_s0")
    (tmp_path / "scaffold_s0" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary.json is damaged"):
        read_summary(tmp_path / "scaffold_s0")


def test_default_directories_are_new_and_tell_what_runs(tmp_path: Path, monkeypatch) -> None:
    class Noon(store.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 12)

    monkeypatch.setattr(store, "datetime", Noon)
    root = tmp_path / "runs"
    words = ["scaffold", "my data/x", "s0", ""]
    made = [default_directory(root, words) for _ in range(3)]
    assert [path.name for path in made] == [
        "2026-01-31_12-00-00_scaffold_my-data-x_s0",
        "2026-01-31_12-00-00_scaffold_my-data-x_s0_2",
        "2026-01-31_12-00-00_scaffold_my-data-x_s0_3",
    ]
    RunWriter(made[0]).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^out: "):
        default_directory(tmp_path / "file", words)
