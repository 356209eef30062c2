"""What a run gives back to Python: history, clients, parameters, state, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedopt.config import Config
from fedopt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from fedopt.analysis.comparison import Comparison


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
        averaged: the averaged model's arrays by name (`server.swa`), or None without one.
    """

    def __init__(
        self,
        config: Config,
        directory: Path | None,
        summary: dict[str, Any],
        history: DataFrame,
        clients: DataFrame,
        snapshots: Mapping[int, Snapshot],
        averaged: dict[str, Tensor] | None = None,
    ) -> None:
        self.config = config
        self.dir = directory
        self.summary = summary
        self.history = history
        self.clients = clients
        self.averaged = averaged
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

    def plot(
        self,
        x: str = "rounds",
        *,
        metrics: Sequence[str] = (),
        beside: Sequence[Run] = (),
        target: str | None = None,
        smooth: int = 1,
        log: str = "auto",
        width: float | str = "text",
        title: str | None = None,
    ) -> Figure:
        """Return the convergence figure of the run, or of several.

        Args:
            x: `rounds`, `bytes`, `seconds` (simulated), `wall` or `steps`.
            metrics: columns of `rounds.csv`, or `loss`, `accuracy`, `calibration`, `distribution`;
                default: loss and accuracy.
            beside: other runs, over this one; those that differ in the seed alone become a mean
                with a band.
            target: `METRIC=VALUE`, drawn as a line, with the place where each curve reaches it.
            smooth: window of a running mean over evaluations, odd; the figure says it.
            log: axes that are logarithmic: `x`, `y`, `xy`, `none` or `auto`.
            width: `column`, `text` or a number of inches.
            title: a line above the panels.
        """
        from fedopt.analysis.groups import Group, group_runs, stored
        from fedopt.analysis.notebook import show_figures
        from fedopt.analysis.plots import convergence_plot
        from fedopt.analysis.targets import Target

        show_figures()
        names = [run.config.strategy.name for run in (self, *beside)]
        runs = [
            stored(name, run.history, run.config.dump())
            for name, run in zip(names, (self, *beside), strict=True)
        ]
        groups = group_runs(runs) if beside else [Group(names[0], (runs[0],), is_counted=False)]
        goal = Target.parse(target) if target else None
        plot = convergence_plot(
            groups, x, title, metrics, target=goal, smooth=smooth, log=log, width=width
        )
        return plot.figure

    def __repr__(self) -> str:
        final = self.summary.get("final", {})
        shown = ", ".join(
            f"{key}={final[key]:.4g}"
            for key in ("train_loss", "test_loss", "test_accuracy")
            if isinstance(final.get(key), int | float)
        )
        where = f", dir={str(self.dir)!r}" if self.dir else ""
        return f"Run({self.config.strategy.name}, rounds={self.summary['rounds']}, {shown}{where})"

    def compare(
        self,
        *others: Run,
        target: str | None = None,
        metrics: Sequence[str] = ("test_accuracy",),
    ) -> Comparison:
        """Compare this run with others, as `fedopt compare` does; a notebook shows the tables.

        Args:
            others: runs; those that differ in the seed alone are a group.
            target: `METRIC=VALUE`, whose cost in rounds, bytes and steps is told.
            metrics: columns of `rounds.csv`.

        Raises:
            ConfigError: a metric is not known, or the target is not of the form.
        """
        from fedopt.analysis.comparison import comparison
        from fedopt.analysis.groups import group_runs, stored
        from fedopt.analysis.targets import Target

        runs = (self, *others)
        names = [f"{run.config.strategy.name} {place}" for place, run in enumerate(runs, 1)]
        found = [
            stored(name, run.history, run.config.dump())
            for name, run in zip(names, runs, strict=True)
        ]
        goal = Target.parse(target) if target else None
        return comparison(group_runs(found), list(metrics), goal)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the run: its values and its curves."""
        from fedopt.analysis.report.notebook import run_html

        return run_html(self.config.strategy.name, self.summary, self.history, self.dir)

    def _snapshot(self, round: int | None) -> Snapshot:
        wanted = max(self._snapshots) if round is None else round
        if wanted not in self._snapshots:
            raise ConfigError(
                f"round {wanted} is not kept; kept: {', '.join(map(str, self._snapshots))} "
                "(earlier rounds need keep_parameters=True)"
            )
        return self._snapshots[wanted]
