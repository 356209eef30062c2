"""One search from end to end: search, discretise, retrain from scratch, compare with chance.

Every stage is a run in a folder of its own; a stage that is finished is not repeated, and one that
was interrupted goes on, so the command may be given again after any interruption.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pandas import DataFrame

from fedopt.analysis.plots import convergence_figure, save_figure
from fedopt.analysis.progress import Progress
from fedopt.analysis.store import SUMMARY_FILE, read_history, read_summary
from fedopt.architecture_log import FILE, found_genotype
from fedopt.atomic import write_atomically
from fedopt.config import Config
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.run import execute
from fedopt.search.genotype import Genotype, random_genotype
from fedopt.search.picture import draw_genotype
from fedopt.seeds import generator

CONFIG_FILE = "search.toml"


@dataclass(frozen=True)
class Candidate:
    """An architecture that was retrained.

    Args:
        name: `found`, or `random 1` and so on.
        folder: of its run.
        genotype: the architecture.
        parameters: trained scalars.
        test_accuracy: after the last round; None without classes.
        test_loss: after the last round.
        bytes: sent both ways over all rounds.
    """

    name: str
    folder: Path
    genotype: Genotype
    parameters: int
    test_accuracy: float | None
    test_loss: float
    bytes: int

    @property
    def score(self) -> float:
        """What candidates are compared by, higher is better: accuracy, or minus the loss."""
        return -self.test_loss if self.test_accuracy is None else self.test_accuracy


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to.

    Args:
        directory: folder of all stages.
        found: the found architecture, retrained.
        random: architectures drawn from the same space, retrained alike.
        collapsed_at: round at which the search ended early, or None.
    """

    directory: Path
    found: Candidate
    random: tuple[Candidate, ...]
    collapsed_at: int | None

    @property
    def rank(self) -> int:
        """Place of the found architecture among all, from 1; ties count against it."""
        return 1 + sum(other.score >= self.found.score for other in self.random)

    @property
    def median(self) -> float | None:
        """Median score of the random architectures, or None without any."""
        return statistics.median(c.score for c in self.random) if self.random else None

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values."""

        def of(candidate: Candidate) -> dict[str, Any]:
            plain = asdict(candidate)
            return {**plain, "folder": candidate.folder.name}

        return {
            "found": of(self.found),
            "random": [of(candidate) for candidate in self.random],
            "random_median": self.median,
            "rank": self.rank,
            "of": 1 + len(self.random),
            "beats_median": None if self.median is None else self.found.score > self.median,
            "collapsed_at": self.collapsed_at,
        }


def run_search(config: Config, directory: Path, progress: Progress) -> SearchOutcome:
    """Search, discretise, retrain and compare; go on where an earlier call was interrupted.

    Args:
        config: whose model is a supernet; `[search]` says the rest.
        directory: folder of all stages.
        progress: shows the rounds of each.

    Raises:
        ConfigError: the model is no supernet, or the folder is of another search.
    """
    experiment = Experiment.from_config(config)
    if not experiment.is_search:
        raise ConfigError(
            f'got "{config.model.name}", which has no architecture to search; use "cell_supernet" '
            'for images, or "dense_supernet"',
            key="model.name",
        )
    _claim(directory, config)
    searched = _stage(config, directory / "search", progress)
    lines = (directory / "search" / FILE).read_text(encoding="utf-8").splitlines()
    found = found_genotype([json.loads(line) for line in lines])
    found.save(directory / "genotype.json")
    draw_genotype(found, directory / "genotype.png")
    candidates = [_retrained("found", found, config, directory, progress)]
    supernet = experiment.build_model()
    for number in range(1, config.search.random_samples + 1):
        drawn = random_genotype(supernet, generator(config.seed, "random search", number))
        candidates.append(_retrained(f"random {number}", drawn, config, directory, progress))
    architecture: Mapping[str, Any] = searched["architecture"]
    outcome = SearchOutcome(
        directory, candidates[0], tuple(candidates[1:]), architecture["collapsed_at"]
    )
    _write(outcome)
    return outcome


def _claim(directory: Path, config: Config) -> None:
    """Make the folder, or see that it is of the same search.

    Raises:
        ConfigError: it is not.
    """
    path, text = directory / CONFIG_FILE, config.to_toml()
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{directory} holds a search with another configuration ({CONFIG_FILE}); use "
                "another folder, or the same configuration to go on",
                key="--out",
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty", key="--out")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _stage(config: Config, folder: Path, progress: Progress) -> Mapping[str, Any]:
    """Run a configuration in a folder, unless that is done; return its summary."""
    if (folder / SUMMARY_FILE).is_file():
        summary: Mapping[str, Any] = read_summary(folder)
        if summary.get("status") == "completed":
            return summary
    is_begun = (folder / "config.toml").is_file()
    run = execute(Experiment.from_config(config), folder, progress, resume=is_begun)
    return run.summary


def _retrained(
    name: str, genotype: Genotype, config: Config, directory: Path, progress: Progress
) -> Candidate:
    """Train a new network of an architecture from scratch, by the configured strategy."""
    folder = directory / name.replace(" ", "_")
    path = directory / f"{folder.name}.json"
    genotype.save(path)
    tree = config.dump()
    tree["model"] = {"name": "genotype", "path": str(path)}
    tree["rounds"] = config.search.retrain_rounds or config.rounds
    if config.search.retrain_lr is not None:
        tree["local"]["optimizer"]["lr"] = config.search.retrain_lr
    summary = _stage(Config.from_tree(tree), folder, progress)
    history = read_history(folder)
    return Candidate(
        name,
        folder,
        genotype,
        int(summary["parameters"]),
        _last(history, "test_accuracy"),
        _last(history, "test_loss") or float("nan"),
        int(history["bytes_up"].iloc[-1] + history["bytes_down"].iloc[-1]),
    )


def _last(history: DataFrame, column: str) -> float | None:
    known = history[column].dropna()
    return float(known.iloc[-1]) if len(known) else None


def _write(outcome: SearchOutcome) -> None:
    """Write comparison.csv, comparison.png and summary.json, each in one step."""
    everyone: Sequence[Candidate] = (outcome.found, *outcome.random)
    rows = [
        {
            "architecture": c.name,
            "test_accuracy": c.test_accuracy,
            "test_loss": c.test_loss,
            "parameters": c.parameters,
            "bytes": c.bytes,
            "operations": " ".join(f"{n}:{k}" for n, k in c.genotype.operation_counts.items()),
        }
        for c in everyone
    ]
    table = DataFrame(rows).to_csv(index=False)
    write_atomically(outcome.directory / "comparison.csv", table.encode())
    histories = [(c.name, read_history(c.folder)) for c in everyone]
    save_figure(convergence_figure(histories), outcome.directory / "comparison.png")
    text = json.dumps(outcome.facts(), indent=2) + "\n"
    write_atomically(outcome.directory / SUMMARY_FILE, text.encode())
