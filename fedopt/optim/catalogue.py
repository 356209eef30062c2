"""The optimizers that a configuration can name. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedopt.registry import Entry, Options, register


class SgdOptions(Options):
    """Stochastic gradient descent."""

    lr: float = Field(0.1, gt=0, description="learning rate, > 0")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum factor, in [0, 1)")
    dampening: float = Field(0.0, ge=0, le=1, description="dampening of momentum, in [0, 1]")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")
    nesterov: bool = Field(False, description="Nesterov's momentum; needs momentum > 0")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdOptions:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("nesterov: needs momentum > 0 and dampening = 0")
        return self


class AdamOptions(Options):
    """Adam, with the L2 penalty added to the gradient."""

    lr: float = Field(1e-3, gt=0, description="learning rate, > 0")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment, in [0, 1)")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="added to the denominator, > 0")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")


class AdamWOptions(AdamOptions):
    """Adam with decoupled weight decay."""

    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay, >= 0")


register(
    Entry(
        kind="optimizers",
        name="sgd",
        target="fedopt.optim.rules:Sgd",
        options=SgdOptions,
        description="stochastic gradient descent, with momentum and Nesterov's form",
        source="Sutskever et al. 2013; torch.optim.SGD",
    )
)
register(
    Entry(
        kind="optimizers",
        name="adam",
        target="fedopt.optim.rules:Adam",
        options=AdamOptions,
        description="Adam with bias correction; weight decay as an L2 penalty",
        source="Kingma & Ba 2015, algorithm 1",
    )
)
register(
    Entry(
        kind="optimizers",
        name="adamw",
        target="fedopt.optim.rules:AdamW",
        options=AdamWOptions,
        description="Adam with decoupled weight decay",
        source="Loshchilov & Hutter 2019, algorithm 2",
    )
)
