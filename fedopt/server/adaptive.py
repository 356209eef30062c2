"""FedAvgM, FedAdagrad, FedAdam and FedYogi: federated averaging with a server optimizer.

With the weighted mean update D of the cohort:

    FedAvgM     m <- beta m + D                       x <- x + server_lr m
    the others  m <- beta1 m + (1 - beta1) D          x <- x + server_lr m / (sqrt(v) + tau)
    FedAdagrad  v <- v + D^2
    FedAdam     v <- beta2 v + (1 - beta2) D^2
    FedYogi     v <- v - (1 - beta2) D^2 sign(v - D^2)

m starts at 0 and v at tau^2; nothing is corrected for a bias. Flower's own FedAdam and FedYogi
start v at 0, and its FedAdam corrects the rate for the bias of both moments with the number of the
round plus one: its first steps are others than the paper's.

Source: Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification" (FedAvgM); Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.optim.rules import Nonlinear, RuleState, Sgd, Tensors
from fedopt.server.catalogue import FedAdaptiveOptions, FedAvgMOptions, FedMomentsOptions
from fedopt.server.optimizer import ServerRule
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class ReddiRule(Nonlinear):
    """The adaptive server updates, w <- w - lr m / (sqrt(v) + tau) for the gradient -D.

    Args:
        kind: how v grows, `adagrad`, `adam` or `yogi`.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1); FedAdagrad has none.
        tau: degree of adaptivity, > 0.

    Source: Reddi et al. 2021, algorithm 2.
    """

    kind: str
    beta1: float
    beta2: float
    tau: float

    @property
    def slots(self) -> tuple[str, ...]:
        """The moments m and v."""
        return ("first_moment", "second_moment")

    @property
    def momentum_like(self) -> float | None:
        """The decay of the first moment."""
        return self.beta1

    def init(self, parameters: Tensors) -> RuleState:
        """Return m = 0 and v = tau^2."""
        first = [torch.zeros_like(p) for p in parameters]
        second = [torch.full_like(p, self.tau**2) for p in parameters]
        return RuleState(slots={"first_moment": first, "second_moment": second})

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        beta1 = self.beta1 if momentum is None else momentum
        state.step += 1
        moments = zip(state.slots["first_moment"], state.slots["second_moment"], strict=True)
        for parameter, gradient, (first, second) in zip(
            parameters, gradients, moments, strict=True
        ):
            first.mul_(beta1).add_(gradient, alpha=1 - beta1)
            square = gradient.square()
            if self.kind == "adagrad":
                second.add_(square)
            elif self.kind == "adam":
                second.mul_(self.beta2).add_(square, alpha=1 - self.beta2)
            else:
                second.addcmul_(square, (second - square).sign_(), value=self.beta2 - 1)
            parameter.addcdiv_(first, second.sqrt().add_(self.tau), value=-lr)


class FedAvgM(FederatedStrategy):
    """Federated averaging with server momentum.

    Source: Hsu et al. 2019, section 4.3.
    """

    options_type = FedAvgMOptions

    @classmethod
    def server_rule(cls, options: FedAvgMOptions) -> ServerRule:
        """Return SGD with momentum."""
        return ServerRule(Sgd(momentum=options.momentum), options.server_lr)


class FedAdagrad(FederatedStrategy):
    """Federated averaging with a server rate that falls with the sum of squared updates.

    Source: Reddi et al. 2021, algorithm 2 (FedAdagrad).
    """

    options_type = FedAdaptiveOptions

    @classmethod
    def server_rule(cls, options: FedAdaptiveOptions) -> ServerRule:
        """Return FedAdagrad's rule."""
        rule = ReddiRule("adagrad", options.beta1, 0.0, options.tau)
        return ServerRule(rule, options.server_lr)


class FedAdam(FederatedStrategy):
    """Federated averaging with the paper's Adam on the server.

    Source: Reddi et al. 2021, algorithm 2 (FedAdam).
    """

    options_type = FedMomentsOptions

    @classmethod
    def server_rule(cls, options: FedMomentsOptions) -> ServerRule:
        """Return FedAdam's rule."""
        rule = ReddiRule("adam", options.beta1, options.beta2, options.tau)
        return ServerRule(rule, options.server_lr)


class FedYogi(FederatedStrategy):
    """Federated averaging with the paper's Yogi on the server.

    Source: Reddi et al. 2021, algorithm 2 (FedYogi).
    """

    options_type = FedMomentsOptions

    @classmethod
    def server_rule(cls, options: FedMomentsOptions) -> ServerRule:
        """Return FedYogi's rule."""
        rule = ReddiRule("yogi", options.beta1, options.beta2, options.tau)
        return ServerRule(rule, options.server_lr)
