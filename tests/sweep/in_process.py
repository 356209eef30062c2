"""Runs of a sweep in the process of the test, in place of processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from fedopt.analysis.store import RunWriter
from fedopt.cli import app
from fedopt.config import load

TASK = ["partition.clients=6", "clients_per_round=2", "local.epochs=1", "rounds=3"]
"""The smallest task that is one."""


class InProcess:
    """Stands for `fedopt.sweep.children.Child`: the run is over when it is made.

    Attributes:
        calls: words of all runs, in order.
    """

    calls: list[list[str]]

    def __init__(self, words: list[str], log: Path) -> None:
        self.calls.append(words)
        result = CliRunner().invoke(app, words)
        log.write_text(result.output)
        self._code, self._output = result.exit_code, result.output

    def poll(self) -> int:
        return self._code

    def stop(self) -> None:
        """It is over."""

    def kill(self) -> None:
        """It is over."""

    def wait(self, seconds: float) -> bool:
        return True

    def error(self) -> str:
        return self._output.partition("error: ")[2].strip() or "no words"


class Pretended(InProcess):
    """A run that writes what a run writes, and trains nothing.

    Its accuracies rise in a line to 1 - |lr - 0.1| - 0.01 seed.
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self.calls.append(words)
        self._code, self._output = 0, ""
        command, path, *rest = words
        assert command == "run"
        config, folder = load(path), Path(rest[rest.index("--out") + 1])
        rate = getattr(config.optimizer.options, "lr", 0.1)
        best = 1 - abs(rate - 0.1) - 0.01 * config.seed
        with RunWriter(folder) as writer:
            writer.write_config(config.to_toml())
            for round in range(1, config.rounds + 1):
                counts = dict.fromkeys(("bytes_up", "bytes_down", "client_steps"), 100 * round)
                row = {"round": round, "test_accuracy": best * round / config.rounds, **counts}
                writer.add_round({**row, "client_gradients": 100 * round, "wall_seconds": 1.0})
            final = {"test_accuracy": best}
            writer.write_json("summary.json", {"status": "completed", "final": final})


def in_process(kind: type[InProcess] = InProcess) -> type[InProcess]:
    """Return a class anew, without calls."""
    made: Callable[..., type[InProcess]] = type
    return made("Here", (kind,), {"calls": []})
