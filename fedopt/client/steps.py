"""The steps of a group of clients: everything that happens between a gradient and the next one.

Both engines hand their gradients to `LocalSteps`, so each technique is written once. All tensors
carry the group as their first axis, `[A, *shape]` for the A clients that are still training;
norms, skips, noise and averages are each client's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import LocalResult, LocalTerms, Phases
from fedopt.client.curvature import MIXING_FACTORS, KroneckerUpdates, Seen
from fedopt.client.plan import ClientPlan
from fedopt.client.recipe import Recipe, Sharpness
from fedopt.client.rule_updates import Gradients, RuleUpdates
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.optim.kronecker import KroneckerModel
from fedopt.optim.transforms import client_norms
from fedopt.seeds import torch_seed


class LocalSteps:
    """Carries out the recipe for one group in one round.

    Args:
        recipe: how a step is taken.
        layout: of the parameters.
        parameters: `[G, *shape]` each, changed in place.
        start: the server's model.
        terms: what the strategy adds.
        plans: what the clients do, in descending order of steps.
        seed: the run's seed, from which noise draws.
        round: communication round, from 1.
        kronecker: the layers with Kronecker factors, where the rule has them.
    """

    def __init__(
        self,
        recipe: Recipe,
        layout: ParameterLayout,
        parameters: Sequence[Tensor],
        start: ModelState,
        terms: LocalTerms,
        plans: Sequence[ClientPlan],
        seed: int,
        round: int,
        kronecker: KroneckerModel | None = None,
    ) -> None:
        self._recipe = recipe
        self._layout = layout
        self._parameters = parameters
        self._terms = terms
        self._anchor = layout.views(start.parameters)
        self._correction: list[Tensor] | None = None
        if terms.correction is not None:
            rows = terms.correction.expand(len(plans), -1)
            self._correction = [view.contiguous() for view in layout.views(rows)]
        self._plans = plans
        longest = plans[0].steps
        self._applied = np.zeros((len(plans), longest), dtype=bool)
        self._rates = table([plan.learning_rates for plan in plans], longest)
        momenta = [plan.momenta for plan in plans if plan.momenta is not None]
        self._momenta = table(momenta, longest) if momenta else None
        self._updates: RuleUpdates | KroneckerUpdates
        if recipe.kronecker is None:
            self._updates = RuleUpdates(recipe.rule, parameters, layout, terms)
        else:
            assert kronecker is not None
            self._updates = KroneckerUpdates(recipe.kronecker, kronecker, parameters, layout, terms)
        self._frozen = _Frozen(terms.phases, plans) if terms.phases is not None else None
        self._preconditioner = (
            layout.views(terms.preconditioner) if terms.preconditioner is not None else None
        )
        self._noise = _Noise(layout, parameters[0].device, plans, seed, round)
        self._average = _Average(recipe, parameters, plans) if recipe.average else None

    def wants_statistics(self, step: int, active: int) -> bool:
        """Return whether a step needs what its layers saw, to update Kronecker factors."""
        updates = self._updates
        return isinstance(updates, KroneckerUpdates) and updates.wants_statistics(step, active)

    def take(
        self,
        step: int,
        gradients: Gradients,
        again: Callable[[], Gradients],
        seen: Seen | None = None,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.bool_] | None:
        """Take one step of the clients that are still training; return whose step happened.

        Args:
            step: number of the step in the round, from 0.
            gradients: of each client's objective at its parameters, `[A, *shape]` each; may be
                overwritten.
            again: returns the gradients of the same batch at the parameters as they are then.
            seen: what else was recorded in the step, where the rule has Kronecker factors.
            wanted: whose step is to happen if its gradient allows it, `[A]`; None: everyone's.

        Returns:
            `[A]`, or None where every step happens.
        """
        recipe, terms = self._recipe, self._terms
        active = len(gradients[0])
        parameters = [p[:active] for p in self._parameters]
        if isinstance(self._updates, KroneckerUpdates):
            assert seen is not None
            self._updates.observe(step, seen, gradients)
        if recipe.sam is not None:
            direction = self._corrected(gradients) if recipe.sam.corrected else gradients
            kept = [p.clone() for p in parameters]
            ascend_(parameters, direction, recipe.sam)
            gradients = again()
            torch._foreach_copy_(parameters, kept)
        gradients = self._corrected(gradients)
        if terms.proximal:
            pulls = torch._foreach_sub(parameters, self._anchor)  # exactly 0 at the start
            gradients = list(torch._foreach_add(gradients, pulls, alpha=terms.proximal))
        applied = None
        if not recipe.transforms.is_identity:
            mask = recipe.transforms.apply_(
                gradients, lambda std: self._noise.draw(active, std), step=self._noise.time(step)
            )
            if recipe.can_skip:
                applied = mask.cpu().numpy()
        if wanted is not None and not wanted.all():
            applied = wanted if applied is None else applied & wanted
        if recipe.can_skip and applied is None:
            applied = np.ones(active, dtype=bool)
        self._applied[:active, step] = True if applied is None else applied
        momenta = None if self._momenta is None else self._momenta[:active, step]
        if self._frozen is not None:
            self._frozen.keep(step, parameters, gradients)
        self._updates.apply(parameters, gradients, self._rates[:active, step], momenta, applied)
        if self._frozen is not None:
            self._frozen.restore(parameters)
        if self._average is not None:
            self._average.add(step, parameters)
        return applied

    def _corrected(self, gradients: Gradients) -> Gradients:
        """Return (scale * g + correction) * preconditioner, without changing the gradients."""
        scale = self._terms.gradient_scale
        if scale != 1:
            gradients = list(torch._foreach_mul(gradients, scale))
        if self._correction is not None:
            active = len(gradients[0])
            own = [c[:active] for c in self._correction]
            gradients = list(torch._foreach_add(gradients, own))
        if self._preconditioner is not None:
            gradients = list(torch._foreach_mul(gradients, self._preconditioner))
        return gradients

    # What the steps came to --------------------------------------------------------------------

    @property
    def averages(self) -> list[Tensor] | None:
        """The clients' local averages, `[G, *shape]` each, where they are wanted."""
        return self._average.values if self._average else None

    def result(self, delta: Tensor, last: Tensor | None) -> LocalResult:
        """Return what the steps came to; buffers and losses are the engine's to add.

        Args:
            delta: w - x of what is sent, `[G, P]`.
            last: w - x of the last iterates where averages are sent, else None.
        """
        keeps = self._recipe.optimizer_state != "reset"
        state = self._updates.vectors() if keeps else {}
        mixed = None
        if self._terms.mixing:
            assert isinstance(self._updates, KroneckerUpdates)
            mixed, factors = self._updates.mixing(delta)
            state = {**state, MIXING_FACTORS: factors}
        return LocalResult(
            delta=delta,
            buffers=torch.zeros(len(delta), 0, dtype=torch.float64),
            train_loss=torch.empty(0),
            lr_sum=self._lr_sums(),
            last=last,
            skipped=self._skipped() if self._recipe.can_skip else None,
            mixed=mixed,
            optimizer_state=state,
            optimizer_steps=torch.from_numpy(self._updates.steps.copy()) if keeps else None,
        )

    def _skipped(self) -> Tensor:
        """Return the steps of each client that did not happen because of their gradient, `[G]`."""
        steps = np.array([plan.steps for plan in self._plans])
        return torch.from_numpy(steps - self._applied.sum(1))

    def _lr_sums(self) -> Tensor | None:
        """Return sum_k of the coefficients of the applied gradients, `[G]` (see `Rule`).

        None where the update is not a sum of this round's gradients: an optimizer that is not
        linear in them, or that goes on from an earlier round.
        """
        if self._recipe.optimizer_state != "reset" and self._recipe.rule.slots:
            return None
        sums = []
        for plan, applied in zip(self._plans, self._applied, strict=True):
            taken = applied[: plan.steps]
            momenta = None if plan.momenta is None else plan.momenta[taken].tolist()
            rates = plan.learning_rates[taken].tolist()
            total = self._recipe.rule.effective_lr_sum(rates, momenta, self._terms.proximal)
            if total is None:
                return None
            sums.append(total)
        return torch.tensor(sums, dtype=torch.float64)


