"""Computing a run again and comparing the model of every round, by its digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedopt.errors import ConfigError
from fedopt.memory import keep_freed_memory
from fedopt.registry import get
from fedopt.rerun import RecordedRun, Rerun, read_run
from fedopt.server.checkpoint import digest
from fedopt.single_thread import single_thread
from fedopt.validation import round_span

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Args:
        first: the first round that was compared.
        last: the last one that was to be.
        started_from: the checkpoint from which it was computed; 0: the beginning.
        differs: the first round whose model is another one, or None.
        recorded: its digest as it was recorded.
        computed: its digest now.
        what: what differs: the round's model, the checkpoint's, or the final file's.
        changed: versions and hardware that are not those of the run.
    """

    first: int
    last: int
    started_from: int
    differs: int | None
    recorded: str
    computed: str
    what: str
    changed: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every round has the bits that were recorded."""
        return self.differs is None

    def text(self) -> str:
        """Return it in words."""
        start = f"the checkpoint of round {self.started_from}" if self.started_from else "the start"
        if self.differs is None:
            count = self.last - self.first + 1
            rounds = f"rounds {self.first} to {self.last}" if count > 1 else f"round {self.first}"
            return f"{rounds}: the same bits ({count} compared, computed from {start})"
        lines = [
            f"round {self.differs} is the first that differs ({self.what}, computed from {start})",
            f"  recorded {self.recorded}",
            f"  computed {self.computed}",
        ]
        if self.changed:
            lines.append(f"  not as in the run: {'; '.join(self.changed)}")
        return "\n".join(lines)


def verify(
    directory: Path,
    rounds: str | None = None,
    from_round: int | None = None,
    engine: str = "inline",
    shows: Callable[[int, int], None] = lambda round, last: None,
) -> Verification:
    """Compute a run, or some of its rounds, again, and compare it round by round.

    Args:
        directory: the run's folder, which stays as it is.
        rounds: `A-B` or `A`, the rounds to compare, in 1..the last one recorded; None: all.
        from_round: compare from this round on, in place of `rounds`.
        engine: what computes it, `inline` or `ray`.
        shows: called with each round that is done, and the last one.

    Raises:
        ConfigError: the folder is not a run's that can be computed again, or has no such rounds.
        ClientError: a client fails now.
        RunError: the run cannot be computed.
    """
    run = read_run(directory, engine)
    first, last = _wanted(run, rounds, from_round)
    with single_thread(), Rerun(run, first - 1) as server:
        grid_class = get("engines", engine).load()
        grid_class.check(server.experiment)
        keep_freed_memory()
        start = server.round

        def found(round: int, computed: str, what: str) -> Verification:
            recorded = run.digests[round]
            return Verification(first, last, start, round, recorded, computed, what, run.changed)

        if start and server.digest != run.digests.get(start):
            return found(start, server.digest, "the checkpoint is not the model that was recorded")
        with grid_class(server.experiment) as grid:
            while server.round < last:
                server.advance(grid)
                shows(server.round, last)
                if server.round >= first and server.digest != run.digests[server.round]:
                    return found(server.round, server.digest, "the model after it")
    written = _written_model(run)
    if last == run.last and written not in (None, run.digests[last]):
        return found(last, str(written), f"the model in {MODEL_FILE}")
    return Verification(first, last, start, None, "", "", "", run.changed)


def _wanted(run: RecordedRun, rounds: str | None, from_round: int | None) -> tuple[int, int]:
    """Return the first and the last round to compare.

    Raises:
        ConfigError: they are not among those recorded.
    """
    if rounds is not None and from_round is not None:
        raise ConfigError("give --rounds or --from-round, not both", key="--rounds")
    if not run.digests:
        raise ConfigError(f"{run.directory} has no finished round yet.")
    first, last, key = 1, run.last, "--from-round"
    if from_round is not None:
        first = from_round
    if rounds is not None:
        (first, last), key = round_span(rounds, "--rounds"), "--rounds"
    if not 1 <= first <= last <= run.last:
        got = f"{first}" if key == "--from-round" else f"{first}-{last}"
        raise ConfigError(f"got {got}, but {run.directory} has the rounds 1 to {run.last}", key=key)
    missing = [round for round in range(first, last + 1) if round not in run.digests]
    if missing:
        raise ConfigError(f"{run.directory} has no row for round {missing[0]}.")
    return first, last


def _written_model(run: RecordedRun) -> str | None:
    """Return the digest of the final model's file, where there is one.

    Raises:
        ConfigError: it cannot be read.
    """
    path = run.directory / MODEL_FILE
    if not path.exists():
        return None
    try:
        return digest(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
