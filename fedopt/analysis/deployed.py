"""A simulated run beside a real one of the same configuration: equal, or why not.

Also the devices of the real clients, fitted to what their exchanges took, for the simulator.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedopt.analysis.store import CONFIG_FILE, read_clients, read_history, read_summary
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError

DEPLOYMENT_FILE = "deployment.json"
"""In the folder of a run on real clients: who took part."""

TRANSFERS_FILE = "transfers.csv"
"""There too: what each exchange with a client took."""

CLOCKS = ("wall_seconds", "sim_seconds", "joules")
"""Columns that differ from run to run, whatever the arithmetic."""

ELSEWHERE = ("engine.", "deployment.", "checkpoint.", "system.devices", "system.availability")
"""Keys of the configuration that say where and how, not what is computed, by their beginnings."""

TOLERANCE = 1e-3
"""Difference of a metric, relative to its size, that rounding may make over some rounds."""


@dataclass(frozen=True)
class DeployedComparison:
    """How a real run's rounds differ from a simulation's.

    Args:
        simulated: folder of the simulation.
        real: folder of the run on real clients.
        rounds: rounds that both have.
        equal_bits: whether the model has the same bits after each of them.
        first_difference: the first round in which it has not, or None.
        largest: metric -> largest absolute difference over the rounds.
        within: whether all of them are within the tolerance, relative to the metric's size.
        tolerance: that.
        reasons: what keeps the bits from being equal, as far as the folders tell.
    """

    simulated: str
    real: str
    rounds: int
    equal_bits: bool
    first_difference: int | None
    largest: Mapping[str, float]
    within: bool
    tolerance: float
    reasons: Sequence[str]

    def lines(self) -> list[str]:
        """Return it in words."""
        if self.equal_bits:
            first = f"the same bits after each of {self.rounds} rounds"
        else:
            word = "within" if self.within else "BEYOND"
            first = (
                f"other bits from round {self.first_difference} on, metrics {word} a tolerance of "
                f"{self.tolerance:g}"
            )
        out = [f"{self.real} (real clients) against {self.simulated} (simulated): {first}"]
        out += [f"  {reason}" for reason in self.reasons]
        if not self.equal_bits:
            shown = sorted(self.largest.items(), key=lambda item: -item[1])[:6]
            out += [f"  largest difference of {name}: {value:.3g}" for name, value in shown]
        return out

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "simulated": self.simulated,
            "real": self.real,
            "rounds": self.rounds,
            "equal_bits": self.equal_bits,
            "first_difference": self.first_difference,
            "largest_difference": dict(self.largest),
            "within_tolerance": self.within,
            "tolerance": self.tolerance,
            "reasons": list(self.reasons),
        }


def is_deployed(directory: Path) -> bool:
    """Return whether a folder is that of a run on real clients."""
    return (directory / DEPLOYMENT_FILE).exists()


def check_simulated(directory: Path) -> None:
    """Refuse the folder of a run on real clients to who would compute its rounds here.

    Raises:
        ConfigError: it is one.
    """
    if is_deployed(directory):
        raise ConfigError(
            f"{directory} is a run on real clients, whose data are not here; go on with it: "
            f"fedopt deploy submit --resume {directory.name}; compare it with a simulation: "
            f"fedopt compare SIMULATED {directory}"
        )


def pair_of(directories: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return simulation and real run where two folders are these, in any order; else None."""
    if len(directories) != 2:
        return None
    simulated = [d for d in directories if not is_deployed(d)]
    real = [d for d in directories if is_deployed(d)]
    return (simulated[0], real[0]) if len(simulated) == len(real) == 1 else None


