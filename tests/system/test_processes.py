"""Devices and availability: distributions, and functions of (seed, client, time)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.errors import ConfigError
from fedopt.system.availability import (
    DAY,
    Availability,
    Bernoulli,
    DayNight,
    Markov,
    Trace,
    read_trace,
)
from fedopt.system.devices import (
    CLASSES,
    ClassDevices,
    DeviceClass,
    ListedDevices,
    LogNormalDevices,
    UniformDevices,
    read_devices,
)

MANY = np.arange(2000)
ONE = DeviceClass(100.0, 1e6, 2e5, 0.1, 1e9, 3.0, 1e-7)


def test_log_normal_devices_have_their_medians_and_spread() -> None:
    found = LogNormalDevices(0, ONE, 0.8, 0.5).of(MANY)
    assert np.median(found.speed) == pytest.approx(100.0, rel=0.07)
    assert np.log(found.speed).std() == pytest.approx(0.8, rel=0.05)
    np.testing.assert_allclose(found.downlink / found.uplink, 5.0)
    assert abs(np.corrcoef(np.log(found.speed), np.log(found.uplink))[0, 1]) < 0.06


def test_uniform_devices_fill_their_range() -> None:
    high = DeviceClass(300.0, 3e6, 4e5, 0.1, 1e9, 3.0, 1e-7)
    found = UniformDevices(0, ONE, high).of(MANY)
    assert found.speed.min() >= 100
    assert found.speed.max() <= 300
    assert found.speed.mean() == pytest.approx(200, rel=0.02)


def test_classes_are_drawn_by_their_weights() -> None:
    source = ClassDevices(0, {"laptop": 3.0, "phone_slow": 1.0}, CLASSES)
    kinds = [source.class_of(client) for client in MANY.tolist()]
    assert kinds.count("laptop") / len(kinds) == pytest.approx(0.75, abs=0.04)
    found = source.of(MANY)
    speeds = np.where(np.array(kinds) == "laptop", CLASSES["laptop"].speed, 200)
    np.testing.assert_allclose(found.speed, speeds)


SOURCES: list[Any] = [
    LogNormalDevices(3, ONE, 0.8, 0.5),
    UniformDevices(3, ONE, ONE),
    ClassDevices(3, {"laptop": 1.0, "phone_fast": 1.0}, CLASSES, 0.3),
    ListedDevices(LogNormalDevices(1, ONE, 1.0, 1.0).of(np.arange(5))),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
@given(clients=st.lists(st.integers(0, 10**7), min_size=1, max_size=8))
def test_a_device_does_not_depend_on_who_else_is_asked_for(source: Any, clients: list[int]) -> None:
    together = source.of(np.array(clients))
    for place, client in enumerate(clients):
        alone = source.of(np.array([client]))
        for name, column in vars(together).items():
            assert column[place] == getattr(alone, name)[0]


PROCESSES: list[Availability] = [
    Bernoulli(1, 0.4, 10.0),
    DayNight(1, 0.5, 0.4, 2.0, 600.0),
    Markov(1, 30.0, 50.0),
    Trace({0: [(1.0, 4.0), (6.0, 9.0)], 1: [(0.0, 2.5)]}, 10.0),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@given(client=st.integers(0, 5), times=st.lists(st.floats(0, 5000), min_size=1, max_size=6))
def test_a_client_is_there_until_it_leaves(
    process: Availability, client: int, times: list[float]
) -> None:
    first = [process.is_there(client, time) for time in times]
    for time in reversed(times):  # in any order, the same
        is_there = process.is_there(client, time)
        if not is_there:
            continue
        leaves = process.leaves(client, time)
        assert leaves > time
        if math.isfinite(leaves):
            assert process.is_there(client, time + (leaves - time) * 0.999)
            assert not process.is_there(client, leaves + 1e-6 * max(1.0, leaves))
    assert first == [process.is_there(client, time) for time in times]


def test_markov_clients_are_there_as_often_and_as_long_as_said() -> None:
    process = Markov(0, 30.0, 50.0)
    there = [process.is_there(client, 40.0 * t) for client in range(100) for t in range(50)]
    assert np.mean(there) == pytest.approx(30 / 80, abs=0.02)
    stays = [process.leaves(c, 77.0) - 77.0 for c in range(4000) if process.is_there(c, 77.0)]
    # Exponential times have no memory: what is left of one has the mean of a whole.
    assert np.mean(stays) == pytest.approx(30.0, rel=0.1)


def test_bernoulli_clients_are_there_as_often_as_said() -> None:
    process = Bernoulli(0, 0.3, 10.0)
    there = [process.is_there(client, 10.0 * t) for client in range(100) for t in range(50)]
    assert np.mean(there) == pytest.approx(0.3, abs=0.02)
    assert process.is_there(0, 3.0) == process.is_there(0, 9.9)


def test_day_and_night_follow_the_time_zone() -> None:
    process = DayNight(0, 0.5, 0.5, 2.0, 600.0)
    client = next(c for c in range(100) if process.zone(c) == 5)
    assert process.probability(client, 0.0) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert process.probability(client, DAY * 21 / 24) == pytest.approx(1.0)
    assert process.probability(client, DAY * 9 / 24) == pytest.approx(0.0)
    there = [process.is_there(c, t * 600.0) for c in range(30) for t in range(144)]
    assert np.mean(there) == pytest.approx(0.5, abs=0.03)


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_text("client,speed,uplink\n1,20,300\n0,10,200\n")
    found = read_devices(path, "key")
    assert found.speed.tolist() == [10, 20]
    assert found.uplink.tolist() == [200, 300]
    assert found.downlink.tolist() == [np.inf, np.inf]
    assert ListedDevices(found).of(np.array([3])).speed.tolist() == [20]
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start,end\n4,5,8\n4,0,2\n")
    process = read_trace(trace, 10.0, "key")
    assert [process.is_there(4, t) for t in (1, 3, 6, 11, 13, 16)] == [True, False, True] * 2
    assert process.leaves(4, 26.0) == 28.0
    assert not process.is_there(0, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ("speed\n", "no rows"),
        ("sped\n1\n", 'column "sped".* Did you mean "speed"'),
        ("uplink\n1\n", 'no column "speed"'),
        ("speed\n0\n", "expected a number > 0"),
        ("speed\nfast\n", 'got "fast"'),
        ("speed\nnan\n", 'got "nan"'),
        ("speed,latency\n1,-1\n", "expected a number >= 0"),
        ("speed,latency\n1\n", "not as many cells"),
        ("speed,client\n1,0\n1,2\n", r"must have 0\.\.1 once"),
    ],
)
def test_bad_devices_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "devices.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_devices(path, "system.devices.path")


@pytest.mark.parametrize(
    ("rows", "period", "says"),
    [
        ("0,5,2", None, "must be after start"),
        ("0,1,12", 10.0, "at most the period"),
        ("0,1,4\n0,3,5", None, "intervals overlap"),
        ("0.5,1,4", None, 'got "0.5"'),
        ("-1,1,4", None, "expected a number >= 0"),
    ],
)
def test_bad_traces_are_refused(tmp_path: Path, rows: str, period: Any, says: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"client,start,end\n{rows}\n")
    with pytest.raises(ConfigError, match=says):
        read_trace(path, period, "system.availability.path")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.csv.*cannot be read"):
        read_trace(tmp_path / "nothing.csv", None, "system.availability.path")


NUMBERS = st.sampled_from(
    ["0", "1", "2.5", "-1", "nan", "inf", "1e400", "", "x", "1e-400", "\uff13"]
)


@given(
    header=st.lists(
        st.sampled_from(["client", "start", "end", "speed", "uplink", "memory", "what"]),
        min_size=1,
        max_size=4,
    ),
    rows=st.lists(st.lists(NUMBERS, min_size=0, max_size=5), max_size=5),
    rest=st.binary(max_size=20),
)
def test_any_file_is_read_or_refused(
    tmp_path_factory: Any, header: list[str], rows: list[list[str]], rest: bytes
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    text = "\n".join(",".join(row) for row in [header, *rows])
    path.write_bytes(text.encode() + rest)
    for read in (
        lambda: read_trace(path, None, "key").is_there(0, 1.0),
        lambda: read_trace(path, 10.0, "key").leaves(1, 3.0),
        lambda: read_devices(path, "key").speed,
    ):
        refused = ""
        try:
            read()
        except ConfigError as error:
            refused = str(error)
        assert not refused or "table.csv" in refused
