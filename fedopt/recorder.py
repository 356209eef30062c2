"""Everything that a run leaves behind: rows, checkpoints, model, pictures, summary.

The recorder also owns the strategy whose rounds it records, because what is written (checkpoints,
client state) and what is resumed from is the strategy's state.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from safetensors.torch import save
from torch import Tensor, nn

from fedopt.analysis.columns import EVALUATION_COLUMNS, ROUND_COLUMNS, names
from fedopt.analysis.progress import Progress
from fedopt.analysis.store import RunWriter, last_recorded_round
from fedopt.analysis.summary import summarise
from fedopt.architecture_log import ArchitectureLog
from fedopt.atomic import remove_temporary
from fedopt.calibration import (
    FinalCalibration,
    draw_reliability,
    final_calibration,
    reliability_facts,
)
from fedopt.client.trainer import Reports, Status
from fedopt.config import Config
from fedopt.data.population import Examples
from fedopt.data.site_population import RemotePopulation
from fedopt.data.statistics import population_statistics, population_table
from fedopt.errors import DiskFullError, RunError, unwritable
from fedopt.experiment import Experiment, load_strategy
from fedopt.interruption import InterruptedRunError
from fedopt.local import base_lr, make_plateau, server_rule
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.records import to_record
from fedopt.results import Run, Snapshot
from fedopt.run_lock import RunLock
from fedopt.seeds import torch_generator
from fedopt.server.catalogue import StrategyOptions
from fedopt.server.checkpoint import Checkpoint, digest, load_all, saved_rounds
from fedopt.server.client_curriculum import ClientCurriculum
from fedopt.server.client_selection import jain_index
from fedopt.server.evaluation import Evaluator, Measurement, measure_on_grid
from fedopt.server.model_average import ModelAverage
from fedopt.server.pooled import PooledPopulation
from fedopt.server.rounds import Federation, RoundRecord, is_due
from fedopt.server.strategy import FederatedStrategy
from fedopt.simulation.grid import DirectGrid
from fedopt.system.rounds import Schedule, described
from fedopt.systems import make_selection
from fedopt.warning_log import WarningLog

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger("fedopt")

CHECKPOINTS = "checkpoints"
_STATUS_NAMES = {int(status): status.name.lower() for status in Status}
TOTALS = (
    "bytes_up",
    "bytes_down",
    "joules",
    "wall_seconds",
    "client_steps",
    "client_gradients",
)


class Recorder:
    """Everything that a run leaves behind, and the strategy whose rounds it records.

    Args:
        experiment: the checked experiment.
        directory: folder of the results; None writes nothing.
        progress: shows the rounds.
        keep_parameters: keep parameters and state of every round.
        resume: go on from the newest checkpoint in `directory`.

    Raises:
        ConfigError: the folder is not empty, or not that of a run where one is resumed.
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
        # What the strategy refuses, it refuses before anything is written.
        self.strategy = make_strategy(experiment, folder / "clients")
        self._checkpoints: list[Checkpoint] = []
        if resume:
            last, lock = last_recorded_round(folder), RunLock(folder)
            # A checkpoint of a later round: the machine went down before its rows were on the disk.
            self._checkpoints = [c for c in load_all(folder / CHECKPOINTS) if c.round <= last]
            # Without a checkpoint the run begins again: it would give the same bits.
            reached = self._checkpoints[-1].round if self._checkpoints else 0
            self.writer = RunWriter.resume(folder, reached, lock)
            remove_temporary(folder / CHECKPOINTS)
        else:
            self.writer = RunWriter(directory)
        # A resumed run has kept the warnings of its beginning.
        self._warnings = WarningLog(directory, () if resume else experiment.warnings)
        try:
            if not resume:
                self.writer.write_config(config_text(experiment.config))
            self._warnings.start()
            self._begin(directory, reached if resume else 0)
        except BaseException:
            self._warnings.stop()
            self.writer.close()
            raise

    def _begin(self, directory: Path | None, reached: int) -> None:
        """Make what is kept of the rounds, of which some may be done already."""
        experiment = self.experiment
        self._architecture = (
            ArchitectureLog(experiment, directory, reached) if experiment.is_search else None
        )
        self._last_round = reached
        self._saved_rounds = [c.round for c in self._checkpoints]
        self._saved_at = time.monotonic()
        self._is_settled = False  # whether the strategy's state is that after the last round
        self._snapshots: dict[int, Snapshot] = {}
        # How often each client was used, by id; a new run's table need not be read.
        self._parts = self._recorded_parts() if reached else {}
        self._totals = dict.fromkeys(TOTALS, 0.0)
        self._started = 0.0
        self._initial: dict[str, float] = {}
        self._evaluator: Evaluator | None = None
        self._rates = experiment.rates()
        self._average: ModelAverage | None = None
        self._averaged_state: ModelState | None = None
        self._population: dict[str, Any] = {}
        self._test = experiment.population.test()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.progress.close()
        try:
            if error is not None:
                self._record_end(error)
        finally:
            self._warnings.stop()
            self.writer.close()
            if self._scratch:
                self._scratch.cleanup()

    def _record_end(self, error: BaseException) -> None:
        """Record what ended the run early, as far as the disk has room for it."""
        is_interrupted = isinstance(error, KeyboardInterrupt)
        if isinstance(error, DiskFullError):
            error.add_note(self._what_is_left())
        try:
            if isinstance(error, InterruptedRunError) or (is_interrupted and self._is_settled):
                self._checkpoint_of_the_end()
            status = "interrupted" if is_interrupted else "failed"
            facts = {"status": status, "error": str(error) or type(error).__name__}
            summary = summarise(self.writer.rows, facts)
            self.writer.write_json("summary.json", summary)
            if not is_interrupted:
                self._draw_population()
            self._write_report(self.writer.history(), self.writer.clients(), summary)
        except (RunError, OSError) as second:  # the first error is the one to be told
            log.warning("%s", second)

    def _what_is_left(self) -> str:
        """Say what a run can go on from whose disk was full."""
        saved, directory = self._saved_rounds, self.writer.directory
        kept = f"the checkpoint of round {saved[-1]} is whole" if saved else "no checkpoint was due"
        return f"{kept}; make room, then: fedopt resume {directory}"

    def _checkpoint_of_the_end(self) -> None:
        """Write a checkpoint of the last finished round, unless it has one."""
        checkpoint = self.experiment.config.checkpoint
        wanted = checkpoint.every or checkpoint.minutes is not None
        if wanted and self._last_round and self._last_round not in self._saved_rounds:
            self._checkpoint(self._last_round, checkpoint.keep)

    def start(self, evaluator: Evaluator) -> tuple[Any, int]:
        """Write what is known before training; return the first model and the first round."""
        experiment, config = self.experiment, self.experiment.config
        layout = evaluator.layout
        self._evaluator = evaluator
        initial = layout.named(model_state(experiment.build_model(), layout))
        self._initial = self._measured(evaluator, layout.state(initial))
        if config.server_swa.is_on:
            self._average = ModelAverage(config.server_swa, config.rounds, layout.size)
        if self._checkpoints:
            latest = self._checkpoints[-1]
            arrays = restore(self.strategy, layout, self._checkpoints)
            if self._average is not None:
                self._average.load(latest.vectors, latest.round)
            self._totals |= latest.totals
        else:
            arrays = to_record(initial)
            self.strategy.prepare(arrays)
        self._describe_population()
        first = self._checkpoints[-1].round + 1 if self._checkpoints else 1
        self.progress.start(config.rounds, self._header(layout))
        layers = experiment.kronecker
        if layers is not None and layers.reasons:
            log.warning(
                "%s without Kronecker factors, trained by %s: %s",
                f"{len(layers.reasons)} parameters",
                getattr(config.optimizer.options, "fallback", "sgd"),
                "; ".join(f"{name} ({why})" for name, why in layers.reasons.items()),
            )
        self._started = time.perf_counter() - self._totals["wall_seconds"]
        return arrays, first

    def evaluate(self, evaluator: Evaluator, grid: Grid, arrays: ArrayRecord) -> dict[str, float]:
        """Evaluate the model, and the averaged one, on the test set."""
        metrics = self._measured(evaluator, self.strategy.state, grid, arrays)
        metrics |= self._drifted(evaluator, grid, arrays)
        averaged = self.averaged(evaluator, grid)
        if averaged is not None:
            measured = self._measured(evaluator, averaged, grid, None)
            columns = set(names(ROUND_COLUMNS))
            metrics |= {f"swa_{k}": v for k, v in measured.items() if f"swa_{k}" in columns}
        return metrics

    def observe(self, round: int) -> None:
        """Let the running average see the model after a round."""
        if self._average is not None:
            self._average.observe(round, self.strategy.state.parameters)

    def averaged(self, evaluator: Evaluator, grid: Grid) -> ModelState | None:
        """Return the averaged model, where there is one; `finish` writes the last one returned."""
        if self._average is not None:
            config = ConfigRecord(self.message_config)
            self._averaged_state = self._average.state(
                grid, self.strategy, evaluator.statistics, config
            )
        return self._averaged_state

    def _measured(
        self,
        evaluator: Evaluator,
        state: ModelState,
        grid: Grid | None = None,
        arrays: ArrayRecord | None = None,
    ) -> dict[str, float]:
        """Evaluate a model on the test set; on a large one all nodes of a simulation share.

        Args:
            evaluator: evaluates here.
            state: the model.
            grid: reaches nodes that could share the work, if any.
            arrays: the same model as named arrays, where they are made already.
        """
        test = self._test
        if test is None or not test.size:
            return {}
        shares = isinstance(grid, DirectGrid) and len(grid.get_node_ids()) > 1
        if grid is None or not shares or evaluator.batches(test) < 2:
            return _test_metrics(evaluator.measure(state, test))
        arrays = arrays or to_record(evaluator.layout.named(state))
        config = ConfigRecord(self.message_config)
        return _test_metrics(measure_on_grid(grid, evaluator, arrays, test, config))

    def _drifted(self, evaluator: Evaluator, grid: Grid, arrays: ArrayRecord) -> dict[str, float]:
        """Evaluate the model on the test set as the clients see the world, where it drifts."""
        drift, record, test = self.experiment.drift, self.strategy.record, self._test
        if drift is None or record is None or test is None or not test.size:
            return {}
        now = drift.test(test, record.round)  # the same where nothing has changed yet
        config = ConfigRecord({**self.message_config, "drift-round": record.round})
        shares = isinstance(grid, DirectGrid) and len(grid.get_node_ids()) > 1
        if shares and evaluator.batches(now) > 1:
            measured = measure_on_grid(grid, evaluator, arrays, now, config)
        else:
            measured = evaluator.measure(self.strategy.state, now)
        return {"drift_test_loss": measured.loss, "drift_test_accuracy": measured.accuracy}

    @property
    def is_over(self) -> bool:
        """Whether the run ends before its last round: the search of an architecture collapsed."""
        return self._architecture is not None and self._architecture.has_collapsed

    def record(self, record: RoundRecord, metrics: Mapping[str, float]) -> None:
        """Record a round; write a checkpoint where one is due."""
        experiment, reports, totals = self.experiment, record.reports, self._totals
        totals["bytes_up"] += record.bytes_up
        totals["bytes_down"] += record.bytes_down
        totals["client_steps"] += sum(reports.steps)
        gradients = experiment.recipe.gradients_per_step * self.strategy.trainings
        totals["client_gradients"] += sum(reports.steps) * gradients
        sharpness = self._sharpness(record.round)
        totals["wall_seconds"] = time.perf_counter() - self._started
        columns = dict(vars(reports))
        columns["status"] = [_STATUS_NAMES[status] for status in reports.status]
        columns["round"] = [record.round] * len(reports.client)
        down, up = record.client_nbytes
        trained = (Status.TRAINED, Status.PARTIAL)
        columns["bytes_up"] = [up if status in trained else 0 for status in reports.status]
        columns["bytes_down"] = [down] * len(reports.client)
        if record.schedule is not None:
            columns |= self._clock_columns(record.schedule)
        hostility = experiment.hostility
        hostile = set() if hostility is None else set(hostility.among(reports.client))
        columns["hostile"] = [int(place in hostile) for place in range(len(reports.client))]
        drift, arrival = experiment.drift, experiment.arrival
        columns["drift_group"] = [0] * len(reports.client)
        if drift is not None and not isinstance(experiment.population, PooledPopulation):
            columns["drift_group"] = drift.groups[reports.client].tolist()
        self.writer.add_clients(columns)
        if record.answers:
            answers = [(record.round, *answer) for answer in record.answers]
            values = zip(*answers, strict=True)
            self.writer.add_evaluations(
                dict(zip(names(EVALUATION_COLUMNS), map(list, values), strict=True))
            )
        row = {
            "round": record.round,
            "train_loss": record.train_loss,
            **metrics,
            **sharpness,
            **record.metrics,
            "clients": record.count(Status.TRAINED, Status.PARTIAL),
            "clients_seen": self._see(reports),
            "dropped_clients": record.count(Status.DROPPED),
            "failed_clients": record.count(Status.FAILED),
            "lr": self._mean_lr(record),
            "skipped_steps": sum(reports.skipped_steps),
            "available_share": _mean_of_known(reports.available_share),
            "selected_share": _mean_of_known(reports.selected_share),
            "drift": math.nan if drift is None else drift.amount(record.round),
            "joined_clients": None if arrival is None else arrival.joined(record.round),
            "clip_norm": record.clip_norm,
            "epsilon": record.epsilon,
            **self._clock(record.schedule),
            "bytes_up": int(totals["bytes_up"]),
            "bytes_down": int(totals["bytes_down"]),
            "wall_seconds": totals["wall_seconds"],
            "client_steps": int(totals["client_steps"]),
            "client_gradients": int(totals["client_gradients"]),
        }
        self._last_round = record.round
        if self._architecture is not None:
            row |= self._architecture.observe(record.round, self.strategy.state)
        named = self.strategy.layout.named(self.strategy.state, copy=False)
        self.writer.add_round({**row, "model_sha256": digest(named)})
        self.progress.update(row)
        checkpoint = self.experiment.config.checkpoint
        minutes = checkpoint.minutes or math.inf
        is_late = time.monotonic() - self._saved_at >= 60 * minutes
        if is_late or (checkpoint.every and record.round % checkpoint.every == 0):
            self._checkpoint(record.round, checkpoint.keep)
        if self._keep:
            self._snapshots[record.round] = self._snapshot(
                with_clients=not self.strategy.federation.is_real
            )

    def finish(self) -> Run:
        """Write the results and return the run."""
        config, writer = self.experiment.config, self.writer
        self._is_settled = True
        last = self._last_round
        if last not in self._snapshots:
            self._snapshots[last] = self._snapshot(with_clients=self.strategy.is_small)
        arrays = self._snapshots[last].parameters
        assert self._evaluator is not None, "the run was not started"
        calibration = final_calibration(
            self.experiment, self._evaluator, self.strategy.state, self._test
        )
        facts: dict[str, Any] = {
            "status": "completed",
            "run_dir": str(writer.directory) if writer.directory else None,
            "strategy": config.strategy.name,
            "seed": config.seed,
            "model_sha256": digest(arrays),
            "parameters": self.strategy.layout.size,
            "clients_in_population": self.experiment.population.clients,
            "engine": {
                "grid": self._where(),
                "training": self.experiment.engine_choice.name,
                "reason": self.experiment.engine_choice.reason,
                "block_size": self.experiment.block_size,
            },
            "initial": self._initial,
            "calibration": calibration.values.facts(),
            "population": self._population,
            "participation": self._participation(),
            "environment": environment(),
        }
        layers = self.experiment.kronecker
        if layers is not None:
            facts["second_order"] = {
                "layers": [layer.name for layer in layers.layers],
                "fallback": layers.reasons,
            }
        if self._architecture is not None:
            facts["architecture"] = self._architecture.facts()
        if self.experiment.privacy is not None:
            facts["privacy"] = self.experiment.privacy.facts(last)
        if self.experiment.hostility is not None:
            facts["hostile_clients"] = len(self.experiment.hostility.clients)
        if self.experiment.drift is not None:
            facts["drift"] = self.experiment.drift.facts()
        if len(self.experiment.unseen):
            facts["unseen_clients"] = len(self.experiment.unseen)
        averaged: dict[str, Tensor] | None = None
        if self._average is not None and self._averaged_state is not None:
            averaged = self.strategy.layout.named(self._averaged_state)
            facts["swa"] = {
                "first_round": self._average.first_round,
                "models": self._average.models,
                "model_sha256": digest(averaged),
            }
            writer.write_bytes("model_swa.safetensors", save(averaged, {"format": "pt"}))
        summary = summarise(writer.rows, facts)
        writer.write_bytes("model.safetensors", save(arrays, {"format": "pt"}))
        run = Run(
            config,
            writer.directory,
            summary,
            writer.history(),
            writer.clients(),
            self._snapshots,
            averaged,
        )
        if writer.directory is not None:
            self._draw_figures(run, calibration)
            writer.write_json("reliability.json", reliability_facts(calibration))
        self._write_report(run.history, run.clients, summary)
        # Last: who reads that the run is completed finds all of it.
        writer.write_json("summary.json", summary)
        self.progress.finish(summary)
        return run

    def _recorded_parts(self) -> dict[int, int]:
        """Return how often each client was used in the rounds that a resumed run goes on from."""
        table = self.writer.clients()
        used = table[table["status"].isin(["trained", "partial"])]["client"].value_counts()
        return dict(zip(used.index.tolist(), used.tolist(), strict=True))

    def _see(self, reports: Reports) -> int:
        """Count the parts of a round that were used; return how many clients had any so far."""
        used = (Status.TRAINED, Status.PARTIAL)
        mine = [c for c, s in zip(reports.client, reports.status, strict=True) if s in used]
        for client in mine:
            self._parts[client] = self._parts.get(client, 0) + 1
        return len(self._parts)

    def _participation(self) -> dict[str, Any]:
        """Return how many clients took part, and how evenly."""
        clients = int(np.count_nonzero(self.experiment.population.sizes))
        counts = np.zeros(clients, dtype=np.int64)
        counts[: len(self._parts)] = list(self._parts.values())
        return {
            "clients": clients,
            "took_part": len(self._parts),
            "jain_index": jain_index(counts),
        }

    def _clock(self, schedule: Schedule | None) -> dict[str, float]:
        """Return the columns of the virtual clock after a round, where there is one."""
        if schedule is None:
            return {}
        self._totals["joules"] += float(schedule.parts.joules.sum())
        return {"sim_seconds": schedule.end, "joules": self._totals["joules"]}

    def _clock_columns(self, schedule: Schedule) -> dict[str, list[Any]]:
        """Return the columns of clients on the virtual clock, in ascending order of the ids."""
        parts = schedule.parts
        return {
            "sim_start": parts.start.tolist(),
            "download_seconds": parts.download.tolist(),
            "compute_seconds": parts.compute.tolist(),
            "upload_seconds": parts.upload.tolist(),
            "joules": parts.joules.tolist(),
            "staleness": schedule.staleness.tolist(),
            "reason": described(parts.outcome),
            "bytes_up": parts.up.tolist(),
            "bytes_down": parts.down.tolist(),
        }

    def _sharpness(self, round: int) -> dict[str, float]:
        """Return the columns of the test loss's sharpness, where the round has them."""
        config, test = self.experiment.config, self._test
        wanted = config.evaluation
        due = wanted.sharpness_every and is_due(round, wanted.sharpness_every, config.rounds)
        if not due or test is None or not test.size or self._evaluator is None:
            return {}
        first = slice(wanted.sharpness_examples)
        found = self._evaluator.sharpness(
            self.strategy.state,
            Examples(test.x[first], test.y[first]),
            wanted.sharpness_rho,
            torch_generator(config.seed, "sharpness"),
        )
        return {"test_sharpness": found.eigenvalue, "test_ball_increase": found.ball_increase}

    def _mean_lr(self, record: RoundRecord) -> float:
        """Return the mean learning rate of a round's nominal steps."""
        steps = self.experiment.nominal_steps
        rates, _ = self._rates.at(record.round, steps, steps)
        return float(rates.mean()) * record.lr_scale

    def _header(self, layout: ParameterLayout) -> str:
        config, population = self.experiment.config, self.experiment.population
        cohort = self.experiment.cohort_size()
        sizes = self.experiment.everyone.sizes if len(self.experiment.unseen) else population.sizes
        words = [
            f"{config.strategy.name} on {config.data.name}",
            f"{cohort} of {population.clients} clients a round",
            f"{config.model.name} with {layout.size:,} parameters",
            f"{sizes.min()} to {sizes.max()} examples a client (median {np.median(sizes):g})",
            f"{self._where(said=True)}, {self.experiment.engine_choice.name} training",
        ]
        skew = self._population.get("label_skew")
        if isinstance(skew, Mapping) and skew.get("total_variation") is not None:
            words.insert(2, f"label skew {skew['total_variation']:.2f}")
        return ", ".join(words)

    def _where(self, *, said: bool = False) -> str:
        """Return where clients train: on the configured grid, or on machines of their own."""
        if self.strategy.federation.is_real:
            return "real clients" if said else "clients"
        name = self.experiment.config.engine.name
        return f"engine {name}" if said else name

    def _describe_population(self) -> None:
        everyone = self.experiment.everyone
        self._population = population_statistics(everyone)
        self.writer.write_json("population.json", self._population | population_table(everyone))

    def _draw_figures(self, run: Run, calibration: FinalCalibration) -> None:
        """Draw the run's figures: at the end, because they take longer than many rounds do."""
        from fedopt.analysis.plots import save_figure

        directory = self.writer.directory
        assert directory is not None
        save_figure(run.plot(), directory / "convergence.png")
        draw_reliability(self.experiment, calibration, directory / "reliability.png")
        if run.history["validation_accuracy_mean"].notna().any():
            from fedopt.analysis.client_plots import client_figure

            figure = client_figure(run.history, self.experiment.config.strategy.name)
            save_figure(figure, directory / "clients.png")
        self._draw_population()

    def _draw_population(self) -> None:
        if self.writer.directory is not None and self._population:
            from fedopt.data.picture import draw_population

            draw_population(self.experiment.everyone, self.writer.directory / "population.png")

    def _write_report(
        self,
        history: DataFrame,
        clients: DataFrame,
        summary: Mapping[str, object],
    ) -> None:
        """Write `report.html`."""
        if self.writer.directory is not None:
            from fedopt.analysis.report import read_run, run_report

            record = read_run(
                self.writer.directory, history=history, clients=clients, summary=summary
            )
            self.writer.write_text("report.html", run_report(record))

    def _checkpoint(self, round: int, keep: int) -> None:
        directory, strategy = self.writer.directory, self.strategy
        if directory is None:
            return
        folder = directory / CHECKPOINTS
        arrays = strategy.layout.named(strategy.state)
        vectors = strategy.saved_vectors()
        if self._average is not None:
            vectors |= self._average.vectors()
        try:
            self.writer.sync()
            rows = strategy.store.checkpoint(round) if strategy.store else {}
            Checkpoint(round, arrays, vectors, rows, dict(self._totals)).save(folder)
        except OSError as error:
            raise unwritable(f"the checkpoint of round {round}", error) from error
        self._saved_at = time.monotonic()
        self._saved_rounds = [*self._saved_rounds, round][-keep:]
        # Those that could not be read are not among the ones that count, and go too.
        for old, path in saved_rounds(folder).items():
            if old not in self._saved_rounds:
                path.unlink(missing_ok=True)
                if strategy.store:
                    strategy.store.release(old)

    def _snapshot(self, with_clients: bool) -> Snapshot:
        strategy = self.strategy
        layout = strategy.layout
        rows: dict[str, dict[int, dict[str, Tensor]]] = {}
        if strategy.store and with_clients:
            for client in strategy.store.clients():
                for name, vector in strategy.store.read(client).items():
                    # Numbers, and vectors that are not of the parameters, have no arrays' names.
                    is_named = vector.dim() and name not in self.experiment.vector_sizes
                    named = layout.named_vector(vector) if is_named else {name: vector}
                    rows.setdefault(name, {})[client] = named
        return Snapshot(
            layout.named(strategy.state),
            {
                name: layout.named_vector(v) if v.numel() == layout.size else {name: v.clone()}
                for name, v in strategy.vectors().items()
            },
            rows,
        )


