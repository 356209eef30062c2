"""The base of all strategies: a round, from sampling to the new model, as a Flower `Strategy`.

What is the same for every algorithm lives here: who trains, in which blocks and on which nodes;
client state that counts only once the round is accepted; sums along a fixed tree at double
precision; failures. An algorithm adds what it sends (`broadcast`), how the sums become the new
parameters (`server_step`), and its client's side (`local`).
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedopt.client.algorithm import (
    OPTIMIZER,
    THRESHOLD,
    LocalAlgorithm,
    PlainLocal,
    collected,
    state_scalars,
)
from fedopt.client.attacks import Hostility
from fedopt.client.channel import CLIP_NORM, with_channel
from fedopt.client.messages import (
    UNSEEN,
    encode_request,
)
from fedopt.client.optimizer_state import with_optimizer_state
from fedopt.client.personal import PersonalPart, with_personal
from fedopt.client.plan import happening_steps
from fedopt.client.recipe import Recipe
from fedopt.client.shared_threshold import with_shared_threshold
from fedopt.client.sums import BlockSums, SumTree
from fedopt.client.trainer import Block, Reports, Status, TrainingOutcome
from fedopt.errors import (
    ClientError,
    ConfigError,
    DivergenceError,
    NotFiniteError,
    ReplyError,
    RunError,
    TooFewClientsError,
)
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.records import from_record, to_record
from fedopt.registry import Options
from fedopt.schedules.plateau import PlateauState
from fedopt.scratch import Scratch
from fedopt.server import spool
from fedopt.server.blocks import MAX_BLOCKS, Pace, cut, deal
from fedopt.server.catalogue import StrategyOptions
from fedopt.server.channel import ServerChannel
from fedopt.server.client_store import ClientStateStore
from fedopt.server.cohorts import Cohorts
from fedopt.server.evaluation import over_clients
from fedopt.server.objective import (
    OBJECTIVE,
    objective_blocks,
    objective_columns,
    objective_questions,
)
from fedopt.server.optimizer import ServerOptimizer, ServerRule
from fedopt.server.placing import hosts_of, placed
from fedopt.server.questions import answers, questions
from fedopt.server.replies import Expected, FailureCounts, is_finite
from fedopt.server.rounds import Federation, RoundRecord, RoundSums, is_due
from fedopt.server.sampling import UniformSampler
from fedopt.server.scheduler import ScheduledWork, Scheduler
from fedopt.server.shared_optimizer import SharedOptimizerState
from fedopt.server.spool import Spool
from fedopt.server.updates import Updates

log = logging.getLogger("fedopt")

MEASUREMENT_NBYTES = 8
"""Bytes of a client's answer when it measures the model: one number in double precision."""

PLATEAU = "plateau"
"""Name of the plateau's numbers among a checkpoint's vectors."""


