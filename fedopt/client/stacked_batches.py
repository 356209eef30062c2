"""The steps of stacked clients as rows of their examples: padded, and shrinking to a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import Padding
from fedopt.client.plan import ClientPlan
from fedopt.client.steps import table


@dataclass(frozen=True)
class Batch:
    """A step of the active clients.

    Args:
        rows: positions in the group's concatenated examples, `[A, B]`.
        lengths: examples of each client in this step, `[A]`.
        is_padded: whether some client has fewer than B.
        rates: learning rate of each client, `[A]`.
    """

    rows: Tensor
    lengths: Tensor
    is_padded: bool
    rates: npt.NDArray[np.float64]


def group_padding(plans: Sequence[ClientPlan]) -> Padding:
    """Return how the batches of a group are padded."""
    first = plans[0]
    sizes = [plan.examples for plan in plans]
    examples = max(sizes), min(sizes) < max(sizes)
    if all(p.offsets is first.offsets for p in plans):
        return Padding(None, examples)
    steps, lengths = _lengths(plans)
    padding = []
    for step in range(first.steps):
        now = lengths[: np.count_nonzero(steps > step), step]
        longest = int(now.max())
        padding.append((longest, bool((now < longest).any())))
    return Padding(padding, examples)


def _lengths(
    plans: Sequence[ClientPlan],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the steps of each client, and the examples of each step, 0 after a client's last."""
    steps = np.array([p.steps for p in plans])
    lengths = np.zeros((len(plans), plans[0].steps), dtype=np.int64)
    for i, plan in enumerate(plans):
        lengths[i, : plan.steps] = np.diff(plan.offsets)
    return steps, lengths


def group_batches(
    plans: Sequence[ClientPlan],
    firsts: Sequence[int],
    device: torch.device,
    padding: Padding | None = None,
) -> list[Batch]:
    """Return the steps of a group, resolved to rows of its concatenated examples.

    Args:
        plans: of the clients, in descending order of steps.
        firsts: where each client's examples begin.
        device: where rows and lengths are wanted.
        padding: that of a larger group of which this is a part; None: as this group needs.
    """
    first = plans[0]
    rates = table([plan.learning_rates for plan in plans], first.steps)
    widths = (padding or group_padding(plans)).steps
    if widths is None:
        return _even_batches(plans, firsts, rates, device)
    steps, lengths = _lengths(plans)
    width = max(longest for longest, _ in widths[: first.steps])
    rows = np.zeros((len(plans), first.steps, width), dtype=np.int64)
    columns = np.arange(width)
    for i, plan in enumerate(plans):
        places = plan.offsets[:-1, None] + np.minimum(columns, lengths[i, : plan.steps, None] - 1)
        order = plan.order
        rows[i, : plan.steps] = firsts[i] + (
            places % plan.examples if order is None else order[places]
        )
    batches = []
    for step in range(first.steps):
        active = int(np.count_nonzero(steps > step))
        now = lengths[:active, step]
        longest, is_padded = widths[step]
        batches.append(
            Batch(
                torch.from_numpy(rows[:active, step, :longest].copy()).to(device),
                torch.from_numpy(now.copy()).to(device),
                is_padded,
                rates[:active, step],
            )
        )
    return batches


def _even_batches(
    plans: Sequence[ClientPlan],
    firsts: Sequence[int],
    rates: npt.NDArray[np.float64],
    device: torch.device,
) -> list[Batch]:
    """Return the steps of clients that have equally many examples and steps."""
    first = plans[0]
    offsets = first.offsets.tolist()
    starts = np.array(firsts)[:, None]
    if first.order is None:
        whole = np.tile(np.arange(first.examples), (len(plans), 1))
        everything = torch.from_numpy(starts + whole).to(device)
        pieces = [everything] * first.steps
    else:
        orders = np.stack([p.order for p in plans if p.order is not None])
        rows = torch.from_numpy(starts + orders).to(device)
        pieces = [rows[:, a:b] for a, b in pairwise(offsets)]
    return [
        Batch(
            piece,
            torch.full((len(plans),), piece.shape[1], device=device),
            False,
            rates[:, step],
        )
        for step, piece in enumerate(pieces)
    ]
