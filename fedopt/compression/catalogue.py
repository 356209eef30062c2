"""The codecs that a configuration can name. Imports neither torch nor Flower."""

from __future__ import annotations

from pydantic import Field

from fedopt.registry import Entry, Options, register

DOWN = ("none", "quantise", "qsgd")
"""The codecs for a model: of one that is sent in part, or at a low rank, little would be left."""


class PlainOptions(Options):
    """What is sent as it is has no options."""


class QuantiseOptions(Options):
    """Stochastic uniform quantisation."""

    bits: int = Field(8, ge=1, le=16, description="bits of each element, 1..16")


class QsgdOptions(Options):
    """QSGD."""

    levels: int = Field(
        16, ge=1, le=65535, description="levels of an element's magnitude above 0, 1..65535"
    )


class ShareOptions(Options):
    """Sparsification."""

    share: float = Field(0.01, gt=0, le=1, description="share of the elements sent, in (0, 1]")
    error_feedback: bool = Field(True, description="add what was lost to the client's next update")


class RandomShareOptions(ShareOptions):
    """Sparsification at random; without error feedback scaled to be unbiased."""


class PowerSgdOptions(Options):
    """Low rank."""

    rank: int = Field(2, ge=1, description="columns of the factors, >= 1")
    error_feedback: bool = Field(True, description="add what was lost to the client's next update")


def _register(
    name: str, target: str, options: type[Options], description: str, source: str
) -> None:
    register(Entry("codecs", name, f"fedopt.compression.{target}", options, description, source))


_register("none", "codecs:Identity", PlainOptions, "no compression", "-")
_register(
    "quantise",
    "quantisation:StochasticUniform",
    QuantiseOptions,
    "few bits an element between the vector's extremes, rounded at random; unbiased",
    "Suresh et al. 2017, section 2.2",
)
_register(
    "qsgd",
    "quantisation:QSGD",
    QsgdOptions,
    "sign and random level of each element, in units of the vector's norm; unbiased",
    "Alistarh et al. 2017, section 3.1",
)
_register(
    "top_k",
    "sparsification:TopK",
    ShareOptions,
    "the elements of largest magnitude; biased, wants error feedback",
    "Stich et al. 2018, definition 2.2",
)
_register(
    "random_k",
    "sparsification:RandomK",
    RandomShareOptions,
    "elements drawn at random, of which the seed tells which; unbiased without error feedback",
    "Stich et al. 2018, definition 2.2; Konecny et al. 2016",
)
_register(
    "power_sgd",
    "low_rank:PowerSGD",
    PowerSgdOptions,
    "each matrix as two thin factors; biased, wants error feedback",
    "Vogels et al. 2019, algorithm 1",
)
