"""What a node answers, checked before it enters a model: names, lengths, counts, finite numbers.

A reply that is not what was asked for, or not finite, is refused as a whole: its sums cannot be
told apart any more. Its clients then count as failed, and so do clients whose training failed; how
often one may fail is the business of `FailureCounts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message
from torch import Tensor

from fedopt.client.messages import content_of, decode_outcome
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import Block, Failure, Reports, Status, TrainingOutcome
from fedopt.errors import ClientError, ReplyError

FAILURES = "client_failures"
"""Name of the clients' failures among a checkpoint's vectors."""


_UNREADABLE = (LookupError, TypeError, ValueError, ArithmeticError, AssertionError, AttributeError)
"""What decoding raises where a record is missing or of another kind."""


class Expected:
    """What the reply of a node must be.

    Args:
        blocks: what the node was asked to train.
        sizes: length of each term of the sums, by name.
        buffers: Q, length of the sums of the buffers.
        examples: of each client, `[N]`, for the reports of a reply that is refused.
        columns: P, length of a single client's change.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        sizes: Mapping[str, int],
        buffers: int,
        examples: npt.NDArray[np.int64],
        columns: int,
    ) -> None:
        self._blocks = {block.id: block for block in blocks}
        self._sizes = sizes
        self._buffers = buffers
        self._examples = examples
        self._columns = columns

    def outcome(self, reply: Message) -> TrainingOutcome:
        """Return what a reply holds.

        Raises:
            ReplyError: it is not what was asked for, or not finite; the message names the node,
                and the client where one alone is to blame.
            RunError: the node answered with an error.
        """
        node = f"node {reply.metadata.src_node_id}"
        content = content_of(reply)
        try:
            outcome = decode_outcome(content)
            problem = self._problem(outcome)
        except _UNREADABLE as error:
            says = f"{type(error).__name__}: {error}"
            raise ReplyError(f"{node} sent a reply that cannot be read ({says})") from error
        if problem:
            raise ReplyError(f"{node} sent {problem}; its clients: {self._named_clients()}")
        return outcome

    def refused(self, reason: str) -> TrainingOutcome:
        """Return an outcome in which all clients failed, for a reason."""
        reports, sums, failures = Reports(), [], []
        for block in self._blocks.values():
            terms = {n: torch.zeros(s, dtype=torch.float64) for n, s in self._sizes.items()}
            buffers = torch.zeros(self._buffers, dtype=torch.float64)
            sums.append(BlockSums(block.id, block.id + 1, terms, buffers))
            for client, steps in zip(block.clients, block.steps, strict=True):
                examples = int(self._examples[client])
                reports.add_untrained(client, examples, steps, steps, Status.FAILED)
                failures.append(Failure(client, reason, diverged=False))
        return TrainingOutcome(sums, reports, failures)

    @property
    def _clients(self) -> list[int]:
        return sorted(client for block in self._blocks.values() for client in block.clients)

    def _named_clients(self) -> str:
        clients = self._clients
        shown = ", ".join(map(str, clients[:10]))
        return shown if len(clients) <= 10 else f"{shown} and {len(clients) - 10} more"

    def _problem(self, outcome: TrainingOutcome) -> str | None:
        """Return what is wrong with an outcome, or None."""
        reports = outcome.reports
        columns = {len(column) for column in vars(reports).values()}
        if len(columns) > 1:
            return f"columns of reports of unequal lengths, {sorted(columns)}"
        if sorted(reports.client) != self._clients:
            return f"reports of {len(reports.client)} clients that are not those it was asked for"
        known = {int(status) for status in Status}
        if not set(reports.status) <= known:
            return f"a status that is not one of {sorted(known)}"
        spans = [(part.first, part.stop) for part in outcome.sums]
        most = max(self._blocks, default=0) + 1
        if any(not 0 <= first < stop <= most for first, stop in spans):  # before they are listed
            return f"sums of the blocks {spans[:5]}, not of {sorted(self._blocks)}"
        covered = sorted(number for part in outcome.sums for number in range(part.first, part.stop))
        if covered != sorted(self._blocks):
            return f"sums of the blocks {covered}, not of {sorted(self._blocks)}"
        for part in outcome.sums:
            problem = self._problem_of_sums(part, reports)
            if problem:
                return problem
        return self._problem_of_changes(outcome)

    def _problem_of_sums(self, part: BlockSums, reports: Reports) -> str | None:
        if set(part.terms) != set(self._sizes):
            return f"sums of {sorted(part.terms)}, not of {sorted(self._sizes)}"
        for name, total in (*part.terms.items(), ("buffers", part.buffers)):
            size = self._sizes.get(name, self._buffers)
            if tuple(total.shape) != (size,) or total.dtype != torch.float64:
                shape = f"{tuple(total.shape)} {str(total.dtype).removeprefix('torch.')}"
                return f'a sum "{name}" of shape {shape}, not ({size},) float64'
        inside = {
            c for number in range(part.first, part.stop) for c in self._blocks[number].clients
        }
        used = (int(Status.TRAINED), int(Status.PARTIAL))
        weights = [
            weight
            for client, status, weight in zip(
                reports.client, reports.status, reports.weight, strict=True
            )
            if client in inside and status in used
        ]
        if part.count != len(weights):
            return f"sums of {part.count} clients, but reports of {len(weights)} that trained"
        if not math.isclose(part.weight, math.fsum(weights), rel_tol=1e-9, abs_tol=1e-12):
            return f"sums of weight {part.weight:g}, but reports of {math.fsum(weights):g}"
        if not part.count:
            return None
        for name, total in (*part.terms.items(), ("buffers", part.buffers)):
            if not is_finite(total):
                return f'a sum "{name}" that is not finite'
        return None

    def _problem_of_changes(self, outcome: TrainingOutcome) -> str | None:
        asked = set(self._clients)
        for part in outcome.changes:
            if not set(part.clients) <= asked or len(part.weights) != len(part.clients):
                return "changes of clients that are not those it was asked for"
            in_file = bool(part.places)
            shape = (0 if in_file else len(part.clients), self._columns)
            if tuple(part.rows.shape) != shape:
                return f"changes of shape {tuple(part.rows.shape)}, not {shape}"
            for client, row in zip(part.clients, part.rows, strict=False):
                if not is_finite(row):
                    return f"a change of client {client} that is not finite"
        return None


class FailureCounts:
    """How often each client has failed, and whether that is too often.

    Args:
        limit: failures of a client that are borne, >= 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[int, int] = {}

    def add(self, round: int, failures: Sequence[Failure]) -> None:
        """Count a round's failures.

        Raises:
            ClientError: a client has failed more often than is borne.
        """
        for failure in failures:
            count = self._counts.get(failure.client, 0) + 1
            self._counts[failure.client] = count
            if count > self._limit:
                raise ClientError(
                    f"for the {count}. time, engine.max_client_failures is {self._limit}; "
                    f"this time: {failure.reason}",
                    client=failure.client,
                    round=round,
                )

    def vectors(self) -> dict[str, Tensor]:
        """Return the counts for a checkpoint: pairs of client and failures, `[n, 2]`."""
        pairs = sorted(self._counts.items())
        return {FAILURES: torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)}

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        self._counts = dict(vectors[FAILURES].tolist()) if FAILURES in vectors else {}


def is_finite(vector: Tensor) -> bool:
    """Return whether all values are finite: the sum tells fast, unless it overflows itself."""
    return math.isfinite(vector.sum()) or bool(torch.isfinite(vector).all())
