"""The architecture of a supernet, round by round: in a run's folder and in its summary."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedopt.atomic import write_atomically
from fedopt.experiment import Experiment
from fedopt.models.layout import BoundModel, ModelState
from fedopt.search.genotype import Genotype
from fedopt.search.supernet import Supernet

FILE = "architecture.jsonl"
"""One line a round: entropies in nats, operation counts, and the architecture."""


class ArchitectureLog:
    """Follows the architecture of a search.

    Args:
        experiment: whose model is a supernet.
        directory: the run's folder, or None.
        reached: round from which the run goes on, 0 at first; later lines are dropped.
    """

    def __init__(self, experiment: Experiment, directory: Path | None, reached: int) -> None:
        model = experiment.build_model()
        assert isinstance(model, Supernet)
        self._supernet = model
        self._bound = BoundModel(model, next(model.parameters()).device)
        self._settings = experiment.search_settings
        self._path = directory / FILE if directory is not None else None
        self.lines: list[dict[str, Any]] = []
        if self._path is not None and reached and self._path.is_file():
            kept = (json.loads(line) for line in self._path.read_text().splitlines())
            self.lines = [line for line in kept if line["round"] <= reached]

    @property
    def has_collapsed(self) -> bool:
        """Whether the last architecture has as many skip connections as end the search."""
        return bool(self.lines) and bool(self.lines[-1]["collapsed"])

    def observe(self, round: int, state: ModelState) -> dict[str, float]:
        """Take in the model after a round; return the columns of `rounds.csv`."""
        self._bound.load(state)
        found = self._supernet.genotype()
        entropies = self._supernet.entropies()
        self.lines.append(
            {
                "round": round,
                "entropies": entropies,
                "operations": found.operation_counts,
                "collapsed": self._settings.has_collapsed(found),
                "genotype": asdict(found),
            }
        )
        if self._path is not None:
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            write_atomically(self._path, text.encode())
        mean = math.fsum(entropies.values()) / len(entropies)
        return {"architecture_entropy": mean, "skip_connections": found.skip_connections}

    def facts(self) -> dict[str, Any]:
        """Return what the search found, for `summary.json`: see `found_genotype`."""
        last = self.lines[-1]
        return {
            "rounds": last["round"],
            "collapsed_at": last["round"] if last["collapsed"] else None,
            "entropies": last["entropies"],
            "largest_entropies": self._supernet.largest_entropies(),
            "genotype": asdict(found_genotype(self.lines)),
        }


def found_genotype(lines: list[dict[str, Any]]) -> Genotype:
    """Return the architecture of the last round, or of the last before a collapse.

    Args:
        lines: of `architecture.jsonl`.
    """
    sound = [line for line in lines if not line["collapsed"]] or lines
    return Genotype.from_json(json.dumps(sound[-1]["genotype"]))
