"""The optimizers that a configuration can name. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

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


class NoOptions(Options):
    """Nothing to choose."""


class ServerSgdOptions(SgdOptions):
    """Stochastic gradient descent on the server: with rate 1 federated averaging."""

    lr: float = Field(1.0, gt=0, description="learning rate, > 0; 1 takes the mean update whole")


class Betas(Options):
    """The decays of two moments."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment, in [0, 1)")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="added to the denominator, > 0")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")


class AdamOptions(Betas):
    """Adam, with the L2 penalty added to the gradient."""

    lr: float = Field(1e-3, gt=0, description="learning rate, > 0")
    amsgrad: bool = Field(False, description="divide by the largest second moment so far")


class AdamWOptions(AdamOptions):
    """Adam with decoupled weight decay."""

    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay, >= 0")


class AdagradOptions(Options):
    """Adagrad."""

    lr: float = Field(1e-2, gt=0, description="learning rate, > 0")
    lr_decay: float = Field(0.0, ge=0, description="the rate is divided by 1 + (t - 1) lr_decay")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")
    initial_accumulator_value: float = Field(
        0.0, ge=0, description="sum of squares before the first step, >= 0"
    )
    eps: float = Field(1e-10, gt=0, description="added to the denominator, > 0")


class RmsPropOptions(Options):
    """RMSprop."""

    lr: float = Field(1e-2, gt=0, description="learning rate, > 0")
    alpha: float = Field(0.99, ge=0, lt=1, description="decay of the mean square, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="added to the denominator, > 0")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum factor, in [0, 1)")
    centered: bool = Field(False, description="divide by an estimate of the standard deviation")


class LionOptions(Options):
    """Lion."""

    lr: float = Field(1e-4, gt=0, description="learning rate, > 0: what every element moves by")
    beta1: float = Field(0.9, ge=0, lt=1, description="weight of the mean in a step, in [0, 1)")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the mean gradient, in [0, 1)")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, >= 0")


class NAdamOptions(Betas):
    """Adam with Nesterov's momentum."""

    lr: float = Field(2e-3, gt=0, description="learning rate, > 0")
    momentum_decay: float = Field(4e-3, ge=0, description="decay of the momentum's schedule, >= 0")
    decoupled_weight_decay: bool = Field(False, description="decay as in AdamW")


class RAdamOptions(Betas):
    """Rectified Adam."""

    lr: float = Field(1e-3, gt=0, description="learning rate, > 0")
    decoupled_weight_decay: bool = Field(False, description="decay as in AdamW")


class AdamaxOptions(Betas):
    """Adam with the infinity norm."""

    lr: float = Field(2e-3, gt=0, description="learning rate, > 0")


class AdadeltaOptions(Options):
    """Adadelta."""

    lr: float = Field(1.0, gt=0, description="learning rate, > 0; the method's own is 1")
    rho: float = Field(0.9, ge=0, lt=1, description="decay of both mean squares, in [0, 1)")
    eps: float = Field(1e-6, gt=0, description="added in the roots, > 0")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")


class RpropOptions(Options):
    """Resilient backpropagation; meant for full batches."""

    lr: float = Field(1e-2, gt=0, description="first step size, > 0")
    etas: tuple[float, float] = Field(
        (0.5, 1.2), strict=False, description="factors of a step size: below 1, and above 1"
    )
    step_sizes: tuple[float, float] = Field(
        (1e-6, 50.0), strict=False, description="smallest and largest step size"
    )

    @model_validator(mode="after")
    def _in_order(self) -> RpropOptions:
        if not 0 < self.etas[0] < 1 < self.etas[1]:
            raise ValueError(f"etas: need 0 < first < 1 < second, got {list(self.etas)}")
        if not 0 < self.step_sizes[0] <= self.step_sizes[1]:
            raise ValueError(f"step_sizes: need 0 < first <= second, got {list(self.step_sizes)}")
        return self


class AsgdOptions(Options):
    """SGD with the decaying rate of averaged SGD."""

    lr: float = Field(1e-2, gt=0, description="learning rate, > 0")
    lambd: float = Field(1e-4, ge=0, description="decay of rate and weights, >= 0")
    alpha: float = Field(0.75, ge=0, description="power of the rate's decay, >= 0")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient, >= 0")


class AdafactorOptions(Options):
    """Adafactor."""

    lr: float = Field(
        1e-2, gt=0, description="rate relative to the weights' size, > 0; at most 1 / sqrt(t)"
    )
    beta2_decay: float = Field(-0.8, le=0, description="power of the second moment's decay, <= 0")
    d: float = Field(1.0, ge=1, description="largest root mean square of a step, >= 1")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, >= 0")


_Pair = Annotated[tuple[int, int], Strict(False)]
Every = int | Annotated[tuple[_Pair, ...], Strict(False)]
"""A number of steps, or pairs (from step, number); lists in TOML."""


