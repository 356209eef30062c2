"""From a configuration to whose data drift, who joins when, and who is held out of training.

What does not fit the data or the rounds is refused here, with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.config import Config
from fedopt.data.population import Population
from fedopt.data.unseen import PartlyUnseen, draw_unseen
from fedopt.drift.catalogue import DriftOptions, TransitionOptions
from fedopt.drift.concepts import Concept
from fedopt.drift.population import Drift, drift_groups
from fedopt.drift.transition import Transition
from fedopt.errors import ConfigError
from fedopt.registry import make
from fedopt.server.arrival import Arrival
from fedopt.validation import validate


def with_unseen(config: Config, population: Population) -> Population:
    """Return a population without the clients that are held out of training.

    Raises:
        ConfigError: nobody would be left to train.
    """
    wanted, key = config.evaluation.unseen_clients, "evaluation.unseen_clients"
    if not wanted:
        return population
    eligible = int(np.count_nonzero(population.sizes))
    count = max(1, round(wanted * eligible)) if isinstance(wanted, float) else wanted
    if count >= eligible:
        raise ConfigError(
            f"got {wanted}, which leaves none of the {eligible} clients with examples to train; "
            f"use at most {eligible - 1}, or a smaller share",
            key=key,
        )
    view: Any = PartlyUnseen(population, draw_unseen(population.sizes, count, config.seed))
    found: Population = view
    return found


def make_drift(config: Config, population: Population) -> Drift | None:
    """Return who drifts, when and how, or None where examples stay as they are.

    Args:
        config: the configuration.
        population: all clients, one by one.

    Raises:
        ConfigError: the drift does not fit the data or the rounds.
    """
    name = config.drift.name
    if name == "none":
        return None
    concept, options = _concept(config)
    start = config.rounds // 2 + 1 if options.start is None else options.start
    transition = Transition(options.kind, start, options.stagger, options.length, options.period)
    _check_data(name, concept, population)
    _check_curriculum(config, concept)
    sizes = np.asarray(getattr(population, "all_sizes", population.sizes))
    drifting = max(1, round(options.share * int(np.count_nonzero(sizes))))
    if options.groups > drifting:
        raise ConfigError(
            f"got {options.groups}, but only {drifting} clients drift; use at most {drifting}, or "
            "a larger drift.share",
            key="drift.groups",
        )
    _check_rounds(config, transition, options.groups)
    groups = drift_groups(sizes, options.share, options.groups, config.seed)
    return Drift(concept, transition, groups, sizes, config.seed, population.classes)


def make_arrival(config: Config, sizes: npt.NDArray[np.int64]) -> Arrival | None:
    """Return who is there by which round, or None where all are from the beginning.

    Args:
        config: the configuration.
        sizes: training examples of each client, `[N]`.

    Raises:
        ConfigError: nobody is there at first, or rounds are out of range.
    """
    table, rounds = config.arrival, config.rounds
    if not table.is_on:
        return None
    reasons = {
        "uplink.privacy, whose accountant counts on the same clients in each "
        "round": config.privacy.is_on,
        "server.curriculum, which decides as well who may be sampled": (
            config.server_curriculum.is_on
        ),
        'the strategy "centralised", which trains on all clients as one': (
            config.strategy.name == "centralised"
        ),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ConfigError(f"got {table.share:g}, which does not go with {reason}", key="arrival")
    last = max(table.first, rounds // 2) if table.last is None else table.last
    if table.first > rounds:
        raise ConfigError(
            f"got {table.first}, but the last round is {rounds}; use a round in 2..{rounds}, or "
            "more rounds",
            key="arrival.first",
        )
    if not table.first <= last <= rounds:
        raise ConfigError(
            f"got {last}; it must be in {table.first}..{rounds}, from arrival.first to the last "
            "round",
            key="arrival.last",
        )
    clients = int(np.count_nonzero(sizes))
    arrival = Arrival(
        clients, table.share, table.first, last, table.pattern, table.waves, config.seed
    )
    if arrival.founders < 1:
        raise ConfigError(
            f"got {table.share:g}, which leaves none of {clients} clients for the first round; use "
            "a smaller share",
            key="arrival.share",
        )
    wanted = config.run.clients_per_round
    if isinstance(wanted, int) and wanted > arrival.founders:
        raise ConfigError(
            f"got {wanted}, but only {arrival.founders} clients are there in the first round; use "
            f'at most {arrival.founders}, a fraction in (0, 1], "all", or a smaller arrival.share',
            key="clients_per_round",
        )
    return arrival


def _concept(config: Config) -> tuple[Concept, Any]:
    """Return what changes, and when and for whom."""
    choice = config.drift
    given = choice.options.model_dump()
    if ":" in choice.name:
        common = {k: given.pop(k) for k in list(given) if k in DriftOptions.model_fields}
        options = validate(DriftOptions, common, "drift")
    else:
        options = choice.options
        given = {k: v for k, v in given.items() if k not in _COMMON}
    concept = make("drifts", choice.name, given, key="drift")
    if not isinstance(concept, Concept):
        raise ConfigError(
            f'"{choice.name}" is not a fedopt.drift.concepts.Concept', key="drift.name"
        )
    return concept, options


_COMMON = {*TransitionOptions.model_fields, *DriftOptions.model_fields}


def _check_data(name: str, concept: Concept, population: Population) -> None:
    """Refuse a drift of what the data do not have."""
    key, shape = "drift.name", tuple(population.input_shape)
    if concept.needs_classes and (population.classes is None or population.classes < 2):
        what = "real targets" if population.classes is None else "a single class"
        raise ConfigError(f'got "{name}", but the data have {what}; use "feature"', key=key)
    if concept.needs_images and len(shape) != 3:
        raise ConfigError(
            f'got "{name}", which needs images of shape [channels, height, width], but inputs have '
            f'shape {list(shape)}; use "feature"',
            key=key,
        )


def check_inputs(config: Config, drift: Drift, population: Population) -> None:
    """Refuse a drift of inputs that a model looks up, once it is known whether it does.

    Raises:
        ConfigError: inputs are integers, of which there is nothing in between.
    """
    client = int(np.flatnonzero(population.sizes)[0])
    if drift.concept.changes_inputs and population.train(client).x.dtype.kind != "f":
        raise ConfigError(
            f'got "{config.drift.name}", but the model looks its inputs up in a table, where there '
            'is nothing in between; use "label" or "prior"',
            key="drift.name",
        )


def _check_curriculum(config: Config, concept: Concept) -> None:
    table = config.local_curriculum
    if table.is_on and table.score.endswith(".npy") and concept.moves_examples:
        raise ConfigError(
            f'got "{config.drift.name}", which draws examples anew, but the scores in '
            f'"{table.score}" are of the examples as they were; use another local.curriculum.score',
            key="drift.name",
        )


def _check_rounds(config: Config, transition: Transition, groups: int) -> None:
    """Refuse a drift that no round would show."""
    rounds, start = config.rounds, transition.start
    if start > rounds:
        raise ConfigError(
            f"got {start}, but the last round is {rounds}; use a round in 1..{rounds}, or more "
            "rounds",
            key="drift.start",
        )
    last = transition.first_round(groups)
    if last > rounds:
        most = (rounds - start) // (groups - 1)
        raise ConfigError(
            f"got {transition.stagger}: the last of {groups} groups would start in round {last}, "
            f"but the last round is {rounds}; use at most {most}, or an earlier drift.start",
            key="drift.stagger",
        )
