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
    adaptive: bool = Field(
        False, description="let mu, which it begins with, follow the training loss of the cohorts"
    )
    mu_step: float = Field(0.1, gt=0, description="by how much an adaptive mu changes, > 0")
    patience: int = Field(
        5, ge=1, description="falls of the loss in a row before an adaptive mu gets smaller, >= 1"
    )
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


class FedAvgMOptions(StrategyOptions):
    """Federated averaging with server momentum."""

    momentum: float = Field(0.9, gt=0, lt=1, description="server momentum, in (0, 1)")


class FedAdaptiveOptions(StrategyOptions):
    """Federated averaging with an adaptive server rate."""

    server_lr: float = Field(0.1, gt=0, description="server learning rate, > 0")
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the mean update, in [0, 1)")
    tau: float = Field(
        1e-3, gt=0, description="degree of adaptivity, > 0: added to the root, which starts at it"
    )


class FedMomentsOptions(FedAdaptiveOptions):
    """Federated averaging with both moments on the server."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean update, in [0, 1)")
    beta2: float = Field(
        0.99, ge=0, lt=1, description="decay of the mean squared update, in [0, 1)"
    )


class FedNovaOptions(StrategyOptions):
    """Averaging of updates normalised by the work in them."""

    mu: float = Field(0.0, ge=0, description="weight of a proximal term mu/2 |w - x|^2, >= 0")
    partial_work: Literal["drop", "keep"] = Field(
        "keep", description="what happens to a client that did fewer local steps than planned"
    )


class FedDynOptions(StrategyOptions):
    """Dynamic regularisation."""

    alpha: float = Field(0.1, gt=0, description="weight of the regulariser, > 0")
    weighting: Literal["uniform"] = Field(
        "uniform", description="uniform only: the sum of what clients regularise with is"
    )
    partial_work: Literal["drop", "keep"] = Field(
        "keep", description="what happens to a client that did fewer local steps than planned"
    )


class MimeLiteOptions(StrategyOptions):
    """Local steps with the server's optimizer state."""

    base: Literal["sgdm", "adam"] = Field(
        "sgdm", description="the server's optimizer, whose state the clients step with"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="share of the momentum in a step, in [0, 1)")
    beta2: float = Field(
        0.99, ge=0, lt=1, description="decay of adam's mean squared gradient, in [0, 1)"
    )
    eps: float = Field(1e-3, gt=0, description="added to the root of adam's second moment, > 0")
    initial_square: float = Field(
        1.0, ge=0, description="adam's second moment before the first round, >= 0"
    )


class QFedAvgOptions(StrategyOptions):
    """Averaging that weighs clients by their loss."""

    q: float = Field(1.0, ge=0, description="fairness, >= 0; 0 is federated averaging")
    lipschitz: float | None = Field(
        None, gt=0, description="L of the paper, > 0 (default: 1 / local.optimizer.lr)"
    )


class RobustOptions(StrategyOptions):
    """What robust means share."""

    mu: float = Field(0.0, ge=0, description="weight of a proximal term mu/2 |w - x|^2, >= 0")


class UnweightedOptions(RobustOptions):
    """What robust means share that know no weights."""

    weighting: Literal["uniform"] = Field(
        "uniform", description="uniform only: a client that names its own weight names any"
    )


class MedianOptions(UnweightedOptions):
    """Coordinate-wise median."""


class TrimmedMeanOptions(UnweightedOptions):
    """Coordinate-wise mean without the extremes."""

    beta: float = Field(
        0.2, ge=0, lt=0.5, description="share of clients left out at each end, in [0, 0.5)"
    )


class KrumOptions(UnweightedOptions):
    """The updates that are closest to most others."""

    hostile: int = Field(
        1,
        ge=0,
        description="clients of a round that may be hostile, >= 0; needs 2 hostile + 3 a round",
    )
    selected: int = Field(1, ge=1, description="updates averaged, >= 1: 1 is Krum, more multi-Krum")


class RfaOptions(RobustOptions):
    """Geometric median."""

    iterations: int = Field(10, ge=1, description="the most steps of Weiszfeld's algorithm, >= 1")
    tolerance: float = Field(
        1e-8, ge=0, description="largest change of a client's weight at which it stops, >= 0"
    )
    smoothing: float = Field(1e-6, gt=0, description="nu: smallest distance that counts, > 0")