def _mean_of_known(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _test_metrics(measured: Measurement) -> dict[str, float]:
    return {f"test_{f.name}": getattr(measured, f.name) for f in fields(measured)[1:]}


def make_strategy(experiment: Experiment, folder: Path | None) -> FederatedStrategy:
    """Return the configured strategy over the experiment's population."""
    config = experiment.config
    layout = experiment.layout
    pace, paced = experiment.selecting.pace, config.server_curriculum
    federation = Federation(
        sizes=experiment.population.sizes,
        clients_per_round=experiment.cohort_size(),
        work=experiment.work,
        seed=config.seed,
        stragglers=config.system.stragglers,
        block_size=experiment.block_size,
        skip_failed=config.engine.on_client_error == "skip",
        max_client_failures=config.engine.max_client_failures,
        validation_clients=config.evaluation.validation_clients,
        training_clients=experiment.training_clients(),
        gradients=config.evaluation.gradients,
        evaluate_every=config.evaluation.every,
        rounds=config.rounds,
        buffers=tuple(spec.name for spec in layout.buffers),
        folder=folder,
        optimizer_state=experiment.recipe.optimizer_state,
        optimizer_slots=experiment.recipe.rule.slots,
        vector_sizes=experiment.vector_sizes,
        kronecker=experiment.kronecker,
        shared_threshold=pace is not None and pace.shared,
        client_curriculum=ClientCurriculum(
            paced.name,
            paced.pacing,
            paced.start,
            paced.full_at,
            config.rounds,
            paced.measure_every,
        )
        if paced.is_on
        else None,
        personal=experiment.personal,
        channel=experiment.channel,
        privacy=experiment.privacy,
        hostility=experiment.hostility,
        selection=make_selection(config.selection),
        system=experiment.system,
        arrival=experiment.arrival,
        unseen=tuple(experiment.unseen.tolist()),
        is_real=isinstance(experiment.population, RemotePopulation),
        min_survivors=config.deployment.min_survivors,
        server_rule=server_rule(config),
        plateau=make_plateau(config),
        lr=base_lr(config),
    )
    options = config.strategy.options
    assert isinstance(options, StrategyOptions)
    return load_strategy(config.strategy.name)(federation, options)


def restore(
    strategy: FederatedStrategy, layout: ParameterLayout, checkpoints: Sequence[Checkpoint]
) -> ArrayRecord:
    """Put a new strategy into the state of a checkpoint, and return the model.

    Args:
        strategy: the new one.
        layout: of the model.
        checkpoints: of one run, oldest first; the last one counts, and the clients' rows that the
            others name are kept.
    """
    latest = checkpoints[-1]
    # In the model's order: a checkpoint's file holds them sorted by name, and the flat vectors of
    # the nodes are in the model's.
    arrays = to_record(layout.named(layout.state(latest.arrays)))
    strategy.prepare(arrays, {c.round: c.client_rows for c in checkpoints})
    strategy.load_saved_vectors(latest.vectors)
    return arrays


def model_state(model: nn.Module, layout: ParameterLayout) -> ModelState:
    """Return a module's values as flat vectors."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return layout.state({name: tensor.detach() for name, tensor in named.items()})


def config_text(config: Config) -> str:
    """Return `config.toml`: the resolved configuration under the versions that ran it."""
    versions = "\n".join(f"# {name} {version}" for name, version in environment().items())
    note = ""
    if config.has_objects:
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
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": str(os.cpu_count()),
    }
