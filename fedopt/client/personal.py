"""What stays with a client: a part of the model, or a model of its own, between its rounds.

`with_personal` wraps the client's side of any strategy: the client begins with its own values of
the personal part, trains all, keeps the new values, and sends a change that is zero there. A
client that has not trained yet begins with the server's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    BUFFERS,
    PARAMETERS,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Phases,
    Vectors,
    WrappedAlgorithm,
    state_scalars,
)
from fedopt.models.layout import ModelState, ParameterLayout

PERSONAL = "personal"
"""Name of the state field of personal parameters."""

PERSONAL_BUFFERS = "personal_buffers"
"""Name of the state field of personal buffers."""

KNOWN = "personal_known"
"""Name of the number that is 1 where a client has personal values, else 0."""


@dataclass(frozen=True)
class PersonalPart:
    """Which part of a model stays with the clients.

    Args:
        parameters: positions of the personal scalars among the parameters, `[Pp]` ascending.
        buffers: positions of the personal scalars among the buffers, `[Qp]` ascending.
        phases: in which steps the personal part is trained, or None for all.
    """

    parameters: Tensor
    buffers: Tensor
    phases: Phases | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Length of the state fields, by name."""
        return {PERSONAL: len(self.parameters), PERSONAL_BUFFERS: len(self.buffers)}

    def buffer_nbytes(self, layout: ParameterLayout) -> int:
        """Return the bytes of the personal buffers on the wire."""
        mine = set(self.buffers.tolist())
        total, first = 0, 0
        for spec in layout.buffers:
            total += spec.nbytes if first in mine else 0
            first += spec.size
        return total

    def rows(self, broadcast: Vectors, state: Vectors) -> tuple[Tensor, Tensor]:
        """Return parameters `[G, P]` and buffers `[G, Q]` that some clients begin with."""
        x, buffers = broadcast[PARAMETERS], broadcast[BUFFERS]
        known = state[KNOWN].bool()
        return (
            _placed(x, self.parameters, state[PERSONAL], known),
            _placed(buffers, self.buffers, state[PERSONAL_BUFFERS], known),
        )

    def kept(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> dict[str, Tensor]:
        """Return the new state of clients after they trained."""
        x = broadcast[PARAMETERS]
        where = self.parameters.to(x.device)
        _, first = self.rows(broadcast, state)
        return {
            PERSONAL: x[where] + result.delta[:, where],
            PERSONAL_BUFFERS: (first + result.buffers.to(first))[:, self.buffers.to(first.device)],
            KNOWN: torch.ones(len(result.delta)),
        }

    def composed(self, server: ModelState, state: Vectors, place: int) -> ModelState:
        """Return a client's model: the server's with its own values, where it has any.

        Args:
            server: the server's model.
            state: the fields of some clients.
            place: the client's among them.
        """
        if not state or not bool(state[KNOWN][place]):
            return server
        broadcast = {PARAMETERS: server.parameters, BUFFERS: server.buffers}
        own = {name: values[place : place + 1] for name, values in state.items()}
        parameters, buffers = self.rows(broadcast, own)
        return ModelState(parameters[0], buffers[0])


def _placed(server: Tensor, where: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """Return the server's vector once a client, with the known clients' values at some places."""
    rows = server.expand(len(known), -1).clone()
    where, known = where.to(server.device), known.to(server.device)
    rows[:, where] = torch.where(known.unsqueeze(1), own.to(rows), rows[:, where])
    return rows


def personal_part(
    layout: ParameterLayout,
    parameters: Sequence[str],
    buffers: Sequence[str] = (),
    head_share: float | None = None,
) -> PersonalPart:
    """Return the part of a model with some names.

    Args:
        layout: of the model.
        parameters: names of the personal parameters.
        buffers: names of the personal buffers.
        head_share: share of a round's steps that train the personal part, the rest being trained
            in the others; None trains all in all.
    """
    mine = set(parameters)
    phases = None
    if head_share is not None:
        phases = Phases(tuple(spec.name in mine for spec in layout.parameters), head_share)
    return PersonalPart(
        _positions([(spec.name, spec.size) for spec in layout.parameters], mine),
        _positions([(spec.name, spec.size) for spec in layout.buffers], set(buffers)),
        phases,
    )


def _positions(sizes: Sequence[tuple[str, int]], names: set[str]) -> Tensor:
    parts, first = [], 0
    for name, size in sizes:
        if name in names:
            parts.append(torch.arange(first, first + size))
        first += size
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def with_personal(algorithm: LocalAlgorithm, part: PersonalPart | None) -> LocalAlgorithm:
    """Return a strategy's client side whose clients keep a part of the model."""
    return algorithm if part is None else PersonalLocal(algorithm, part)


@dataclass(frozen=True)
class PersonalLocal(WrappedAlgorithm):
    """A strategy's client side whose clients keep a part of the model.

    Args:
        inner: the strategy's client side.
        part: what they keep.
    """

    part: PersonalPart

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The strategy's fields and the personal values."""
        return (*self.inner.state_fields, PERSONAL, PERSONAL_BUFFERS)

    @property
    def state_scalars(self) -> tuple[str, ...]:
        """The strategy's numbers, and whether there are personal values."""
        return (*state_scalars(self.inner), KNOWN)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the strategy's terms, and what each client begins with."""
        terms = self.inner.begin(broadcast, state)
        start, buffers = self.part.rows(broadcast, state)
        return replace(terms, start=start, start_buffers=buffers, phases=self.part.phases)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the strategy's update without the personal part, and keep that."""
        where = self.part.parameters.to(result.delta.device)
        shared = replace(result, delta=_without(result.delta, where))
        if result.last is not None:
            shared = replace(shared, last=_without(result.last, where))
        update = self.inner.finish(shared, broadcast, state)
        size = result.delta.shape[1]
        terms = {
            name: _without(term, where) if term.shape[1] == size else term
            for name, term in update.terms.items()
        }
        kept = self.part.kept(result, broadcast, state)
        buffers = _without(result.buffers, self.part.buffers)
        return ClientUpdate(terms, {**update.state, **kept}, buffers)


def _without(rows: Tensor, where: Tensor) -> Tensor:
    """Return rows that are zero at some places."""
    return rows.index_fill(1, where, 0.0)


@dataclass(frozen=True)
class DittoLocal:
    """Ditto's client: FedAvg's training, and that of its own model towards x.

    Args:
        lam: weight of the pull of the personal model, >= 0.
        part: the whole model.

    Source: Li et al. 2021 (Ditto), algorithm 1.
    """

    lam: float
    part: PersonalPart
    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = (PERSONAL, PERSONAL_BUFFERS)
    state_scalars: ClassVar[tuple[str, ...]] = (KNOWN,)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return nothing to add: the first training is FedAvg's."""
        return LocalTerms()

    def second(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the training of the personal models: from their last values, pulled towards x."""
        start, buffers = self.part.rows(broadcast, state)
        return LocalTerms(proximal=self.lam, start=start, start_buffers=buffers)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change of the shared model, and keep the personal one."""
        assert result.personal is not None
        return ClientUpdate(
            {"delta": result.delta}, self.part.kept(result.personal, broadcast, state)
        )


@dataclass(frozen=True)
class LocalOnlyLocal:
    """A client that trains its own model and sends nothing.

    Args:
        part: the whole model.
    """

    part: PersonalPart
    terms: ClassVar[tuple[str, ...]] = ()
    state_fields: ClassVar[tuple[str, ...]] = (PERSONAL, PERSONAL_BUFFERS)
    state_scalars: ClassVar[tuple[str, ...]] = (KNOWN,)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the client's own model as what it begins with."""
        start, buffers = self.part.rows(broadcast, state)
        return LocalTerms(start=start, start_buffers=buffers)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Keep the model."""
        kept = self.part.kept(result, broadcast, state)
        return ClientUpdate({}, kept, torch.zeros_like(result.buffers))
