"""Local training of blocks of clients, from parameters to sums. Knows neither Flower nor Ray.

A block is a slice of the round's cohort that is trained and summed in one place. Its sums depend
on nothing but (parameters, broadcast, client state, plans): not on the worker, nor on what the
worker did before. Sums of blocks are added along the round's tree, as far as the worker's reach.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    BUFFERS,
    PARAMETERS,
    THRESHOLD,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Senders,
    Vectors,
    collected,
    is_weighted,
    needs_start_loss,
    second_training,
    sent,
)
from fedopt.client.attacks import Hostility
from fedopt.client.curriculum import Selected, Selector
from fedopt.client.plan import ClientPlan, LocalWork, plan_clients
from fedopt.client.rates import RatePlan
from fedopt.client.scoring import ExampleScorer
from fedopt.client.stacked_batches import group_padding
from fedopt.client.state import ClientRows, RowFile
from fedopt.client.sums import BlockSums, SumTree, add_weighted
from fedopt.client.thrift import Trains, train_thriftily
from fedopt.data.population import Examples, Population
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.scratch import Scratch


class Engine(Trains, Protocol):
    """Trains groups of at most `group_size` clients."""

    @property
    def group_size(self) -> int:
        """The most clients that `train` takes at once."""
        ...

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model's parameters."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        ...


class Status(IntEnum):
    """What became of a sampled client."""

    TRAINED = 0
    PARTIAL = 1
    DROPPED = 2
    FAILED = 3


@dataclass(frozen=True)
class Block:
    """A slice of the cohort.

    Args:
        id: position of the block in the round.
        clients: client ids.
        steps: the steps that each of them does.
        read_rows: row of each client's state, -1 where it has none.
        write_rows: row for each client's new state.
        change_rows: row for each client's change, where changes go to a file.
    """

    id: int
    clients: Sequence[int]
    steps: Sequence[int]
    read_rows: Sequence[int] = ()
    write_rows: Sequence[int] = ()
    change_rows: Sequence[int] = ()


@dataclass
class Reports:
    """What happened to each client, in columns (see `fedopt.analysis.columns`)."""

    client: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    planned_steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    update_norm: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    skipped_steps: list[int] = field(default_factory=list)
    lr_sum: list[float] = field(default_factory=list)
    available_share: list[float] = field(default_factory=list)
    selected_share: list[float] = field(default_factory=list)

    def add(self, plan: ClientPlan, status: Status) -> None:
        """Append one client whose training came to nothing."""
        self.add_untrained(plan.client, plan.examples, plan.steps, plan.planned_steps, status)

    def extend(
        self,
        plans: Sequence[ClientPlan],
        statuses: Sequence[int],
        losses: Sequence[float],
        norms: Sequence[float],
        weights: Sequence[float],
        skipped: Sequence[int],
        lr_sums: Sequence[float],
        available_shares: Sequence[float],
        selected_shares: Sequence[float],
    ) -> None:
        """Append a group of clients."""
        self.client.extend([plan.client for plan in plans])
        self.status.extend([int(status) for status in statuses])
        self.examples.extend([plan.examples for plan in plans])
        self.steps.extend([plan.steps for plan in plans])
        self.planned_steps.extend([plan.planned_steps for plan in plans])
        self.train_loss.extend(losses)
        self.update_norm.extend(norms)
        self.weight.extend(weights)
        self.skipped_steps.extend(skipped)
        self.lr_sum.extend(lr_sums)
        self.available_share.extend(available_shares)
        self.selected_share.extend(selected_shares)

    def add_untrained(
        self,
        client: int,
        examples: int,
        steps: int,
        planned: int,
        status: Status = Status.DROPPED,
    ) -> None:
        """Append a client that was sampled, but whose work could not have been used."""
        nan = math.nan
        row = (
            client,
            int(status),
            examples,
            steps,
            planned,
            nan,
            nan,
            0.0,
            0,
            nan,
            nan,
            nan,
        )
        for column, value in zip(vars(self).values(), row, strict=True):
            column.append(value)

    def sorted(self) -> Reports:
        """Return the reports in ascending order of the clients."""
        rows = sorted(zip(*vars(self).values(), strict=True), key=lambda row: row[0])
        columns = list(zip(*rows, strict=True))
        return Reports(*(list(column) for column in columns))


@dataclass
class Failure:
    """Why a client failed: its traceback, or that its numbers are not finite."""

    client: int
    reason: str
    diverged: bool


@dataclass
class Changes:
    """The changes of some clients, where the server wants each for itself.

    Args:
        clients: ids.
        weights: of each.
        rows: change of the parameters, `[G, P]` on the CPU; `[0, P]` where they are in a file.
        buffers: change of the buffers, `[G, Q]` in float64.
        places: their rows in that file.
    """

    clients: list[int]
    weights: list[float]
    rows: Tensor
    buffers: Tensor
    places: list[int] = field(default_factory=list)


@dataclass
class TrainingOutcome:
    """What a worker returns for its blocks of a round.

    Args:
        sums: in the order of the blocks.
        reports: one entry a client.
        failures: why clients failed.
        changes: each client's change, where the algorithm collects them or clients collude.
    """

    sums: list[BlockSums]
    reports: Reports = field(default_factory=Reports)
    failures: list[Failure] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)


Placed = tuple[int, ClientPlan]
"""A client's position in its block, and its plan."""


