"""How a client takes its steps: the update rule and every technique around it, as plain data.

Engines read a recipe; `fedopt.client.steps` carries it out. The order of a step is fixed:

    gradient of loss + penalty (at the perturbed point under SAM)
    -> strategy's scale, proximal term, correction -> skip test -> clip -> noise
    -> weight decay and update rule at lr(t) -> local average
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedopt.client.self_paced import SelfPace
from fedopt.optim.curvature import KroneckerRule
from fedopt.optim.rules import Rule
from fedopt.optim.transforms import GradientTransforms


@dataclass(frozen=True)
class Sharpness:
    """Sharpness-aware minimisation: the gradient is taken at w + e.

    SAM: e = rho g / |g|. Adaptive (ASAM): e = rho T^2 g / |T g| with T = |w| + eta. Norms are over
    all of a client's parameters.

    Args:
        rho: radius, > 0.
        adaptive: whether the radius is relative to the weights.
        eta: added to |w| where adaptive, >= 0.
        corrected: whether e follows the gradient with the strategy's correction, rather than the
            client's own. The gradient of the step is corrected either way.

    Source: Foret et al. 2021, equation 2; Kwon et al. 2021, algorithm 1.
    """

    rho: float
    adaptive: bool = False
    eta: float = 0.01
    corrected: bool = False


@dataclass(frozen=True)
class LocalAverage:
    """The mean of a client's last iterates, sent in place of the last.

    Args:
        last_steps: iterates averaged, or None.
        last_epochs: the same in epochs, or None; with neither, all of the round's.
        decay: None for the arithmetic mean; d for the moving average a <- d a + (1 - d) w that
            begins at the first iterate.

    Source: Izmailov et al. 2018 (SWA), section 3.2.
    """

    last_steps: int | None = None
    last_epochs: float | None = None
    decay: float | None = None

    def window(self, steps: int, steps_per_epoch: int) -> int:
        """Return how many of `steps` iterates are averaged, 1..steps."""
        if self.last_steps is not None:
            return min(self.last_steps, steps)
        if self.last_epochs is not None:
            return min(max(1, round(self.last_epochs * steps_per_epoch)), steps)
        return steps


@dataclass(frozen=True)
class Recipe:
    """How a client takes its steps.

    Args:
        rule: the update rule.
        sam: sharpness-aware minimisation, or None.
        transforms: skipping, clipping and noise.
        penalty: mu of the term mu |grad L|^2 in the objective, >= 0.
        average: the local average, or None.
        optimizer_state: between rounds, `reset`, `keep` (each client's own) or `average`.
        cycles_momentum: whether the schedule changes the rule's momentum.
        self_pace: how the examples of a step are weighed by their losses, or None.

    Source of the penalty: Barrett & Dherin 2021 (explicit regularisation); plain gradient descent
    at rate lr has mu = lr / 4 implicitly.
    """

    rule: Rule
    sam: Sharpness | None = None
    transforms: GradientTransforms = field(default_factory=GradientTransforms)
    penalty: float = 0.0
    average: LocalAverage | None = None
    optimizer_state: str = "reset"
    cycles_momentum: bool = False
    self_pace: SelfPace | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a step is nothing but the rule's update along the gradient."""
        return (
            self.sam is None
            and self.transforms.is_identity
            and not self.penalty
            and self.average is None
            and self.optimizer_state == "reset"
            and not self.cycles_momentum
            and self.kronecker is None
            and self.self_pace is None
        )

    @property
    def kronecker(self) -> KroneckerRule | None:
        """The rule, where it is K-FAC or EKFAC."""
        return self.rule if isinstance(self.rule, KroneckerRule) else None

    @property
    def rule_name(self) -> str:
        """The class of the update rule, for messages."""
        kind: type = getattr(self.rule, "kind", type(self.rule))
        return kind.__name__

    @property
    def can_skip(self) -> bool:
        """Whether a step may not happen: because of its gradient, or as no example is selected."""
        return self.transforms.can_skip or self.self_pace is not None

    @property
    def gradients_per_step(self) -> int:
        """Forward and backward passes of a step; a second derivative counts as one more."""
        return (2 if self.sam else 1) * (2 if self.penalty else 1)
