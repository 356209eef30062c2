"""From the `uplink`, `downlink` and `attack` tables to the channel between server and clients.

What does not go together is refused here, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedopt import systems
from fedopt.client.algorithm import LocalAlgorithm, collected
from fedopt.client.attacks import Attack, Hostility, hostile_clients
from fedopt.client.channel import BELOW_NORM, Channel, Clip, SentPart
from fedopt.client.personal import PersonalPart
from fedopt.compression.catalogue import DOWN
from fedopt.compression.codecs import Codec
from fedopt.config import Choice, Config
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.registry import get, import_object, make
from fedopt.server.privacy import (
    Privacy,
    default_count_noise,
    least_count_noise,
    require_accountant,
)

if TYPE_CHECKING:
    from fedopt.server.strategy import FederatedStrategy


def make_channel(
    config: Config, part: Callable[[], SentPart], privacy: Privacy | None
) -> Channel | None:
    """Return what happens to what server and clients send each other, or None for nothing.

    Args:
        config: the configuration.
        part: returns which scalars are sent.
        privacy: what is known of the rounds' privacy.

    Raises:
        ConfigError: a codec cannot be made.
    """
    clip, up, down = config.clip, config.uplink_compression, config.downlink_compression
    if clip.norm is None and up.name == "none" and down.name == "none":
        return None
    return Channel(
        part(),
        clip=None if clip.norm is None else Clip(clip.norm, clip.quantile, clip.lr),
        noise=None if privacy is None else privacy.noise,
        up=_codec(up, "uplink.compression"),
        feedback=bool(up.options.model_dump().get("error_feedback", False)),
        down=_codec(down, "downlink.compression"),
    )


def make_privacy(config: Config, clients: int, cohort: int) -> Privacy | None:
    """Return what is known of the rounds' privacy, or None without noise.

    Args:
        config: the configuration.
        clients: clients that may be sampled.
        cohort: clients a round.

    Raises:
        ConfigError: there is no clipping, the noise on counts is too small, or the accountant is
            not installed.
    """
    table, clip = config.privacy, config.clip
    if not table.is_on:
        return None
    key = "uplink.privacy.noise_multiplier"
    if clip.norm is None:
        raise ConfigError(
            f"got {table.noise_multiplier:g}, but updates are not clipped, so that no noise hides "
            "them; set uplink.clip.norm",
            key=key,
        )
    require_accountant(key)
    count_noise = None
    if clip.quantile is not None:
        wanted, least = table.count_noise, least_count_noise(table.noise_multiplier)
        if wanted is not None and wanted <= least:
            raise ConfigError(
                f"got {wanted:g}, but with noise_multiplier = {table.noise_multiplier:g} it must "
                f"be more than {least:g}",
                key="uplink.privacy.count_noise",
            )
        count_noise = wanted or default_count_noise(cohort, table.noise_multiplier)
    return Privacy(
        table.noise_multiplier,
        table.delta,
        table.sampling == "poisson",
        clients,
        cohort,
        count_noise,
    )


def make_hostility(
    config: Config,
    part: Callable[[], SentPart],
    sizes: npt.NDArray[np.int64],
    classes: int | None,
    others: Iterable[str],
) -> Hostility | None:
    """Return which clients are hostile and what they do, or None where all are honest.

    Args:
        config: the configuration.
        part: returns which scalars are sent.
        sizes: training examples of each client, `[N]`.
        classes: number of classes, where the targets are such.
        others: names of vectors that are not as long as the model.

    Raises:
        ConfigError: the attack cannot be made.
    """
    choice = config.attack
    if choice.name == "none":
        return None
    options = choice.options.model_dump()
    fraction = options.pop("fraction", None)
    if not isinstance(fraction, float | int) or not 0 < fraction <= 1:
        raise ConfigError(
            f"got {fraction!r}, expected the share of the clients that are hostile, in (0, 1]",
            key="attack.fraction",
        )
    _attack_class(choice.name)
    attack: Attack = make("attacks", choice.name, options, key="attack")
    clients = hostile_clients(sizes, float(fraction), config.seed)
    return Hostility(attack, clients, part(), classes, frozenset(others))


def sent_part(
    layout: ParameterLayout, personal: PersonalPart | None, strategy: type[FederatedStrategy]
) -> SentPart:
    """Return which scalars of a vector as long as the model are sent."""
    return SentPart.of(layout, None if strategy.sends_personal else personal)


def check_channel(
    config: Config,
    strategy: type[FederatedStrategy],
    algorithm: LocalAlgorithm,
    layout: ParameterLayout,
    classes: int | None,
    moving: Sequence[str],
) -> None:
    """Refuse what does not go together.

    Args:
        config: the configuration.
        strategy: the strategy's class.
        algorithm: its client side.
        layout: of the model.
        classes: number of classes, where the targets are such.
        moving: names of buffers that clients change and send.

    Raises:
        ConfigError: naming the key and the reason.
    """
    name = config.strategy.name
    asked = {
        "uplink.privacy.noise_multiplier": config.privacy.is_on,
        "uplink.clip.norm": config.clip.norm is not None,
        "uplink.compression.name": config.uplink_compression.name != "none",
        "downlink.compression.name": config.downlink_compression.name != "none",
        "attack.name": config.attack.name != "none",
    }
    if not strategy.exchanges:
        for key in (key for key, is_asked in asked.items() if is_asked):
            raise ConfigError(
                f"does not go with {name}, whose clients send nothing; leave it out", key=key
            )
    down = config.downlink_compression.name
    if down not in DOWN:
        raise ConfigError(
            f'got "{down}", which leaves little of a model; use one of {", ".join(DOWN)}',
            key="downlink.compression.name",
        )
    _check_clip(config, algorithm)
    compressed = [key for key in asked if key.endswith("compression.name") and asked[key]]
    if compressed and config.local.optimizer_state == "average":
        raise ConfigError(
            'got "average", but the optimizer\'s moments are states, not changes: what compression '
            'leaves of them makes steps explode; use "reset" or "keep", or leave the codec out',
            key="local.optimizer_state",
        )
    if asked["attack.name"]:
        _check_attack(config, classes)
    if config.privacy.is_on:
        _check_privacy(config, strategy, algorithm, layout, moving)


def _check_clip(config: Config, algorithm: LocalAlgorithm) -> None:
    """Refuse clipping where `delta` is not what a client moved by."""
    if config.clip.norm is None:
        return
    for term in ("fairness", "optimizer.mixing_factors"):
        if term in algorithm.terms:
            raise ConfigError(
                f"got {config.clip.norm:g}, but {config.strategy.name} divides what clients send "
                f"by their {term.rpartition('.')[2].replace('_', ' ')}, which would not be clipped "
                "with it; leave it out",
                key="uplink.clip.norm",
            )


def _check_attack(config: Config, classes: int | None) -> None:
    attack = config.attack.name
    loaded = _attack_class(attack)
    if loaded.flips_labels and classes is None:
        raise ConfigError(
            f'got "{attack}", but the data have real targets; use "sign_flip", "noise" or "alie"',
            key="attack.name",
        )
    if not loaded.colludes:
        return
    stages = {
        "uplink.clip.norm": config.clip.norm is not None,
        "uplink.compression.name": config.uplink_compression.name != "none",
    }
    for key in (key for key, is_on in stages.items() if is_on):
        raise ConfigError(
            f'does not go with the attack "{attack}": what hostile clients make of their updates '
            "together is known only after all of them were sent; leave one of them out",
            key=key,
        )


def _attack_class(name: str) -> type[Attack]:
    """Return the class of an attack.

    Raises:
        ConfigError: the user's object is none.
    """
    if ":" in name:
        found = import_object(name, key="attack.name")
    else:
        found = get("attacks", name, key="attack.name").load()
    if not isinstance(found, type) or not issubclass(found, Attack):
        raise ConfigError(
            f'"{name}" is not a subclass of fedopt.client.attacks.Attack', key="attack.name"
        )
    return found


def _check_privacy(
    config: Config,
    strategy: type[FederatedStrategy],
    algorithm: LocalAlgorithm,
    layout: ParameterLayout,
    moving: Sequence[str],
) -> None:
    """Refuse noise that would not hide what a client sends, with the reason."""
    key, name = "uplink.privacy.noise_multiplier", config.strategy.name
    options = config.strategy.options.model_dump()
    beside = [term for term in algorithm.terms if term not in ("delta", BELOW_NORM)]
    reasons = {
        f'{name} weighs updates by examples; set strategy.weighting = "uniform"': options[
            "weighting"
        ]
        != "uniform",
        f"the server of {name} sees each update, not their sum": collected(algorithm),
        f"clients of {name} also send {', '.join(beside)}, which no noise hides": bool(beside),
        f"the server of {name} uses what clients report of their steps": (
            not strategy.relies_on_sums() or bool(options.get("adaptive"))
        ),
        f"clients also send buffers ({', '.join(moving)}), which no noise hides; use a model "
        "without BatchNorm": bool(moving),
        "server.swa asks clients for BatchNorm's statistics, which no noise hides": (
            config.server_swa.is_on and any("running_mean" in spec.name for spec in layout.buffers)
        ),
        "of stragglers a share is drawn, so that one client changes what others do; leave "
        "system.stragglers out": config.system.stragglers > 0,
        "cohorts must be drawn from all clients, and must not depend on each other's devices; "
        "leave devices, availability, failures and policy out": systems.is_on(config),
        "compression of each noisy update would not leave the sum what the accountant assumes; "
        "leave uplink.compression out": config.uplink_compression.name != "none",
        "server.curriculum samples by the clients' losses": config.server_curriculum.is_on,
        'the schedule "plateau" follows the clients\' losses': config.schedule.name == "plateau",
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ConfigError(f"got {config.privacy.noise_multiplier:g}, but {reason}", key=key)


def _codec(choice: Choice, key: str) -> Codec | None:
    if choice.name == "none":
        return None
    options = choice.options.model_dump()
    feedback = options.pop("error_feedback", None)
    if choice.name == "random_k":
        options["scaled"] = not feedback
    codec: Codec = make("codecs", choice.name, options, key=key)
    for name in ("nbytes", "compress"):
        if not callable(getattr(codec, name, None)):
            raise ConfigError(
                f'"{choice.name}" has no {name}(); a codec is what fedopt.compression.Codec says',
                key=f"{key}.name",
            )
    return codec
