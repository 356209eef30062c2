"""A run, from configuration to results: the main path, and the Python interface to it.

    experiment -> grid -> for each round: sample, train, aggregate, evaluate, record, checkpoint

`simulate` does it in this process; `server_app` does the same as a Flower ServerApp, on whatever
grid Flower brings.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedopt.analysis.progress import Progress, SilentProgress, make_progress
from fedopt.analysis.store import default_directory
from fedopt.client.losses import Loss
from fedopt.config import Choice, Config, from_run_config, load
from fedopt.data import ListPopulation
from fedopt.errors import ClientError, ConfigError, TooFewClientsError
from fedopt.experiment import (
    Experiment,
    ModelFactory,
    configured_population,
    load_loss,
    model_factory,
    population_for,
)
from fedopt.interruption import Interruption
from fedopt.memory import keep_freed_memory
from fedopt.recorder import Recorder, make_strategy
from fedopt.registry import Options, get
from fedopt.results import Run
from fedopt.server.evaluation import Evaluator
from fedopt.server.placing import Hosting
from fedopt.server.rounds import is_due
from fedopt.server.strategy import FederatedStrategy
from fedopt.single_thread import single_thread

__all__ = ["Run", "execute", "in_memory", "preview", "server_app", "simulate", "train"]

log = logging.getLogger("fedopt")

ROUND_ATTEMPTS = 3
"""How often a round is begun of which too many real clients are lost."""


def simulate(
    config: str | Path | Mapping[str, Any] | Config | None = None,
    *,
    model: Any = None,
    loss: Loss | None = None,
    clients: Sequence[tuple[Any, Any]] | None = None,
    test: tuple[Any, Any] | None = None,
    out: str | Path | None = None,
    keep_parameters: bool = False,
    progress: bool = False,
    **tables: Any,
) -> Run:
    """Train a federated model and return the run.

    Args:
        config: a TOML file, a dictionary of the same shape, or a checked `Config`.
        model: a configuration table or name; or, in memory, a function without arguments that
            returns a `torch.nn.Module`, or a module (copied, its values are the start).
        loss: in memory, a function of (output, target) that returns the batch mean.
        clients: in memory, one (inputs, targets) pair a client: arrays or tensors. A part of each
            is held out where `data={"validation_fraction": ...}` says so.
        test: in memory, the test set, (inputs, targets).
        out: folder of the results; None writes nothing.
        keep_parameters: keep parameters and state of every round, not only of the last.
        progress: show the progress on standard error.
        tables: keys of the configuration, as in the TOML: `rounds=10`,
            `strategy={"name": "scaffold"}`. `clients_per_round=None` samples all clients.

    Raises:
        ConfigError: bad input, found before anything is trained.
        ClientError: a client failed or diverged; what was recorded is kept in `out`.
        RunError: the run cannot go on.
    """
    if isinstance(model, str | Mapping):
        tables["model"] = model
        model = None
    if "clients_per_round" in tables and tables["clients_per_round"] is None:
        tables["clients_per_round"] = "all"
    checked = _checked(config, tables)
    if all(part is None for part in (model, loss, clients, test)):
        experiment = Experiment.from_config(checked)
    else:
        experiment = in_memory(checked, model, loss, clients, test)
    shown = make_progress(False, sys.stderr) if progress else SilentProgress()
    directory = Path(out) if out is not None else None
    return execute(experiment, directory, shown, keep_parameters=keep_parameters)


class MemoryOptions(Options):
    """What a run's configuration says of clients in memory."""

    validation_fraction: float = 0.0


