"""Input of any shape: a configuration, data, a run's files or a reply is used or refused in words.

`FEDOPT_EXAMPLES=10000 pytest tests/test_malformed_input.py` draws so many examples a test (those of
the slower tests a twentieth); by default few are drawn, the same each time.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedopt.analysis.store import RunWriter, read_clients, read_history, read_summary
from fedopt.cli import app
from fedopt.client.messages import encode_outcome
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import Block, Reports, Status, TrainingOutcome
from fedopt.config import CHOICES, Config, load, read_toml
from fedopt.data import build_population
from fedopt.data.catalogue import FilesOptions
from fedopt.data.files import load_files
from fedopt.errors import ConfigError, FedoptError, RunError
from fedopt.records import from_record, to_record
from fedopt.registry import entries, get
from fedopt.rerun import Rerun, read_run
from fedopt.server.checkpoint import Checkpoint, digest, load_all
from fedopt.server.replies import Expected
from fedopt.simulation.grid import identify_process

EXAMPLES = int(os.environ.get("FEDOPT_EXAMPLES", "0"))
"""Examples a test; 0 for the few that every run of the tests draws."""

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]

many = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=10_000,  # milliseconds: what takes longer hangs
    suppress_health_check=CHECKS,
)
some = settings(
    max_examples=max(EXAMPLES // 20, 8),
    derandomize=not EXAMPLES,
    deadline=60_000,
    suppress_health_check=CHECKS,
)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Numpy warns of what is being refused."""
    with np.errstate(all="ignore"):
        yield


# Configurations ---------------------------------------------------------------------------------


def keys() -> list[str]:
    """Return the keys that a configuration knows, as dotted words."""
    tree = load(None).dump()

    def inside(table: dict[str, Any], path: str) -> Iterator[str]:
        for name, value in table.items():
            where = f"{path}.{name}" if path else name
            yield where
            if isinstance(value, dict):
                yield from inside(value, where)

    found = [*inside(tree, "")]
    for key, kind in CHOICES.items():
        for entry in entries(kind):
            found += [f"{key}.{option}" for option in entry.options.model_fields]
    return sorted(set(found))


KEYS = keys()
NAMES = sorted({entry.name for kind in set(CHOICES.values()) for entry in entries(kind)})

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([*NAMES, "all", "inf", "nan", "1e400", "-0.0", "os:system", ":", "a:b"]),
    words,
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "name"]) | words, inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS) | words, values, max_size=4))
@many
def test_any_table_is_a_configuration_or_refused(tree: dict[str, Any]) -> None:
    with contextlib.suppress(FedoptError):
        assert isinstance(load(None, **tree), Config)


@given(st.lists(st.tuples(st.sampled_from(KEYS) | words, scalars | words), max_size=4))
@many
def test_any_words_are_a_configuration_or_refused(pairs: list[tuple[str, Any]]) -> None:
    with contextlib.suppress(FedoptError):
        config = load(None, [f"{key}={value}" for key, value in pairs])
        # What was accepted is written into a run's folder and read from there.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.toml"
            path.write_text(config.to_toml(), encoding="utf-8")
            assert load(path).dump() == config.dump()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@many
