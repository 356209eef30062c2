"""From the `system` and `policy` tables to devices, availability and the server's policy.

What does not go together is refused here, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedopt.client.algorithm import LocalAlgorithm, collected
from fedopt.config import Choice, Config
from fedopt.errors import ConfigError
from fedopt.registry import make
from fedopt.server.client_selection import SelectionRule
from fedopt.system.asynchronous import Buffered
from fedopt.system.availability import (
    Always,
    Availability,
    Bernoulli,
    DayNight,
    Markov,
    read_trace,
)
from fedopt.system.devices import (
    CLASSES,
    GIB,
    MEGABIT,
    ClassDevices,
    DeviceClass,
    DeviceSource,
    ListedDevices,
    LogNormalDevices,
    NoDevices,
    UniformDevices,
    read_devices,
)
from fedopt.system.rounds import (
    Deadline,
    Failures,
    OverSelection,
    SemiSynchronous,
    Synchronous,
    System,
)

if TYPE_CHECKING:
    from fedopt.server.strategy import FederatedStrategy

ASYNCHRONOUS = ("fedbuff", "fedasync")
"""The policies under which clients come and go."""


@dataclass(frozen=True)
class SystemPlan:
    """What a strategy needs for rounds on the virtual clock.

    Args:
        system: the population's devices.
        policy: when the server goes on.
        passes: gradients a step.
        operations: operations of a gradient of one example, or 1 where speed counts examples.
    """

    system: System
    policy: Synchronous | Buffered
    passes: int = 1
    operations: float = 1.0


def is_on(config: Config) -> bool:
    """Return whether a run has a virtual clock."""
    names = (config.devices.name, config.availability.name, config.policy.name)
    failures = config.failures
    fails = failures.before or failures.during or failures.upload
    return names != ("none", "always", "synchronous") or bool(fails)


def make_selection(choice: Choice) -> SelectionRule | None:
    """Return which of the clients that are there train, or None for uniform draws."""
    if choice.name == "uniform":
        return None
    options = choice.options.model_dump()
    rule: SelectionRule = make("selections", choice.name, options, key="selection")
    return rule


def make_system(
    config: Config, cohort: int, passes: int, operations: float, model_nbytes: float
) -> SystemPlan | None:
    """Return what rounds on the virtual clock need, or None where there is none.

    Args:
        config: the configuration.
        cohort: clients a round.
        passes: gradients a step.
        operations: floating-point operations of a gradient of one example.
        model_nbytes: bytes of memory that training takes.

    Raises:
        ConfigError: a file cannot be read, or its values are not allowed.
    """
    if not is_on(config):
        return None
    failures, seed = config.failures, config.seed
    system = System(
        make_devices(config.devices, seed),
        make_availability(config.availability, seed),
        Failures(seed, failures.before, failures.during, failures.upload),
        model_nbytes,
    )
    counts = config.system.speed_counts == "operations"
    return SystemPlan(system, make_policy(config, cohort), passes, operations if counts else 1.0)


def make_devices(choice: Choice, seed: int) -> DeviceSource:
    """Return where clients' devices come from.

    Raises:
        ConfigError: the file cannot be read.
    """
    options = choice.options.model_dump()
    if choice.name == "none":
        return NoDevices()
    if choice.name == "file":
        return ListedDevices(read_devices(options["path"], "system.devices.path"))
    if choice.name == "classes":
        weights = options["weights"] or [1.0] * len(options["names"])
        mixture = dict(zip(options["names"], weights, strict=True))
        return ClassDevices(seed, mixture, CLASSES, options["sigma"])
    shared = (
        options["latency"],
        options["memory"] * GIB,
        options["watts"],
        options["joules_per_megabyte"] / 1e6,
    )
    if choice.name == "log_normal":
        widths = (options["downlink"] * MEGABIT, options["uplink"] * MEGABIT)
        median = DeviceClass(options["speed"], *widths, *shared)
        return LogNormalDevices(seed, median, options["speed_sigma"], options["bandwidth_sigma"])
    low, high = (
        DeviceClass(
            options["speed"][end],
            options["downlink"][end] * MEGABIT,
            options["uplink"][end] * MEGABIT,
            *shared,
        )
        for end in (0, 1)
    )
    return UniformDevices(seed, low, high)


def make_availability(choice: Choice, seed: int) -> Availability:
    """Return when clients are there.

    Raises:
        ConfigError: the trace cannot be read.
    """
    options = choice.options.model_dump()
    if choice.name == "trace":
        return read_trace(options["path"], options["period"], "system.availability.path")
    if choice.name == "bernoulli":
        return Bernoulli(seed, options["probability"], options["slot"])
    if choice.name == "markov":
        return Markov(seed, options["mean_there"], options["mean_away"])
    if choice.name == "day_night":
        return DayNight(seed, **options)
    return Always()


def make_policy(config: Config, cohort: int) -> Synchronous | Buffered:
    """Return when the server goes on.

    Args:
        config: the configuration.
        cohort: clients a round, or that train at a time.
    """
    name, options = config.policy.name, config.policy.options.model_dump()
    keeps = config.strategy.options.model_dump()["partial_work"] == "keep"
    if name == "deadline":
        return Deadline(keeps, options["seconds"])
    if name == "over_selection":
        return OverSelection(factor=options["factor"])
    if name == "semi_synchronous":
        return SemiSynchronous(options["seconds"], options["most"])
    if name == "fedbuff":
        return Buffered(options["buffer"] or cohort, cohort, options["exponent"])
    if name == "fedasync":
        return Buffered(1, cohort, options["exponent"], options["mixing"])
    return Synchronous()


def _check_selection(config: Config) -> None:
    """Refuse selections that cannot be made."""
    chosen, key = config.selection.name, "selection.name"
    if chosen == "uniform":
        return
    reasons = {
        "training is centralised": config.strategy.name == "centralised",
        "it needs to know how fast devices are; set system.devices": (
            chosen == "fastest" and config.devices.name == "none"
        ),
        f'under "{config.policy.name}" clients begin one by one': (
            config.policy.name in ASYNCHRONOUS
        ),
        "server.curriculum chooses clients already": config.server_curriculum.is_on,
        "privacy is accounted for cohorts that are drawn uniformly": config.privacy.is_on,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ConfigError(f'got "{chosen}", but {reason}', key=key)


def check_system(
    config: Config,
    strategy: type[FederatedStrategy],
    algorithm: LocalAlgorithm,
    clients: int,
    cohort: int,
) -> None:
    """Refuse what does not go together.

    Args:
        config: the configuration.
        strategy: the strategy's class.
        algorithm: its client side.
        clients: clients that may be sampled.
        cohort: clients a round.

    Raises:
        ConfigError: naming the key and the reason.
    """
    name, policy = config.strategy.name, config.policy.name
    _check_selection(config)
    if is_on(config) and name == "centralised":
        raise ConfigError(
            "centralised training has no clients whose devices could differ; leave system and "
            "policy out",
            key="policy.name" if policy != "synchronous" else "system",
        )
    options = config.strategy.options.model_dump()
    if policy == "semi_synchronous" and options["partial_work"] != "keep":
        raise ConfigError(
            'got "drop", but under "semi_synchronous" every client does as many steps as fit; use '
            '"keep"',
            key="strategy.partial_work",
        )
    if (
        policy == "over_selection"
        and cohort == clients
        and config.policy.options.model_dump()["factor"] > 1
    ):
        raise ConfigError(
            f'got "over_selection", but all {clients} clients are wanted in every round; use fewer '
            "clients_per_round",
            key="policy.name",
        )
    if policy not in ASYNCHRONOUS:
        return
    beside = [term for term in algorithm.terms if term != "delta"]
    reasons = {
        f"{name} sends {', '.join(beside)} beside the update, which means nothing for models of "
        "different rounds; use a strategy whose clients send their change alone": bool(beside),
        f"{name} compares the updates of one model": collected(algorithm),
        f"{name} exchanges nothing": not strategy.exchanges,
        f"the server of {name} uses what all clients of a round report": not strategy.uses_only_sums
        or bool(options.get("adaptive")),
        "noise is accounted for by rounds with one model; leave uplink.privacy out": (
            config.privacy.is_on
        ),
        "an adaptive clipping norm follows the clients of a round; leave uplink.clip.quantile "
        "out": config.clip.quantile is not None,
        "server.curriculum samples by losses that are not there yet": (
            config.server_curriculum.is_on
        ),
        'the attack "alie" needs the hostile clients of a round together': (
            config.attack.name == "alie"
        ),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ConfigError(f'got "{policy}", but {reason}', key="policy.name")
    buffer = config.policy.options.model_dump().get("buffer")
    if buffer is not None and buffer > clients:
        raise ConfigError(
            f"got {buffer}, but there are {clients} clients, each of which begins once with a "
            f"model; use at most {clients}",
            key="policy.buffer",
        )
