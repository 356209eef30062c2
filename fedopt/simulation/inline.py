"""The `inline` grid: clients train one after another in the calling process. No Ray."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Message, RecordDict

from fedopt.client.app import client_app
from fedopt.experiment import Experiment
from fedopt.simulation.grid import DirectGrid


class InlineGrid(DirectGrid):
    """One node, in this process.

    Args:
        experiment: the run's experiment.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(nodes=1)
        self._app = client_app(experiment)
        self._context = Context(
            run_id=self.run.run_id,
            node_id=self._node_ids[0],
            node_config={},
            state=RecordDict(),
            run_config={},
        )

    @property
    def shares_files(self) -> bool:
        """True."""
        return True

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Run the ClientApp on each message; what it raises is raised here."""
        return [self._app(message, self._context) for message in messages]
