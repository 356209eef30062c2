"""What holds of every strategy, whatever it claims to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedopt.testing.check import Check, Measurement, compare_rounds
from fedopt.testing.checks.populations import LINE, ROUNDED, ROUNDING, START, UNEQUAL
from fedopt.testing.subject import Subject
from fedopt.testing.task import ORDERS, Task

LAYERED = ("fedbn", "fedper", "fedrep")
"""Kinds that need a model of several layers."""

STEPS = 4


def task_for(subject: Subject, rounds: int, counter: bool = False) -> Task:
    """Return a task that the subject can do: one array, or two where layers are told apart."""
    if any(kind in subject.claims for kind in LAYERED):
        return Task(UNEQUAL, rounds=rounds, steps=STEPS, start=START, counter=counter, head=1)
    return Task(LINE, rounds=rounds, steps=STEPS, start=START[:1], counter=counter)


def order_of_replies(subject: Subject) -> Measurement:
    """Compare runs whose replies reach the server in different orders."""
    task = task_for(subject, rounds=4)
    reference = subject.run(task).models
    found = [
        compare_rounds(reference, subject.run(replace(task, order=order)).models)
        for order in ORDERS[1:]
    ]
    return max(found, key=lambda measurement: measurement.error)


def repeatable(subject: Subject) -> Measurement:
    """Compare two runs of the same task."""
    first, second = (subject.run(task_for(subject, rounds=4)).models for _ in range(2))
    return compare_rounds(first, second)


def integer_buffers(subject: Subject) -> Measurement:
    """Look at the dtype, and the whole values, of an integer buffer after some rounds."""
    rounds, most = 2, 2 * LINE.clients * STEPS  # centralised training takes all clients' steps
    counter = subject.run(task_for(subject, rounds, counter=True)).counter
    expected = f"an integer array, at most {most} batches"
    if counter is None:
        return Measurement(float("inf"), expected, "the array is gone")
    good = np.issubdtype(counter.dtype, np.integer) and 0 <= counter.item() <= most
    return Measurement(0.0 if good else float("inf"), expected, f"{counter.dtype}: {counter}")


CHECKS = (
    Check(
        "order_of_replies",
        "the order in which replies arrive does not change the model",
        "sum_{i in S} p_i w_i over a set S, which has no order",
        "McMahan et al. 2017, algorithm 1",
        ("strategy",),
        ROUNDING,
        ROUNDED,
        order_of_replies,
        exact=True,
    ),
    Check(
        "repeatable",
        "a new run of the same task gives the same models: nothing is left of the last run",
        "x_t is a function of x_0, the clients and the seed",
        "reproducibility; no paper",
        ("strategy",),
        ROUNDING,
        ROUNDED,
        repeatable,
        exact=True,
    ),
    Check(
        "integer_buffers",
        "integer arrays of the model, such as BatchNorm's count of batches, stay integers",
        "dtype(x_t) = dtype(x_0)",
        "torch.nn.BatchNorm: num_batches_tracked is int64",
        ("strategy",),
        0.0,
        "a dtype is right or wrong",
        integer_buffers,
    ),
)
