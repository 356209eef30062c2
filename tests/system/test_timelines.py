"""Rounds on the virtual clock, by hand: three clients, to the microsecond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.errors import RunError
from fedopt.system.asynchronous import Buffered, EventQueue
from fedopt.system.availability import Always, Trace
from fedopt.system.costs import Work, compute_seconds, fitting_steps
from fedopt.system.devices import Devices, ListedDevices
from fedopt.system.rounds import (
    Deadline,
    Failures,
    Outcome,
    OverSelection,
    SemiSynchronous,
    Synchronous,
    System,
    synchronous_round,
)

# Three clients of 10 examples, batches of 5, 4 steps planned: 20 examples. They are sent 1000 bytes
# and send 500.
SIZES = np.array([10, 10, 10])
DOWN, UP, STEPS = 1000, 500, 4
SPEED, DOWNLINK, UPLINK, LATENCY = (
    [10.0, 5.0, 2.0],
    [1e3, 2e3, 5e2],
    [5e2, 1e2, 1e3],
    [0.1, 0.2, 0.0],
)
WATTS, JOULES_PER_BYTE = [5.0, 1.0, 2.0], [1e-3, 0.0, 1e-2]
# Download 0.1 + 1, 0.2 + 0.5, 0 + 2; computing 2, 4, 10; upload 0.1 + 1, 0.2 + 5, 0 + 0.5.
DOWNLOAD, COMPUTE, UPLOAD = [1.1, 0.7, 2.0], [2.0, 4.0, 10.0], [1.1, 5.2, 0.5]
TOTAL = [4.2, 9.9, 12.5]
MICROSECOND = 1e-6


def devices(speed: Any = SPEED) -> ListedDevices:
    columns = (speed, DOWNLINK, UPLINK, LATENCY, [1e9] * 3, WATTS, JOULES_PER_BYTE)
    return ListedDevices(Devices(*(np.array(column, dtype=float) for column in columns)))


def system(**changes: Any) -> System:
    given: dict[str, Any] = {
        "devices": devices(),
        "availability": Always(),
        "failures": Failures(0),
    }
    return System(**{**given, **changes})


def work(clients: Any) -> Work:
    return Work(SIZES[clients], 5, DOWN, UP)


def everyone(attempt: int, count: int, is_there: Callable[[int], bool]) -> Any:
    return np.array([c for c in range(3) if is_there(c)][:count], dtype=np.int64)


def planned(clients: Any) -> Any:
    return np.full(len(clients), STEPS, dtype=np.int64)


def course(policy: Synchronous, count: int = 3, start: float = 0.0, **changes: Any) -> Any:
    return synchronous_round(system(**changes), policy, everyone, planned, work, 1, count, 3, start)


def near(values: Any) -> Any:
    return pytest.approx(values, abs=MICROSECOND)


def test_a_synchronous_round_waits_for_the_slowest() -> None:
    found = course(Synchronous(), start=100.0)
    assert found.parts.download == near(DOWNLOAD)
    assert found.parts.compute == near(COMPUTE)
    assert found.parts.upload == near(UPLOAD)
    assert found.parts.end == near([100 + t for t in TOTAL])
    assert found.end == near(112.5)
    assert found.arrived == 3 * UP
    joules = [5 * 2 + 1.5, 1 * 4 + 0, 2 * 10 + 15]
    assert found.parts.joules == near(joules)
    assert found.groups == [[0, 1, 2]]


def test_a_deadline_drops_the_late() -> None:
    found = course(Deadline(False, 10.0))
    assert found.end == near(10.0)
    assert found.parts.outcome == [Outcome.USED, Outcome.USED, Outcome.LATE]
    # Client 2 was stopped in the middle of its computing: 2 s of download, 8 of 10 s.
    assert found.parts.compute[2] == near(8.0)
    assert found.parts.upload[2] == 0
    assert found.parts.joules[2] == near(2 * 8 + 10)
    assert found.arrived == 2 * UP


def test_a_deadline_keeps_the_steps_that_fit() -> None:
    # 10 s less 2.5 for transfers leave 7.5 s: 15 examples of 2 a second, 3 steps of 5.
    found = course(Deadline(True, 10.0))
    assert found.parts.steps.tolist() == [4, 4, 3]
    assert found.parts.outcome == [Outcome.USED] * 3
    assert found.end == near(10.0)
    assert course(Deadline(True, 12.4)).parts.steps.tolist() == [4, 4, 3]
    assert course(Deadline(True, 12.5)).parts.steps.tolist() == [4, 4, 4]
    # 2.5 s for transfers and 2.5 for a step: at 4.9 s not one fits.
    assert course(Deadline(True, 4.9)).parts.outcome[2] is Outcome.LATE


@pytest.mark.parametrize("policy", [Deadline(False, np.inf), Deadline(True, np.inf)])
def test_a_deadline_that_never_comes_is_no_deadline(policy: Synchronous) -> None:
    assert_same(course(policy), course(Synchronous()))


def test_over_selection_takes_the_first() -> None:
    found = course(OverSelection(factor=1.5), count=2)
    assert found.end == near(9.9)
    assert found.parts.outcome == [Outcome.USED, Outcome.USED, Outcome.CANCELLED]
    assert found.parts.compute[2] == near(7.9)
    assert found.parts.down.tolist() == [DOWN] * 3
    assert found.arrived == 2 * UP
    one = course(OverSelection(factor=3.0), count=1)
    assert one.end == near(4.2)
    assert one.parts.outcome == [Outcome.USED, Outcome.CANCELLED, Outcome.CANCELLED]


def test_over_selection_of_as_many_as_are_wanted_is_synchronous() -> None:
    assert_same(course(OverSelection(factor=1.0)), course(Synchronous()))


def test_semi_synchronous_clients_do_what_fits() -> None:
    # 7.5 s: client 0 has 5.3 s, client 1 1.6 s, client 2 5 s: 53, 8 and 10 examples.
    found = course(SemiSynchronous(7.5, 2.0))
    assert found.parts.steps.tolist() == [8, 1, 2]
    assert found.end == near(7.5)
    # At most the planned steps.
    assert course(SemiSynchronous(7.5, 1.0)).parts.steps.tolist() == [4, 1, 2]
    late = course(SemiSynchronous(6.5, 1.0))
    assert late.parts.outcome[1] is Outcome.LATE


def test_who_leaves_is_lost() -> None:
    trace = Trace({0: [(0, 100)], 1: [(0, 3.0)], 2: [(50, 60)]})
    found = course(Synchronous(), availability=trace)
    assert found.parts.clients.tolist() == [0, 1]
    assert found.parts.outcome == [Outcome.USED, Outcome.LEFT]
    assert found.parts.compute[1] == near(2.3)
    assert found.end == near(4.2)


def test_the_server_waits_for_clients() -> None:
    found = course(Synchronous(), availability=Trace({1: [(130.0, 200.0)]}))
    assert found.parts.start == near([180.0])  # it looks every minute
    assert found.end == near(189.9)
    with pytest.raises(RunError, match=r"no client is there from 0 s .* thirty days"):
        course(Synchronous(), availability=Trace({}))


def test_too_little_memory_is_said() -> None:
    found = course(Synchronous(), model_nbytes=2e9)
    assert found.parts.outcome == [Outcome.TOO_LARGE] * 3
    assert found.end == 0
    assert found.arrived == 0


def test_failures_cost_what_happened_before_them() -> None:
    lost = course(Synchronous(), failures=Failures(0, upload=1.0))
    assert lost.parts.outcome == [Outcome.LOST_UPLOAD] * 3
    assert lost.parts.end == near(TOTAL)
    assert lost.arrived == 3 * UP
    assert lost.groups == [[]]
    during = course(Synchronous(), failures=Failures(0, during=1.0))
    assert (during.parts.compute < COMPUTE).all()
    assert during.parts.upload.tolist() == [0.0] * 3
    before = course(Synchronous(), failures=Failures(0, before=1.0))
    assert before.parts.end == near(DOWNLOAD)


def assert_same(one: Any, other: Any) -> None:
    assert one.end == other.end
    for name, column in vars(one.parts).items():
        np.testing.assert_array_equal(column, getattr(other.parts, name), name)


# The event queue ----------------------------------------------------------------------------------


def queue(policy: Buffered, rounds: int = 100, **changes: Any) -> EventQueue:
    def draw(round: int, drawn: int, count: int, may_begin: Callable[[int], bool]) -> Any:
        return np.array([c for c in range(3) if may_begin(c)][:count], dtype=np.int64)

    return EventQueue(
        system(**changes), policy, draw, lambda _round, clients: planned(clients), work, rounds
    )


def test_a_buffer_of_two_by_hand() -> None:
    """Three train at a time; 4.2, 9.9 and 12.5 s each.

    0.0  all begin with model 0; 4.2 client 0 arrives, but may not begin with model 0 again
    9.9  client 1 arrives, step 1; clients 0 and 1 begin with model 1
    12.5 client 2 arrives, begins with model 1; 14.1 client 0 arrives, step 2; 0 begins with model 2
    18.3 client 0; 19.8 client 1 (begun with model 1): step 3
    """
    found = queue(Buffered(2, 3))
    ends = [found.round(number).end for number in (1, 2, 3)]
    assert ends == near([9.9, 14.1, 19.8])
    first, second, third = (found.round(number) for number in (1, 2, 3))
    assert first.parts.clients.tolist() == [0, 1, 2]
    assert first.parts.used_in.tolist() == [1, 1, 2]
    assert second.parts.clients.tolist() == [0, 1, 2]
    assert second.parts.start == near([9.9, 9.9, 12.5])
    assert second.parts.used_in.tolist() == [2, 3, 4]
    assert second.staleness.tolist() == [0, 1, 2]
    assert third.parts.clients.tolist() == [0]
    assert third.parts.start == near([14.1])
    assert second.arrived == 2 * UP
    assert first.groups == [[0, 1], [2]]


def test_mixing_takes_a_step_for_each_model() -> None:
    found = queue(Buffered(1, 3, 0.5, 0.6))
    ends = [found.round(number).end for number in range(1, 7)]
    # Client 0 every 4.2 s, client 1 at 9.9, client 2 at 12.5 and so on.
    assert ends == near([4.2, 8.4, 9.9, 12.5, 12.6, 16.8])
    assert found.round(1).parts.used_in.tolist() == [1, 3, 4]


def test_zero_delays_and_a_full_buffer_are_synchronous_rounds() -> None:
    from fedopt.system.devices import NoDevices

    found = queue(Buffered(3, 3), devices=NoDevices())
    for number in (1, 2, 3):
        schedule = found.round(number)
        assert schedule.end == 0
        assert schedule.parts.clients.tolist() == [0, 1, 2]
        assert schedule.parts.used_in.tolist() == [number] * 3
        assert schedule.groups == [[0, 1, 2]]


def test_what_would_arrive_after_the_last_round_is_not_trained() -> None:
    found = queue(Buffered(2, 3), rounds=2)
    second = found.round(2)
    assert second.parts.outcome[1] is Outcome.UNFINISHED
    assert second.parts.used_in.tolist() == [2, -1, -1]
    assert second.parts.end.max() <= second.end + MICROSECOND


def test_a_buffer_that_cannot_fill_is_emptied() -> None:
    """All clients fail: the server's steps are empty, and nothing hangs."""
    found = queue(Buffered(2, 3), failures=Failures(0, before=1.0))
    for number in range(1, 4):
        schedule = found.round(number)
        assert schedule.groups == []
        assert schedule.parts.outcome == [Outcome.FAILED_BEFORE] * 3