def compare_deployed(
    simulated: Path, real: Path, tolerance: float = TOLERANCE
) -> DeployedComparison:
    """Compare the rounds of a real run with those of its simulation.

    Args:
        simulated: folder of the simulation.
        real: folder of the real run.
        tolerance: largest difference of a metric, relative to its size, >= 0.

    Raises:
        ConfigError: they are of different experiments, or have no round in common.
    """
    _check_same(simulated, real)
    ours, theirs = (read_history(d).set_index("round") for d in (simulated, real))
    common = [r for r in ours.index.intersection(theirs.index) if r > 0]
    if not common:
        raise ConfigError(f"{simulated} and {real} have no round in common")
    ours, theirs = ours.loc[common], theirs.loc[common]
    differs = ours["model_sha256"].astype(str) != theirs["model_sha256"].astype(str)
    first = int(differs.index[differs][0]) if differs.any() else None
    largest, within = {}, True
    for name in ours.columns:
        is_number = pd.api.types.is_numeric_dtype(ours[name])
        if name in CLOCKS or name.startswith("bytes") or not is_number or name not in theirs:
            continue
        a, b = ours[name].to_numpy(float), theirs[name].to_numpy(float)
        known = np.isfinite(a) & np.isfinite(b)
        if known.any():
            gap = np.abs(a - b)[known]
            largest[str(name)] = float(gap.max())
            if name.endswith(("loss", "accuracy", "ece", "brier")):
                size = np.maximum(np.abs(a), np.abs(b))[known]
                within = within and bool((gap <= tolerance * np.maximum(size, 1e-12)).all())
    return DeployedComparison(
        str(simulated),
        str(real),
        len(common),
        first is None,
        first,
        largest,
        within,
        tolerance,
        [] if first is None else _reasons(simulated, real),
    )


def _check_same(simulated: Path, real: Path) -> None:
    """Check that two runs have the same experiment.

    Raises:
        ConfigError: naming the first keys that differ.
    """
    ours, theirs = (_flat(_config(d)) for d in (simulated, real))
    keys = sorted(set(ours) | set(theirs))
    splits = {"data", "partition"}
    if ours.get("data.name") != theirs.get("data.name"):  # "sites" of a split of the other
        keys = [k for k in keys if k.partition(".")[0] not in splits]
    different = [
        key
        for key in keys
        if not key.startswith(ELSEWHERE) and key != "rounds" and ours.get(key) != theirs.get(key)
    ]
    if different:
        shown = "; ".join(
            f"{key}: {ours.get(key)} simulated, {theirs.get(key)} real" for key in different[:5]
        )
        raise ConfigError(f"{simulated} and {real} are of different experiments: {shown}")


def _reasons(simulated: Path, real: Path) -> list[str]:
    """Return what keeps the bits from being equal."""
    ours, theirs = _config(simulated), _config(real)
    found = []
    block, summary = ours["engine"].get("block_size"), read_summary(simulated).get("engine")
    used = summary.get("block_size") if isinstance(summary, Mapping) else block
    if used != 1:
        found.append(
            f"the simulation summed blocks of {used} clients, each real client is a block of its "
            "own; simulate with engine.block_size = 1"
        )
    lost = read_clients(real)
    lost = lost[lost["status"] == "failed"]
    if len(lost):
        named = ", ".join(
            f"client {c} in round {r}"
            for r, c in zip(lost["round"][:5], lost["client"][:5], strict=True)
        )
        found.append(f"the real run lost {named}{' and more' if len(lost) > 5 else ''}")
    if theirs.get("deployment", {}).get("secure"):
        found.append("secure aggregation sums fixed point numbers")
    if theirs["uplink"]["privacy"]["noise_multiplier"]:
        found.append("real clients draw their noise from secrets of their own")
    machines = [read_summary(d).get("environment") for d in (simulated, real)]
    if all(isinstance(m, Mapping) for m in machines):
        for key in ("torch", "processor"):
            a, b = (m.get(key) for m in machines if isinstance(m, Mapping))
            if a != b:
                found.append(f"{key}: {a} simulated, {b} at the server")
    return found or [
        "clients whose torch or processor differ from the simulation's round otherwise"
    ]


