"""Devices: how fast clients compute and transfer, and the energy that it takes them.

A client's device is a function of (seed, client): only devices that are looked at are drawn.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError, did_you_mean
from fedopt.seeds import generator

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Devices:
    """Devices of some clients, in columns.

    Args:
        speed: examples, or floating-point operations, a second, > 0.
        downlink: bytes a second, > 0; infinite where transfers take no time.
        uplink: bytes a second, > 0.
        latency: seconds before a transfer begins, >= 0.
        memory: bytes of main memory, > 0.
        watts: power while it computes, >= 0.
        joules_per_byte: energy of a byte sent or received, >= 0.
    """

    speed: Floats
    downlink: Floats
    uplink: Floats
    latency: Floats
    memory: Floats
    watts: Floats
    joules_per_byte: Floats


COLUMNS = tuple(field.name for field in fields(Devices))


@dataclass(frozen=True)
class DeviceClass:
    """One kind of device, in the units of `Devices`, its speed in examples a second.

    The classes that come with fedopt are round numbers for orders of magnitude, not measurements.
    """

    speed: float
    downlink: float
    uplink: float
    latency: float
    memory: float
    watts: float
    joules_per_byte: float


MEGABIT, GIB = 125_000.0, 2.0**30
CLASSES: dict[str, DeviceClass] = {
    "datacentre": DeviceClass(
        50_000, 10_000 * MEGABIT, 10_000 * MEGABIT, 0.001, 256 * GIB, 300, 2e-9
    ),
    "workstation": DeviceClass(
        20_000, 1_000 * MEGABIT, 1_000 * MEGABIT, 0.005, 64 * GIB, 200, 5e-9
    ),
    "laptop": DeviceClass(5_000, 100 * MEGABIT, 40 * MEGABIT, 0.02, 16 * GIB, 30, 5e-8),
    "phone_fast": DeviceClass(1_500, 80 * MEGABIT, 20 * MEGABIT, 0.05, 8 * GIB, 5, 2e-7),
    "phone_slow": DeviceClass(200, 10 * MEGABIT, 2 * MEGABIT, 0.1, 3 * GIB, 3, 1e-6),
    "single_board": DeviceClass(100, 50 * MEGABIT, 10 * MEGABIT, 0.03, 2 * GIB, 6, 1e-7),
    "microcontroller": DeviceClass(2, 0.25 * MEGABIT, 0.25 * MEGABIT, 0.5, 2.0**20, 0.2, 5e-6),
}
"""Name of a class -> its values."""


class DeviceSource(Protocol):
    """Where clients' devices come from."""

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return the devices of some clients."""
        ...


@dataclass(frozen=True)
class NoDevices:
    """Devices that take neither time nor energy."""

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return devices that are infinitely fast."""
        never, zero = np.full(len(clients), np.inf), np.zeros(len(clients))
        return Devices(never, never, never, zero, never, zero, zero)


@dataclass(frozen=True)
class ClassDevices:
    """Each client is of a class, drawn with the weights of a mixture.

    Args:
        seed: the run's seed.
        mixture: class -> weight.
        classes: class -> values.
        sigma: standard deviation of the logarithm of a factor of each client's own on speed and
            bandwidths, >= 0; 0 makes all of a class alike.
    """

    seed: int
    mixture: Mapping[str, float]
    classes: Mapping[str, DeviceClass]
    sigma: float = 0.0

    def class_of(self, client: int) -> str:
        """Return the name of a client's class."""
        names = list(self.mixture)
        weights = np.array([self.mixture[name] for name in names])
        drawn = generator(self.seed, "device", client).random()
        place = int(np.searchsorted(np.cumsum(weights) / weights.sum(), drawn, side="right"))
        return names[min(place, len(names) - 1)]

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return the devices of some clients."""
        rows = []
        for client in clients.tolist():
            kind = self.classes[self.class_of(client)]
            draws = generator(self.seed, "device factor", client).normal(size=3)
            speed, down, up = np.exp(self.sigma * draws)
            rows.append(
                (
                    kind.speed * speed,
                    kind.downlink * down,
                    kind.uplink * up,
                    kind.latency,
                    kind.memory,
                    kind.watts,
                    kind.joules_per_byte,
                )
            )
        return _devices(rows)


@dataclass(frozen=True)
class LogNormalDevices:
    """Speed and bandwidths are log-normal over the clients, and independent.

    Args:
        seed: the run's seed.
        median: their medians, and the values that all clients share.
        speed_sigma: standard deviation of the logarithm of the speed, >= 0.
        bandwidth_sigma: that of both bandwidths, which share their factor, >= 0.
    """

    seed: int
    median: DeviceClass
    speed_sigma: float
    bandwidth_sigma: float

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return the devices of some clients."""
        rows, m = [], self.median
        for client in clients.tolist():
            one, two = generator(self.seed, "device", client).normal(size=2)
            speed, width = np.exp(self.speed_sigma * one), np.exp(self.bandwidth_sigma * two)
            values = (m.speed * speed, m.downlink * width, m.uplink * width)
            rows.append((*values, m.latency, m.memory, m.watts, m.joules_per_byte))
        return _devices(rows)


