"""SCAFFOLD: control variates on the server (c) and the clients (c_i) remove client drift.

    client: y <- y - lr (g_i(y) - c_i + c), K times from y = x
            option I:   c_i+ = gradient of f_i at x, over all the client's examples
            option II:  c_i+ = c_i - c + (x - y) / (K lr)
    server: x <- x + server_lr * mean_S(y - x)
            c <- c + |S|/N * mean_S(c_i+ - c_i)

All c start at zero, so that c is the mean of all c_i in every round. K lr is the true sum of the
coefficients with which this client's gradients entered y: it counts the applied steps, varying
learning rates, and momentum; where there is no such sum (Adam; momentum of an earlier round),
option II is refused.

With sharpness-aware minimisation the gradient that is corrected is the one at the perturbed
point (FedGAMMA); the perturbation follows the client's own gradient unless
`local.sam.corrected` says otherwise. Option II then makes c_i the mean of perturbed gradients,
option I keeps the plain gradient at x. Skipping, clipping and noise act on the corrected
gradient: what they change is no longer a control variate of the client's loss exactly, and enters
c_i by option II as it entered y.

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", algorithm 1. The means over the cohort S are uniform, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.registry import Options
from fedopt.server.catalogue import ScaffoldOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class ScaffoldLocal:
    """SCAFFOLD's client.

    Args:
        option: how the control variate is renewed, "I" or "II".

    Source: Karimireddy et al. 2020, algorithm 1, lines 7 to 14.
    """

    option: str
    terms: ClassVar[tuple[str, ...]] = ("delta", "control_delta")
    state_fields: ClassVar[tuple[str, ...]] = ("control_variate",)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the correction c - c_i of each gradient."""
        c, c_i = _controls(broadcast, state)
        return LocalTerms(correction=c - c_i, full_gradient=self.option == "I")

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return y - x and c_i+ - c_i, and keep c_i+."""
        c, c_i = _controls(broadcast, state)
        if self.option == "I":
            assert result.full_gradient is not None
            new = result.full_gradient
        else:
            assert result.lr_sum is not None
            lr_sum = result.lr_sum.to(result.delta).unsqueeze(-1)
            mean = result.displacement / lr_sum.clamp_min(torch.finfo(lr_sum.dtype).tiny)
            # A client all of whose steps were skipped has learnt nothing of its gradient.
            new = torch.where(lr_sum > 0, c_i - c - mean, c_i)
        # In double precision the differences are exact, so that c stays the mean of the c_i.
        control_delta = new.double() - c_i.double()
        return ClientUpdate(
            {"delta": result.delta, "control_delta": control_delta}, {"control_variate": new}
        )

    def settle(self, update: ClientUpdate, state: Vectors) -> Vectors:
        """Renew c_i by what has arrived, so that c stays the mean of all c_i."""
        arrived = update.terms["control_delta"]
        new = state["control_variate"].to(arrived.device).double() + arrived
        kept = update.state["control_variate"]
        return {**update.state, "control_variate": new.to(kept.dtype)}


def _controls(broadcast: Vectors, state: Vectors) -> tuple[Tensor, Tensor]:
    """Return c `[P]` and c_i `[G, P]` on the training device."""
    c = broadcast["control_variate"]
    return c, state["control_variate"].to(c.device)


class Scaffold(FederatedStrategy):
    """Stochastic controlled averaging.

    Source: Karimireddy et al. 2020, algorithm 1.
    """

    options_type = ScaffoldOptions
    takes_server_optimizer: ClassVar[bool] = True

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The vector that the clients' gradients are corrected with."""
        return ("control_variate",)

    @classmethod
    def local(cls, options: ScaffoldOptions) -> LocalAlgorithm:
        """Return SCAFFOLD's client."""
        return ScaffoldLocal(options.option)

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse option II where the displacement is not a sum of this round's gradients."""
        assert isinstance(options, ScaffoldOptions)
        if options.option == "I":
            return
        rule = recipe.rule
        reason = ""
        if rule.effective_lr_sum([1.0]) is None:
            reason = f"{recipe.rule_name} does not allow"
        elif recipe.optimizer_state != "reset" and rule.slots:
            reason = f'momentum of earlier rounds ("{recipe.optimizer_state}") does not allow'
        if reason:
            raise ConfigError(
                f'got "II", which reads the mean gradient off the client\'s displacement; '
                f'{reason} that; use "I", or sgd that begins afresh each round',
                key="strategy.option",
            )

    def begin(self, layout: ParameterLayout) -> None:
        """Start with c = 0."""
        self.control_variate = torch.zeros(layout.size, dtype=torch.float64)

    def broadcast(self) -> Mapping[str, Tensor]:
        """Send c."""
        return {"control_variate": self.control_variate}

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Renew c and return the new parameters."""
        self.control_variate = (
            self.control_variate + sums.terms["control_delta"] / self.sampler.clients
        )
        return super().server_step(parameters, sums)

    def vectors(self) -> dict[str, Tensor]:
        """Return c."""
        return {"control_variate": self.control_variate}

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back c."""
        self.control_variate = vectors["control_variate"].clone()