def in_memory(
    config: Config,
    model: ModelFactory | nn.Module | None = None,
    loss: Loss | None = None,
    clients: Sequence[tuple[Any, Any]] | None = None,
    test: tuple[Any, Any] | None = None,
) -> Experiment:
    """Return an experiment of which some parts are objects rather than configuration.

    Raises:
        ConfigError: the parts do not fit together.
    """
    if clients is not None:
        given = config.data.options.model_dump()
        if given.get("label_noise"):
            raise ConfigError(
                f"got {given['label_noise']:g}, which clients in memory do not take; change their "
                "labels yourself",
                key="data.label_noise",
            )
        fraction = given.get("validation_fraction", 0.0)
        population: Any = ListPopulation(
            clients,
            test,
            dtype=config.run.dtype,
            validation_fraction=fraction,
            seed=config.seed,
        )
        config = replace(
            config,
            data=Choice("in_memory", MemoryOptions(validation_fraction=fraction)),
            partition=Choice("in_memory", Options()),
        )
        population = population_for(config, population)
    else:
        if test is not None:
            raise ConfigError("a test set in memory needs clients in memory", key="test")
        population = configured_population(config)
    if model is None:
        factory = model_factory(config, population)
    elif isinstance(model, nn.Module):
        template = model
        factory = lambda: copy.deepcopy(template)  # noqa: E731
    elif callable(model):
        factory = model
    else:
        raise ConfigError(
            f"expected a name, a table, a module or a function that returns one, got {model!r}",
            key="model",
        )
    if model is not None:
        config = replace(config, model=Choice("in_memory", Options()))
    if loss is not None:
        config = replace(config, local=config.local.model_copy(update={"loss": "in_memory"}))
    experiment = Experiment(config, population, factory, loss or load_loss(config))
    experiment.check()
    return experiment


def execute(
    experiment: Experiment,
    directory: Path | None,
    progress: Progress,
    *,
    keep_parameters: bool = False,
    resume: bool = False,
) -> Run:
    """Run an experiment on the grid that its configuration names.

    Args:
        experiment: the checked experiment.
        directory: folder of the results; None writes nothing.
        progress: shows the rounds.
        keep_parameters: keep parameters and state of every round.
        resume: go on from the newest checkpoint in `directory`.

    Raises:
        ClientError: a client failed; a note says how to rerun it alone.
        InterruptedRunError: Ctrl-C or SIGTERM; the last finished round has a checkpoint.
        RunError: the run cannot go on.
    """
    grid_class = get("engines", experiment.config.engine.name).load()
    grid_class.check(experiment)
    keep_freed_memory()
    with (
        single_thread(),
        Interruption() as interruption,
        Recorder(experiment, directory, progress, keep_parameters, resume) as recorder,
    ):
        with grid_class(experiment) as grid:
            interruption.install()
            try:
                train(experiment, recorder, grid, interruption)
            except ClientError as error:
                _say_how_to_replay(error, experiment.config, directory)
                raise
        return recorder.finish()


def train(
    experiment: Experiment,
    recorder: Recorder,
    grid: Grid,
    interruption: Interruption | None = None,
) -> None:
    """Do the rounds: the whole of federated training, one line a step.

    Args:
        experiment: the checked experiment.
        recorder: whose strategy is driven, and which records the rounds.
        grid: where clients run.
        interruption: says when a signal may end the run; None leaves signals alone.
    """
    interruption = interruption or Interruption()
    config = experiment.config
    strategy = recorder.strategy
    evaluator = Evaluator(experiment)
    message_config = ConfigRecord(recorder.message_config)
    arrays, first = recorder.start(evaluator)
    for round in range(first, config.rounds + 1):
        arrays = drive_round(strategy, round, arrays, message_config, grid, interruption)
        assert strategy.record is not None
        recorder.observe(round)
        is_measured = is_due(round, config.evaluation.every, config.rounds)
        metrics = recorder.evaluate(evaluator, grid, arrays) if is_measured else {}
        recorder.record(strategy.record, metrics)
        if recorder.is_over:
            log.warning("round %d: the architecture has collapsed to skips; the search ends", round)
            break
    interruption.check()
    recorder.averaged(evaluator, grid)  # which a run resumed after its last round has yet to make