def test_any_file_is_toml_or_refused(payload: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(payload)
        with contextlib.suppress(ConfigError):
            assert isinstance(read_toml(path), dict)


@given(st.lists(st.tuples(st.sampled_from(KEYS), scalars), min_size=1, max_size=3))
@some
def test_what_is_refused_writes_nothing(pairs: list[tuple[str, Any]]) -> None:
    given_words = [f"{key}={value}" for key, value in pairs]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        arguments = ["run", *given_words, "no_such_key=1", "--out", "run"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert not os.listdir(folder)


# Data -------------------------------------------------------------------------------------------

DTYPES = ["f4", "f8", "f2", "i8", "i4", "u1", "u8", "b1", "c8", "U3", "S2", "M8[s]"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Draw an array of any kind and shape, some of its numbers not finite or huge."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    seed = draw(st.integers(0, 999))
    numbers = np.random.default_rng(seed).integers(-2, 5, shape)
    with np.errstate(all="ignore"):
        array = numbers.astype(dtype)
    if dtype.kind == "f" and array.size and draw(st.booleans()):
        array.flat[draw(st.integers(0, array.size - 1))] = draw(
            st.sampled_from([math.nan, math.inf, -math.inf, 6e4])
        )
    if dtype.kind in "iu" and array.size and draw(st.booleans()):
        array.flat[0] = np.iinfo(dtype).max
    return array


FILE_KEYS = ("x", "y", "test_x", "test_y", "client", "train_images", "train_labels", "z")


def population_of(path: Path, seed: int) -> None:
    """Load a file and cut it into clients; whatever is wrong must be said."""
    options = FilesOptions(path=str(path))
    try:
        dataset = load_files(options, seed)
    except FedoptError:
        return
    assert len(dataset.x) == len(dataset.y)
    for name in ("iid", "natural", "dirichlet", "shards"):
        entry = get("partitions", name)
        fields = entry.options.model_fields
        chosen = entry.options(**({"clients": 2} if "clients" in fields else {}))
        with contextlib.suppress(FedoptError):
            population = build_population("files", options, name, chosen, seed=seed)
            sizes = population.sizes
            assert sizes.sum() <= len(dataset.x)
            for client in range(min(population.clients, 3)):
                examples = population.train(client)
                assert len(examples.x) == len(examples.y) == sizes[client]
                if examples.x.dtype.kind == "f":
                    assert np.isfinite(examples.x).all()


@given(st.dictionaries(st.sampled_from(FILE_KEYS), arrays(), max_size=5), st.integers(0, 3))
@many
def test_any_arrays_are_data_or_refused(parts: dict[str, Any], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, **parts)
        population_of(path, seed)


def npz() -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(file, x=rng.normal(size=(30, 3)).astype("f4"), y=rng.integers(0, 3, 30))
    return file.getvalue()


NPZ = npz()


def edited(payload: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of bytes with something overwritten, cut out or put in."""

    def edit(places: tuple[int, int], text: bytes) -> bytes:
        first, last = sorted(places)
        return payload[:first] + text + payload[last:]

    place = st.integers(0, len(payload))
    near = st.tuples(place, st.integers(0, 8)).map(
        lambda pair: (pair[0], min(pair[0] + pair[1], len(payload)))
    )
    return st.builds(edit, near | st.tuples(place, place), st.binary(max_size=16))


@given(edited(NPZ) | st.binary(max_size=100), st.sampled_from(["data.npz", "x.npy", "y.csv"]))
@many
def test_any_file_is_data_or_refused(payload: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(payload)
        population_of(path, 0)
        population_of(Path(folder), 0)


# Files of a run ---------------------------------------------------------------------------------

RUN = [
    "engine.name=inline",
    "rounds=5",
    "clients_per_round=4",
    "partition.clients=8",
    "model=logistic",
    "local.steps=2",
    "strategy=scaffold",
    "checkpoint.every=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("malformed") / "run"
    result = CliRunner().invoke(app, ["run", *RUN, "--out", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    return folder


def checkpoint() -> tuple[Checkpoint, bytes]:
    draws = torch.Generator().manual_seed(0)
    made = Checkpoint(
        3,
        {"w": torch.randn(2, 3, generator=draws), "n": torch.tensor(3)},
        {"control_variate": torch.randn(6, generator=draws, dtype=torch.float64)},
        {5: 0, 7: 2},
        {"bytes_up": 12.0},
    )
    with tempfile.TemporaryDirectory() as folder:
        return made, made.save(Path(folder)).read_bytes()


CHECKPOINT, CHECKPOINT_BYTES = checkpoint()


@given(edited(CHECKPOINT_BYTES) | st.binary(max_size=64))
@many
def test_any_checkpoint_is_the_one_that_was_written_or_passed_over(payload: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "round_000003.safetensors").write_bytes(payload)
        for found in load_all(Path(folder)):
            assert found.round == CHECKPOINT.round
            assert digest(found.arrays) == digest(CHECKPOINT.arrays)
            assert digest(found.vectors) == digest(CHECKPOINT.vectors)
            assert dict(found.client_rows) == dict(CHECKPOINT.client_rows)
            assert dict(found.totals) == dict(CHECKPOINT.totals)


@given(st.data())
@many
def test_any_table_is_read_or_refused(finished: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["rounds.csv", "clients.csv", "summary.json"]))
    payload = data.draw(edited((finished / name).read_bytes()))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        for table in ("rounds.csv", "clients.csv", "config.toml", "summary.json"):
            shutil.copy(finished / table, run / table)
        (run / name).write_bytes(payload)
        for read in (read_history, read_clients, read_summary):
            with contextlib.suppress(ConfigError):
                read(run)
        with contextlib.suppress(ConfigError):
            RunWriter.resume(run, data.draw(st.integers(0, 6))).close()
        assert not list(run.glob(".*")), "neither a lock nor a half-written file is left"


@given(st.data())
@some
def test_any_run_goes_on_or_is_refused(finished: Path, data: st.DataObject) -> None:
    """Whatever one file of it holds, `resume` ends with 0 and the same bits, or with 1 or 2."""
    files = sorted(p for p in finished.rglob("*") if p.suffix in (".csv", ".safetensors", ".bin"))
    path = data.draw(st.sampled_from(files)).relative_to(finished)
    payload = data.draw(edited((finished / path).read_bytes()))
    expected = read_summary(finished)["model_sha256"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(finished, run)
        (run / path).write_bytes(payload)
        (run / "summary.json").unlink()
        result = CliRunner().invoke(app, ["resume", str(run), "--quiet"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        assert result.exit_code in (0, 1, 2)
        assert not list(run.rglob(".*"))
        if result.exit_code == 0 and path.suffix != ".bin":
            assert read_summary(run)["model_sha256"] == expected
        with contextlib.suppress(FedoptError), Rerun(read_run(run), 3) as server:
            assert server.round <= 3


# Replies ----------------------------------------------------------------------------------------

BLOCKS = [Block(2, [3, 5], [4, 4]), Block(3, [8], [2])]
SIZES = {"delta": 4, "control_delta": 4}


def reply() -> RecordDict:
    """Return the content of a sound reply for `BLOCKS`."""
    reports = Reports()
    for block in BLOCKS:
        for client, steps in zip(block.clients, block.steps, strict=True):
            reports.add_untrained(client, 10, steps, steps)
            reports.status[-1], reports.weight[-1] = int(Status.TRAINED), 10.0
            reports.train_loss[-1] = 0.5
    terms = {name: torch.arange(size, dtype=torch.float64) for name, size in SIZES.items()}
    sums = BlockSums(2, 4, terms, torch.zeros(0, dtype=torch.float64), 30.0, 3)
    return encode_outcome(TrainingOutcome([sums], reports))


EXPECTED = Expected(BLOCKS, SIZES, 0, {3: 10, 5: 10, 8: 10}, 4)

numbers = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(), st.sampled_from([math.nan, math.inf, -0.0, 1e308])
)
columns = st.one_of(
    st.lists(st.integers(-5, 2**40), max_size=5),
    st.lists(st.floats(), max_size=5),
    st.lists(st.text(max_size=3), max_size=3),
    st.integers(-3, 99),
    st.floats(),
    st.text(max_size=3),
)


@st.composite
def poisoned(draw: st.DrawFn) -> RecordDict:
    """Draw a reply of which some records are gone, changed or of another kind."""
    content = reply()
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(content) or ["sums"]))
        how = draw(st.sampled_from(["remove", "values", "column", "kind", "add"]))
        if how == "remove":
            content.pop(name, None)
        elif how == "kind":
            content[name] = draw(
                st.sampled_from([ConfigRecord({}), MetricRecord({}), to_record({})])
            )
        elif how == "add":
            content[draw(st.sampled_from(["failures", "changed", "changes", "x"]))] = ConfigRecord(
                {draw(st.sampled_from(["clients", "reasons", "diverged", "y"])): [1]}
            )
        elif name in content.array_records:
            arrays_of = {k: v.clone() for k, v in from_record(content.array_records[name]).items()}
            key = draw(st.sampled_from([*arrays_of, "2/other"]))
            shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
            dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.int64]))
            changed = arrays_of.get(key, torch.zeros(shape, dtype=dtype)).clone()
            if draw(st.booleans()):
                changed = torch.zeros(shape, dtype=dtype)
            if changed.numel() and changed.is_floating_point():
                changed.view(-1)[0] = draw(st.floats(width=32))
            arrays_of[key] = changed
            content[name] = to_record(arrays_of)
        elif name in content.config_records:
            record = dict(content.config_records[name])
            key = draw(st.sampled_from([*record, "other"]))
            record[key] = draw(columns)
            content[name] = ConfigRecord(record)
        elif name in content.metric_records:
            metrics: dict[str, Any] = dict(content.metric_records[name])
            key = draw(st.sampled_from([*metrics, "other"]))
            metrics[key] = draw(
                st.lists(st.integers(-5, 2**40), max_size=5) | st.lists(st.floats(), max_size=5)
            )
            content[name] = MetricRecord(metrics)
    return content


def message(content: RecordDict) -> Message:
    identify_process()
    asked = Message(RecordDict({}), 7, "train")
    asked.metadata.__dict__["_message_id"] = "1"
    return Message(content, reply_to=asked)


def test_a_sound_reply_is_taken() -> None:
    outcome = EXPECTED.outcome(message(reply()))
    assert outcome.sums[0].count == 3
    assert sorted(outcome.reports.client) == [3, 5, 8]


@given(poisoned())
@many
def test_any_reply_is_sound_or_refused(content: RecordDict) -> None:
    refusal = None
    try:
        outcome = EXPECTED.outcome(message(content))
    except RunError as error:
        refusal = str(error)
    if refusal is not None:
        assert "node 7" in refusal
        return
    for part in outcome.sums:
        assert {name: tuple(term.shape) for name, term in part.terms.items()} == {
            name: (size,) for name, size in SIZES.items()
        }
        if part.count:
            assert all(bool(torch.isfinite(term).all()) for term in part.terms.values())
    assert sorted(outcome.reports.client) == [3, 5, 8]
    assert not any(math.isnan(weight) for weight in outcome.reports.weight)
