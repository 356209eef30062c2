"""The orders, pacings and self-paced weights that a configuration can name. Imports no torch."""

from __future__ import annotations

from fedopt.registry import Entry, Options, register


class WordOptions(Options):
    """Their options are the other keys of the table."""


def _register(kind: str, name: str, target: str, description: str, source: str) -> None:
    where = f"fedopt.curriculum.{target}"
    register(Entry(kind, name, where, WordOptions, description, source))


_ORDERING = "ordering:difficulty_order"
_PACING = "pacing:pacing_share"
_WEIGHTS = "self_paced:self_paced_weights"
_CONTROLS = "Wu et al. 2021, section 3"
_TABLE = "Wu et al. 2021, table 2"

_register("curricula", "none", _ORDERING, "all data are available from the start", "-")
_register(
    "curricula", "curriculum", _ORDERING, "easy first, hard ones join later", "Bengio et al. 2009"
)
_register("curricula", "anti", _ORDERING, "hard first, easy ones join later", _CONTROLS)
_register(
    "curricula", "random", _ORDERING, "one fixed random order a client: the control", _CONTROLS
)

for _name, _growth in {
    "linear": "the available share grows as x",
    "quadratic": "the available share grows as x^2: slow, then fast",
    "root": "the available share grows as sqrt(x): fast, then slow",
    "exponential": "the available share grows as e^(10 x): nearly all of it at the end",
    "logarithmic": "the available share grows as log(x): nearly all of it at the start",
    "step": "the share at the start, and all data at once from full_at on",
}.items():
    _register("pacings", _name, _PACING, _growth, _TABLE)

_register("self_paced", "none", _WEIGHTS, "all examples weigh alike", "-")
_register(
    "self_paced",
    "hard",
    _WEIGHTS,
    "weight 1 below the threshold, 0 above",
    "Kumar et al. 2010, equation 4",
)
for _name, _weight in {
    "linear": "a weight that falls evenly to 0 at the threshold",
    "log": "a weight that falls with the logarithm of the loss to 0 at the threshold",
    "mixture": "weight 1 below a share of the threshold, then falling to 0 at it",
}.items():
    _register("self_paced", _name, _WEIGHTS, _weight, "Jiang et al. 2014")