class Trainer:
    """Trains blocks of clients.

    Args:
        population: the clients' examples.
        engine: trains groups.
        algorithm: the strategy's client side.
        work: the amount of local work.
        rates: learning rates, and momenta where they are cycled.
        seed: the run's seed.
        weight_by_examples: whether an update weighs as many as its client has examples, or 1.
        drop_partial: whether a client that does fewer steps than planned is dropped.
        vector_sizes: length of the terms and state fields that are not P long, by name.
        selector: selects the examples of the clients' steps, or None.
        scorer: measures losses at the server's model, where the algorithm wants them.
        hostility: which clients are hostile and what they do, or None.
        population_at: the population as it is in a round; None: as it is always.

    Attributes:
        raises: whether what a client's training raises is raised here, rather than reported.
        only: the one client to train, to the bits that it has among the others; None: all.
        secret: seed of the noise that protects clients, where it is not the run's; see `Senders`.
    """

    def __init__(
        self,
        population: Population,
        engine: Engine,
        algorithm: LocalAlgorithm,
        work: LocalWork,
        rates: RatePlan,
        seed: int,
        weight_by_examples: bool,
        drop_partial: bool,
        vector_sizes: Mapping[str, int] | None = None,
        selector: Selector | None = None,
        scorer: ExampleScorer | None = None,
        hostility: Hostility | None = None,
        population_at: Callable[[int], Population] | None = None,
    ) -> None:
        self.population = population
        self._population_at = population_at
        self.engine = engine
        self.algorithm = algorithm
        self._work = work
        self._rates = rates
        self._seed = seed
        self._weight_by_examples = weight_by_examples
        self._drop_partial = drop_partial
        self._vector_sizes = dict(vector_sizes or {})
        self._selector = selector
        self._scorer = scorer
        self._hostility = hostility
        self._cohort = 1
        self.raises = False
        self.only: int | None = None
        self.secret: int | None = None
        self._changes: RowFile | None = None
        self._lr_scale = 1.0
        self._scratch = Scratch()

    def train(
        self,
        round: int,
        blocks: Sequence[Block],
        start: ModelState,
        broadcast: Vectors,
        rows: ClientRows | None,
        blocks_of_round: int | Sequence[int],
        lr_scale: float = 1.0,
        cohort: int | None = None,
        changes: RowFile | None = None,
    ) -> TrainingOutcome:
        """Train the clients of some blocks.

        Args:
            round: communication round, from 1.
            blocks: what to train, in ascending order of their ids.
            start: the server's parameters and buffers, on the training device.
            broadcast: what else the server sent, `[P]` each.
            rows: file of client state, where the algorithm keeps any.
            blocks_of_round: all blocks of the round, here and elsewhere; or those of each of its
                sums, where there are several.
            lr_scale: factor of all learning rates, > 0.
            cohort: clients of the round, here and elsewhere; None for those of the blocks.
            changes: file for each client's change, where the server wants these in one.
        """
        self._lr_scale = lr_scale
        self._changes = changes
        self._cohort = cohort or sum(len(block.clients) for block in blocks)
        broadcast = {PARAMETERS: start.parameters, BUFFERS: start.buffers, **broadcast}
        tree = SumTree(blocks_of_round)
        outcome = TrainingOutcome(tree.roots)
        self._read_ahead(blocks[:1])
        for place, block in enumerate(blocks):
            self._read_ahead(blocks[place + 1 : place + 2])
            started = time.perf_counter()
            sums = self._empty_sums(block.id)
            everyone = self._plans(round, block)
            for first in range(0, len(everyone), self.engine.group_size):
                group = everyone[first : first + self.engine.group_size]
                self._train_group(round, block, group, start, broadcast, rows, sums, outcome)
            if not sums.count:
                for total in sums.terms.values():
                    total.zero_()
            sums.terms = {name: total.cpu() for name, total in sums.terms.items()}
            sums.seconds = time.perf_counter() - started
            tree.add(sums)
        return outcome

    def _read_ahead(self, blocks: Sequence[Block]) -> None:
        """Have examples that lie in a file read while others are trained on."""
        read = getattr(self.population, "read_ahead", None)
        if read is not None:
            for block in blocks:
                read(block.clients)

    def _plans(self, round: int, block: Block) -> list[Placed]:
        """Return the plans of a block's clients, those with the most steps first."""
        examples = self.population.sizes[list(block.clients)].tolist()
        plans = plan_clients(
            self._work,
            self._seed,
            round,
            block.clients,
            examples,
            self._rates,
            block.steps,
            self._lr_scale,
        )
        # Engines that stack clients rely on the order, and pad less. The sort is stable.
        return sorted(enumerate(plans), key=lambda placed: -placed[1].steps)

    def vector_size(self, name: str) -> int:
        """Return the length of a term or state field."""
        return self._vector_sizes.get(name, self.engine.layout.size)

    def _empty_sums(self, block_id: int) -> BlockSums:
        layout = self.engine.layout
        # Sums are made where the updates are: on an accelerator only the sums travel. Their
        # values are arbitrary until a client is in them.
        terms = {
            name: self._scratch.take(self.vector_size(name), device=self.engine.device)
            for name in self.algorithm.terms
        }
        buffers = torch.zeros(layout.buffer_size, dtype=torch.float64)
        return BlockSums(block_id, block_id + 1, terms, buffers)

    def _train_group(
        self,
        round: int,
        block: Block,
        group: Sequence[Placed],
        start: ModelState,
        broadcast: Vectors,
        rows: ClientRows | None,
        sums: BlockSums,
        outcome: TrainingOutcome,
    ) -> None:
        plans, kept = [], []
        for position, plan in group:
            if plan.is_partial and self._drop_partial:
                outcome.reports.add(plan, Status.DROPPED)
            else:
                plans.append(plan)
                kept.append(position)
        padding = None
        if self.only is not None:
            is_alone = len(plans) < 2 or self._selector is not None
            padding = None if is_alone else group_padding(plans)
            alone = [i for i, plan in enumerate(plans) if plan.client == self.only]
            plans, kept = [plans[i] for i in alone], [kept[i] for i in alone]
        if not plans:
            return
        try:
            state = self._read(rows, block, kept)
            examples = self._examples(round, plans)
            terms = replace(self.algorithm.begin(broadcast, state), padding=padding)
            selected = None
            if self._selector is not None:
                selected = self._select(round, start, plans, examples, broadcast)
                plans, terms = selected.plans, replace(terms, thresholds=selected.thresholds)
            result = train_thriftily(self.engine, start, round, plans, examples, terms)
            result = self._more(result, start, round, plans, examples, broadcast, state)
            update = self.algorithm.finish(result, broadcast, state)
            update = self._sent(update, round, plans, broadcast, state)
            if selected is not None and THRESHOLD in self.algorithm.terms:
                assert selected.quantiles is not None
                own = {THRESHOLD: selected.quantiles.to(result.delta).unsqueeze(1)}
                update = replace(update, terms={**update.terms, **own})
        except Exception:
            if self.raises:
                raise
            if len(plans) > 1:  # one by one: who fails alone is to blame, the others are not
                for placed in sorted(zip(kept, plans, strict=True), key=lambda placed: placed[0]):
                    self._train_group(round, block, [placed], start, broadcast, rows, sums, outcome)
                return
            # The stage is in the traceback; the run decides whether to stop or to go on.
            reason = traceback.format_exc()
            for plan in plans:
                outcome.failures.append(Failure(plan.client, reason, diverged=False))
                outcome.reports.add(plan, Status.FAILED)
            return
        shares = None if selected is None else selected.available
        self._add(plans, kept, block, result, update, rows, sums, outcome, shares)

    def _examples(self, round: int, plans: Sequence[ClientPlan]) -> Examples:
        """Return the examples of a group, as its clients see them in a round."""
        clients = [plan.client for plan in plans]
        at = self._population_at
        examples = (self.population if at is None else at(round)).train_many(clients)
        if self._hostility is None:
            return examples
        return self._hostility.examples(examples, clients, [plan.examples for plan in plans])

    def _sent(
        self,
        update: ClientUpdate,
        round: int,
        plans: Sequence[ClientPlan],
        broadcast: Vectors,
        state: Vectors,
    ) -> ClientUpdate:
        """Return what arrives of a group's update."""
        clients = [plan.client for plan in plans]
        senders = Senders(self._seed, round, clients, self._cohort, self.secret)
        if self._hostility is not None:
            update = self._hostility.update(update, senders)
        return sent(self.algorithm, update, broadcast, state, senders)

    def _read(self, rows: ClientRows | None, block: Block, kept: Sequence[int]) -> Vectors:
        """Return the state of the clients at some places of a block, on the training device."""
        if rows is None:
            return {}
        state = rows.read([block.read_rows[place] for place in kept])
        return {n: v.to(self.engine.device) if v.dim() > 1 else v for n, v in state.items()}

    def _more(
        self,
        result: LocalResult,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        broadcast: Vectors,
        state: Vectors,
    ) -> LocalResult:
        """Add what else the algorithm wants to know of a group."""
        if self._scorer is not None and needs_start_loss(self.algorithm):
            losses = self._scorer.losses(start, examples)
            parts = torch.split(losses, [plan.examples for plan in plans])
            means = torch.stack([part.mean() for part in parts])
            result = replace(result, start_loss=means)
        terms = second_training(self.algorithm, broadcast, state)
        if terms is not None:
            result = replace(result, delta=result.delta.clone())  # an engine uses its memory again
            personal = train_thriftily(self.engine, start, round, plans, examples, terms)
            result = replace(result, personal=personal)
        return result

    def _colluding(self, clients: Sequence[int]) -> list[int]:
        """Return the places of the clients that send what they make of their updates together."""
        hostility = self._hostility
        if hostility is None or not hostility.attack.colludes:
            return []
        return hostility.among(clients)

    def _select(
        self,
        round: int,
        start: ModelState,
        plans: Sequence[ClientPlan],
        examples: Examples,
        broadcast: Vectors,
    ) -> Selected:
        """Return what a group trains on."""
        assert self._selector is not None
        sent = broadcast.get(THRESHOLD)

        def train(terms: LocalTerms) -> LocalResult:
            return train_thriftily(self.engine, start, round, plans, examples, terms)

        threshold = None if sent is None else float(sent)
        return self._selector.select(round, start, plans, examples, threshold, train)

    def _add(
        self,
        plans: Sequence[ClientPlan],
        kept: Sequence[int],
        block: Block,
        result: LocalResult,
        update: ClientUpdate,
        rows: ClientRows | None,
        sums: BlockSums,
        outcome: TrainingOutcome,
        shares: Sequence[float] | None = None,
    ) -> None:
        """Add the finite updates of a group to the block's sums, report all of them."""
        losses = result.train_loss.tolist()
        norms = torch.linalg.vector_norm(result.delta, dim=-1).tolist()
        skipped = [0] * len(plans) if result.skipped is None else result.skipped.tolist()
        lr_sums = [math.nan] * len(plans) if result.lr_sum is None else result.lr_sum.tolist()
        available = [math.nan] * len(plans) if shares is None else list(shares)
        chosen = [math.nan] * len(plans) if result.selected is None else result.selected.tolist()
        is_first = not sums.count
        good: list[int] = []
        all_weights: list[float] = []
        statuses: list[Status] = []
        buffers = result.buffers if update.buffers is None else update.buffers
        sound = result.buffers.isfinite().all(-1).tolist()
        own, sends = _finite_personal(result), _finite_rows(update, result.delta)
        hostile: set[int] = set()
        if self._hostility is not None:
            hostile.update(self._hostility.among([plan.client for plan in plans]))
        for i, (plan, loss, norm) in enumerate(zip(plans, losses, norms, strict=True)):
            # A client that skipped all of its steps has no loss to tell.
            has_loss = math.isfinite(loss) or skipped[i] == plan.steps
            is_sound = has_loss and math.isfinite(norm) and sound[i] and own[i]
            if is_sound and not sends[i] and i in hostile:
                # Nobody would add up such numbers, whatever a client meant by them.
                weight, status = 0.0, Status.DROPPED
            elif is_sound and sends[i]:
                weight = float(plan.examples) if self._weight_by_examples else 1.0
                status = Status.PARTIAL if plan.is_partial else Status.TRAINED
                good.append(i)
                sums.weight += weight
                sums.count += 1
            else:
                weight, status = 0.0, Status.FAILED
                what = f"loss {loss}, norm of the update {norm}"
                what += "" if sound[i] else ", statistics that are not finite"
                if not own[i]:
                    what = (
                        "the personal model is not finite; a pull of strategy.lam times the "
                        "learning rate above 2 makes it swing ever wider"
                    )
                if own[i] and not sends[i]:
                    what += ", something it sends or keeps that is not finite"
                reason = f"training diverged: {what}"
                outcome.failures.append(Failure(plan.client, reason, diverged=True))
            all_weights.append(weight)
            statuses.append(status)
        outcome.reports.extend(
            plans, statuses, losses, norms, all_weights, skipped, lr_sums, available, chosen
        )
        if not good:
            return
        good_weights = [all_weights[i] for i in good]
        everyone = len(good) == len(plans)
        weights = torch.tensor(good_weights, dtype=torch.float64)
        colluding = self._colluding([plans[i].client for i in good])
        for name, total in sums.terms.items():
            term = update.terms[name] if everyone else update.terms[name][good]
            factors = weights if is_weighted(name) else torch.ones_like(weights)
            if name == "delta" and colluding:  # what they send instead, the server adds
                factors = weights.clone()
                factors[colluding] = 0
            add_weighted(total, factors, term, self._scratch, is_first=is_first)
        if len(sums.buffers):
            sums.buffers += weights @ buffers[good]
        wanted = list(range(len(good))) if collected(self.algorithm) else colluding
        if wanted:
            theirs = [good[i] for i in wanted]
            part = Changes(
                [plans[i].client for i in theirs],
                [good_weights[i] for i in wanted],
                # An engine uses the memory of its result again.
                update.terms["delta"][theirs].cpu(),
                buffers[theirs],
            )
            if self._changes is not None:
                part.places = [block.change_rows[kept[i]] for i in theirs]
                self._changes.write(part.places, {"delta": part.rows})
                part.rows = part.rows[:0]
            outcome.changes.append(part)
        if rows:
            new = {name: value[good] for name, value in update.state.items()}
            rows.write([block.write_rows[kept[i]] for i in good], new)


def _finite_personal(result: LocalResult) -> list[bool]:
    """Return whether each client's second training came to finite numbers, where there is one."""
    second = result.personal
    if second is None:
        return [True] * len(result.delta)
    finite = second.delta.isfinite().all(-1).cpu() & second.buffers.isfinite().all(-1).cpu()
    return finite.tolist()


def _finite_rows(update: ClientUpdate, delta: Tensor) -> list[bool]:
    """Return whether all that each client sends and keeps is finite.

    Args:
        update: of the clients.
        delta: what need not be looked at, as its norm is known.
    """
    finite = None
    for value in (*update.terms.values(), *update.state.values()):
        if value is delta:
            continue
        rows = value.flatten(1) if value.dim() > 1 else value.unsqueeze(-1)
        mine = rows.sum(-1).isfinite()
        if not mine.all():  # or the sum alone has overflowed
            mine = rows.isfinite().all(-1)
        finite = mine.cpu() if finite is None else finite & mine.cpu()
    return [True] * len(delta) if finite is None else finite.tolist()