def fit_devices(real: Path) -> pd.DataFrame:
    """Fit a device to each client of a real run.

    Speed is examples seen over seconds of training. What an exchange took beyond training is
    fitted by least squares as latency + bytes down / downlink + bytes up / uplink, over the rounds
    and, where `deployment.probe` was on, over messages of other sizes; a bandwidth that these do
    not determine is infinite, and its time is in the latency.

    Args:
        real: folder of the run.

    Returns:
        A row a client: `client`, `speed` (examples/s), `downlink`, `uplink` (bytes/s), `latency`
        (s), `exchanges` (how many there were), `residual` (root mean square, s).

    Raises:
        ConfigError: the folder has no transfers, or a client of which no training was seen.
    """
    path = real / TRANSFERS_FILE
    if not path.exists():
        raise ConfigError(f"{real} has no {TRANSFERS_FILE}: it is not a run on real clients")
    table = pd.read_csv(path)
    rows = []
    for client, part in table.groupby("client"):
        training = part[part["kind"] == "train"]
        seconds = float(training["train_seconds"].sum())
        seen = float(training["examples_seen"].sum())
        if not seconds or not seen:
            raise ConfigError(f"{path} has no training of client {client}")
        used = part[part["kind"].isin(["train", "query.probe"])]
        latency, down, up, residual = _fit(used)
        rows.append(
            {
                "client": client,
                "speed": seen / seconds,
                "downlink": down,
                "uplink": up,
                "latency": latency,
                "exchanges": len(used),
                "residual": residual,
            }
        )
    return pd.DataFrame(rows)


def _fit(rows: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return latency, downlink, uplink and residual of exchanges."""
    overhead = (rows["round_trip_seconds"] - rows["train_seconds"].fillna(0.0)).to_numpy(float)
    sizes = {name: rows[name].to_numpy(float) for name in ("bytes_down", "bytes_up")}
    # A column that hardly varies cannot be told from the latency.
    used = [name for name, column in sizes.items() if np.ptp(column) > 0.5 * column.max() > 0]
    while True:
        design = np.stack([np.ones_like(overhead), *(sizes[name] for name in used)], axis=1)
        scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
        found, *_ = np.linalg.lstsq(design / scale, overhead, rcond=None)
        found = found / scale
        negative = [name for name, value in zip(used, found[1:], strict=True) if value <= 0]
        if not negative:
            break
        used.remove(min(negative, key=lambda name: found[1 + used.index(name)]))
    left = float(np.sqrt(np.mean((design @ found - overhead) ** 2)))
    by_name = dict(zip(used, found[1:], strict=True))
    rate = {name: 1 / by_name[name] if name in by_name else math.inf for name in sizes}
    return max(0.0, float(found[0])), rate["bytes_down"], rate["bytes_up"], left


def write_devices(devices: pd.DataFrame, path: Path) -> None:
    """Write devices as a CSV file that `system.devices = {name = "file", path = ...}` reads.

    Raises:
        ConfigError: the clients' ids are not 0, 1, 2, ...
    """
    ids = sorted(devices["client"].tolist())
    if ids != list(range(len(ids))):
        raise ConfigError(f"a file of devices needs clients 0..{len(ids) - 1}, got {ids}")
    columns = ["client", "speed", "downlink", "uplink", "latency"]
    finite = [c for c in columns if np.isfinite(devices[c].to_numpy(float)).all()]
    for name in set(columns) - set(finite):
        if np.isfinite(devices[name].to_numpy(float)).any():
            raise ConfigError(
                f"{name} is known of some clients alone; run with deployment.probe = true"
            )
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(finite)
    for row in devices.sort_values("client")[finite].itertuples(index=False):
        writer.writerow([int(row[0]), *(f"{value:.6g}" for value in row[1:])])
    write_atomically(path, buffer.getvalue().encode())


def _config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{directory} is not the folder of a run (no {CONFIG_FILE})")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
