"""The channel between server and clients: clipping, noise and compression of each client's update.

What a client sends goes through the channel before it is summed, in this order:

    clip      delta <- delta min(1, C / |delta|)
    noise     delta <- delta + N(0, (z C)^2 / |S| I), so that the sum over the cohort S has (z C)^2
    compress  each vector as long as the model is replaced by what the server decodes of it

Everything is per client: a row of a group depends on that row and on the client's own draws alone.
With a quantile gamma instead of a fixed norm, C follows the clients' norms: each also sends whether
its norm was at most C, and the server moves C until gamma of them are.

Source: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", algorithm
1; Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1;
Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    NOISE,
    PARAMETERS,
    ClientUpdate,
    LocalAlgorithm,
    Senders,
    Vectors,
    WrappedAlgorithm,
    settled,
)
from fedopt.client.personal import PersonalPart
from fedopt.compression.codecs import Codec, error_feedback
from fedopt.models.layout import ParameterLayout

CLIP_NORM = "channel.clip_norm"
"""Name of the broadcast of a clipping norm that follows a quantile, of length 1."""

BELOW_NORM = "channel.below_norm"
"""Name of the term, of length 1, that is 1/2 where a client's norm was at most that, else -1/2."""

RESIDUAL = "channel.residual."
"""What the names of the state fields of error feedback begin with."""


@dataclass(frozen=True)
class SentPart:
    """Which scalars of a vector as long as the model are sent, and in which shapes.

    Args:
        columns: their positions, ascending, or None for all.
        shapes: of the arrays, as they lie in memory; their sizes add up to the scalars sent.
    """

    columns: Tensor | None
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, layout: ParameterLayout, personal: PersonalPart | None = None) -> SentPart:
        """Return all of a model but what stays with the clients."""
        if personal is None or not len(personal.parameters):
            return cls(None, tuple(layout.memory_shape(spec) for spec in layout.parameters))
        kept = torch.zeros(layout.size, dtype=torch.bool)
        kept[personal.parameters] = True
        shapes, first = [], 0
        for spec in layout.parameters:
            if not kept[first]:
                shapes.append(layout.memory_shape(spec))
            first += spec.size
        return cls((~kept).nonzero()[:, 0], tuple(shapes))

    @property
    def size(self) -> int:
        """How many scalars are sent."""
        return sum(math.prod(shape) for shape in self.shapes)

    def take(self, rows: Tensor) -> Tensor:
        """Return what is sent of rows `[G, P]`."""
        return rows if self.columns is None else rows[:, self.columns.to(rows.device)]

    def put(self, rows: Tensor, sent: Tensor) -> Tensor:
        """Return rows like `rows`, with what was sent in its place and zeros elsewhere."""
        if self.columns is None:
            return sent
        whole = torch.zeros_like(rows)
        whole[:, self.columns.to(rows.device)] = sent
        return whole


@dataclass(frozen=True)
class Clip:
    """How updates are clipped.

    Args:
        norm: C, the longest that an update may be, > 0; with a quantile, that of the first round.
        quantile: gamma, the share of the clients whose norm C is to be at least, in [0, 1]; None
            keeps C.
        lr: learning rate of C, C <- C exp(-lr (share at most C - gamma)), > 0.
    """

    norm: float
    quantile: float | None = None
    lr: float = 0.2

    @property
    def is_adaptive(self) -> bool:
        """Whether the norm follows a quantile."""
        return self.quantile is not None


@dataclass(frozen=True)
class Noise:
    """The noise that makes a round's sum differentially private.

    Args:
        update: its standard deviation in a sum of updates, in clipping norms.
        count: that in the number of clients whose norm is at most C, in clients; 0 without a
            quantile.
    """

    update: float
    count: float = 0.0


@dataclass(frozen=True)
class Channel:
    """What happens to what server and clients send each other.

    Args:
        part: which scalars are sent.
        clip: how each client's delta is clipped, or None.
        noise: what is added to it, or None; needs a clip.
        up: codec of what clients send, or None.
        feedback: whether what the codec lost is added to what the client sends next time.
        down: codec of what the server sends, or None.
    """

    part: SentPart
    clip: Clip | None = None
    noise: Noise | None = None
    up: Codec | None = None
    feedback: bool = False
    down: Codec | None = None

    @property
    def is_adaptive(self) -> bool:
        """Whether the clipping norm follows a quantile."""
        return self.clip is not None and self.clip.is_adaptive

    def nbytes(
        self, down: int, up: int, sent: int, returned: int, itemsize: int
    ) -> tuple[int, int]:
        """Return the bytes of a client's download and upload, of which some vectors are encoded.

        Args:
            down: bytes of the download without a codec.
            up: those of the upload.
            sent: vectors as long as the model in the download.
            returned: those in the upload.
            itemsize: bytes of a scalar without a codec.
        """
        part = self.part
        raw = part.size * itemsize
        if self.down is not None:
            down += sent * (self.down.nbytes(part.size, itemsize, part.shapes) - raw)
        if self.up is not None:
            up += returned * (self.up.nbytes(part.size, itemsize, part.shapes) - raw)
        return down, up

    @property
    def sizes(self) -> dict[str, int]:
        """Length of terms and broadcasts that are not P long, by name."""
        return {CLIP_NORM: 1, BELOW_NORM: 1}


