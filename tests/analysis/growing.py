"""A run's folder that grows round by round, as one that trains does, without training."""

from __future__ import annotations

import json
from pathlib import Path

from fedopt.analysis.store import RunWriter


class GrowingRun:
    """A run that is being written: it holds the folder's lock until it ends."""

    def __init__(self, directory: Path, rounds: int = 10, strategy: str = "fedavg") -> None:
        self.directory = directory
        self.writer = RunWriter(directory)
        self.writer.write_config(
            f"seed = 3\nrounds = {rounds}\n[strategy]\nname = {json.dumps(strategy)}\n"
            '[data]\nname = "digits"\n'
        )
        self.round = 0

    def grow(self, accuracy: float, reason: str = "") -> None:
        """Record one more round; with a reason, one of whose clients was dropped."""
        self.round += 1
        status = "dropped" if reason else "trained"
        self.writer.add_clients(
            {"round": [self.round], "client": [7], "status": [status], "reason": [reason]}
        )
        self.writer.add_round(
            {
                "round": self.round,
                "train_loss": 1.0 / self.round,
                "test_accuracy": accuracy,
                "bytes_up": 1000 * self.round,
                "bytes_down": 1000 * self.round,
                "wall_seconds": 2.0 * self.round,
            }
        )

    def end(self, status: str = "completed", **facts: object) -> None:
        """Write the summary and give the folder back."""
        self.writer.write_json("summary.json", {"status": status, **facts})
        self.writer.close()