class LayersOptions(StrategyOptions):
    """Federated averaging of a part of the model."""

    personal: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names of the arrays that stay with the clients, or what they begin with "
        "(default: those of the last layer)",
    )


class FedBnOptions(StrategyOptions):
    """Federated averaging of everything but normalisation layers."""


class FedPerOptions(LayersOptions):
    """Shared body and personal head."""


class FedRepOptions(LayersOptions):
    """Shared body and personal head, trained one after the other."""

    head_share: float = Field(
        0.5, gt=0, lt=1, description="share of a round's local steps that train the head, in (0, 1)"
    )


class DittoOptions(StrategyOptions):
    """Federated averaging, and a personal model pulled towards it."""

    lam: float = Field(
        0.1, ge=0, description="weight of the pull lam/2 |v - x|^2 of the personal model, >= 0"
    )


class LocalOnlyOptions(StrategyOptions):
    """No exchange: each client trains its own model."""


class CentralisedOptions(StrategyOptions):
    """No federation: one model on all clients' data together."""

    steps: int | None = Field(
        None,
        ge=1,
        description="steps a round (default: as many as the cohort would take together)",
    )


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


def _register(
    name: str, target: str, options: type[StrategyOptions], description: str, source: str
) -> None:
    register(Entry("strategies", name, f"fedopt.server.{target}", options, description, source))


_register(
    "fedavg",
    "fedavg:FedAvg",
    FedAvgOptions,
    "federated averaging",
    "McMahan et al. 2017, algorithm 1",
)
_register(
    "fedprox",
    "fedprox:FedProx",
    FedProxOptions,
    "federated averaging with a proximal term; keeps partial work",
    "Li et al. 2020, algorithm 2",
)
_register(
    "scaffold",
    "scaffold:Scaffold",
    ScaffoldOptions,
    "control variates on server and clients remove client drift",
    "Karimireddy et al. 2020, algorithm 1",
)
_register(
    "fedavgm",
    "adaptive:FedAvgM",
    FedAvgMOptions,
    "federated averaging with server momentum",
    "Hsu et al. 2019, section 4.3",
)
_register(
    "fedadagrad",
    "adaptive:FedAdagrad",
    FedAdaptiveOptions,
    "federated averaging with the paper's Adagrad on the server",
    "Reddi et al. 2021, algorithm 2",
)
_register(
    "fedadam",
    "adaptive:FedAdam",
    FedMomentsOptions,
    "federated averaging with the paper's Adam on the server",
    "Reddi et al. 2021, algorithm 2",
)
_register(
    "fedyogi",
    "adaptive:FedYogi",
    FedMomentsOptions,
    "federated averaging with the paper's Yogi on the server",
    "Reddi et al. 2021, algorithm 2",
)
_register(
    "fednova",
    "fednova:FedNova",
    FedNovaOptions,
    "updates are normalised by the work in them; keeps partial work",
    "Wang et al. 2020, algorithm 1",
)
_register(
    "feddyn",
    "feddyn:FedDyn",
    FedDynOptions,
    "a dynamic regulariser makes the clients' optima agree",
    "Acar et al. 2021, algorithm 1",
)
_register(
    "mimelite",
    "mimelite:MimeLite",
    MimeLiteOptions,
    "local steps with the server's momentum or Adam, fixed within a round",
    "Karimireddy et al. 2021, algorithm 1 (MimeLite)",
)
_register(
    "qfedavg",
    "qffl:QFedAvg",
    QFedAvgOptions,
    "clients with a high loss weigh more (q-FFL)",
    "Li et al. 2020, q-FFL, algorithm 2",
)
_register(
    "mofedsam",
    "mofedsam:MoFedSam",
    MoFedSamOptions,
    "sharpness-aware local steps along the server's momentum; needs local.sam",
    "Qu et al. 2022 (MoFedSAM)",
)
_register(
    "fedpm",
    "fedpm:FedPm",
    FedPmOptions,
    "models mixed in the metric of the clients' curvature; needs kfac or ekfac",
    "Ishii et al. 2025 (FedPM)",
)
_register(
    "median",
    "robust:Median",
    MedianOptions,
    "coordinate-wise median, for hostile clients",
    "Yin et al. 2018, algorithm 1, option I",
)
_register(
    "trimmed_mean",
    "robust:TrimmedMean",
    TrimmedMeanOptions,
    "coordinate-wise mean without the extremes, for hostile clients",
    "Yin et al. 2018, algorithm 1, option II",
)
_register(
    "krum",
    "robust:Krum",
    KrumOptions,
    "the updates closest to most others, for hostile clients; selected > 1 is multi-Krum",
    "Blanchard et al. 2017, section 4",
)
_register(
    "rfa",
    "robust:Rfa",
    RfaOptions,
    "geometric median by smoothed Weiszfeld steps, for hostile clients",
    "Pillutla et al. 2022, algorithm 2",
)
_register(
    "fedbn",
    "personal:FedBn",
    FedBnOptions,
    "normalisation layers stay with the clients",
    "Li et al. 2021 (FedBN), algorithm 1",
)
_register(
    "fedper",
    "personal:FedPer",
    FedPerOptions,
    "the head stays with the clients, the body is averaged",
    "Arivazhagan et al. 2019, algorithms 1 and 2",
)
_register(
    "fedrep",
    "personal:FedRep",
    FedRepOptions,
    "as fedper, head and body trained one after the other",
    "Collins et al. 2021, algorithm 1",
)
_register(
    "ditto",
    "personal:Ditto",
    DittoOptions,
    "federated averaging, and personal models pulled towards it",
    "Li et al. 2021 (Ditto), algorithm 1",
)
_register(
    "local_only",
    "personal:LocalOnly",
    LocalOnlyOptions,
    "no exchange: each client trains its own model; a reference",
    "-",
)
_register(
    "centralised",
    "centralised:Centralised",
    CentralisedOptions,
    "no federation: one model on all clients' data; a reference",
    "-",
)