class EkfacOptions(Options):
    """EKFAC."""

    lr: float = Field(0.1, gt=0, description="learning rate, > 0")
    damping: float = Field(1e-2, gt=0, description="added to the curvature, > 0")
    fisher: Literal["empirical", "mc", "type-2"] = Field(
        "empirical",
        description="gradients at the batch's own labels (`empirical`), at labels drawn from the "
        "model (`mc`: the true Fisher, sampled), or exact (`type-2`: one backward pass a class)",
    )
    ema: float = Field(0.95, ge=0, lt=1, description="decay of the factors, in [0, 1)")
    factor_every: Every = Field(
        1,
        description="local steps between updates of the factors, or pairs (from step, number), "
        "from step 0; counted in each round anew",
    )
    inverse_every: Every = Field(1, description="the same for inverses or eigenbases")
    kl_clip: float | None = Field(
        None, gt=0, description="bound on lr^2 times the step's curvature, > 0; none by default"
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="of the preconditioned gradients, in [0, 1)"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty in the gradient, before it is preconditioned, >= 0"
    )
    decoupled_weight_decay: bool = Field(False, description="weights shrink by lr weight_decay")
    adapt_damping: bool = Field(
        False, description="damping follows the reduction ratio, every 5 steps of a round"
    )
    fallback: Literal["sgd", "adam"] = Field(
        "sgd", description="rule of parameters without Kronecker factors (norms, embeddings)"
    )
    fallback_lr: float | None = Field(
        None, gt=0, description="their learning rate, > 0; default lr. The schedule scales both"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("factor_every", "inverse_every"):
            value = getattr(self, name)
            if isinstance(value, int):
                if value < 1:
                    raise ValueError(f"{name}: must be >= 1, got {value}")
                continue
            steps = [first for first, _ in value]
            if not steps or steps[0] != 0 or steps != sorted(set(steps)):
                raise ValueError(
                    f"{name}: need pairs (from step, number) in ascending order, the first "
                    f"from step 0, got {[list(pair) for pair in value]}"
                )
            if any(every < 1 for _, every in value):
                raise ValueError(f"{name}: numbers must be >= 1, got {[n for _, n in value]}")
        return self


class KfacOptions(EkfacOptions):
    """K-FAC."""

    damping_style: Literal["factored", "exact"] = Field(
        "factored",
        description="damping added to both factors (`factored`), or to the eigenvalues of their "
        "product (`exact`)",
    )


def _register(
    name: str, target: str, options: type[Options], description: str, source: str
) -> None:
    target = f"fedopt.optim.{target}"
    register(Entry("optimizers", name, target, options, description, source))
    if not issubclass(options, KfacOptions):  # its factors are those of a batch
        options = ServerSgdOptions if options is SgdOptions else options
        register(Entry("server_optimizers", name, target, options, description, source))


register(
    Entry(
        "server_optimizers",
        "none",
        "fedopt.server.optimizer:ServerOptimizer",
        NoOptions,
        "the strategy's own step, with strategy.server_lr",
        "McMahan et al. 2017, algorithm 1",
    )
)
_register(
    "sgd",
    "rules:Sgd",
    SgdOptions,
    "stochastic gradient descent, with momentum and Nesterov's form",
    "Sutskever et al. 2013; torch.optim.SGD",
)
_register(
    "adam",
    "rules:Adam",
    AdamOptions,
    "Adam with bias correction; weight decay as an L2 penalty",
    "Kingma & Ba 2015, algorithm 1",
)
_register(
    "adamw",
    "rules:AdamW",
    AdamWOptions,
    "Adam with decoupled weight decay",
    "Loshchilov & Hutter 2019, algorithm 2",
)
_register(
    "adagrad",
    "adaptive:Adagrad",
    AdagradOptions,
    "rates that fall with the sum of squared gradients",
    "Duchi et al. 2011; torch.optim.Adagrad",
)
_register(
    "rmsprop",
    "adaptive:RmsProp",
    RmsPropOptions,
    "gradients over the root of their mean square, with momentum and the centered form",
    "Tieleman & Hinton 2012, lecture 6.5; Graves 2013; torch.optim.RMSprop",
)
_register(
    "lion",
    "adaptive:Lion",
    LionOptions,
    "steps along the sign of a mean gradient, with decoupled weight decay",
    "Chen et al. 2023, algorithm 2",
)
_register(
    "kfac",
    "curvature:KroneckerRule",
    KfacOptions,
    "K-FAC: gradients preconditioned by Kronecker factors of the Fisher",
    "Martens & Grosse 2015; Grosse & Martens 2016",
)
_register(
    "ekfac",
    "curvature:ekfac_rule",
    EkfacOptions,
    "EKFAC: K-FAC with re-estimated eigenvalues, from per-example gradients",
    "George et al. 2018, algorithm 1",
)
_register(
    "nadam",
    "torch_rule:nadam",
    NAdamOptions,
    "torch's NAdam: Adam with Nesterov's momentum",
    "Dozat 2016; torch.optim.NAdam",
)
_register(
    "radam",
    "torch_rule:radam",
    RAdamOptions,
    "torch's RAdam: Adam whose adaptive rate is rectified for its variance",
    "Liu et al. 2020, algorithm 2; torch.optim.RAdam",
)
_register(
    "adamax",
    "torch_rule:adamax",
    AdamaxOptions,
    "torch's Adamax: Adam with the infinity norm",
    "Kingma & Ba 2015, algorithm 2; torch.optim.Adamax",
)
_register(
    "adadelta",
    "torch_rule:adadelta",
    AdadeltaOptions,
    "torch's Adadelta: steps in the units of the weights",
    "Zeiler 2012, algorithm 1; torch.optim.Adadelta",
)
_register(
    "rprop",
    "torch_rule:rprop",
    RpropOptions,
    "torch's Rprop: step sizes from the gradients' signs, for full batches",
    "Riedmiller & Braun 1993; torch.optim.Rprop",
)
_register(
    "asgd",
    "torch_rule:asgd",
    AsgdOptions,
    "torch's ASGD: SGD with a decaying rate (its average is not used)",
    "Polyak & Juditsky 1992; torch.optim.ASGD",
)
_register(
    "adafactor",
    "torch_rule:adafactor",
    AdafactorOptions,
    "torch's Adafactor: second moments as rows and columns",
    "Shazeer & Stern 2018, algorithm 4; torch.optim.Adafactor",
)
