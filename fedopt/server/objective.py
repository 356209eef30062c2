"""The global model on the clients' training data: its loss, and how their gradients differ.

Clients are measured in blocks, as they are trained: a node adds up its blocks' losses, gradients
and squared norms of gradients in float64 along a fixed tree, as far as its blocks reach, and
answers with a few sums. So the columns have the same bits whatever the number of nodes. Real
clients, of whom each is a node, are not asked.

The model is in evaluation mode: BatchNorm uses the running statistics of the server, dropout does
nothing. So these gradients are not the ones that SCAFFOLD's option I takes, in training mode,
though the same function computes both.

Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx), equation 1,
definition 3, and section 5.3.3 with figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedopt.client.messages import content_of, decode_outcome, decode_request, encode_request
from fedopt.client.sums import BlockSums, SumTree
from fedopt.client.trainer import Block, TrainingOutcome
from fedopt.data.population import Examples
from fedopt.errors import RunError
from fedopt.models.layout import ModelState
from fedopt.server.blocks import MAX_BLOCKS, cut, deal
from fedopt.server.evaluation import Evaluator

OBJECTIVE = "evaluate.objective"
"""Type of the message that asks for these sums."""

LOSS, GRADIENT, SQUARED_NORM = "loss", "gradient", "squared_norm"
"""Names of the sums, each weighted by the clients' examples."""


@dataclass(frozen=True)
class Question:
    """What a node is asked for.

    Args:
        round: communication round, from 1, after which the model is measured.
        blocks: the node's clients.
        blocks_of_round: blocks on this node and on others.
        gradients: whether gradients are measured as well as losses.
    """

    round: int
    blocks: Sequence[Block]
    blocks_of_round: Sequence[int]
    gradients: bool


def objective_blocks(clients: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> list[Block]:
    """Return clients in at most `MAX_BLOCKS` blocks, which depend on nothing but the clients.

    Args:
        clients: ids, ascending.
        sizes: training examples of each client of the population, `[N]`.
    """
    size = -(-len(clients) // MAX_BLOCKS)
    return cut(clients.tolist(), sizes[clients].tolist(), size)


def objective_questions(
    round: int,
    blocks: Sequence[Block],
    arrays: ArrayRecord,
    config: ConfigRecord,
    grid: Grid,
    gradients: bool,
) -> list[Message]:
    """Return one message a node that asks for the sums of its blocks.

    Args:
        round: communication round, from 1.
        blocks: of all clients that are measured.
        arrays: the model's arrays by name.
        config: what else every message holds.
        grid: reaches the nodes.
        gradients: whether gradients are measured as well as losses.
    """
    told = ConfigRecord({**config, "gradients": gradients})
    cohort = sum(len(block.clients) for block in blocks)
    of_round, nothing = [len(blocks)], ArrayRecord()
    nodes = sorted(grid.get_node_ids())
    if not nodes:
        raise RunError("no node is connected")
    return [
        Message(
            encode_request(round, mine, arrays, nothing, None, 1.0, told, of_round, cohort),
            dst_node_id=node,
            message_type=OBJECTIVE,
            group_id=str(round),
        )
        for node, mine in deal(blocks, nodes).items()
    ]


def decode_question(content: RecordDict) -> Question:
    """Return what a message asks for."""
    request = decode_request(content)
    gradients = bool(content.config_records["config"]["gradients"])
    return Question(request.round, request.blocks, request.blocks_of_round, gradients)


def objective_sums(
    evaluator: Evaluator,
    state: ModelState,
    train: Callable[[int], Examples],
    question: Question,
) -> TrainingOutcome:
    """Return the sums over a node's clients, added up as far as its blocks reach.

    Client k, with n_k examples and the mean loss F_k over all of them, adds n_k F_k, n_k grad F_k
    and n_k |grad F_k|^2, so that its weight is n_k.

    Args:
        evaluator: of the model.
        state: the model's values, w.
        train: client id -> its training examples, at least one.
        question: what is asked for.
    """
    tree = SumTree(question.blocks_of_round)
    for block in question.blocks:
        loss, squared_norm, weight = 0.0, 0.0, 0
        total: Tensor | None = None
        for client in block.clients:
            examples = train(client)
            n = len(examples.y)
            if question.gradients:
                measured, gradient = evaluator.gradient(state, examples)
                squared_norm += n * float(gradient.dot(gradient))
                total = gradient.mul_(n) if total is None else total.add_(gradient, alpha=n)
            else:
                measured = evaluator.measure(state, examples)
            loss += n * measured.loss
            weight += n
        terms = {LOSS: _number(loss)}
        if total is not None:
            terms |= {GRADIENT: total.cpu(), SQUARED_NORM: _number(squared_norm)}
        nothing = torch.zeros(0, dtype=torch.float64)
        tree.add(
            BlockSums(block.id, block.id + 1, terms, nothing, float(weight), len(block.clients))
        )
    return TrainingOutcome(tree.roots)


def objective_columns(replies: Iterable[Message], blocks: int) -> dict[str, float]:
    """Return the columns of `rounds.csv` that the nodes' sums come to.

    Args:
        replies: of the nodes.
        blocks: of all clients that are measured.

    Returns:
        With p_k = n_k / sum of the n, the share of client k in the examples of the clients that
        are measured, f = sum_k p_k F_k and all gradients at the global model w:

        `objective`, f(w); and where gradients were asked for
        `gradient_variance`, sum_k p_k |grad F_k(w) - grad f(w)|^2, which is 0 where the clients'
        data are the same, to about 1e-16 of the mean squared norm;
        `gradient_dissimilarity`, B(w) = sqrt(sum_k p_k |grad F_k(w)|^2 / |grad f(w)|^2), which
        is at least 1; NaN where |grad f(w)| = 0.

    Raises:
        RunError: a node failed, or a block is missing.
    """
    parts = [part for reply in replies for part in decode_outcome(content_of(reply)).sums]
    tree = SumTree(blocks)
    for part in sorted(parts, key=lambda part: part.first):
        tree.add(part)
    if [(root.first, root.stop) for root in tree.roots] != [(0, blocks)]:
        raise RunError("not all clients' training data were measured: a node did not answer")
    (root,) = tree.roots
    columns = {"objective": float(root.terms[LOSS]) / root.weight}
    if GRADIENT not in root.terms:
        return columns
    mean = root.terms[GRADIENT] / root.weight
    norm_of_mean = float(mean.dot(mean))  # |grad f|^2
    mean_of_norms = float(root.terms[SQUARED_NORM]) / root.weight  # sum_k p_k |grad F_k|^2
    if mean_of_norms < norm_of_mean:  # by rounding
        mean_of_norms = norm_of_mean
    columns["gradient_variance"] = mean_of_norms - norm_of_mean
    columns["gradient_dissimilarity"] = (
        math.sqrt(mean_of_norms / norm_of_mean) if norm_of_mean else math.nan
    )
    return columns


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
