"""The Flower ClientApp: decode a message, train or evaluate, encode the reply.

The same code runs inline, in Ray actors and on a real SuperNode. In a simulation it is made with
the run's experiment; elsewhere it builds one from the configuration in the message.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedopt.client.algorithm import state_scalars
from fedopt.client.handlers import app_of
from fedopt.client.messages import UNSEEN, decode_request, encode_outcome, integer, text
from fedopt.client.rows import RowFolder
from fedopt.client.secure import (
    AGREEMENT,
    MASK,
    SHARES,
    UNMASK,
    unwrapped,
    without_sums,
    wrapped,
)
from fedopt.client.site import Others, Site, digest_of, tellable, told
from fedopt.client.state import ClientRows, RowFile
from fedopt.client.trainer import Trainer
from fedopt.config import Config
from fedopt.data.population import Examples
from fedopt.errors import ConfigError, RefusalError, RunError
from fedopt.experiment import Experiment
from fedopt.models.layout import ModelState
from fedopt.records import from_record, integers, to_record
from fedopt.scratch import Scratch
from fedopt.seeds import seed_torch, torch_seed
from fedopt.server.evaluation import Evaluator, encode_outputs
from fedopt.server.model_average import encode_statistics
from fedopt.server.objective import OBJECTIVE, decode_question, objective_sums

log = logging.getLogger("fedopt")

MOST_PROBED = 2**30
"""Most bytes with which a probe is answered."""


class Node:
    """What a node keeps between messages: its experiment, and what trains and evaluates.

    Args:
        experiment: the run's experiment, or None to build it from the messages.
    """

    def __init__(self, experiment: Experiment | None) -> None:
        self._experiment = experiment
        self._site: Site | None = None
        self._others: Others | None = None
        self._source: str | None = None
        self._told: str | None = None
        self._trainer: Trainer | None = None
        self._evaluator: Evaluator | None = None
        self._test: Examples | None = None
        self._scratch = Scratch()

    def join(self, node_config: Mapping[str, Any]) -> None:
        """Become the client that a SuperNode's configuration describes, where it does."""
        if self._experiment is None and self._site is None:
            self._site = Site.of(node_config)

    def describe(self, content: RecordDict) -> RecordDict:
        """Tell which client this node is, and the shape of its data."""
        config = content.config_records["config"]
        if self._site is None:
            told = ConfigRecord({"refused": "the node has no data-path in its node-config"})
        else:
            source = text(config, "experiment")
            assert source is not None
            told = self._site.facts(Config.from_tree(json.loads(source)))
        return RecordDict({"site": told})

    def probe(self, content: RecordDict) -> RecordDict:
        """Answer with so many bytes, from which a server learns how fast the link is."""
        asked = integer(content.config_records["config"], "answer-bytes")
        payload = torch.zeros(min(max(0, asked), MOST_PROBED), dtype=torch.uint8)
        return RecordDict({"query.probe": to_record({"query.probe": payload})})

    def train(self, content: RecordDict) -> RecordDict:
        """Train the blocks that a message names."""
        request = decode_request(content)
        trainer = self._prepare(content.config_records["config"])[1]
        layout = trainer.engine.layout
        device = torch.device(self._config.engine.device)
        state = layout.state(request.arrays, self._scratch.take(layout.size, layout.dtype))
        start = ModelState(state.parameters.to(device), state.buffers)
        broadcast = {name: vector.to(device) for name, vector in request.broadcast.items()}
        rows = self._rows(trainer, request.state_path)
        if self._site is not None and self._others is not None:
            self._site.check_cohort(request, self._others)
            if self._config.privacy.is_on:
                received = digest_of(request)
                trainer.secret = self._site.noise_seed(self._others.run_key, received)
        outcome = trainer.train(
            request.round,
            request.blocks,
            start,
            broadcast,
            rows,
            request.blocks_of_round,
            request.lr_scale,
            request.cohort,
            None
            if request.changes_path is None
            else RowFile(request.changes_path, ("delta",), (layout.size,), layout.dtype),
        )
        if self._site is None:
            return encode_outcome(outcome)
        self._site.settle(request, rows)
        reply = told(outcome, self._site, self._config)
        agreement = content.config_records["config"].get(AGREEMENT)
        if self._config.deployment.secure != (agreement is not None):
            raise ConfigError("the message and the run do not agree", key="deployment.secure")
        if isinstance(agreement, bytes):
            assert self._others is not None
            keys = b""  # a client that failed takes no part in the sum
            if all(sums.count for sums in outcome.sums):
                part = self._site.secure(self._others.run_key)
                keys = part.begin(agreement, request.round, digest_of(request), outcome)
            without_sums(reply, keys)
        return reply

    def secure(self, content: RecordDict, stage: str) -> RecordDict:
        """Take part in a stage of a secure sum."""
        assert self._site is not None
        key = text(content.config_records["config"], "run-key")
        assert key is not None
        part = self._site.secure(key)
        answer = {SHARES: part.shares, MASK: part.mask, UNMASK: part.unmask}[stage]
        return wrapped(answer(unwrapped(content)))

    def _rows(self, trainer: Trainer, path: str | None) -> ClientRows | None:
        """Return where client state is, where there is any: a real client's on its own volume."""
        if path is None:
            return None
        fields = trainer.algorithm.state_fields
        sizes = tuple(trainer.vector_size(name) for name in fields)
        scalars = state_scalars(trainer.algorithm)
        file = RowFile(path, fields, sizes, trainer.engine.layout.dtype, scalars)
        if self._site is None or self._others is None:
            return file
        return RowFolder(self._site.run_folder(self._others.run_key) / "rows", file)

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Evaluate the model on a split of the data of the clients that a message names."""
        config = content.config_records["config"]
        experiment, trainer = self._prepare(config)
        self._check_measures(content, is_training=config["split"] != "validation")
        evaluator, state = self._evaluation(content)
        clients = integers(config, "clients")
        kept, part = {}, experiment.personal
        rows = self._rows(trainer, text(config, "state-path"))
        if rows is not None:
            kept = rows.read(integers(config, "state-read"))
        round, name = integer(config, "server-round"), config["split"]
        population = experiment.population_at(round)
        split = population.validation if name == "validation" else population.train
        if name == UNSEEN:  # of a client that is held out, whatever the others are pooled to
            split, part = experiment.members_at(round).train, None
        measured = []
        for place, client in enumerate(clients):
            own = state if part is None else part.composed(state, kept, place)
            measured.append(evaluator.measure(own, split(client)))
        columns: dict[str, list[int] | list[float]] = {
            "client": clients,
            "examples": [m.examples for m in measured],
            "loss": [m.loss for m in measured],
            "accuracy": [m.accuracy for m in measured],
        }
        record = MetricRecord()
        for column, values in columns.items():
            record[column] = values
        where = UNSEEN if name == UNSEEN else "clients"
        return RecordDict({where: record})

    def evaluate_test(self, content: RecordDict) -> RecordDict:
        """Evaluate the model on the batches of the test set that a message names."""
        config = content.config_records["config"]
        experiment = self._prepare(config)[0]
        evaluator, state = self._evaluation(content)
        if "drift-round" in config:
            test = experiment.drifted_test(integer(config, "drift-round"))
        else:
            test = self._test = self._test or experiment.population.test()
        assert test is not None
        outputs = evaluator.outputs(state, test, integers(config, "batches"))
        return encode_outputs(outputs)

    def batch_statistics(self, content: RecordDict) -> RecordDict:
        """Compute BatchNorm's statistics of the model on the clients that a message names."""
        config = content.config_records["config"]
        experiment = self._prepare(config)[0]
        self._check_measures(content, is_training=True)
        evaluator, state = self._evaluation(content)
        round = integer(config, "server-round")
        population = experiment.population_at(round)
        examples, buffers = {}, {}
        for client in integers(config, "clients"):
            data = population.train(client)
            if data.size < 2:  # one example has no variance
                continue
            seed = torch_seed(experiment.config.seed, "batch_norm", round, client)
            seed_torch(seed, torch.device(experiment.config.engine.device))
            examples[client] = data.size
            buffers[client] = evaluator.batch_statistics(state, data)
        return encode_statistics(examples, buffers)

    def objective(self, content: RecordDict) -> RecordDict:
        """Add up losses, and gradients of them, of the model on clients' training data.

        Raises:
            RefusalError: the client is a real one, of whose training data these tell too much.
        """
        if self._site is not None:
            raise RefusalError(
                "the client tells no losses and gradients of its training examples",
                key="evaluation.training_clients",
            )
        experiment = self._prepare(content.config_records["config"])[0]
        evaluator, state = self._evaluation(content)
        question = decode_question(content)
        train = experiment.population_at(question.round).train
        return encode_outcome(objective_sums(evaluator, state, train, question))

    def _check_measures(self, content: RecordDict, *, is_training: bool) -> None:
        """Refuse a real client's measurements where these are withheld.

        Raises:
            RefusalError: the site shares none, updates are private, or the measurement is of the
                training examples, of which a secure sum is to hide what one client has.
        """
        if self._site is None:
            return
        config = self._config
        if not self._site.share_metrics or config.privacy.is_on:
            raise RefusalError("the client does not tell what it measures", key="share-metrics")
        if is_training and config.deployment.secure:
            raise RefusalError(
                "the client tells no measurement of its training examples beside a secure sum",
                key="deployment.secure",
            )

    def _evaluation(self, content: RecordDict) -> tuple[Evaluator, ModelState]:
        """Return the evaluator and the model that a message brings."""
        assert self._experiment is not None
        if self._evaluator is None:
            self._evaluator = Evaluator(self._experiment)
        arrays = content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        return self._evaluator, self._evaluator.layout.state(from_record(arrays))

    @property
    def _config(self) -> Config:
        assert self._experiment is not None
        return self._experiment.config

    def _prepare(self, told: ConfigRecord) -> tuple[Experiment, Trainer]:
        """Return experiment and trainer, built where the message brings a new configuration."""
        source, others = text(told, "experiment"), text(told, "others")
        is_stale = self._source is not None and (source, others) != (self._source, self._told)
        if self._experiment is None or is_stale:
            if source is None:
                raise ConfigError("the message brings no experiment, and the node has none")
            config = Config.from_tree(json.loads(source))
            if self._site is None:
                self._experiment = Experiment.from_config(config)
            elif others is None:
                raise ConfigError("the message tells nothing of the other clients", key="others")
            else:
                self._others = Others.of(others)
                self._experiment = self._site.experiment(config, self._others)
            self._source, self._told = source, others
            self._trainer, self._evaluator, self._test = None, None, None
        if self._trainer is None:
            self._trainer = self._experiment.trainer()
        return self._experiment, self._trainer

    def answer(
        self, message_type: str, content: RecordDict, node_config: Mapping[str, Any]
    ) -> RecordDict:
        """Return the answer to a message.

        Args:
            message_type: one of `MESSAGES`.
            content: of the message.
            node_config: of the SuperNode, where there is one.
        """
        torch.set_num_threads(1)
        self.join(node_config)
        if self._site is None:
            return MESSAGES[message_type](self, content)
        try:
            return MESSAGES[message_type](self, content)
        except Exception as error:  # whose words may quote examples
            log.exception("a message of type %s cannot be answered", message_type)
            raise RunError(tellable(error)) from None


MESSAGES: dict[str, Callable[[Node, RecordDict], RecordDict]] = {
    "train": Node.train,
    "evaluate": Node.evaluate,
    "evaluate.test": Node.evaluate_test,
    "evaluate.batch_norm": Node.batch_statistics,
    OBJECTIVE: Node.objective,
    "query.describe": Node.describe,
    "query.probe": Node.probe,
    SHARES: lambda node, content: node.secure(content, SHARES),
    MASK: lambda node, content: node.secure(content, MASK),
    UNMASK: lambda node, content: node.secure(content, UNMASK),
}
"""Type of a message -> what answers it."""


def client_app(experiment: Experiment | None = None) -> ClientApp:
    """Return the ClientApp.

    Args:
        experiment: the run's experiment; None builds it from the configuration that arrives with
            the messages, as on a real node.
    """
    return app_of(Node(experiment).answer)