@given(
    buffer=st.integers(1, 3),
    concurrency=st.integers(1, 3),
    speeds=st.lists(st.floats(0.5, 50), min_size=3, max_size=3),
    order=st.permutations([1, 2, 3, 4, 5, 6]),
)
def test_the_queue_is_a_function_of_the_round(
    buffer: int, concurrency: int, speeds: list[float], order: list[int]
) -> None:
    """In whatever order rounds are asked for; every used update is used once, in its own time."""
    policy = Buffered(buffer, concurrency)
    one = queue(policy, rounds=6, devices=devices(speeds))
    other = queue(policy, rounds=6, devices=devices(speeds))
    shuffled = {number: other.round(number) for number in order}
    arrivals = dict.fromkeys(range(1, 7), 0)
    last = 0.0
    for number in range(1, 7):
        found = one.round(number)
        assert_same(found, shuffled[number])
        assert found.end >= last
        last = found.end
        for place, used in enumerate(found.parts.used_in.tolist()):
            if used > 0:
                arrivals[used] += 1
                assert number <= used
                assert found.parts.end[place] <= one.round(used).end + MICROSECOND
    assert all(0 < count <= buffer for count in arrivals.values())


@given(
    steps=st.integers(0, 400),
    size=st.integers(1, 60),
    batch=st.one_of(st.none(), st.integers(1, 70)),
    speed=st.floats(0.1, 1e4),
)
def test_fitting_steps_invert_the_time_of_steps(
    steps: int, size: int, batch: int | None, speed: float
) -> None:
    one = devices([speed] * 3).of(np.array([0]))
    does = Work(np.array([size]), batch, 0, 0)
    seconds = compute_seconds(one, does, np.array([steps]))
    found = fitting_steps(one, does, seconds, np.array([1000]))
    assert found[0] >= steps
    more = compute_seconds(one, does, found + 1)
    assert more[0] > seconds[0] or found[0] == 1000
    # By hand: batches follow each other through the examples, the last of a pass being short.
    batches = [min(batch or size, size - first) for first in range(0, size, batch or size)]
    seen = sum(batches[step % len(batches)] for step in range(steps))
    assert does.examples(np.array([steps]))[0] == seen