def table(rows: Sequence[npt.NDArray[np.float64]], steps: int) -> npt.NDArray[np.float64]:
    """Return one number a client and step, `[G, S]`, 0 after a client's last step."""
    filled = np.zeros((len(rows), steps))
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled


def ascend_(parameters: Sequence[Tensor], gradients: Gradients, sam: Sharpness) -> None:
    """Move each client's parameters to w + e in place, `[A, *shape]` each.

    A client whose gradient is zero stays where it is.
    """
    directions = gradients
    if sam.adaptive:
        scales = [p.abs().add_(sam.eta) for p in parameters]
        scaled = torch._foreach_mul(gradients, scales)
        norms = client_norms(scaled)
        directions = list(torch._foreach_mul(scaled, scales))
    else:
        norms = client_norms(gradients)
    factors = torch.where(norms > 0, sam.rho / norms, torch.zeros_like(norms))
    for parameter, direction in zip(parameters, directions, strict=True):
        factor = factors.to(parameter.dtype).view(-1, *(1,) * (parameter.dim() - 1))
        parameter.addcmul_(direction, factor)


class _Frozen:
    """Leaves the part of the model that is not trained in a step as it is."""

    def __init__(self, phases: Phases, plans: Sequence[ClientPlan]) -> None:
        self._phases = phases
        self._first_steps = np.array([phases.steps(plan.steps) for plan in plans])
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, step: int, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Remember what is not trained in a step, and make its gradient zero."""
        active = len(parameters[0])
        is_first = torch.from_numpy(step < self._first_steps[:active]).to(parameters[0].device)
        self._kept = []
        for parameter, gradient, first in zip(
            parameters, gradients, self._phases.first, strict=True
        ):
            frozen = ~is_first if first else is_first
            where = frozen.view(-1, *(1,) * (parameter.dim() - 1))
            gradient.masked_fill_(where, 0)
            self._kept.append((where, parameter.clone()))

    def restore(self, parameters: Sequence[Tensor]) -> None:
        """Put back what was remembered: weight decay may have moved it."""
        for parameter, (where, kept) in zip(parameters, self._kept, strict=True):
            parameter.copy_(torch.where(where, kept, parameter))


class _Noise:
    """Gaussian noise that each client draws for itself, the same in any engine and group.

    It is drawn on the CPU, so that a run on another device has the same.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        device: torch.device,
        plans: Sequence[ClientPlan],
        seed: int,
        round: int,
    ) -> None:
        self._layout = layout
        self._device = device
        self._plans = plans
        self._seed = seed
        self._round = round
        self._generators: list[torch.Generator] = []

    def time(self, step: int) -> int:
        """Return t, the nominal number of the step in the whole run, from 0."""
        return self._plans[0].first_step + step

    def draw(self, active: int, std: float) -> list[Tensor]:
        """Return noise of a standard deviation for the active clients, `[A, *shape]` each."""
        if not self._generators:
            self._generators = [
                torch.Generator().manual_seed(
                    torch_seed(self._seed, "noise", self._round, plan.client)
                )
                for plan in self._plans
            ]
        flat = torch.empty(active, self._layout.size, dtype=self._layout.dtype)
        for row, generator in zip(flat, self._generators, strict=False):
            row.normal_(0.0, std, generator=generator)
        return self._layout.views(flat.to(self._device))


class _Average:
    """The mean of each client's last iterates."""

    def __init__(
        self, recipe: Recipe, parameters: Sequence[Tensor], plans: Sequence[ClientPlan]
    ) -> None:
        assert recipe.average is not None
        self._decay = recipe.average.decay
        self.values = [torch.zeros_like(p) for p in parameters]
        self._first = np.array(
            [p.steps - recipe.average.window(p.steps, p.steps_per_epoch) for p in plans]
        )

    def add(self, step: int, parameters: Sequence[Tensor]) -> None:
        """Take in the iterates after a step, of the clients whose window it is in."""
        active = len(parameters[0])
        seen = step - self._first[:active] + 1  # iterates in the window, this one included
        if self._decay is None:
            weights = 1 / np.maximum(seen, 1)
        else:
            weights = np.where(seen == 1, 1.0, 1 - self._decay)
        weights = np.where(seen >= 1, weights, 0.0)
        if not weights.any():
            return
        for average, parameter in zip(self.values, parameters, strict=True):
            weight = torch.from_numpy(weights).to(parameter)
            shape = (-1, *(1,) * (parameter.dim() - 1))
            average[:active].lerp_(parameter, weight.view(shape))
