"""A run, from configuration to results: the main path, and the Python interface to it.

    experiment -> grid -> for each round: sample, train, aggregate, evaluate, record, checkpoint

`simulate` does it in this process; `server_app` does the same as a Flower ServerApp, on whatever
grid Flower brings.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save
from torch import Tensor, nn

from fedopt.analysis.progress import Progress, SilentProgress, make_progress
from fedopt.analysis.store import RunWriter, default_directory
from fedopt.analysis.summary import summarise
from fedopt.client.losses import Loss
from fedopt.client.trainer import Status
from fedopt.config import Choice, Config, from_run_config, load
from fedopt.data.picture import draw_population
from fedopt.data.population import ListPopulation
from fedopt.data.statistics import population_statistics
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment, ModelFactory, load_loss, model_factory
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.records import to_record
from fedopt.registry import Options, get
from fedopt.server.checkpoint import Checkpoint, digest, load_all, saved_rounds
from fedopt.server.evaluation import Evaluator
from fedopt.server.strategy import FederatedStrategy, Federation, RoundRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

CHECKPOINTS = "checkpoints"
TOTALS = ("bytes_up", "bytes_down", "wall_seconds", "client_steps")


@dataclass(frozen=True)
class Snapshot:
    """The server's state after a round.

    Args:
        parameters: the model's arrays by name.
        vectors: the strategy's vectors, by name, then by array.
        client_vectors: the clients' vectors, by field, then by client, then by array.
    """

    parameters: dict[str, Tensor]
    vectors: dict[str, dict[str, Tensor]]
    client_vectors: dict[str, dict[int, dict[str, Tensor]]]


class Run:
    """A finished run.

    Attributes:
        config: the resolved configuration.
        dir: the run's folder, or None where nothing was written.
        summary: the contents of `summary.json`.
        history: a pandas DataFrame with a row a round (columns of `rounds.csv`).
        clients: a pandas DataFrame with a row per client and round (columns of `clients.csv`).
    """

    def __init__(
        self,
        config: Config,
        directory: Path | None,
        summary: dict[str, Any],
        history: DataFrame,
        clients: DataFrame,
        snapshots: Mapping[int, Snapshot],
    ) -> None:
        self.config = config
        self.dir = directory
        self.summary = summary
        self.history = history
        self.clients = clients
        self._snapshots = snapshots

    def parameters(self, round: int | None = None) -> dict[str, Tensor]:
        """Return the model's arrays by name after a round (default: the last).

        Raises:
            ConfigError: the round is not kept; earlier rounds need `keep_parameters=True`.
        """
        return self._snapshot(round).parameters

    def state(self, round: int | None = None) -> dict[str, Any]:
        """Return the strategy's state after a round (default: the last).

        Returns:
            The server's vectors by name, such as `control_variate`, each a dictionary of tensors
            by array name; and what clients keep as `client_<field>`, by client id.

        Raises:
            ConfigError: the round is not kept; earlier rounds need `keep_parameters=True`.
        """
        snapshot = self._snapshot(round)
        return {
            **snapshot.vectors,
            **{f"client_{name}": rows for name, rows in snapshot.client_vectors.items()},
        }

    def plot(self, x: str = "rounds") -> Figure:
        """Return the convergence figure of the run.

        Args:
            x: `rounds`, `bytes`, `seconds` (simulated), `wall` or `steps`.
        """
        from fedopt.analysis.plots import convergence_figure

        return convergence_figure([(self.config.strategy.name, self.history)], x=x)

    def __repr__(self) -> str:
        final = self.summary.get("final", {})
        shown = ", ".join(
            f"{key}={final[key]:.4g}"
            for key in ("train_loss", "test_loss", "test_accuracy")
            if isinstance(final.get(key), int | float)
        )
        where = f", dir={str(self.dir)!r}" if self.dir else ""
        return f"Run({self.config.strategy.name}, rounds={self.summary['rounds']}, {shown}{where})"

    def _snapshot(self, round: int | None) -> Snapshot:
        wanted = max(self._snapshots) if round is None else round
        if wanted not in self._snapshots:
            raise ConfigError(
                f"round {wanted} is not kept; kept: {', '.join(map(str, self._snapshots))} "
                "(earlier rounds need keep_parameters=True)"
            )
        return self._snapshots[wanted]


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
        clients: in memory, one (inputs, targets) pair a client: arrays or tensors.
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
    if model is None and loss is None and clients is None:
        experiment = Experiment.from_config(checked)
    else:
        experiment = in_memory(checked, model, loss, clients, test)
    shown = make_progress(False, sys.stderr) if progress else SilentProgress()
    directory = Path(out) if out is not None else None
    return execute(experiment, directory, shown, keep_parameters=keep_parameters)


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
        population: Any = ListPopulation(clients, test, dtype=config.run.dtype)
        config = replace(
            config,
            data=Choice("in_memory", Options()),
            partition=Choice("in_memory", Options()),
        )
    else:
        if test is not None:
            raise ConfigError("a test set in memory needs clients in memory", key="test")
        population = Experiment.from_config(config).population
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
    """
    grid_class = get("engines", experiment.config.engine.name).load()
    with Recorder(experiment, directory, progress, keep_parameters, resume) as recorder:
        with grid_class(experiment) as grid:
            train(experiment, recorder, grid)
        return recorder.finish()


