"""What a strategy can claim to be, and the names of the options that checks set.

A claim is the name of a kind. Some kinds include others: a `median` is `robust`, and every strategy
that trains a shared model is a `strategy`, whose checks need no claim.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedopt.errors import did_you_mean

KINDS: dict[str, str] = {
    "strategy": "trains a shared model (every strategy, without a claim)",
    "fedavg": "federated averaging, weighted by examples",
    "fedprox": "federated averaging with a proximal term mu",
    "scaffold": "control variates on server and clients",
    "fednova": "updates normalised by the local work in them",
    "feddyn": "a dynamic regulariser alpha",
    "server_optimizer": "a server optimizer that is plain SGD for some options",
    "fedavgm": "momentum on the server",
    "fedadagrad": "the paper's Adagrad on the server",
    "fedadam": "the paper's Adam on the server",
    "fedyogi": "the paper's Yogi on the server",
    "mimelite": "local steps with the server's optimizer state",
    "qfedavg": "clients weighted by a power q of their loss",
    "mofedsam": "sharpness-aware local steps along the server's momentum",
    "fedpm": "models mixed in the metric of the clients' curvature",
    "robust": "one arbitrarily bad client has bounded influence",
    "median": "coordinate-wise median",
    "trimmed_mean": "coordinate-wise trimmed mean",
    "krum": "the update closest to most others",
    "rfa": "geometric median",
    "personal": "something stays with each client",
    "fedbn": "normalisation layers stay with the clients",
    "fedper": "the head stays with the clients",
    "fedrep": "the head stays with the clients and is trained first",
    "ditto": "federated averaging with personal models beside it",
    "local_only": "each client trains alone",
    "centralised": "one model on all clients' data",
    "compressed": "updates sent through a codec, with or without error feedback",
    "biased": "compression whose error does not average out",
    "codec": "compression of updates",
    "contraction": "compression that loses a share below one of the squared length",
    "unbiased": "compression that is right in expectation",
}
"""Name -> what it means."""

INCLUDES: dict[str, tuple[str, ...]] = {
    "median": ("robust",),
    "trimmed_mean": ("robust",),
    "krum": ("robust",),
    "rfa": ("robust",),
    "fedbn": ("personal",),
    "fedper": ("personal",),
    "fedrep": ("personal",),
    "ditto": ("personal",),
    "local_only": ("personal",),
    "contraction": ("codec", "compressed"),
    "unbiased": ("codec",),
}
"""Kind -> the kinds that it is as well."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "mu": ("proximal_mu",),
    "alpha": (),
    "server_lr": ("server_learning_rate", "eta"),
    "momentum": ("server_momentum",),
    "beta1": ("beta_1",),
    "beta2": ("beta_2",),
    "tau": (),
    "option": (),
    "beta": (),
    "hostile": ("num_malicious_nodes",),
    "iterations": (),
    "q": (),
    "lam": (),
    "head_share": (),
    "steps": (),
}
"""The checks' names of a strategy's options -> other names that they are known by."""


def claims_of(kind: str | Iterable[str]) -> tuple[str, ...]:
    """Return the kinds that some claims come to, without repetition.

    Args:
        kind: a claim, or several.

    Raises:
        ValueError: a claim is not known; with the allowed names and the nearest one.
    """
    names = [kind] if isinstance(kind, str) else list(kind)
    found: list[str] = []
    for name in names:
        if name not in KINDS:
            raise ValueError(
                f'claim "{name}" is not known.{did_you_mean(str(name), KINDS)} '
                f"One of: {', '.join(sorted(KINDS))}."
            )
        found += [k for k in (name, *INCLUDES.get(name, ())) if k not in found]
    return tuple(found)


def with_default(claims: tuple[str, ...]) -> tuple[str, ...]:
    """Return claims with `strategy`, which all but codecs are."""
    if "codec" in claims or "strategy" in claims:
        return claims
    return ("strategy", *claims)
