"""Sharpness-aware minimisation around any torch optimizer.

`SAM` and its adaptive form `ASAM` are `torch.optim.Optimizer`s; `frozen_statistics` keeps
BatchNorm from counting a batch twice. The engines of fedopt have their own, stacked form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor, nn

from fedopt.optim.wrapping import OptimizerWrapper, listed, needs_closure, parameters_of


class SAM(OptimizerWrapper):
    """Sharpness-aware minimisation: the base steps at w along the gradient taken at w + e.

    e = rho g / |g|, with one norm over all parameters of all groups. The adaptive form (ASAM) is
    e = rho T^2 g / |T g| with T = |w| + eta, elementwise. Weight decay and everything else of the
    base happens at w, which is restored from a copy, to the bit. Parameters without a gradient are
    left alone; where the gradient is zero or not finite, e is zero.

    With a closure that clears gradients, computes the loss, calls `backward` and returns the loss:

        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, model=model)
        loss = optimizer.step(closure)  # calls it twice; the loss is that at w

    Without one:

        loss_function(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        with frozen_statistics(model):
            loss_function(model(x), y).backward()
        optimizer.second_step(zero_grad=True)

    With `torch.amp.GradScaler`, which unscales an optimizer once a step, the wrapper is unscaled
    for the ascent and its base for the descent; an overflow in either pass lowers the scale:

        scaler.scale(loss_function(model(x), y)).backward()
        scaler.unscale_(optimizer)
        optimizer.first_step(zero_grad=True)
        with frozen_statistics(model):
            scaler.scale(loss_function(model(x), y)).backward()
        optimizer.restore()
        scaler.unscale_(optimizer.base)  # only where gradients are clipped here
        scaler.step(optimizer.base)
        scaler.update()
        optimizer.zero_grad()

    `param_groups` and `state` are those of the base, so a scheduler may be given either. Each
    pass draws its own dropout masks. A step synchronises with the device once, for the norm.

    Args:
        params: parameters or groups; a group may have its own `rho` and `eta`.
        base: class of a torch optimizer, or an optimizer over the same parameters, for example a
            `Transformed`, which then clips the descent's gradient.
        rho: radius, >= 0.
        adaptive: whether the radius is relative to the weights.
        eta: added to |w| where adaptive, >= 0.
        model: its buffers are kept as the first pass leaves them, in `step(closure)`.
        base_options: keywords of the class `base`.

    Raises:
        ValueError: `rho` or `eta` is out of range, the base is over other parameters, or it is
            given with options or groups' keys, or its `step` needs a closure.

    Source: Foret et al. 2021, equation 2 and algorithm 1; Kwon et al. 2021, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        *,
        model: nn.Module | None = None,
        **base_options: Any,
    ) -> None:
        self.model = model
        self._kept: list[tuple[Tensor, Tensor]] = []
        defaults = {"rho": rho, "adaptive": adaptive, "eta": eta}
        super().__init__(_built(listed(params), base, base_options), defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls `backward`, returns the loss;
                called twice. Without one this is `second_step`, after a `first_step`.

        Returns:
            The loss at w.

        Raises:
            RuntimeError: there is neither a closure nor a `first_step` before.
        """
        if closure is None:
            if not self._kept:
                raise RuntimeError(
                    "SAM takes two gradients a step: give step() a closure, or call first_step() "
                    "and second_step() after a backward pass each"
                )
            self.second_step()
            return None
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        frozen = nullcontext() if self.model is None else frozen_statistics(self.model)
        try:
            with torch.enable_grad(), frozen:
                closure()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return loss

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the parameters from w to w + e along their gradients.

        Args:
            zero_grad: whether to clear the gradients afterwards.
        """
        self.restore()
        hold = getattr(self.base, "hold", None)
        if hold is not None:  # K-FAC's factors are those at w
            hold()
        trained = self._trained()
        self._kept = [(p, p.clone()) for _, parameters, _ in trained for p in parameters]
        directions, measured = [], []
        for group, parameters, gradients in trained:
            if group["adaptive"]:
                scales = torch._foreach_abs(parameters)
                torch._foreach_add_(scales, group["eta"])
                gradients = list(torch._foreach_mul(gradients, scales))
                measured += gradients
                gradients = list(torch._foreach_mul(gradients, scales))
            else:
                measured += gradients
            directions.append((group, parameters, gradients))
        norm = global_norm(measured)
        if 0 < norm < math.inf:
            for group, parameters, direction in directions:
                sign = -1.0 if group.get("maximize") else 1.0
                torch._foreach_add_(parameters, direction, alpha=sign * group["rho"] / norm)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Move the parameters back to w, and let the base step along their gradients.

        Args:
            zero_grad: whether to clear the gradients afterwards.
        """
        self.restore()
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Move the parameters back to w, if a `first_step` moved them."""
        if self._kept:
            parameters, copies = zip(*self._kept, strict=True)
            torch._foreach_copy_(list(parameters), list(copies))
            self._kept = []
        self._opt_called = True  # what schedulers look for, before they warn

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "model": self.model, "_kept": self._kept}

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("rho", "eta"):
            if not 0 <= group[name] < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {group[name]}")


class ASAM(SAM):
    """`SAM` with adaptive=True: e = rho T^2 g / |T g|, T = |w| + eta.

    Args:
        params: parameters or groups; a group may have its own `rho` and `eta`.
        base: class of a torch optimizer, or an optimizer over the same parameters.
        rho: radius relative to the weights, >= 0; the paper uses 0.5 to 2.
        eta: added to |w|, >= 0.
        model: its buffers are kept as the first pass leaves them, in `step(closure)`.
        base_options: keywords of the class `base`.

    Raises:
        ValueError: as `SAM`.

    Source: Kwon et al. 2021, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer,
        rho: float = 0.5,
        eta: float = 0.01,
        *,
        model: nn.Module | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base, rho, True, eta, model=model, **base_options)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep a model's buffers, such as BatchNorm's statistics, as they are before the context.

    Within it the modules have copies, which are dropped. Layers stay in training mode and
    normalise by their batch; only what they record is lost.
    """
    held = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in held}
    for module, name, buffer in held:
        module._buffers[name] = copies[id(buffer)]
    try:
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer


def global_norm(tensors: list[Tensor]) -> float:
    """Return the 2-norm over all elements of all tensors, summed in float64."""
    if not tensors:
        return 0.0
    device = tensors[0].device
    parts = [torch.linalg.vector_norm(t, dtype=torch.float64).to(device) for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def _built(
    params: list[Any],
    base: type[torch.optim.Optimizer] | torch.optim.Optimizer,
    options: dict[str, Any],
) -> torch.optim.Optimizer:
    """Return the base: made of the class, or as it is if it is over the parameters."""
    if isinstance(base, SAM) or (isinstance(base, type) and issubclass(base, SAM)):
        raise ValueError("SAM cannot be the base of SAM: it takes two gradients a step")
    if isinstance(base, type):
        if needs_closure(base):
            raise ValueError(
                f"{base.__name__} cannot be a base: its step evaluates the loss itself"
            )
        return base(params, **options)
    if options:
        raise ValueError(
            f"options are for a class, but base is an optimizer; got {sorted(options)}"
        )
    if any(isinstance(item, dict) and len(item) > 1 for item in params):
        raise ValueError("base is an optimizer: give its groups their keys (rho, lr, ...) there")
    mine, its = ({id(p) for p in parameters_of(groups)} for groups in (params, base.param_groups))
    if mine != its:
        raise ValueError("base must be an optimizer over the same parameters as params")
    return base