def with_channel(
    algorithm: LocalAlgorithm, channel: Channel | None, sizes: Mapping[str, int]
) -> LocalAlgorithm:
    """Return a strategy's client side whose updates go through a channel.

    Args:
        algorithm: the strategy's client side.
        channel: the channel, or None.
        sizes: length of the terms that are not P long, by name.
    """
    return algorithm if channel is None else ChannelLocal(algorithm, channel, frozenset(sizes))


@dataclass(frozen=True)
class ChannelLocal(WrappedAlgorithm):
    """A strategy's client side whose updates go through a channel.

    Args:
        inner: the strategy's client side.
        channel: the channel.
        others: names of vectors that are not as long as the model, and go as they are.
    """

    channel: Channel
    others: frozenset[str]

    @property
    def terms(self) -> tuple[str, ...]:
        """The strategy's terms, and the count of those below an adaptive norm."""
        counted = (BELOW_NORM,) if self.channel.is_adaptive else ()
        return (*self.inner.terms, *counted)

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The strategy's fields, and the residuals of error feedback."""
        if self.channel.up is None or not self.channel.feedback:
            return self.inner.state_fields
        return (*self.inner.state_fields, *(RESIDUAL + name for name in self._compressed))

    @property
    def _compressed(self) -> tuple[str, ...]:
        """Names of the vectors that are compressed: those as long as the model."""
        names = self.inner.terms
        whole = names if "delta" in names or not self.collected else ("delta", *names)
        return tuple(name for name in whole if name not in self.others)

    def send(
        self, update: ClientUpdate, broadcast: Vectors, state: Vectors, senders: Senders
    ) -> ClientUpdate:
        """Return what arrives of a group's update, and what the clients keep.

        Args:
            update: of the group.
            broadcast: what the server sent.
            state: what the clients kept.
            senders: who they are.
        """
        channel = self.channel
        terms, kept = dict(update.terms), dict(update.state)
        if channel.clip is not None:
            terms |= self._clipped(terms["delta"], broadcast, senders)
        if channel.up is not None:
            for place, name in enumerate(self._compressed):
                residual = state[RESIDUAL + name] if channel.feedback else None
                terms[name] = terms[name].to(broadcast[PARAMETERS].dtype)  # as it would travel
                draws = senders.generators(f"channel.{place}")
                terms[name], left = self._decoded(terms[name], residual, draws)
                if left is not None:
                    kept[RESIDUAL + name] = left
        arrived = ClientUpdate(terms, kept, update.buffers)
        if channel.feedback:  # the residual makes up for what has not arrived
            return arrived
        return replace(arrived, state=settled(self.inner, arrived, state))

    def _clipped(self, delta: Tensor, broadcast: Vectors, senders: Senders) -> dict[str, Tensor]:
        """Return delta clipped and with noise, and the count of those that were short enough."""
        channel, clip = self.channel, self.channel.clip
        assert clip is not None
        norm = float(broadcast[CLIP_NORM]) if clip.is_adaptive else clip.norm
        norms = row_norms(delta)
        found = {"delta": clipped(delta, norms, norm)}
        if clip.is_adaptive:
            found[BELOW_NORM] = (norms <= norm).to(delta).sub_(0.5).unsqueeze(1)
        if channel.noise is None:
            return found
        draws = senders.generators(NOISE)
        share = 1 / math.sqrt(senders.cohort)
        sent = channel.part.take(found["delta"])
        noise = _gaussian(sent, draws).mul_(channel.noise.update * norm * share)
        found["delta"] = channel.part.put(delta, sent + noise)
        if clip.is_adaptive:
            noise = _gaussian(found[BELOW_NORM], draws)
            found[BELOW_NORM] = found[BELOW_NORM] + noise.mul_(channel.noise.count * share)
        return found

    def _decoded(
        self, rows: Tensor, residual: Tensor | None, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the server decodes of rows, and what is left for the next time."""
        part, codec = self.channel.part, self.channel.up
        assert codec is not None
        sent = part.take(rows)
        if residual is None:
            arrived = codec.compress(sent, generators, part.shapes)
            return part.put(rows, arrived.rows), None
        before = part.take(residual.to(rows))
        arrived, left = error_feedback(codec, sent, before, generators, part.shapes)
        return part.put(rows, arrived.rows), part.put(rows, left)


def row_norms(rows: Tensor) -> Tensor:
    """Return the norm of each row of `[G, P]`, `[G]` in float64 on the CPU.

    One row at a time, at the start of its own memory: how a block's are summed depends on the
    block, and on a GPU on where the row starts.
    """
    alone = [row.clone() if row.is_cuda else row for row in rows]
    return torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in alone]).cpu()


def clipped(rows: Tensor, norms: Tensor, limit: float) -> Tensor:
    """Return rows `[G, P]` of which none is longer than a limit.

    Args:
        rows: the rows.
        norms: their norms, `[G]`.
        limit: the longest that a row may be, > 0.
    """
    # Rounded down, so that a clipped row is not longer by a rounding of its elements.
    scale = limit * (1 - 2 * torch.finfo(rows.dtype).eps) / norms.clamp_min(1e-300)
    factors = torch.where(norms <= limit, torch.ones_like(scale), scale)
    short = rows * factors.to(rows).unsqueeze(1)
    if norms.isfinite().all():
        return short
    finite = norms.isfinite().to(rows.device).unsqueeze(1)
    return torch.where(finite, short, torch.full_like(short, math.nan))


def _gaussian(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return standard normal numbers `[G, n]`, each row from its own generator."""
    rows = [torch.randn(like.shape[1], generator=g, dtype=like.dtype) for g in generators]
    return torch.stack(rows).to(like.device)