def train(experiment: Experiment, recorder: Recorder, grid: Grid) -> None:
    """Do the rounds: the whole of federated training, one line a step."""
    config = experiment.config
    strategy = recorder.strategy
    evaluator = Evaluator(experiment)
    message_config = ConfigRecord(recorder.message_config)
    arrays, first = recorder.start(evaluator)
    for round in range(first, config.rounds + 1):
        messages = strategy.configure_train(round, arrays, message_config, grid)
        replies = grid.send_and_receive(messages)
        new_arrays, _ = strategy.aggregate_train(round, replies)
        assert new_arrays is not None and strategy.record is not None
        arrays = new_arrays
        questions = list(strategy.configure_evaluate(round, arrays, message_config, grid))
        if questions:
            strategy.aggregate_evaluate(round, grid.send_and_receive(questions))
        is_measured = round % config.evaluation.every == 0 or round == config.rounds
        metrics = recorder.evaluate(evaluator, strategy.state) if is_measured else {}
        recorder.record(strategy.record, metrics)


def server_app() -> ServerApp:
    """Return a Flower ServerApp that runs the configuration in Flower's run config.

    The run config has fedopt's dotted keys, `config-file` (a TOML file that they override) and
    `out` (the run's folder; default: a new one in `runs/`).
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
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
    layout = ParameterLayout.of(experiment.build_model())
    cohort = experiment.cohort_size()
    vectors_up, vectors_down = len(strategy.algorithm.terms) - 1, len(strategy.broadcasts)
    sizes = population.sizes[population.sizes > 0]
    steps = [experiment.work.planned_steps(int(n)) for n in (sizes.min(), sizes.max())]
    return {
        "clients": population.clients,
        "clients without examples": int(population.clients - len(sizes)),
        "clients a round": cohort,
        "local steps a client": f"{steps[0]} to {steps[1]}",
        "parameters": layout.size,
        "bytes down a round": cohort * (layout.nbytes + vectors_down * layout.parameter_nbytes),
        "bytes up a round": cohort * (layout.nbytes + vectors_up * layout.parameter_nbytes),
        "rounds": config.rounds,
    }


def run_words(config: Config) -> list[str]:
    """Return the words that name a run's folder."""
    return [config.strategy.name, config.data.name, f"s{config.seed}"]


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Hold torch to one thread, and keep its random state, for the time of a block."""
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random_state)


class Recorder:
    """Everything that a run leaves behind, and the strategy whose rounds it records.

    Args:
        experiment: the checked experiment.
        directory: folder of the results; None writes nothing.
        progress: shows the rounds.
        keep_parameters: keep parameters and state of every round.
        resume: go on from the newest checkpoint in `directory`.

    Raises:
        ConfigError: the folder is not empty, or has no checkpoint to resume from.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path | None,
        progress: Progress,
        keep_parameters: bool,
        resume: bool,
    ) -> None:
        self.experiment = experiment
        self.progress = progress
        self.message_config: dict[str, Any] = {}
        self._keep = keep_parameters
        self._scratch = tempfile.TemporaryDirectory(prefix="fedopt-") if not directory else None
        folder = directory or Path(self._scratch.name)  # type: ignore[union-attr]
        self._checkpoints = load_all(folder / CHECKPOINTS) if resume else []
        if resume and not self._checkpoints:
            raise ConfigError(f'"{folder}" has no checkpoint to resume from')
        if resume:
            self.writer = RunWriter.resume(folder, self._checkpoints[-1].round)
        else:
            self.writer = RunWriter(directory)
        self.strategy = make_strategy(experiment, folder / "clients")
        self._snapshots: dict[int, Snapshot] = {}
        self._totals = dict.fromkeys(TOTALS, 0.0)
        self._started = 0.0
        self._initial: dict[str, float] = {}
        self._population: dict[str, Any] = {}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.progress.close()
        if error is not None and self.writer.directory is not None:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            facts = {"status": status, "error": str(error) or type(error).__name__}
            self.writer.write_json("summary.json", summarise(self.writer.rows, facts))
        self.writer.close()
        if self._scratch:
            self._scratch.cleanup()

    def start(self, evaluator: Evaluator) -> tuple[Any, int]:
        """Write what is known before training; return the first model and the first round."""
        experiment, config = self.experiment, self.experiment.config
        layout = evaluator.layout
        if self._checkpoints:
            latest = self._checkpoints[-1]
            arrays = to_record(latest.arrays)
            rows = {c.round: c.client_rows for c in self._checkpoints}
            self.strategy.prepare(arrays, rows)
            self.strategy.load_vectors(latest.vectors)
            self._totals |= latest.totals
        else:
            model = experiment.build_model()
            arrays = to_record(layout.named(model_state(model, layout)))
            self.strategy.prepare(arrays)
            self.writer.write_config(config_text(config))
            self._describe_population()
        first = self._checkpoints[-1].round + 1 if self._checkpoints else 1
        self._initial = self.evaluate(evaluator, self.strategy.state)
        self.progress.start(config.rounds, self._header(layout))
        self._started = time.perf_counter() - self._totals["wall_seconds"]
        return arrays, first

    def evaluate(self, evaluator: Evaluator, state: ModelState) -> dict[str, float]:
        """Evaluate a model on the test set, where there is one."""
        test = self.experiment.population.test()
        if test is None or not len(test.y):
            return {}
        measured = evaluator.measure(state, test)
        names = ("loss", "accuracy", "ece", "brier")
        return {f"test_{name}": getattr(measured, name) for name in names}

    def record(self, record: RoundRecord, metrics: Mapping[str, float]) -> None:
        """Record a round; write a checkpoint where one is due."""
        reports, totals = record.reports, self._totals
        totals["bytes_up"] += record.bytes_up
        totals["bytes_down"] += record.bytes_down
        totals["client_steps"] += sum(reports.steps)
        totals["wall_seconds"] = time.perf_counter() - self._started
        columns = dict(vars(reports))
        columns["status"] = [Status(status).name.lower() for status in reports.status]
        columns["round"] = [record.round] * len(reports.client)
        self.writer.add_clients(columns)
        row = {
            "round": record.round,
            "train_loss": record.train_loss,
            **metrics,
            **record.metrics,
            "clients": record.count(Status.TRAINED, Status.PARTIAL),
            "dropped_clients": record.count(Status.DROPPED),
            "failed_clients": record.count(Status.FAILED),
            "bytes_up": int(totals["bytes_up"]),
            "bytes_down": int(totals["bytes_down"]),
            "wall_seconds": totals["wall_seconds"],
            "client_steps": int(totals["client_steps"]),
        }
        self.writer.add_round(row)
        self.progress.update(row)
        checkpoint = self.experiment.config.checkpoint
        if checkpoint.every and record.round % checkpoint.every == 0:
            self._checkpoint(record.round, checkpoint.keep)
        if self._keep:
            self._snapshots[record.round] = self._snapshot(with_clients=True)

    def finish(self) -> Run:
        """Write the results and return the run."""
        config, writer = self.experiment.config, self.writer
        last = config.rounds
        if last not in self._snapshots:
            self._snapshots[last] = self._snapshot(with_clients=self.strategy.is_small)
        arrays = self._snapshots[last].parameters
        facts: dict[str, Any] = {
            "status": "completed",
            "run_dir": str(writer.directory) if writer.directory else None,
            "strategy": config.strategy.name,
            "seed": config.seed,
            "model_sha256": digest(arrays),
            "parameters": self.strategy.layout.size,
            "clients_in_population": self.experiment.population.clients,
            "initial": self._initial,
            "population": self._population,
            "environment": environment(),
        }
        summary = summarise(writer.rows, facts)
        writer.write_bytes("model.safetensors", save(arrays, {"format": "pt"}))
        run = Run(
            config, writer.directory, summary, writer.history(), writer.clients(), self._snapshots
        )
        if writer.directory is not None:
            from fedopt.analysis.plots import save_figure

            save_figure(run.plot(), writer.directory / "convergence.png")
        writer.write_json("summary.json", summary)
        self.progress.finish(summary)
        return run

    def _header(self, layout: ParameterLayout) -> str:
        config, population = self.experiment.config, self.experiment.population
        cohort = self.experiment.cohort_size()
        words = [
            f"{config.strategy.name} on {config.data.name}",
            f"{cohort} of {population.clients} clients a round",
            f"{config.model.name} with {layout.size:,} parameters",
            f"engine {config.engine.name}",
        ]
        skew = self._population.get("label_skew")
        if isinstance(skew, Mapping) and skew.get("total_variation") is not None:
            words.insert(2, f"label skew {skew['total_variation']:.2f}")
        return ", ".join(words)

    def _describe_population(self) -> None:
        population, directory = self.experiment.population, self.writer.directory
        self._population = population_statistics(population)
        if directory is not None:
            self.writer.write_json("population.json", self._population)
            draw_population(population, directory / "population.png")

    def _checkpoint(self, round: int, keep: int) -> None:
        directory, strategy = self.writer.directory, self.strategy
        if directory is None:
            return
        folder = directory / CHECKPOINTS
        rows = strategy.store.checkpoint(round) if strategy.store else {}
        arrays = strategy.layout.named(strategy.state)
        Checkpoint(round, arrays, strategy.vectors(), rows, dict(self._totals)).save(folder)
        for old in list(saved_rounds(folder))[:-keep]:
            saved_rounds(folder)[old].unlink()
            if strategy.store:
                strategy.store.release(old)

    def _snapshot(self, with_clients: bool) -> Snapshot:
        strategy = self.strategy
        layout = strategy.layout
        rows: dict[str, dict[int, dict[str, Tensor]]] = {}
        if strategy.store and with_clients:
            for client in strategy.store.clients():
                for name, vector in strategy.store.read(client).items():
                    rows.setdefault(name, {})[client] = layout.named_vector(vector)
        return Snapshot(
            layout.named(strategy.state),
            {name: layout.named_vector(v) for name, v in strategy.vectors().items()},
            rows,
        )


