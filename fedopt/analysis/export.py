"""Runs in the formats of other tools: tables (CSV, Parquet), TensorBoard, MLflow.

All of it is local: no service is asked, and telemetry that a package has is turned off. Exporting
again replaces what was exported of the same run.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.groups import flattened
from fedopt.analysis.report.record import RunRecord, read_run
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError, unknown_name, unwritable

EXPERIMENT = "fedopt"
"""Name of the experiment in MLflow."""

_PACKAGES = {"parquet": "pyarrow", "tensorboard": "tensorboard", "mlflow": "mlflow"}
_PARTS = ("train", "validation", "swa_test", "drift_test", "test", "unseen")
_NUMBERS = [c for c in ROUND_COLUMNS if c.kind in ("integer", "real") and c.name != "round"]
_MLFLOW_BATCH = 1000  # metrics of a call, the most that MLflow takes
_MLFLOW_CHARACTERS = 6000  # of a parameter, likewise
_MLFLOW_STATUS = {
    "completed": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "stopped": "KILLED",
    "running": "RUNNING",
}


def export_runs(directories: Sequence[Path], form: str, out: Path) -> list[Path]:
    """Write runs in another form.

    Args:
        directories: folders of runs, finished or not, at least one.
        form: one of `FORMS`.
        out: folder of what is written, made if need be.

    Returns:
        What was written: files, or folders that the other tool opens.

    Raises:
        ConfigError: an unknown form, a package that is missing (with the extra that brings it), a
            folder that is not a run's, or an `out` that cannot be made.
        RunError: a file cannot be written.
    """
    if form not in FORMS:
        raise unknown_name("--to", form, FORMS)
    package = _PACKAGES.get(form)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f'"{form}" needs the package {package}: pip install "fedopt[{form}]"', key="--to"
        )
    records = [read_run(directory) for directory in directories]
    names = _names(records)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        says = error.strerror or error
        raise ConfigError(f"cannot make the folder {out}: {says}", key="--out") from error
    return FORMS[form](list(zip(names, records, strict=True)), out)


def tables(runs: Sequence[tuple[str, RunRecord]]) -> dict[str, pd.DataFrame]:
    """Return runs as tidy tables, each with the name of the run in its first column.

    Args:
        runs: unique name and record of each.

    Returns:
        `runs` (a row a run: status, final and best values), `config` (a row a key), `rounds`,
        `clients` and `evaluations`; those without rows are left out.
    """
    found: dict[str, list[pd.DataFrame]] = {}
    facts, keys = [], []
    for name, record in runs:
        facts.append({"run": name, "status": record.status, **_facts(record)})
        keys += [(name, key, str(value)) for key, value in flattened(record.config)]
        for kind in ("rounds", "clients", "evaluations"):
            frame = record.history if kind == "rounds" else getattr(record, kind)
            if len(frame):
                marked = frame.copy()
                marked.insert(0, "seed", record.seed)
                marked.insert(0, "strategy", record.strategy)
                marked.insert(0, "run", name)
                found.setdefault(kind, []).append(marked)
    made = {"runs": pd.DataFrame(facts)}
    if keys:
        made["config"] = pd.DataFrame(keys, columns=["run", "key", "value"])
    return made | {kind: pd.concat(parts, ignore_index=True) for kind, parts in found.items()}


def _write_csv(runs: Sequence[tuple[str, RunRecord]], out: Path) -> list[Path]:
    return _write_tables(runs, out, ".csv", lambda frame: frame.to_csv(index=False).encode())


def _write_parquet(runs: Sequence[tuple[str, RunRecord]], out: Path) -> list[Path]:
    def payload(frame: pd.DataFrame) -> bytes:
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, engine="pyarrow")
        return buffer.getvalue()

    return _write_tables(runs, out, ".parquet", payload)


def _write_tables(
    runs: Sequence[tuple[str, RunRecord]],
    out: Path,
    suffix: str,
    payload: Callable[[pd.DataFrame], bytes],
) -> list[Path]:
    written = []
    for name, frame in tables(runs).items():
        path = out / f"{name}{suffix}"
        try:
            write_atomically(path, payload(frame))
        except OSError as error:
            raise unwritable(path, error) from error
        written.append(path)
    return written


def _write_tensorboard(runs: Sequence[tuple[str, RunRecord]], out: Path) -> list[Path]:
    from torch.utils.tensorboard import SummaryWriter

    for name, record in runs:
        folder = out / name.strip("/").replace("..", "_")
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        began = _began(record)
        writer = SummaryWriter(str(folder))
        try:
            _scalars(writer, record, began)
            for round_, rows in record.evaluations.groupby("round"):
                known = rows["accuracy"].dropna()
                if len(known):
                    writer.add_histogram("clients/accuracy", known.to_numpy(float), round_)
            config = "\n".join(f"    {k} = {v}" for k, v in flattened(record.config))
            writer.add_text("config", config or "    not known", 0, began)
        finally:
            writer.close()
    return [out]


def _scalars(writer: Any, record: RunRecord, began: float) -> None:
    history = record.history
    clock = history["wall_seconds"].fillna(0.0)
    for column in _NUMBERS:
        for round_, value, seconds in zip(
            history["round"], history[column.name], clock, strict=True
        ):
            if value == value:
                tag = scalar_tag(column.name)
                writer.add_scalar(tag, float(value), int(round_), began + float(seconds))


def scalar_tag(column: str) -> str:
    """Return a column's name in TensorBoard, which groups by the first part: `loss/test`."""
    for part in _PARTS:
        if column.startswith(f"{part}_"):
            return f"{column.removeprefix(f'{part}_')}/{part}"
    is_total = any(c.cumulative for c in ROUND_COLUMNS if c.name == column)
    return f"{'totals' if is_total else 'rounds'}/{column}"


