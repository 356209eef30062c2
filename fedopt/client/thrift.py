"""Training a group within the memory that there is: in smaller groups where it does not fit.

An engine's result for a client depends on the client and on how the group's batches are padded. The
parts of a group are padded as the whole would have been, and their sums are formed over the whole,
so that on a CPU the bits are those of the group at once. Only what training needs shrinks with the
parts; the results are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.plan import ClientPlan
from fedopt.client.stacked_batches import group_padding
from fedopt.data.population import Examples
from fedopt.models.layout import ModelState

log = logging.getLogger("fedopt")

_SAYS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says on a CPU, as a plain RuntimeError."""


class Trains(Protocol):
    """Trains a group of clients: an engine."""

    def train(
        self,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        terms: LocalTerms,
    ) -> LocalResult:
        """Train a group of clients from `start`; `examples` are theirs, one after another."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


def train_thriftily(
    engine: Trains,
    start: ModelState,
    round: int,
    plans: Sequence[ClientPlan],
    examples: Examples,
    terms: LocalTerms,
) -> LocalResult:
    """Train a group of clients; halve it where memory does not suffice, and again.

    Args:
        engine: trains groups.
        start: the server's parameters and buffers.
        round: communication round, from 1.
        plans: of the clients.
        examples: theirs, one after another.
        terms: the objective's, for the group.

    Raises:
        MemoryError: a single client needs more than there is.
    """
    try:
        return engine.train(start, round, plans, examples, terms)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(plans) == 1:
            raise MemoryError(f"out of memory, even for this client alone: {error}") from error
    # Outside the handler, whose traceback holds on to what the failed attempt had allocated.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.info("round %d: %d clients at once need too much memory; halved", round, len(plans))
    if terms.padding is None:
        terms = replace(terms, padding=group_padding(plans))
    cut = (len(plans) + 1) // 2
    parts = []
    for part in (slice(0, cut), slice(cut, len(plans))):
        result = train_thriftily(
            engine,
            start,
            round,
            plans[part],
            _examples_of(examples, plans, part),
            _rows_of(terms, part, len(plans)),
        )
        parts.append(_mapped(result, torch.clone))  # an engine uses its memory again
    joined: LocalResult = _joined(parts)
    return joined


def _examples_of(examples: Examples, plans: Sequence[ClientPlan], part: slice) -> Examples:
    """Return the examples of some of the clients of a group."""
    stops = list(accumulate((plan.examples for plan in plans), initial=0))
    where = slice(stops[part.start], stops[part.stop])
    return Examples(examples.x[where], examples.y[where])


def _rows_of(terms: LocalTerms, part: slice, clients: int) -> LocalTerms:
    """Return the terms of some of the clients of a group; what all share stays."""

    def rows(value: Tensor) -> Tensor:
        return value[part] if value.dim() and len(value) == clients else value

    mapped: LocalTerms = _mapped(terms, rows)
    return mapped


def _mapped(record: Any, change: Any) -> Any:
    """Return a record of which each tensor is changed, those inside mappings and records too."""
    if isinstance(record, Tensor):
        return change(record)
    if isinstance(record, Mapping):
        return {name: _mapped(value, change) for name, value in record.items()}
    if isinstance(record, LocalResult | LocalTerms):
        values = {f.name: _mapped(getattr(record, f.name), change) for f in fields(record)}
        return replace(record, **values)
    return record


def _joined(parts: Sequence[Any]) -> Any:
    """Return the results of parts of a group as that of the group."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, LocalResult):
        names = [f.name for f in fields(first)]
        return LocalResult(**{n: _joined([getattr(part, n) for part in parts]) for n in names})
    return first
