"""The drifts that a configuration can name. Imports neither torch nor numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedopt.registry import Entry, Options, register


class NoDriftOptions(Options):
    """Examples that stay as they are have no options."""


class TransitionOptions(Options):
    """Who drifts, and when."""

    share: float = Field(
        1.0, gt=0, le=1, description="share of the clients that drift, in (0, 1]; drawn once"
    )
    groups: int = Field(
        1,
        ge=1,
        description="groups into which the drifting clients are cut by the seed, each with a new "
        "concept of its own, >= 1 and at most the drifting clients",
    )
    start: int | None = Field(
        None,
        ge=1,
        description="first round that shows the new concept, in 1..rounds (default: the one after "
        "half of the rounds)",
    )
    stagger: int = Field(
        0, ge=0, description="rounds by which each group starts after the one before it, >= 0"
    )
    length: int = Field(
        10,
        ge=1,
        description="gradual and incremental: rounds from the old concept to the new one, >= 1",
    )
    period: int = Field(
        10,
        ge=1,
        description="recurring: rounds that a concept lasts before the other comes back, >= 1",
    )


class DriftOptions(TransitionOptions):
    """What every drift takes."""

    kind: Literal["sudden", "gradual", "incremental", "recurring"] = Field(
        "sudden",
        description="sudden: all at once; gradual: each example at a round of its own; "
        "incremental: the concept itself moves; recurring: new and old take turns",
    )


class LabelDriftOptions(DriftOptions):
    """Labels that change their meaning."""

    change: Literal["permute", "shift", "swap"] = Field(
        "permute",
        description="permute: at random, no label keeps its class; shift: to the g-th next class "
        "in group g; swap: random pairs change places",
    )
    classes: float = Field(
        1.0, gt=0, le=1, description="share of the classes concerned, at least two, in (0, 1]"
    )


class FeatureDriftOptions(DriftOptions):
    """Inputs whose sensors change."""

    shift: float = Field(
        0.5, ge=0, description="standard deviation over the features of what is added, >= 0"
    )
    scale: float = Field(
        0.0,
        ge=0,
        description="standard deviation over the features of the change of their factor from 1, "
        ">= 0",
    )

    def model_post_init(self, _context: object) -> None:
        """Refuse a drift that changes nothing."""
        if not self.shift and not self.scale:
            raise ValueError("shift: shift and scale are both 0, which changes nothing; use > 0")


class RotationOptions(DriftOptions):
    """Images that turn."""

    degrees: float = Field(
        90.0,
        ge=-360,
        le=360,
        description="counter-clockwise rotation of the last group; group g of G turns by g / G of "
        "it, in [-360, 360], not 0",
    )

    def model_post_init(self, _context: object) -> None:
        """Refuse a drift that changes nothing."""
        if not self.degrees:
            raise ValueError("degrees: got 0, which changes nothing")


class PriorDriftOptions(TransitionOptions):
    """Classes that become more or less frequent."""

    kind: Literal["sudden", "gradual", "recurring"] = Field(
        "sudden",
        description="sudden: all at once; gradual: each example at a round of its own, so that "
        "the frequencies move; recurring: new and old take turns",
    )
    alpha: float = Field(
        0.5,
        gt=0,
        description="concentration of the Dirichlet distribution of a group's new class "
        "frequencies, > 0; small: few classes",
    )


def _drift(name: str, target: str, options: type[Options], description: str, source: str) -> None:
    where = f"fedopt.drift.concepts:{target}"
    register(Entry("drifts", name, where, options, description, source))


_drift("none", "Concept", NoDriftOptions, "examples stay as they are", "-")
_drift(
    "label",
    "LabelDrift",
    LabelDriftOptions,
    "labels change their meaning: P(y | x) drifts",
    "Jothimurugesan et al. 2023 (FedDrift), section 6; Gama et al. 2014",
)
_drift(
    "feature",
    "FeatureDrift",
    FeatureDriftOptions,
    "each feature gets an offset and a factor: P(x) drifts",
    "Gama et al. 2014, section 2",
)
_drift(
    "rotation",
    "RotationDrift",
    RotationOptions,
    "images turn: P(x) drifts",
    "Ghosh et al. 2020 (IFCA), section 6, there from the beginning",
)
_drift(
    "prior",
    "PriorDrift",
    PriorDriftOptions,
    "classes become more or less frequent among a client's examples: P(y) drifts",
    "Gama et al. 2014, section 2",
)
