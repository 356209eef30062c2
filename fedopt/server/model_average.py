"""A running mean of the server's models: SWA and EMA over rounds. It is never fed back.

The mean is taken after the server's step, of whatever strategy. Where the model has BatchNorm,
its statistics are those of the averaged weights on clients' training data, which stay where they
are: each client sends the statistics of its own data.

Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
algorithm 1; Caldarola et al. 2022, "Improving Generalization in Federated Learning by Seeking
Flat Minima" (the average on the server).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedopt.client.messages import content_of
from fedopt.models.batch_norm import Places, pooled
from fedopt.models.layout import ModelState
from fedopt.optim.averaging import WeightAverage
from fedopt.records import from_record, integers, to_record
from fedopt.schema import ServerSwaTable
from fedopt.server.placing import shares

if TYPE_CHECKING:
    from fedopt.server.strategy import FederatedStrategy

MEAN, COUNT = "swa.mean", "swa.count"
"""Names of what a checkpoint holds of an average."""


class ModelAverage:
    """The mean of the models of some rounds, and the model with its statistics.

    Args:
        options: when averaging begins, how often, and how.
        rounds: communication rounds of the run.
        size: P.
    """

    def __init__(self, options: ServerSwaTable, rounds: int, size: int) -> None:
        self.first_round = options.first_round(rounds)
        self._every = options.every
        self._clients = options.batch_norm_clients
        self._round = 0  # the last one whose model was seen
        self._state: ModelState | None = None
        self._now = torch.zeros(size, dtype=torch.float64)
        self._average = WeightAverage([self._now], options.decay)

    @property
    def models(self) -> int:
        """How many models are in the mean."""
        return self._average.count

    def observe(self, round: int, parameters: Tensor) -> None:
        """Take in the model after a round, if it is one of those that are averaged.

        Args:
            round: communication round, from 1.
            parameters: `[P]`.
        """
        self._round, self._state = round, None
        if round >= self.first_round and (round - self.first_round) % self._every == 0:
            self._now.copy_(parameters)
            self._average.update()

    def mean(self) -> Tensor:
        """Return the mean, `[P]` in float64; there must be one."""
        return self._average.averages[0]

    def state(
        self, grid: Grid, strategy: FederatedStrategy, places: Places, config: ConfigRecord
    ) -> ModelState | None:
        """Return the averaged model of now, or None before something was averaged.

        Args:
            grid: reaches the clients whose data give BatchNorm's statistics.
            strategy: whose model was averaged.
            places: where the statistics lie among the buffers; empty where there are none.
            config: what else goes into the messages.
        """
        if self._state is None and self.models:
            layout = strategy.layout
            plain = ModelState(self.mean().to(layout.dtype), strategy.state.buffers)
            clients = strategy.draw_clients(self._round, self._clients, "batch_norm")
            self._state = with_statistics(
                grid,
                plain,
                to_record(layout.named(plain)),
                places,
                clients.tolist(),
                self._round,
                config,
            )
        return self._state

    def vectors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        if not self.models:
            return {}
        return {MEAN: self.mean(), COUNT: torch.tensor([self.models], dtype=torch.float64)}

    def load(self, vectors: Mapping[str, Tensor], round: int) -> None:
        """Take back what `vectors` returned after a round."""
        self._round = round
        if COUNT in vectors:
            state = self._average.state_dict()
            count, mean = int(vectors[COUNT].item()), vectors[MEAN]
            self._average.load_state_dict(state | {"count": count, "averages": [mean]})


def with_statistics(
    grid: Grid,
    state: ModelState,
    arrays: ArrayRecord,
    places: Places,
    clients: list[int],
    round: int,
    config: ConfigRecord,
) -> ModelState:
    """Return a model whose BatchNorm statistics are those of some clients' training data.

    Clients with one example have no say; where all are such, the statistics stay as they are.

    Args:
        grid: reaches the clients.
        state: the model.
        arrays: the same as named arrays.
        places: where the statistics lie among the buffers; empty where there are none.
        clients: whose data, in the order in which they are added up.
        round: communication round, from which dropout draws.
        config: what else goes into the messages.
    """
    if not places:
        return state
    messages = []
    for node, share in shares(grid, clients).items():
        own = ConfigRecord(dict(config))
        own["server-round"] = round
        own["clients"] = share
        content = RecordDict({"arrays": arrays, "config": own})
        messages.append(Message(content, dst_node_id=node, message_type="evaluate.batch_norm"))
    found: dict[int, tuple[int, Tensor]] = {}
    for reply in grid.send_and_receive(messages):
        content = content_of(reply)
        record, buffers = content["clients"], content.array_records["buffers"]
        assert isinstance(record, ConfigRecord)
        tensors = from_record(buffers)
        for client, n in zip(
            integers(record, "clients"), integers(record, "examples"), strict=True
        ):
            found[client] = (n, tensors[str(client)])
    ordered = [found[client] for client in clients if client in found]
    if not ordered:
        return state
    return ModelState(state.parameters, pooled(state.buffers, ordered, places))


def encode_statistics(examples: Mapping[int, int], buffers: Mapping[int, Tensor]) -> RecordDict:
    """Return the reply to an `evaluate.batch_norm` message."""
    record = ConfigRecord({"clients": list(examples), "examples": list(examples.values())})
    arrays = to_record({str(client): vector for client, vector in buffers.items()})
    return RecordDict({"clients": record, "buffers": arrays})