def make_strategy(experiment: Experiment, folder: Path | None) -> FederatedStrategy:
    """Return the configured strategy over the experiment's population."""
    config = experiment.config
    layout = ParameterLayout.of(experiment.build_model())
    federation = Federation(
        sizes=experiment.population.sizes,
        clients_per_round=experiment.cohort_size(),
        work=experiment.work,
        seed=config.seed,
        stragglers=config.system.stragglers,
        block_size=config.engine.block_size,
        skip_failed=config.engine.on_client_error == "skip",
        validation_clients=config.evaluation.validation_clients,
        evaluate_every=config.evaluation.every,
        buffers=tuple(spec.name for spec in layout.buffers),
        folder=folder,
    )
    strategy_class: Callable[..., FederatedStrategy] = get(
        "strategies", config.strategy.name
    ).load()
    return strategy_class(config.strategy.options, federation)


def model_state(model: nn.Module, layout: ParameterLayout) -> ModelState:
    """Return a module's values as flat vectors."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return layout.state({name: tensor.detach() for name, tensor in named.items()})


def config_text(config: Config) -> str:
    """Return `config.toml`: the resolved configuration under the versions that ran it."""
    versions = "\n".join(f"# {name} {version}" for name, version in environment().items())
    note = ""
    if "in_memory" in (config.data.name, config.model.name, config.local.loss):
        note = "# parts named in_memory were objects of the calling program\n"
    return f"{versions}\n{note}\n{config.to_toml()}"


def environment() -> dict[str, str]:
    """Return the versions and the machine that a run's bits may depend on."""
    import flwr
    import numpy

    import fedopt

    return {
        "fedopt": fedopt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "flwr": flwr.__version__,
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }


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