class UniformSelectionOptions(Options):
    """Uniform draws have no options."""


class PowerOfChoiceOptions(Options):
    """Highest loss among candidates."""

    candidates: float = Field(
        2.0, ge=1, description="d, candidates for each client that is wanted, >= 1"
    )
    measure: bool = Field(
        True,
        description="candidates measure the server's model, whose bytes are counted; else the "
        "training loss of a client's last participation counts",
    )


class OortOptions(Options):
    """Utility."""

    explore: float = Field(
        0.9, ge=0, le=1, description="share for clients never tried in round 1, in [0, 1]"
    )
    decay: float = Field(0.98, gt=0, le=1, description="its factor a round, in (0, 1]")
    least: float = Field(0.2, ge=0, le=1, description="its smallest value, in [0, 1]")
    quantile: float = Field(
        0.8, gt=0, le=1, description="of the clients' times: what is slower counts less, in (0, 1]"
    )
    alpha: float = Field(2.0, ge=0, description="power of the penalty for slowness, >= 0")
    cutoff: float = Field(
        0.95,
        gt=0,
        le=1,
        description="share of the smallest utility taken from which on clients may be drawn, in "
        "(0, 1]",
    )


def _select(name: str, target: str, options: type[Options], description: str, source: str) -> None:
    where = f"fedopt.server.client_selection:{target}"
    register(Entry("selections", name, where, options, description, source))


_UNIFORM = "McMahan et al. 2017, algorithm 1"
_select("uniform", "SelectionRule", UniformSelectionOptions, "uniform draws; unbiased", _UNIFORM)
_select(
    "size",
    "BySize",
    UniformSelectionOptions,
    "in proportion to the examples; goes with uniform weighting",
    "Li et al. 2020 (FedProx), algorithm 2",
)
_select(
    "power_of_choice",
    "PowerOfChoice",
    PowerOfChoiceOptions,
    "the highest losses among candidates; biased to clients that fit badly",
    "Cho et al. 2022, algorithm 1",
)
_select(
    "oort",
    "Oort",
    OortOptions,
    "by loss, size and speed, with exploration; biased to useful and fast clients",
    "Lai et al. 2021, algorithm 1",
)
_select(
    "fastest",
    "Fastest",
    UniformSelectionOptions,
    "those whose part takes least time; slow clients never train",
    "Nishio and Yonetani 2019",
)