def drive_round(
    strategy: FederatedStrategy,
    round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    grid: Grid,
    interruption: Interruption,
) -> ArrayRecord:
    """Have a strategy do a round, from the model before it to the model after it.

    Args:
        strategy: keeps the record of the round.
        round: communication round, from 1.
        arrays: the model before.
        config: what every message holds.
        grid: where clients run.
        interruption: told when a signal may drop the round: while clients train.

    Raises:
        InterruptedRunError: a signal came before the round, or while clients trained.
        TooFewClientsError: of real clients, too few answered, again and again.
    """
    new_arrays = None
    for attempt in range(1, ROUND_ATTEMPTS + 1):
        interruption.check()
        try:
            with interruption.anywhere() if strategy.can_drop_rounds else nullcontext():
                replies = _trained(strategy, round, arrays, config, grid)
            new_arrays, _ = strategy.aggregate_train(round, replies)
            break
        except TooFewClientsError as error:
            if not isinstance(grid, Hosting) or attempt == ROUND_ATTEMPTS:
                raise
            log.warning("%s; the round is done again", error)
            grid.wait_for_clients(strategy.federation.min_survivors)
    assert new_arrays is not None
    questions = list(strategy.configure_evaluate(round, new_arrays, config, grid))
    if questions:
        strategy.aggregate_evaluate(round, grid.send_and_receive(questions))
    return new_arrays


def _trained(
    strategy: FederatedStrategy, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
) -> Iterable[Message]:
    """Have the cohort of a round trained; return the replies."""
    if isinstance(grid, Hosting):
        grid.refresh()
    return grid.send_and_receive(strategy.configure_train(round, arrays, config, grid))


def server_app() -> ServerApp:
    """Return a Flower ServerApp that runs the configuration in Flower's run config.

    The run config has fedopt's dotted keys, `config-file` (a TOML file that they override) and
    `out` (the run's folder; default: a new one in `runs/`). With `sites = true` the nodes are real
    clients with their own data (`fedopt.deployed`); else each of them has all of the data.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if context.run_config.get("sites"):
            from fedopt.deployed import run_on_sites

            run_on_sites(grid, context.run_config)
            return
        config = from_run_config(context.run_config)
        experiment = Experiment.from_config(config)
        out = str(context.run_config.get("out") or "")
        directory = Path(out) if out else default_directory("runs", run_words(config))
        progress = make_progress(False, sys.stderr)
        with single_thread(), Recorder(experiment, directory, progress, False, False) as recorder:
            recorder.message_config["experiment"] = json.dumps(config.dump())
            train(experiment, recorder, grid)
            recorder.finish()

    return app


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what a run would do, without doing it."""
    config, population = experiment.config, experiment.population
    strategy = make_strategy(experiment, None)
    layout = experiment.layout
    cohort = experiment.cohort_size()
    down, up = strategy.client_nbytes(layout)
    sizes = population.sizes[population.sizes > 0]
    steps = [experiment.work.planned_steps(int(n)) for n in (sizes.min(), sizes.max())]
    unseen = len(experiment.unseen)
    hidden = unseen if population is experiment.members else 0
    return {
        "clients": population.clients,
        "clients without examples": int(population.clients - len(sizes) - hidden),
        **({"clients never trained on": unseen} if unseen else {}),
        "clients a round": cohort,
        "local steps a client": f"{steps[0]} to {steps[1]}",
        "parameters": layout.size,
        "bytes down a round": cohort * down,
        "bytes up a round": cohort * up,
        "rounds": config.rounds,
    }


def run_words(config: Config) -> list[str]:
    """Return the words that name a run's folder."""
    return [config.strategy.name, config.data.name, f"s{config.seed}"]


def _say_how_to_replay(error: ClientError, config: Config, directory: Path | None) -> None:
    """Add the command that reruns the client that failed to the error, as a note."""
    if directory is not None and not config.has_objects:
        error.add_note(
            "rerun this client alone: "
            f"fedopt replay {directory} --round {error.round} --client {error.client} --pdb"
        )


def _checked(config: Any, tables: Mapping[str, Any]) -> Config:
    if isinstance(config, Config):
        if tables:
            raise ConfigError("keywords cannot be added to a checked Config")
        return config
    if config is None or isinstance(config, str | Path):
        return load(config, **tables)
    if isinstance(config, Mapping):
        return load(None, **{**config, **tables})
    raise ConfigError(f"expected a path, a dictionary or keywords, got {type(config).__name__}")