def _write_mlflow(runs: Sequence[tuple[str, RunRecord]], out: Path) -> list[Path]:
    with _quiet_mlflow():
        from mlflow.tracking import MlflowClient

        store = (out / "mlflow.db").resolve()
        client = MlflowClient(tracking_uri=f"sqlite:///{store}")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            artifacts = (out / "artifacts").resolve().as_uri()
            key = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        else:
            key = experiment.experiment_id
        for name, record in runs:
            _mlflow_run(client, key, name, record)
    return [store]


def _mlflow_run(client: Any, experiment: str, name: str, record: RunRecord) -> None:
    from mlflow.entities import Metric, Param

    assert record.directory is not None
    place = str(record.directory.resolve())
    quoted = place.replace("'", "''")
    for old in client.search_runs([experiment], f"tags.`fedopt.run_dir` = '{quoted}'"):
        client.delete_run(old.info.run_id)
    began = _began(record)
    tags = {
        "fedopt.run_dir": place,
        "fedopt.status": record.status,
        **{f"fedopt.{key}": str(value) for key, value in record.environment.items()},
    }
    run = client.create_run(experiment, int(began * 1000), tags, name).info.run_id
    params = [
        Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in flattened(record.config)
    ]
    for first in range(0, len(params), 100):
        client.log_batch(run, params=params[first : first + 100])
    history = record.history
    clock = history["wall_seconds"].fillna(0.0)
    metrics = [
        Metric(column.name, float(value), int((began + seconds) * 1000), int(round_))
        for column in _NUMBERS
        for round_, value, seconds in zip(
            history["round"], history[column.name], clock, strict=True
        )
        if value == value and math.isfinite(value)
    ]
    for first in range(0, len(metrics), _MLFLOW_BATCH):
        client.log_batch(run, metrics=metrics[first : first + _MLFLOW_BATCH])
    for file in ("config.toml", "summary.json", "report.html"):
        if (record.directory / file).is_file():
            client.log_artifact(run, str(record.directory / file))
    if record.status != "running":
        end = began + (float(clock.iloc[-1]) if len(clock) else 0.0)
        client.set_terminated(run, _MLFLOW_STATUS[record.status], int(end * 1000))


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Turn MLflow's telemetry off, and its chat about the tables that it makes."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        import mlflow  # noqa: F401 (sets its levels)

        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMS: dict[str, Callable[[Sequence[tuple[str, RunRecord]], Path], list[Path]]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "tensorboard": _write_tensorboard,
    "mlflow": _write_mlflow,
}
"""What runs can be exported to."""


def _facts(record: RunRecord) -> dict[str, object]:
    """Return strategy, seed, rounds, and final and best values of a run."""
    final, best = record.summary.get("final"), record.summary.get("best")
    found: dict[str, object] = {
        "strategy": record.strategy,
        "seed": record.seed,
        "rounds": record.rounds,
    }
    for name, value in (final if isinstance(final, dict) else {}).items():
        found[f"final_{name}"] = value
    for name, entry in (best if isinstance(best, dict) else {}).items():
        found[f"best_{name}"] = entry.get("value")
        found[f"best_{name}_round"] = entry.get("round")
    return found


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Return unique names: of the folders, or their paths where these are not."""
    names = [record.name for record in records]
    return [
        name
        if names.count(name) == 1
        else "_".join(p for p in Path(record.directory or name).parts if p not in ("/", "..", "."))
        for name, record in zip(names, records, strict=True)
    ]


def _began(record: RunRecord) -> float:
    """Return the time at which a run began: when its configuration was written."""
    path = (record.directory or Path()) / "config.toml"
    return path.stat().st_mtime if path.is_file() else 0.0
