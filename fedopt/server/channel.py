"""The server's end of the channel: what it sends, the noise that is missing, the clipping norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedopt.client.channel import BELOW_NORM, CLIP_NORM, Channel
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.seeds import torch_generator
from fedopt.server.rounds import RoundSums


class ServerChannel:
    """What a strategy does with the channel.

    Args:
        channel: the channel.
        layout: of the model.
        seed: the run's seed.
        divisor: what sums with noise are divided by, the expected size of a cohort; None divides
            by the weights that arrived.
    """

    def __init__(
        self, channel: Channel, layout: ParameterLayout, seed: int, divisor: int | None
    ) -> None:
        if channel.noise is not None and divisor is None:
            raise ConfigError(
                "missing; the channel adds noise, which the server must know of",
                key="federation.privacy",
            )
        self._channel = channel
        self._layout = layout
        self._seed = seed
        self._divisor = divisor
        self.clip_norm = math.nan if channel.clip is None else channel.clip.norm

    @property
    def is_adaptive(self) -> bool:
        """Whether the clipping norm follows a quantile."""
        return self._channel.is_adaptive

    @property
    def compresses(self) -> bool:
        """Whether what is sent down is compressed."""
        return self._channel.down is not None

    def broadcast(self) -> dict[str, Tensor]:
        """Return what is sent down besides the strategy's vectors: a norm that changes."""
        if not self.is_adaptive:
            return {}
        return {CLIP_NORM: torch.tensor([self.clip_norm], dtype=torch.float64)}

    def sent_down(self, round: int, place: int, vector: Tensor) -> Tensor:
        """Return what clients decode of a vector `[P]`; what stays with them as it was.

        Args:
            round: communication round, from 1.
            place: of the vector among those sent.
            vector: the parameters, or another vector as long.
        """
        codec, part = self._channel.down, self._channel.part
        if codec is None:
            return vector
        row = vector.unsqueeze(0)
        draws = torch_generator(self._seed, "channel.down", round, place)
        arrived = codec.compress(part.take(row), (draws,), part.shapes).rows
        if part.columns is None:
            return arrived[0]
        whole = vector.clone()
        whole[part.columns] = arrived[0]
        return whole

    def received(self, round: int, sums: RoundSums, cohort: int) -> RoundSums:
        """Return the sums of a round, with the noise that clients that did not send owe.

        Args:
            round: communication round, from 1.
            sums: what arrived.
            cohort: clients that were sampled; none where chance would have it.
        """
        noise, clip = self._channel.noise, self._channel.clip
        terms = dict(sums.terms)
        if noise is not None:
            missing = 1.0 if not cohort else (cohort - sums.count) / cohort
            if missing > 0:
                draws = torch_generator(self._seed, "channel.missing", round)
                part, delta = self._channel.part, terms["delta"].unsqueeze(0)
                drawn = torch.randn(1, part.size, generator=draws, dtype=torch.float64)
                drawn *= noise.update * self.clip_norm * math.sqrt(missing)
                terms["delta"] = (delta + part.put(delta, drawn))[0]
                if self.is_adaptive:
                    drawn = torch.randn(1, generator=draws, dtype=torch.float64)
                    terms[BELOW_NORM] = terms[BELOW_NORM] + (
                        drawn * noise.count * math.sqrt(missing)
                    )
            assert self._divisor is not None
            sums = replace(sums, weight=float(self._divisor))
        if self.is_adaptive:
            assert clip is not None
            assert clip.quantile is not None
            share = 0.5 + float(terms[BELOW_NORM]) / (self._divisor or sums.count)
            self.clip_norm *= math.exp(-clip.lr * (share - clip.quantile))
        return replace(sums, terms=terms)

    def vectors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return self.broadcast()

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        if self.is_adaptive:
            self.clip_norm = float(vectors[CLIP_NORM])
