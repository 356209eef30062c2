"""The `inline` grid: clients train one after another in the calling process. No Ray."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import Context, Message, RecordDict

from fedopt.client.app import client_app
from fedopt.experiment import Experiment
from fedopt.simulation.grid import DirectGrid


class InlineGrid(DirectGrid):
    """One node, in this process.

    Torch runs on one thread while the grid is open, as it does in workers, so that results have
    the same bits; the setting and torch's random state are put back when the grid is closed.

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
        self._threads = torch.get_num_threads()
        self._random_state = torch.get_rng_state()
        torch.set_num_threads(1)

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Run the ClientApp on each message; what it raises is raised here."""
        return [self._app(message, self._context) for message in messages]

    def close(self) -> None:
        """Put back torch's number of threads and random state."""
        torch.set_num_threads(self._threads)
        torch.set_rng_state(self._random_state)
