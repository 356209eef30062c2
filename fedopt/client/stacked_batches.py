"""The steps of stacked clients as rows of their examples: padded, and shrinking to a prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import Padding
from fedopt.client.plan import ClientPlan

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_STRETCH_EXAMPLES = 1 << 16
"""Examples whose rows are resolved at once: what a group's plans take does not grow with them."""


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


@dataclass(frozen=True)
class Stretch:
    """S steps in a row, of the A clients that are active in the first of them.

    Args:
        rows: positions in the group's concatenated examples, `[S, A, B]`; a batch that is shorter
            than B is filled up with its last example.
        lengths: examples of each client in each step, `[S, A]`, 0 after a client's last.
        active: clients in each step, a prefix, `[S]`.
        widths: length to which the step's batches are padded, <= B, `[S]`.
        is_padded: whether some client has fewer, `[S]`.
        rates: learning rates, `[S, A]`, 0 after a client's last step.
    """

    rows: Ints
    lengths: Ints
    active: Ints
    widths: Ints
    is_padded: Flags
    rates: npt.NDArray[np.float64]

    def batches(self, device: torch.device) -> Iterator[Batch]:
        """Return the steps one by one, with rows and lengths on a device."""
        rows = torch.from_numpy(self.rows).to(device)
        lengths = torch.from_numpy(self.lengths).to(device)
        for step, (active, width) in enumerate(
            zip(self.active.tolist(), self.widths.tolist(), strict=True)
        ):
            yield Batch(
                rows[step, :active, :width],
                lengths[step, :active],
                bool(self.is_padded[step]),
                self.rates[step, :active],
            )


def group_padding(plans: Sequence[ClientPlan]) -> Padding:
    """Return how the batches of a group are padded; its plans are in descending order of steps."""
    first = plans[0]
    sizes = [plan.examples for plan in plans]
    examples = max(sizes), min(sizes) < max(sizes)
    if _is_even(plans):
        return Padding(None, examples)
    longest = np.zeros(first.steps, dtype=np.int64)
    shortest = np.full(first.steps, np.iinfo(np.int64).max)
    for plan in plans:
        lengths = np.diff(plan.offsets)
        for extreme, limit in ((longest, np.maximum), (shortest, np.minimum)):
            limit(extreme[: plan.steps], lengths, out=extreme[: plan.steps])
    return Padding((longest, shortest < longest), examples)


def group_stretches(
    plans: Sequence[ClientPlan], firsts: Sequence[int], padding: Padding
) -> Iterator[Stretch]:
    """Return the steps of a group, resolved to rows of its concatenated examples.

    Args:
        plans: of the clients, in descending order of steps.
        firsts: where each client's examples begin.
        padding: that of the group, or of a larger one of which this is a part.
    """
    found = padding.steps
    if found is None:
        widths = np.diff(plans[0].offsets)
        is_padded = np.zeros(len(widths), dtype=np.bool_)
    else:
        widths, is_padded = found
    # Of those with more than s steps: all clients but the ones whose last step was before.
    ends = np.array([plan.steps for plan in plans])[::-1]
    steps, start = plans[0].steps, 0
    active = len(plans) - np.searchsorted(ends, np.arange(steps), side="right")
    while start < steps:
        clients, width = int(active[start]), int(widths[start:steps].max())
        stop = min(steps, start + max(1, _STRETCH_EXAMPLES // (clients * width)))
        part = slice(start, stop)
        resolve = _even_rows if found is None else _uneven_rows
        rows, lengths = resolve(plans[:clients], firsts, start, stop, width)
        rates = np.zeros((stop - start, clients))
        for place, plan in zip(rates.T, plans, strict=False):
            own = plan.learning_rates[part]
            place[: len(own)] = own
        yield Stretch(rows, lengths, active[part], widths[part], is_padded[part], rates)
        start = stop


def most_examples(plans: Sequence[ClientPlan], padding: Padding) -> int:
    """Return the length of the longest batch of a group; see `group_stretches`."""
    found = padding.steps
    steps = plans[0].steps
    return int(np.diff(plans[0].offsets).max() if found is None else found[0][:steps].max())


def _is_even(plans: Sequence[ClientPlan]) -> bool:
    """Return whether the clients have equally many examples and steps."""
    return all(plan.offsets is plans[0].offsets for plan in plans)


def _uneven_rows(
    plans: Sequence[ClientPlan], firsts: Sequence[int], start: int, stop: int, width: int
) -> tuple[Ints, Ints]:
    """Return rows and lengths of a stretch; see `Stretch`."""
    rows = np.zeros((stop - start, len(plans), width), dtype=np.int64)
    lengths = np.zeros((stop - start, len(plans)), dtype=np.int64)
    for i, plan in enumerate(plans):
        places, own = _places(plan, start, stop, width)
        lengths[: len(own), i] = own
        order = plan.order
        rows[: len(own), i] = places % plan.examples if order is None else order[places]
        rows[: len(own), i] += firsts[i]
    return rows, lengths


def _even_rows(
    plans: Sequence[ClientPlan], firsts: Sequence[int], start: int, stop: int, width: int
) -> tuple[Ints, Ints]:
    """Return rows and lengths of a stretch of clients who have the same batches, all at once."""
    first = plans[0]
    places, own = _places(first, start, stop, width)
    starts = np.array(firsts[: len(plans)])
    if first.order is None:
        rows = (places % first.examples)[:, None, :] + starts[:, None]
    else:
        low, high = int(places[0, 0]), int(places[-1, -1]) + 1
        orders = np.stack([p.order[low:high] for p in plans if p.order is not None])
        rows = orders[:, places - low] + starts[:, None, None]
        rows = np.ascontiguousarray(rows.swapaxes(0, 1))
    return rows, np.repeat(own[:, None], len(plans), axis=1)


def _places(plan: ClientPlan, start: int, stop: int, width: int) -> tuple[Ints, Ints]:
    """Return places in a plan's order of its steps in a stretch, `[S, B]`, and their lengths."""
    offsets = plan.offsets[start : stop + 1]
    lengths = np.diff(offsets)
    return offsets[:-1, None] + np.minimum(np.arange(width), lengths[:, None] - 1), lengths
