"""The strategies that a configuration can name. Imports neither torch nor Flower."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedopt.registry import Entry, Options, register


class StrategyOptions(Options):
    """What every strategy takes."""

    server_lr: float = Field(1.0, gt=0, description="server learning rate on the mean update, > 0")
    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="weight of a client's update: its number of examples, or equal"
    )
    partial_work: Literal["drop", "keep"] = Field(
        "drop", description="what happens to a client that did fewer local steps than planned"
    )


class FedAvgOptions(StrategyOptions):
    """Federated averaging."""


class FedProxOptions(StrategyOptions):
    """Federated averaging with a proximal term in the local objective."""

    mu: float = Field(0.1, ge=0, description="weight of the proximal term mu/2 |w - x|^2, >= 0")
    partial_work: Literal["drop", "keep"] = Field(
        "keep", description="what happens to a client that did fewer local steps than planned"
    )


class MoFedSamOptions(StrategyOptions):
    """Sharpness-aware local steps along the server's momentum."""

    beta: float = Field(
        0.1, gt=0, le=1, description="share of the client's own gradient in a step, in (0, 1]"
    )


class FedPmOptions(StrategyOptions):
    """Mixing of locally preconditioned models in the metric of the clients' curvature."""

    mu: float = Field(0.0, ge=0, description="weight of a proximal term mu/2 |w - x|^2, >= 0")


class ScaffoldOptions(StrategyOptions):
    """Stochastic controlled averaging."""

    option: Literal["I", "II"] = Field(
        "II",
        description="how a client's control variate is renewed: I, the gradient at the server's "
        "parameters over all its examples; II, the mean of the gradients along its steps",
    )
    weighting: Literal["examples", "uniform"] = Field(
        "uniform", description="the paper's mean is uniform; examples needs force = true"
    )
    partial_work: Literal["drop", "keep"] = Field(
        "keep", description="what happens to a client that did fewer local steps than planned"
    )
    force: bool = Field(False, description="allow weighting by examples all the same")

    @model_validator(mode="after")
    def _uniform_mean(self) -> ScaffoldOptions:
        if self.weighting == "examples" and not self.force:
            raise ValueError(
                'weighting: "examples" breaks mean(c_i) = c and diverges on Synthetic(1,1); '
                'use "uniform", or set force = true'
            )
        return self


register(
    Entry(
        kind="strategies",
        name="fedavg",
        target="fedopt.server.fedavg:FedAvg",
        options=FedAvgOptions,
        description="federated averaging",
        source="McMahan et al. 2017, algorithm 1",
    )
)
register(
    Entry(
        kind="strategies",
        name="fedprox",
        target="fedopt.server.fedprox:FedProx",
        options=FedProxOptions,
        description="federated averaging with a proximal term; keeps partial work",
        source="Li et al. 2020, algorithm 2",
    )
)
register(
    Entry(
        kind="strategies",
        name="scaffold",
        target="fedopt.server.scaffold:Scaffold",
        options=ScaffoldOptions,
        description="control variates on server and clients remove client drift",
        source="Karimireddy et al. 2020, algorithm 1",
    )
)
register(
    Entry(
        kind="strategies",
        name="mofedsam",
        target="fedopt.server.mofedsam:MoFedSam",
        options=MoFedSamOptions,
        description="sharpness-aware local steps along the server's momentum; needs local.sam",
        source="Qu et al. 2022 (MoFedSAM)",
    )
)
register(
    Entry(
        kind="strategies",
        name="fedpm",
        target="fedopt.server.fedpm:FedPm",
        options=FedPmOptions,
        description="models mixed in the metric of the clients' curvature; needs kfac or ekfac",
        source="Ishii et al. 2025 (FedPM)",
    )
)
