"""One client's local training of one round, alone and in this process: for finding what went wrong.

The server is put back to the round and asks as it did then; of all the clients that it asks, one is
trained. Its bits are those that it had among the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord

from fedopt.analysis.store import CLIENTS_FILE, read_clients
from fedopt.client.messages import TrainRequest, decode_request
from fedopt.client.trainer import Block, Status, Trainer, TrainingOutcome
from fedopt.errors import ConfigError
from fedopt.models.layout import ModelState
from fedopt.rerun import RecordedRun, Rerun, read_run
from fedopt.simulation.inline import InlineGrid
from fedopt.single_thread import single_thread

COMPARED = (
    "status",
    "examples",
    "steps",
    "planned_steps",
    "train_loss",
    "update_norm",
    "skipped_steps",
    "lr_sum",
)
"""Columns of `clients.csv` that tell whether a client did the same."""

ROUNDING = 1e-4
"""Relative difference up to which numbers are equal but for the order of additions: two engines, or
a client among others and alone, agree that well after a round of steps in single precision."""


@dataclass(frozen=True)
class Replayed:
    """What a client did.

    Args:
        client: its id.
        round: communication round, from 1.
        started_from: the checkpoint from which the rounds before were computed; 0: the beginning.
        report: its row, by the columns of `clients.csv`.
        reason: why it failed, or None.
        recorded: its row in `clients.csv`; None where the run recorded none.
    """

    client: int
    round: int
    started_from: int
    report: dict[str, Any]
    reason: str | None
    recorded: dict[str, Any] | None

    @property
    def agreement(self) -> str:
        """Whether it is what was recorded: `equal`, `rounding`, `different` or `not recorded`."""
        if self.recorded is None:
            return "not recorded"
        found = "equal"
        for name in COMPARED:
            then, now = self.recorded[name], self.report[name]
            if then == now or (_is_nan(then) and _is_nan(now)):
                continue
            numbers = isinstance(then, float) and isinstance(now, float)
            if not numbers or not math.isclose(then, now, rel_tol=ROUNDING):
                return "different"
            found = "rounding"
        return found

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "client": self.client,
            "round": self.round,
            "started_from": self.started_from,
            "report": self.report,
            "recorded": self.recorded,
            "agreement": self.agreement,
            "reason": self.reason,
        }

    def text(self) -> str:
        """Return it in words, a line a number."""
        says = {
            "equal": f"equal to the row in {CLIENTS_FILE}, to the bit",
            "rounding": f"equal to the row in {CLIENTS_FILE} but for rounding",
            "different": f"NOT equal to the row in {CLIENTS_FILE}",
            "not recorded": f"the run recorded no row of it in {CLIENTS_FILE}",
        }
        lines = [f"client {self.client} in round {self.round}: {self.report['status']}"]
        for name in COMPARED[1:]:
            now = self.report[name]
            then = None if self.recorded is None else self.recorded[name]
            shown = f"  {name:<14} {now}"
            if then is not None and then != now and not (_is_nan(then) and _is_nan(now)):
                shown += f"  (recorded: {then})"
            lines.append(shown)
        lines.append(says[self.agreement])
        if self.reason is not None:
            lines.append(self.reason.rstrip())
        return "\n".join(lines)


class Replay:
    """A client's training of a round, ready to be done. Use as a context manager.

    Args:
        directory: the run's folder, which stays as it is.
        round: communication round, from 1 to the one after the last recorded.
        client: id of a client that is sampled in it.

    Raises:
        ConfigError: the folder is not a run's that can be computed again, it has no such round, or
            the client is not in the round.
        FedoptError: a round before cannot be computed.
    """

    def __init__(self, directory: Path, round: int, client: int) -> None:
        self.round, self.client = round, client
        run = read_run(directory)
        _check_round(run, round)
        self._run = run
        self._server = Rerun(run, round - 1)
        try:
            self._started_from = self._server.round
            self._request, self._block = self._asked()
            self._trainer = self._server.experiment.trainer()
        except BaseException:
            self._server.__exit__(None, None, None)
            raise
        self._trainer.only = client

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.__exit__(None, None, None)

    def train(self, *, raises: bool = False) -> Replayed:
        """Train the client; doing it again gives the same.

        Args:
            raises: raise what the training raises, rather than to report it.
        """
        trainer, request = self._trainer, self._request
        trainer.raises = raises
        with single_thread():
            outcome = self._trained(trainer, request)
        reports, reason = outcome.reports, None
        row = {name: column[0] for name, column in vars(reports).items()}
        row["status"] = Status(row["status"]).name.lower()
        if outcome.failures:
            reason = outcome.failures[0].reason
        return Replayed(self.client, self.round, self._started_from, row, reason, self._recorded())

    def _trained(self, trainer: Trainer, request: TrainRequest) -> TrainingOutcome:
        device, layout = trainer.engine.device, trainer.engine.layout
        state = layout.state(request.arrays)
        store = self._server.strategy.store
        return trainer.train(
            request.round,
            [self._block],
            ModelState(state.parameters.to(device), state.buffers),
            {name: vector.to(device) for name, vector in request.broadcast.items()},
            None if store is None else store.file,
            request.blocks_of_round,
            request.lr_scale,
            request.cohort,
        )

    def _asked(self) -> tuple[TrainRequest, Block]:
        """Return what the server asks in the round, and the client's block.

        Raises:
            ConfigError: the client is not asked.
        """
        server = self._server
        with single_thread(), InlineGrid(server.experiment) as grid:
            while server.round < self.round - 1:
                server.advance(grid)
            strategy = server.strategy
            messages = strategy.configure_train(self.round, server.arrays, ConfigRecord({}), grid)
            requests = [decode_request(message.content) for message in messages]
        for request in requests:
            for block in request.blocks:
                if self.client in block.clients:
                    return request, block
        cohort = sorted(c for r in requests for block in r.blocks for c in block.clients)
        shown = ", ".join(map(str, cohort[:50])) + (" ..." if len(cohort) > 50 else "")
        raise ConfigError(
            f"client {self.client} does not train in round {self.round}; these do: {shown}",
            key="--client",
        )

    def _recorded(self) -> dict[str, Any] | None:
        clients = read_clients(self._run.directory)
        mine = clients[(clients["round"] == self.round) & (clients["client"] == self.client)]
        if not len(mine):
            return None
        row = mine.iloc[0]
        return {name: _plain(row[name]) for name in COMPARED}


def _check_round(run: RecordedRun, round: int) -> None:
    """Check that a round is one that was begun.

    Raises:
        ConfigError: it is not.
    """
    last = min(run.last + 1, run.config.rounds)
    if not 1 <= round <= last:
        raise ConfigError(
            f"got {round}, but {run.directory} can be replayed in the rounds 1 to {last}",
            key="--round",
        )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
