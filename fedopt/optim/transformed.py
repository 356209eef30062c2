"""Skipping, clipping and noise around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from fedopt.optim.sam import SAM
from fedopt.optim.transforms import GradientTransforms
from fedopt.optim.wrapping import OptimizerWrapper, parameters_of


class Transformed(OptimizerWrapper):
    """An optimizer whose gradients are transformed before its step.

    In this order: skip, clip by norm, clip by value, noise; then the base's step, with its weight
    decay. The norm is over all parameters of all groups. A skipped step leaves parameters,
    momentum and counters of the base as they are. Gradients are changed in place, as by
    `torch.nn.utils.clip_grad_norm_`.

        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = Transformed(base, GradientTransforms(clip_norm=1.0, skip_nonfinite=True))

    `param_groups` and `state` are those of the base, so a scheduler may be given either. Around
    `SAM`, put it inside: `SAM(params, Transformed(base, ...))` transforms the descent's gradient.

    Args:
        base: any torch optimizer whose step needs no closure.
        transforms: what happens to the gradients.
        generator: what the noise draws from; None for one on the first parameter's device, seeded
            by torch's global one.

    Attributes:
        steps: calls of `step`, from 0; t of the noise's variance eta / (1 + t)^gamma.
        skipped: how many of them were skipped.

    Raises:
        ValueError: the base needs a closure.

    Source: see `GradientTransforms`.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        transforms: GradientTransforms,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(base, SAM):
            raise ValueError("SAM cannot be transformed: use SAM(params, Transformed(base, ...))")
        super().__init__(base, {})
        self.transforms = transforms
        if generator is None:
            device = parameters_of(base.param_groups)[0].device
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(device).manual_seed(seed)
        self.generator = generator
        self.steps = 0
        self.skipped = 0

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Transform the gradients, and take the base's step unless it is skipped.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [g for _, _, group in self._trained() for g in group]
        if gradients:
            applied = self.transforms.apply_(
                [g.unsqueeze(0) for g in gradients],
                lambda std: [self._noise(g, std).unsqueeze(0) for g in gradients],
                step=self.steps,
            )
            if not self.transforms.can_skip or bool(applied):
                self.base.step()
            else:
                self.skipped += 1
        self.steps += 1
        return loss

    def _noise(self, gradient: Tensor, std: float) -> Tensor:
        device = self.generator.device
        noise = torch.empty(gradient.shape, dtype=gradient.dtype, device=device)
        return noise.normal_(0.0, std, generator=self.generator).to(gradient.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with the counters and the generator's state."""
        own = {
            "steps": self.steps,
            "skipped": self.skipped,
            "generator": self.generator.get_state(),
        }
        return {**super().state_dict(), "transformed": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`; one of the base alone leaves counters and noise alone."""
        super().load_state_dict(state_dict)
        own = state_dict.get("transformed")
        if own is not None:
            self.steps, self.skipped = own["steps"], own["skipped"]
            self.generator.set_state(own["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "transforms": self.transforms,
            "steps": self.steps,
            "skipped": self.skipped,
            "generator": (str(self.generator.device), self.generator.get_state()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, generator_state = state["generator"]
        generator = torch.Generator(device)
        generator.set_state(generator_state)
        super().__setstate__({**state, "generator": generator})