@dataclass(frozen=True)
class UniformDevices:
    """Speed and bandwidths are uniform between two values, and independent.

    Args:
        seed: the run's seed.
        low: the smallest values, and those that all clients share.
        high: the largest.
    """

    seed: int
    low: DeviceClass
    high: DeviceClass

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return the devices of some clients."""
        rows, a, b = [], self.low, self.high
        for client in clients.tolist():
            one, two = generator(self.seed, "device", client).random(size=2)
            speed = a.speed + (b.speed - a.speed) * one
            down = a.downlink + (b.downlink - a.downlink) * two
            up = a.uplink + (b.uplink - a.uplink) * two
            rows.append((speed, down, up, a.latency, a.memory, a.watts, a.joules_per_byte))
        return _devices(rows)


@dataclass(frozen=True)
class ListedDevices:
    """Devices from a table, one row a client; further clients begin again at the first row.

    Args:
        table: one column a field of `Devices`.
    """

    table: Devices

    def of(self, clients: npt.NDArray[np.int64]) -> Devices:
        """Return the devices of some clients."""
        rows = clients % len(self.table.speed)
        return Devices(*(getattr(self.table, name)[rows] for name in COLUMNS))


def read_devices(path: str | Path, key: str) -> Devices:
    """Read devices from a CSV file.

    Its columns are those of `Devices`: speed is needed; what is missing takes neither time nor
    energy. A column `client` puts the rows in order, 0, 1, 2, ...

    Args:
        path: of the file.
        key: of the configuration, for errors.

    Raises:
        ConfigError: the file cannot be read, or a column or value is not allowed.
    """
    rows = read_table(path, key)
    found = list(rows[0])
    known = [*COLUMNS, "client"]
    for name in found:
        if name not in known:
            raise ConfigError(
                f'"{path}" has a column "{name}", which is not known.'
                f"{did_you_mean(name, known)} Known: {', '.join(known)}.",
                key=key,
            )
    if "speed" not in found:
        raise ConfigError(f'"{path}" has no column "speed"', key=key)
    if "client" in found:
        rows = sorted(rows, key=lambda row: number(row, "client", path, key, 0))
        ids = [number(row, "client", path, key, 0) for row in rows]
        if ids != list(range(len(rows))):
            raise ConfigError(f'"{path}": column client must have 0..{len(rows) - 1} once', key=key)
    defaults = {"downlink": np.inf, "uplink": np.inf, "memory": np.inf}
    columns = []
    for name in COLUMNS:
        positive = name in ("speed", "downlink", "uplink", "memory")
        values = [
            number(row, name, path, key, 0, positive) if name in found else defaults.get(name, 0.0)
            for row in rows
        ]
        columns.append(np.array(values, dtype=np.float64))
    return Devices(*columns)


def read_table(path: str | Path, key: str) -> list[dict[str, str]]:
    """Read a CSV file with a header, at least one row long.

    Raises:
        ConfigError: it cannot be read, is empty, or a row has another number of cells.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows: list[dict[str, Any]] = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f'"{path}" cannot be read: {error}', key=key) from error
    if not rows:
        raise ConfigError(f'"{path}" has no rows', key=key)
    for place, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ConfigError(f'"{path}", line {place}: not as many cells as the header', key=key)
    return rows


def number(
    row: Mapping[str, str],
    name: str,
    path: str | Path,
    key: str,
    low: float,
    above: bool = False,
) -> float:
    """Return a number of a row.

    Raises:
        ConfigError: it is none, not finite, or below `low` (or equal to it, where `above`).
    """
    sign = ">" if above else ">="
    try:
        value = float(row[name])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or value < low or (above and value == low):
        raise ConfigError(
            f'"{path}", column {name}: got "{row[name]}", expected a number {sign} {low:g}', key=key
        )
    return value


def _devices(rows: Sequence[tuple[float, ...]]) -> Devices:
    columns = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS)).T
    return Devices(*columns)
