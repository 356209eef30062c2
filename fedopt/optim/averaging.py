"""Averages of weights along training (SWA, EMA), and BatchNorm statistics that fit them.

For any torch project. Nothing here decides when to average or at which learning rate; torch's
`SWALR` and the schedules of `fedopt.schedules` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WeightAverage:
    """The average of weights over `update` calls: their mean, or a moving average.

    The mean is a <- a + (w - a) / n after the n-th update; the moving average begins at the first
    w and goes on with a <- decay a + (1 - decay) w. Both are kept in float64, so that many small
    contributions are not rounded away.

    Args:
        source: a module, whose parameters are averaged, or tensors.
        decay: None for the arithmetic mean (SWA); a number in [0, 1) for the moving average.

    Raises:
        ValueError: `decay` is not in [0, 1), there is nothing to average, or a tensor is not
            floating.

    Source: Izmailov et al. 2018, section 3.2 (SWA); torch.optim.swa_utils.
    """

    def __init__(self, source: nn.Module | Iterable[Tensor], decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), or None for the mean, got {decay}")
        self.decay = decay
        self.count = 0
        self._module = source if isinstance(source, nn.Module) else None
        self._tensors = list(source.parameters() if isinstance(source, nn.Module) else source)
        if not self._tensors:
            raise ValueError("there is nothing to average: no tensors were given")
        for tensor in self._tensors:
            if not tensor.is_floating_point():
                raise ValueError(f"tensors must be floating, got {tensor.dtype}")
        self._averages: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.count += 1
        if self.count == 1:
            self._averages = [t.detach().to(torch.float64, copy=True) for t in self._tensors]
            return
        weight = 1 / self.count if self.decay is None else 1 - self.decay
        now = [t.detach().to(torch.float64) for t in self._tensors]
        torch._foreach_lerp_(self._averages, now, weight)

    @property
    def averages(self) -> list[Tensor]:
        """The averages, as new tensors of the weights' dtypes.

        Raises:
            ValueError: there was no update.
        """
        self._check_updated()
        return [
            a.to(t.dtype, copy=True) for a, t in zip(self._averages, self._tensors, strict=True)
        ]

    @torch.no_grad()
    def apply_(self) -> None:
        """Write the averages into the weights, for good.

        Raises:
            ValueError: there was no update.
        """
        self._check_updated()
        for tensor, average in zip(self._tensors, self._averages, strict=True):
            tensor.copy_(average)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Let the weights be the averages within the context, and themselves again after it.

        Of a module the buffers come back too, so BatchNorm's statistics can be recomputed inside
        (`update_batch_norm`) without disturbing training. The weights come back to the bit.

        Raises:
            ValueError: there was no update.
        """
        self._check_updated()
        held = [] if self._module is None else list(self._module.buffers())
        everything = [*self._tensors, *held]
        with torch.no_grad():
            kept = [t.detach().clone() for t in everything]
            self.apply_()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(everything, kept, strict=True):
                    tensor.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that is needed to go on."""
        return {
            "count": self.count,
            "decay": self.decay,
            "averages": [a.clone() for a in self._averages],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            ValueError: the shapes are not those of the weights.
        """
        averages = list(state["averages"])
        if averages:
            got, expected = ([tuple(t.shape) for t in ts] for ts in (averages, self._tensors))
            if got != expected:
                raise ValueError(f"averages have the shapes {got}, expected {expected}")
        self.count, self.decay = int(state["count"]), state["decay"]
        # The caller's tensors are not shared: updates are in place.
        self._averages = [
            a.to(t.device, torch.float64, copy=True)
            for a, t in zip(averages, self._tensors, strict=False)
        ]

    def _check_updated(self) -> None:
        if not self.count:
            raise ValueError("there is no average yet: call update() first")


@torch.no_grad()
def update_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    call: Callable[[nn.Module, Any], object] | None = None,
) -> None:
    """Recompute the running statistics of BatchNorm layers by passes over batches.

    Running means and variances become the means of the batches' means and unbiased variances,
    weighted by what each batch holds (examples times positions). With batches of equal size this
    is `torch.optim.swa_utils.update_bn`; torch gives a small last batch the weight of a full one.
    All layers are in training mode during the passes, as in torch, so dropout draws; modes and
    momenta are restored, each module's own. A model without such layers is left alone.

    Args:
        model: the model.
        batches: inputs, or lists or tuples of which the first is the input.
        call: function of (model, batch) that runs the model, where that is not enough.

    Raises:
        ValueError: there is no batch.

    Source: Izmailov et al. 2018, section 3.2; torch.optim.swa_utils.update_bn.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return
    run = call or _call
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    seen = dict.fromkeys(layers, 0)

    def weigh(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        size = inputs[0].numel() // inputs[0].shape[1]
        seen[layer] += size
        layer.momentum = size / seen[layer]

    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    is_empty = True
    try:
        for batch in batches:
            if is_empty:
                is_empty = False
                model.train()
                for layer in layers:
                    layer.reset_running_stats()
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if is_empty:
        raise ValueError("batches is empty: there is nothing to compute statistics from")


def _call(model: nn.Module, batch: Any) -> object:
    return model(batch[0] if isinstance(batch, list | tuple) else batch)