class FederatedStrategy(Strategy):
    """A federated algorithm, usable in any Flower ServerApp with fedopt's ClientApp.

    Args:
        federation: who takes part.
        options: the strategy's options (see `fedopt list strategies`); or give them by keyword,
            as in `FedAvg(federation, server_lr=0.5)`.

    Raises:
        ConfigError: more clients a round than there are.
        pydantic.ValidationError: an option is unknown or out of range.
    """

    options_type: ClassVar[type[StrategyOptions]] = StrategyOptions
    """The schema of the options."""

    takes_server_optimizer: ClassVar[bool] = True
    """Whether the server's step may be an optimizer's, along `mean_update`. A class with a
    `server_step` of its own says so itself; else it may not."""

    sends_personal: ClassVar[bool] = False
    """Whether what stays with a client is sent as well: a model beside its personal one."""

    exchanges: ClassVar[bool] = True
    """Whether clients send anything to a server."""

    uses_only_sums: ClassVar[bool] = True
    """Whether the server learns of the clients by the sums of what they send alone. A class with
    steps of its own says so itself; else it may not be relied on."""

    trainings: ClassVar[int] = 1
    """How often a client trains in a round."""

    vector_sizes: ClassVar[Mapping[str, int]] = {}
    """Length of the terms, broadcasts and state fields that are not P long, by name."""

    def __init__(
        self, federation: Federation, options: StrategyOptions | None = None, **keywords: Any
    ) -> None:
        if options is None:
            options = self.options_type.model_validate(keywords)
        elif keywords:
            raise TypeError("give the options as one object or by keyword, not both")
        options = self.resolved(options, federation.lr)
        self.options: Any = options
        self.federation = federation
        algorithm = with_optimizer_state(
            self.client_side(options, self._personal_part()),
            federation.optimizer_state,
            federation.optimizer_slots,
        )
        algorithm = with_shared_threshold(algorithm, federation.shared_threshold)
        self.algorithm = with_channel(algorithm, federation.channel, self._sizes)
        self.sampler = UniformSampler(federation.sizes, federation.seed)
        if federation.clients_per_round > self.sampler.clients:
            raise ConfigError(
                f"got {federation.clients_per_round}, but only {self.sampler.clients} clients "
                "have examples",
                key="clients_per_round",
            )
        self.noise_seed: int | None = None  # of the server's noise, where clients know the run's
        self.record: RoundRecord | None = None
        self.store: ClientStateStore | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._layout: ParameterLayout | None = None
        self._arrays: ArrayRecord | None = None
        self._state: ModelState | None = None
        self._blocks: list[Block] = []
        self._dealt: Mapping[int, Sequence[Block]] = {}
        limit = federation.max_client_failures if federation.skip_failed else None
        self._failures = None if limit is None else FailureCounts(limit)
        self._cohort_size = 0
        self._trees: list[int] = []
        self._scheduler: Scheduler | None = None
        self._spool: Spool | None = None
        self._pace = Pace()
        self._optimizer: SharedOptimizerState | None = None
        self._server_optimizer: ServerOptimizer | None = None
        self._channel: ServerChannel | None = None
        self.lr_factors: Mapping[int, float] = {}  # of single rounds, as a range test sets them
        plateau = federation.plateau
        self._plateau = plateau.begin(federation.lr) if plateau is not None else None
        self._scratch = Scratch()
        self._threshold = torch.zeros(1, dtype=torch.float64)  # 0: not known yet
        self._cohorts = Cohorts(federation, self.sampler)

    # What an algorithm defines -----------------------------------------------------------------

    @classmethod
    def local(cls, options: Any) -> LocalAlgorithm:
        """Return the client's side of the algorithm; here, plain local training."""
        return PlainLocal()

    @classmethod
    def personal(cls, options: Any, model: nn.Module) -> PersonalPart | None:
        """Return what stays with the clients between rounds; here, nothing.

        Raises:
            ConfigError: the model has no such part.
        """
        return None

    @classmethod
    def client_side(cls, options: Any, part: PersonalPart | None) -> LocalAlgorithm:
        """Return the client's side with what stays with a client."""
        return with_personal(cls.local(options), part)

    def _personal_part(self) -> PersonalPart | None:
        """Return the federation's personal part.

        Raises:
            ConfigError: the strategy needs one.
        """
        part = self.federation.personal
        if part is None and type(self).personal.__func__ is not FederatedStrategy.personal.__func__:  # type: ignore[attr-defined]
            raise ConfigError(
                f"missing; {type(self).__name__} needs what its personal(options, model) returns",
                key="federation.personal",
            )
        return part

    @classmethod
    def resolved(cls, options: Any, lr: float) -> Any:
        """Return the options with what they leave open filled in.

        Args:
            options: the strategy's options.
            lr: base learning rate of the clients.
        """
        return options

    @classmethod
    def follows_server_optimizer(cls) -> bool:
        """Return whether a server optimizer has an effect, as far as the classes say."""
        for owner in cls.__mro__:
            if "takes_server_optimizer" in vars(owner):
                return cls.takes_server_optimizer
            if "server_step" in vars(owner):
                return False
        return False

    @classmethod
    def relies_on_sums(cls) -> bool:
        """Return whether the server uses nothing but sums, as far as the classes say."""
        own = ("server_step", "mean_update", "observe", "aggregate_train", "configure_train")
        for owner in cls.__mro__:
            if "uses_only_sums" in vars(owner):
                return cls.uses_only_sums
            if any(name in vars(owner) for name in own):
                return False
        return False

    @classmethod
    def server_rule(cls, options: Any) -> ServerRule | None:
        """Return the server's optimizer, where it is the strategy's own."""
        return None

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """Names of the vectors that are sent down besides the model."""
        return ()

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse options that do not go with what the clients do in a step, with the reason.

        Raises:
            ConfigError: the combination is mathematically unsound.
        """

    def broadcast(self) -> Mapping[str, Tensor]:
        """Return the vectors `[P]` that are sent down besides the model."""
        return {}

    def mean_update(self, sums: RoundSums) -> Tensor:
        """Return what the server steps along, `[P]` in float64; here the mean of delta."""
        mean = self._scratch.take(self.layout.size)
        return torch.div(sums.terms["delta"], sums.weight, out=mean)

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Return the new parameters `[P]`, all in float64.

        That is x + server_lr * mean_update, or what the server's optimizer makes of it.
        """
        update = self.mean_update(sums)
        if self._server_optimizer is not None:
            return self._server_optimizer.step(parameters, update)
        new = self._scratch.take(len(parameters), parameters.dtype)
        return torch.add(parameters, update, alpha=self.options.server_lr, out=new)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take in metrics of a round: the training loss, then those of validation splits."""

    def begin(self, layout: ParameterLayout) -> None:
        """Make the server's own state, once the model is known."""

    def vectors(self) -> dict[str, Tensor]:
        """Return the server's own state, vectors `[P]` in float64 by name."""
        return {}

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""

    # Flower's Strategy -------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, cut it into blocks, and return one message a node."""
        federation = self.federation
        self._take(arrays)
        self._cohorts.begin(server_round, arrays, config, grid)
        blocks = self._cut(server_round)
        self._blocks = self._with_rows(blocks)
        self._cohort_size = sum(len(block.clients) for block in blocks)
        self._spool = self._open_spool(grid)
        if self._spool is not None:
            self._blocks = self._spool.placed(self._blocks)
        vectors = dict(self.broadcast())
        if self._optimizer is not None:
            vectors |= self._optimizer.vectors()
        if federation.shared_threshold:
            vectors[THRESHOLD] = self._threshold
        arrays, broadcast = self._sent_down(server_round, arrays, vectors)
        state = self.store.file if self.store else None
        lr_scale = self.lr_scale(server_round)
        self._dealt = self._deal(grid)
        return [
            Message(
                encode_request(
                    server_round,
                    blocks,
                    arrays,
                    broadcast,
                    state,
                    lr_scale,
                    self._told(config, blocks),
                    self._trees,
                    self._cohort_size,
                    self._spool.file if self._spool is not None else None,
                ),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                group_id=str(server_round),
            )
            for node, blocks in self._dealt.items()
        ]

    def _deal(self, grid: Grid) -> Mapping[int, Sequence[Block]]:
        """Return node -> its blocks: by load, or to where the clients are."""
        hosts = hosts_of(grid)
        if hosts is not None:
            return placed(self._blocks, hosts)
        nodes = sorted(grid.get_node_ids())
        if not nodes:
            raise RunError("no node is connected")
        return deal(self._blocks, nodes, self._pace.seconds)

    def _told(self, config: ConfigRecord, blocks: Sequence[Block]) -> ConfigRecord:
        """Return what a node's message holds besides; a real client's also what state to keep."""
        if self.store is None or not self.federation.is_real:
            return config
        clients = [client for block in blocks for client in block.clients]
        return ConfigRecord({**config, "state-held": self.store.held(clients)})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the blocks' sums, make the new model, and accept the clients' state.

        Raises:
            ClientError: a client failed, unless failures are skipped.
            RunError: a block is missing, or no client is left.
        """
        sums, reports, updates = self._collect(server_round, replies)
        layout, old = self.layout, self._state
        assert old is not None
        before = self._scratch.take(layout.size).copy_(old.parameters)
        total = self._sum(server_round, sums, before)
        total = replace(total, lr_sum=mean_lr_sum(reports), updates=updates)
        clip_norm = math.nan
        if self.federation.hostility is not None:
            total = colluded(total, self.federation.hostility, collected(self.algorithm))
        if self._channel is not None:
            clip_norm = self._channel.clip_norm
            total = self._channel.received(server_round, total, self._cohort_size)
        parameters = self._scratch.take(layout.size, layout.dtype)
        is_empty = not total.count and self.federation.privacy is None
        parameters.copy_(before if is_empty else self.server_step(before, total))
        if not is_finite(parameters):
            raise NotFiniteError(f"the model is not finite after round {server_round}")
        total.updates = updates = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        buffers = old.buffers
        if len(buffers) and total.count:
            buffers = buffers + total.buffers / total.weight
        named = layout.named(ModelState(parameters, buffers), copy=False)
        if self.store:
            accepted = zip(reports.client, reports.status, strict=True)
            self.store.commit(c for c, s in accepted if s in (Status.TRAINED, Status.PARTIAL))
        if self._optimizer is not None:
            self._optimizer.update(total, reports)
        if self.federation.shared_threshold:
            self._threshold = total.mean(THRESHOLD)
        self._cohorts.learn(server_round, reports)
        reports = self._unused(reports)
        self.record = self._recorded(server_round, reports)
        self.record.clip_norm = clip_norm
        self._observe({"train_loss": self.record.train_loss})
        # Buffers go through their own dtype, so that a resumed run goes on from the same bits.
        self._state = ModelState(parameters, layout.buffer_vector(named))
        self._arrays = to_record(named)
        return self._arrays, MetricRecord({"train_loss": self.record.train_loss})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the loss on data of clients: of all three kinds that `Federation` names."""
        federation = self.federation
        if not is_due(server_round, federation.evaluate_every, federation.rounds):
            return []
        asked: list[Message] = []
        if federation.validation_clients:
            clients = self.draw_clients(server_round, federation.validation_clients, "validation")
            store = self.store if federation.personal is not None else None
            asked += questions(server_round, clients, arrays, config, grid, "validation", store)
        if federation.unseen:
            unseen = np.array(federation.unseen, dtype=np.int64)
            asked += questions(server_round, unseen, arrays, config, grid, UNSEEN)
        if federation.training_clients:
            blocks, gradients = self._objective_blocks(server_round), federation.gradients
            asked += objective_questions(server_round, blocks, arrays, config, grid, gradients)
        return asked

    def _objective_blocks(self, round: int) -> list[Block]:
        """Return the clients on whose training data the model is measured after a round."""
        clients = self.draw_clients(round, self.federation.training_clients, "objective")
        return objective_blocks(clients, self.federation.sizes)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return what the clients' data come to; see `over_clients` and `objective_columns`."""
        replies = list(replies)
        summed = [reply for reply in replies if reply.metadata.message_type == OBJECTIVE]
        told = [reply for reply in replies if reply.metadata.message_type != OBJECTIVE]
        rows, unseen = answers(told), answers(told, UNSEEN)
        if not rows and not unseen and not summed:
            return None
        metrics = over_clients([row[1:] for row in rows]) if rows else {}
        if rows:
            self._observe(metrics)
        if unseen:
            metrics |= over_clients([row[1:] for row in unseen], UNSEEN)
        if summed:
            metrics |= objective_columns(summed, len(self._objective_blocks(server_round)))
        if self.record is not None:
            self.record.metrics.update(metrics)
            self.record.answers += [("validation", *row) for row in rows]
            self.record.answers += [(UNSEEN, *row) for row in unseen]
        return MetricRecord({k: v for k, v in metrics.items() if math.isfinite(v)})

    def client_nbytes(self, layout: ParameterLayout) -> tuple[int, int]:
        """Return the bytes that a client is sent and sends in a round: the model and vectors."""
        sizes, itemsize = self._sizes, layout.dtype.itemsize
        averaged = self.federation.optimizer_state == "average"
        shared = [OPTIMIZER + slot for slot in self.federation.optimizer_slots if averaged]
        if self.federation.shared_threshold:
            shared.append(THRESHOLD)
        channel = self.federation.channel
        if channel is not None and channel.is_adaptive:
            shared.append(CLIP_NORM)
        sent = sum(sizes.get(name, layout.size) for name in (*self.broadcasts, *shared))
        returned = sum(sizes.get(name, layout.size) for name in self.algorithm.terms)
        if collected(self.algorithm):
            returned += layout.size
        down = layout.nbytes + sent * itemsize
        up = layout.nbytes + (returned - layout.size) * itemsize
        part = self.federation.personal
        if part is not None and not self.sends_personal:
            held = part.buffer_nbytes(layout)
            whole = sum(n not in sizes for n in self.algorithm.terms)
            own = len(part.parameters) * itemsize
            down, up = down - own - held, up - whole * own - held
        if channel is not None:
            sent = 1 + sum(n not in sizes for n in (*self.broadcasts, *shared))
            whole = sum(n not in sizes for n in self.algorithm.terms) + collected(self.algorithm)
            down, up = channel.nbytes(down, up, sent, whole, itemsize)
        return down, up

    def summary(self) -> None:
        """Log the strategy, its options and the federation."""
        federation = self.federation
        log.info(
            "%s(%s): %d of %d clients a round",
            type(self).__name__,
            self.options,
            federation.clients_per_round,
            self.sampler.clients,
        )

    # State -------------------------------------------------------------------------------------

    def lr_scale(self, round: int) -> float:
        """Return the factor of the clients' learning rates: below 1 once a plateau was met."""
        plateau = self._plateau.lr / self.federation.lr if self._plateau is not None else 1.0
        return plateau * self.lr_factors.get(round, 1.0)

    def _observe(self, metrics: Mapping[str, float]) -> None:
        """Let the plateau see its metric, where it is among some, and the strategy all."""
        self.observe(metrics)
        plateau = self.federation.plateau
        if plateau is not None and self._plateau is not None and plateau.metric in metrics:
            self._plateau = plateau.update(self._plateau, metrics[plateau.metric])

    @property
    def _stateful(self) -> tuple[Any, ...]:
        """What has state of its own, or None in its place."""
        parts = self._optimizer, self._server_optimizer, self._channel, self._scheduler
        return *parts, self._failures, self._cohorts

    @property
    def can_drop_rounds(self) -> bool:
        """Whether a round that has begun may be dropped: all but the clock stays as it was."""
        return self._scheduler is None

    def saved_vectors(self) -> dict[str, Tensor]:
        """Return all of the server's state besides the model: what a checkpoint holds."""
        saved = self.vectors()
        for part in self._stateful:
            if part is not None:
                saved |= part.vectors()
        if self.federation.shared_threshold:
            saved[THRESHOLD] = self._threshold
        if self._plateau is not None:
            saved[PLATEAU] = torch.tensor(self._plateau.to_list(), dtype=torch.float64)
        return saved

    def load_saved_vectors(self, saved: Mapping[str, Tensor]) -> None:
        """Take back what `saved_vectors` returned."""
        self.load_vectors(saved)
        for part in self._stateful:
            if part is not None:
                part.load(saved)
        if self.federation.shared_threshold:
            self._threshold = saved[THRESHOLD].clone()
        if self._plateau is not None:
            self._plateau = PlateauState.from_list(saved[PLATEAU].tolist())

    def draw_clients(
        self, round: int, count: int, purpose: str = "cohort"
    ) -> npt.NDArray[np.int64]:
        """Return at most `count` ids, ascending, drawn uniformly among those that have joined."""
        return self._cohorts.drawn(round, count, purpose)

    def _vector_size(self, name: str) -> int:
        """Return the length of a term, broadcast or state field."""
        return self._sizes.get(name, self.layout.size)

    @property
    def _sizes(self) -> dict[str, int]:
        channel = self.federation.channel
        own = {} if channel is None else channel.sizes
        return {**self.vector_sizes, **self.federation.vector_sizes, **own}

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model, known from the first round on."""
        assert self._layout is not None, "no model has been seen yet"
        return self._layout

    @property
    def state(self) -> ModelState:
        """The server's model as flat vectors."""
        assert self._state is not None, "no model has been seen yet"
        return self._state

    @property
    def is_small(self) -> bool:
        """Whether all client state fits easily into memory (64 MiB)."""
        if self.store is None:
            return True
        if self.federation.is_real:  # the rows are with the clients
            return False
        return len(self.store.clients()) * self.store.file.row_nbytes <= 64 * 2**20

    def prepare(
        self, arrays: ArrayRecord, checkpoints: Mapping[int, Mapping[int, int]] | None = None
    ) -> None:
        """Read the model's layout and make server and client state (idempotent).

        Args:
            arrays: the model's arrays by name.
            checkpoints: indices of client state kept by checkpoints, when resuming.
        """
        if self._layout is not None:
            return
        tensors = from_record(arrays)
        self._layout = ParameterLayout.of_arrays(tensors, self.federation.buffers)
        self._arrays, self._state = arrays, self._layout.state(tensors)
        if self.federation.optimizer_state == "average":
            slots = self.federation.optimizer_slots
            self._optimizer = SharedOptimizerState(
                {slot: self._vector_size(OPTIMIZER + slot) for slot in slots}
            )
        scalars = state_scalars(self.algorithm)
        if self.algorithm.state_fields or scalars:
            folder = self._client_folder()
            self.store = ClientStateStore(
                folder / "client_state.bin",
                self.algorithm.state_fields,
                tuple(self._vector_size(name) for name in self.algorithm.state_fields),
                self._layout.dtype,
                checkpoints,
                scalars,
            )
        rule = self.server_rule(self.options) or self.federation.server_rule
        if rule is not None:
            self._server_optimizer = ServerOptimizer(rule, self._layout)
        if self.federation.channel is not None:
            private = self.federation.privacy is not None
            divisor = self.federation.clients_per_round if private else None
            channel, seed = self.federation.channel, self.federation.seed
            seed = seed if self.noise_seed is None else self.noise_seed
            self._channel = ServerChannel(channel, self._layout, seed, divisor)
        self._scheduler = self._make_scheduler(self._layout)
        if self._scheduler is not None:
            self._cohorts.seconds = self._scheduler.seconds
        self.begin(self._layout)

    def _client_folder(self) -> Path:
        """Return the folder of what belongs to single clients, made where there is none."""
        folder = self.federation.folder
        if folder is None:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="fedopt-")
            folder = Path(self._folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _open_spool(self, grid: Grid) -> Spool | None:
        """Return a file for each client's change, where these are many and all nodes see it."""
        nbytes = self._cohort_size * self.layout.parameter_nbytes
        shares = bool(getattr(grid, "shares_files", False))
        if not collected(self.algorithm) or not shares or nbytes < spool.SPOOLED_NBYTES:
            return None
        return Spool(self._client_folder() / "changes.bin", self._cohort_size, self.layout)

    def _take(self, arrays: ArrayRecord) -> None:
        """Make `arrays` the current model; a no-op for those that the last round returned."""
        self.prepare(arrays)
        if arrays is not self._arrays:
            self._arrays, self._state = arrays, self.layout.state(from_record(arrays))

    def _sent_down(
        self, round: int, arrays: ArrayRecord, vectors: Mapping[str, Tensor]
    ) -> tuple[ArrayRecord, ArrayRecord]:
        """Return the model and the other vectors as clients receive them."""
        channel, layout = self._channel, self.layout
        sent = {name: v.to(layout.dtype) for name, v in vectors.items()}
        if channel is None:
            return arrays, to_record(sent)
        if channel.compresses:
            parameters = channel.sent_down(round, 0, self.state.parameters)
            arrays = to_record(layout.named(ModelState(parameters, self.state.buffers)))
            whole = [name for name in sent if name not in self._sizes]
            sent |= {n: channel.sent_down(round, 1 + i, sent[n]) for i, n in enumerate(whole)}
        sent |= {name: v.to(layout.dtype) for name, v in channel.broadcast().items()}
        return arrays, to_record(sent)

    def _with_rows(self, blocks: list[Block]) -> list[Block]:
        """Give the blocks the rows of their clients' state."""
        if not self.store:
            return blocks
        read, write = self.store.begin([c for block in blocks for c in block.clients])
        out, first = [], 0
        for block in blocks:
            part = slice(first, first + len(block.clients))
            out.append(Block(block.id, block.clients, block.steps, read[part], write[part]))
            first += len(block.clients)
        return out

    def sum_sizes(self) -> dict[str, int]:
        """Return the length of each vector that clients' updates are summed in, by name."""
        sizes = {name: self._vector_size(name) for name in self.algorithm.terms}
        if self.layout.buffer_size:
            sizes["buffers"] = self.layout.buffer_size
        return sizes

    # Replies -----------------------------------------------------------------------------------

    def _outcome(self, server_round: int, reply: Message) -> TrainingOutcome:
        """Return what a node answered; where that is refused and failures are skipped, nothing.

        Raises:
            ReplyError: the reply is refused, and failures are not skipped.
        """
        blocks = self._dealt.get(reply.metadata.src_node_id, self._blocks)
        sizes = {name: self._vector_size(name) for name in self.algorithm.terms}
        is_lost = self.federation.is_real and reply.has_error()
        layout, examples = self.layout, self.federation.sizes
        expected = Expected(blocks, sizes, layout.buffer_size, examples, layout.size)
        if is_lost:
            return expected.refused(reply.error.reason or "its node does not answer")
        try:
            return expected.outcome(reply)
        except ReplyError as error:
            reason = f"round {server_round}: {error}"
            if not self.federation.skip_failed:
                raise ReplyError(reason) from error
            return expected.refused(str(error))

    def _collect(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[list[BlockSums], Reports, Updates | None]:
        """Decode the replies: sums in the order of the blocks, the rest in that of the clients."""
        updates = Updates()
        sums: list[BlockSums] = []
        rows: list[tuple[Any, ...]] = []
        failures = []
        for reply in replies:
            outcome = self._outcome(server_round, reply)
            seconds = sum(part.seconds for part in outcome.sums)
            self._pace.observe(reply.metadata.src_node_id, seconds, sum(outcome.reports.steps))
            sums.extend(outcome.sums)
            rows.extend(zip(*vars(outcome.reports).values(), strict=True))
            failures.extend(outcome.failures)
            for part in outcome.changes:
                updates.extend(part, None if self._spool is None else self._spool.rows)
        there = {number for part in sums for number in range(part.first, part.stop)}
        missing = [block.id for block in self._blocks if block.id not in there]
        if missing:
            raise RunError(f"round {server_round}: no reply for blocks {missing}")
        if failures:
            failures.sort(key=lambda f: f.client)
            first = failures[0]
            if not self.federation.skip_failed:
                kind = DivergenceError if first.diverged else ClientError
                raise kind(first.reason, client=first.client, round=server_round)
            for failure in failures:
                last_line = failure.reason.strip().splitlines()[-1]
                log.warning(
                    "round %d: client %d skipped: %s", server_round, failure.client, last_line
                )
            if self._failures is not None:
                self._failures.add(server_round, failures)
        rows.sort()
        columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True))
        updates.sort()
        ordered = sorted(sums, key=lambda part: part.first)
        return ordered, Reports(*(list(c) for c in columns)), updates if len(updates) else None

    def _sum(self, server_round: int, sums: Sequence[BlockSums], parameters: Tensor) -> RoundSums:
        """Add the sums of the blocks, given in their order, along the round's trees.

        Args:
            server_round: the round.
            sums: of the blocks.
            parameters: that the clients began with, `[P]` in float64.
        """
        tree = SumTree(self._trees, self._scratch)
        for part in sums:
            tree.add(part)
        if self._scheduler is not None:
            totals = [RoundSums(dict(t.terms), t.buffers, t.weight, t.count) for t in tree.roots]
            return self._scheduler.received(server_round, totals, parameters, self._nothing)
        arrived, wanted = sum(root.count for root in tree.roots), self.federation.min_survivors
        if self.federation.is_real and self._blocks and arrived < wanted:
            raise TooFewClientsError(
                f"round {server_round}: {arrived} of {self._cohort_size} updates arrived, "
                f"deployment.min_survivors is {wanted}"
            )
        is_private = self.federation.privacy is not None
        # A cohort that chance left empty, or that failed: its noise is due all the same.
        if not self._blocks or (is_private and not tree.roots[0].count):
            return self._nothing()
        (total,) = tree.roots
        if not total.count:
            raise RunError(
                f"round {server_round}: no client's update is left "
                "(all failed, or were dropped for doing part of their work)"
            )
        return RoundSums(dict(total.terms), total.buffers, total.weight, total.count)

    def _nothing(self) -> RoundSums:
        """Return the sums over no client."""
        terms = {
            name: torch.zeros(self._vector_size(name), dtype=torch.float64)
            for name in self.algorithm.terms
        }
        return RoundSums(terms, torch.zeros(self.layout.buffer_size, dtype=torch.float64), 0.0, 0)

    def _cut(self, round: int) -> list[Block]:
        """Return the round's clients in blocks, and note the blocks of its sums."""
        federation = self.federation
        if self._scheduler is not None:
            self._scheduler.begin(round)
            blocks, self._trees = self._scheduler.blocks()
            return blocks
        cohort = self._cohorts.cohort(round)
        size = federation.block_size or -(-len(cohort) // MAX_BLOCKS)
        blocks = cut(cohort.tolist(), self._steps(round, cohort).tolist(), size)
        self._trees = [len(blocks)]
        return blocks

    def _steps(self, round: int, cohort: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the steps that each client of a cohort does."""
        federation = self.federation
        return happening_steps(
            federation.work,
            federation.seed,
            round,
            cohort.tolist(),
            federation.sizes[cohort],
            federation.stragglers,
        )

    def _make_scheduler(self, layout: ParameterLayout) -> Scheduler | None:
        """Return what runs the rounds on the virtual clock, where there is one."""
        federation, plan = self.federation, self.federation.system
        if plan is None:
            return None
        down, up = self.client_nbytes(layout)
        work = ScheduledWork(
            federation.sizes,
            federation.work,
            down,
            up,
            plan.passes * self.trainings,
            plan.operations,
            self._steps,
            federation.clients_per_round,
            federation.rounds or 2**62,
        )
        return Scheduler(
            plan.system,
            plan.policy,
            self._cohorts.choose,
            self.sampler.clients,
            work,
            federation.block_size,
        )

    def _unused(self, reports: Reports) -> Reports:
        """Add the clients whose parts are not used, which were not trained, to the reports."""
        if self._scheduler is None:
            return reports
        parts = self._scheduler.current.parts
        known = set(reports.client)
        for place, client in enumerate(parts.clients.tolist()):
            if client not in known:
                examples = int(self.federation.sizes[client])
                planned = self.federation.work.planned_steps(examples)
                reports.add_untrained(client, examples, int(parts.steps[place]), planned)
        return reports.sorted()

    def _recorded(self, server_round: int, reports: Reports) -> RoundRecord:
        """Count losses and bytes: each sampled client downloads, each that trained uploads."""
        trained = [
            (loss, n)
            for loss, n, status in zip(
                reports.train_loss, reports.examples, reports.status, strict=True
            )
            if status in (Status.TRAINED, Status.PARTIAL)
        ]
        down, up = self.client_nbytes(self.layout)
        privacy = self.federation.privacy
        # Clients that skipped every step have no loss.
        known = [(loss, n) for loss, n in trained if math.isfinite(loss)]
        seen = math.fsum(n for _, n in known)
        schedule = None if self._scheduler is None else self._scheduler.current
        bytes_down, bytes_up = len(reports.client) * down, len(trained) * up
        if schedule is not None:
            bytes_down, bytes_up = int(schedule.parts.down.sum()), schedule.arrived
        return RoundRecord(
            server_round,
            reports,
            math.fsum(loss * n for loss, n in known) / seen if known else math.nan,
            bytes_down=bytes_down + self._cohorts.measured * self.layout.nbytes,
            bytes_up=bytes_up + self._cohorts.measured * MEASUREMENT_NBYTES,
            schedule=schedule,
            lr_scale=self.lr_scale(server_round),
            client_nbytes=(down, up),
            epsilon=math.nan if privacy is None else privacy.epsilon(server_round),
        )


def colluded(sums: RoundSums, hostility: Hostility, is_collected: bool) -> RoundSums:
    """Return a round's sums with what its hostile clients send together, where they do.

    Args:
        sums: without them, and with their honest changes.
        hostility: who they are.
        is_collected: whether the changes are those of all clients.
    """
    updates = sums.updates
    if updates is None or not hostility.attack.colludes:
        return sums
    theirs = hostility.among(updates.clients)
    if not theirs:
        return sums
    sent = hostility.attack.crafted(torch.stack([updates.rows[i] for i in theirs]).double())
    if is_collected:
        rows = list(updates.rows)
        for place in theirs:
            rows[place] = sent
        return replace(sums, updates=replace(updates, rows=rows))
    weight = math.fsum(updates.weights[place] for place in theirs)
    delta = sums.terms["delta"] + weight * sent
    return replace(sums, terms={**sums.terms, "delta": delta}, updates=None)


def mean_lr_sum(reports: Reports) -> float:
    """Return the weighted mean of the clients' sums of learning rates, of those that count."""
    weighted = [
        (weight, lr_sum)
        for weight, lr_sum in zip(reports.weight, reports.lr_sum, strict=True)
        if weight > 0
    ]
    total = math.fsum(weight for weight, _ in weighted)
    return math.fsum(w * lr_sum for w, lr_sum in weighted) / total if total else math.nan
