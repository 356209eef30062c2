"""The losses that a configuration can name. Imports no torch."""

from __future__ import annotations

from fedopt.registry import Entry, Options, register


class LossOptions(Options):
    """Losses take no options."""


register(
    Entry(
        kind="losses",
        name="cross_entropy",
        target="torch.nn.functional:cross_entropy",
        options=LossOptions,
        description="mean cross-entropy of logits against integer labels",
        source="torch.nn.functional.cross_entropy",
    )
)
register(
    Entry(
        kind="losses",
        name="mse",
        target="fedopt.client.losses:mean_squared_error",
        options=LossOptions,
        description="mean squared error; the target is shaped like the output",
        source="torch.nn.functional.mse_loss",
    )
)
