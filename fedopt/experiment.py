"""Everything that a run needs, built and checked from its configuration: data, model, loss.

An `Experiment` is what server and nodes share. It is built once in the calling process; Ray
workers get it pickled (arrays in shared memory), nodes of a real deployment build their own from
the configuration that the server sends.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from fedopt import systems
from fedopt.channels import check_channel, make_channel, make_hostility, make_privacy, sent_part
from fedopt.client.algorithm import THRESHOLD, LocalAlgorithm, needs_start_loss
from fedopt.client.attacks import Hostility
from fedopt.client.channel import Channel, SentPart, with_channel
from fedopt.client.curvature import Taps, hessian_kind, kronecker_model, vector_sizes
from fedopt.client.engines import EngineChoice, build_engine, choose_engine
from fedopt.client.losses import Loss
from fedopt.client.optimizer_state import with_optimizer_state
from fedopt.client.personal import PersonalPart
from fedopt.client.plan import LocalWork
from fedopt.client.rates import RatePlan
from fedopt.client.recipe import Recipe
from fedopt.client.scoring import ExampleScorer
from fedopt.client.search import SearchEngine
from fedopt.client.shared_threshold import with_shared_threshold
from fedopt.client.trainer import Engine, Trainer
from fedopt.config import Config
from fedopt.data.population import Examples, Population, build_population
from fedopt.data.site_population import RemotePopulation, SitePopulation
from fedopt.data.unseen import PartlyUnseen
from fedopt.drift.population import Drift, DriftedPopulation
from fedopt.errors import ConfigError
from fedopt.evolving import check_inputs, make_arrival, make_drift, with_unseen
from fedopt.local import base_lr, make_rates, make_recipe, server_rule
from fedopt.models.layout import ParameterLayout
from fedopt.optim.kronecker import KroneckerModel, UnsupportedModelError
from fedopt.registry import get, import_object
from fedopt.search.bilevel import SearchSettings
from fedopt.search.supernet import Supernet
from fedopt.seeds import torch_seed
from fedopt.selection import Selecting
from fedopt.server.arrival import Arrival
from fedopt.server.blocks import client_cost, default_block_size
from fedopt.server.catalogue import CentralisedOptions
from fedopt.server.pooled import PooledPopulation
from fedopt.server.privacy import Privacy
from fedopt.systems import SystemPlan
from fedopt.warning_log import heard

if TYPE_CHECKING:
    from fedopt.server.strategy import FederatedStrategy

log = logging.getLogger("fedopt")

ModelFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Experiment:
    """A configuration with what it names.

    Args:
        config: the checked configuration.
        population: the clients' examples and the test set.
        model_factory: makes a new module; initialised under the run's seed.
        loss: function of (output, target) that returns the batch mean as a scalar.
        warnings: what `check` warned of.
    """

    config: Config
    population: Population
    model_factory: ModelFactory
    loss: Loss
    warnings: list[str] = field(default_factory=list, compare=False)

    @classmethod
    def from_config(cls, config: Config) -> Experiment:
        """Load what a configuration names, and check that it fits together.

        Raises:
            ConfigError: data, model, loss and configuration do not fit.
        """
        return cls.over(config, configured_population(config))

    @classmethod
    def over(cls, config: Config, population: Population) -> Experiment:
        """Return a configuration's experiment over a population, checked to fit together.

        Raises:
            ConfigError: data, model, loss and configuration do not fit.
        """
        experiment = cls(config, population, model_factory(config, population), load_loss(config))
        experiment.check()
        return experiment

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of parameters and inputs."""
        dtype: torch.dtype = getattr(torch, self.config.run.dtype)
        return dtype

    @property
    def work(self) -> LocalWork:
        """The amount of local work of a round."""
        local = self.config.local
        if isinstance(self.population, PooledPopulation):
            steps = self._pooled_steps(self.population)
            return LocalWork(None, steps, local.batch_size, self.needs_pairs)
        return LocalWork(local.epochs, local.steps, local.batch_size, self.needs_pairs)

    @cached_property
    def needs_pairs(self) -> bool:
        """Whether the model cannot be trained on a batch of one example.

        That is BatchNorm's on vectors, whose variance is then that of one value; images have many.
        """
        model = self.build_model().train()
        if not any(isinstance(m, _BatchNorm) for m in model.modules()):
            return False
        one = torch.from_numpy(self.stand_in(1).x)
        return not _takes(model, one) and _takes(model, one.repeat(2, *[1] * (one.dim() - 1)))

    def _pooled_steps(self, pool: PooledPopulation) -> int:
        """Return the steps of centralised training: those of the configured cohort together."""
        options, local = self.config.strategy.options, self.config.local
        assert isinstance(options, CentralisedOptions)
        if options.steps is not None:
            return options.steps
        sizes = pool.member_sizes[pool.member_sizes > 0]
        cohort = cohort_size(self.config.run.clients_per_round, len(sizes))
        work = LocalWork(local.epochs, local.steps, local.batch_size)
        return cohort * work.planned_steps(max(1, round(float(sizes.mean()))))

    @cached_property
    def recipe(self) -> Recipe:
        """How a client takes its steps."""
        return make_recipe(self.config)

    @cached_property
    def nominal_steps(self) -> int:
        """The local steps that a round counts for: as configured, or a typical client's."""
        wanted = self.config.local.nominal_steps
        return wanted if wanted is not None else self.work.planned_steps(self.typical_size)

    @cached_property
    def typical_size(self) -> int:
        """The mean number of examples of the clients that have any, rounded."""
        told = getattr(self.population, "typical_size", None)
        if told is not None:
            return int(told)
        sizes = self.population.sizes
        return max(1, round(float(sizes.sum()) / max(1, int(np.count_nonzero(sizes)))))

    def rates(self) -> RatePlan:
        """Return the learning rates, and the momenta where they are cycled."""
        return make_rates(self.config, self.recipe, self.nominal_steps)

    def build_model(self) -> nn.Module:
        """Return a new module, initialised under the run's seed, in the run's dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.config.seed, "model"))
            try:
                model = self.model_factory()
            except ConfigError:
                raise
            except Exception as error:  # a user's factory may raise anything
                says = f"{type(error).__name__}: {error}"
                raise ConfigError(f"the model cannot be built: {says}", key="model") from error
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"the factory returned {type(model).__name__}, not a torch.nn.Module",
                key="model.name",
            )
        return model.to(self.dtype)

    def stand_in(self, count: int) -> Examples:
        """Return examples to check shapes on, at most so many: of the first client that has any."""
        population: object = self.population
        if isinstance(population, RemotePopulation | SitePopulation):
            return population.stand_in(count)
        client = int(np.flatnonzero(self.population.sizes)[0])
        return Examples(*(part[:count].copy() for part in self.population.train(client)))

    def trainer(self) -> Trainer:
        """Return what trains clients, on this machine's device."""
        config = self.config
        device = torch.device(config.engine.device)
        model = self.build_model()
        engine: Engine
        if isinstance(model, Supernet):
            settings = self.search_settings
            engine = SearchEngine(model, self.loss, self.recipe, settings, config.seed, device)
        else:
            engine = build_engine(
                self.engine_choice,
                model,
                self.loss,
                self.recipe,
                config.seed,
                device,
                config.engine.precision,
            )
        strategy = config.strategy.options.model_dump()
        algorithm = self.local_algorithm()
        scorer = None
        if needs_start_loss(algorithm):
            scorer = ExampleScorer(self.build_model(), self.loss, device)
        return Trainer(
            self.population,
            engine,
            algorithm,
            self.work,
            self.rates(),
            config.seed,
            weight_by_examples=strategy["weighting"] == "examples",
            drop_partial=strategy["partial_work"] == "drop",
            vector_sizes=self.vector_sizes,
            selector=self.selecting.selector(device),
            scorer=scorer,
            hostility=self.hostility,
            population_at=self.population_at,
        )

    @cached_property
    def kronecker(self) -> KroneckerModel | None:
        """The layers with Kronecker factors, where the optimizer wants them.

        Raises:
            ConfigError: the optimizer wants them, but the model has none or ties them.
        """
        rule = self.recipe.kronecker
        return None if rule is None else kronecker_model(self.build_model(), rule)

    @cached_property
    def layout(self) -> ParameterLayout:
        """Where the model's parameters and buffers lie.

        Raises:
            ConfigError: the model has no trained parameter, or those of several dtypes.
        """
        return ParameterLayout.of(self.build_model())

    @cached_property
    def vector_sizes(self) -> dict[str, int]:
        """Length of the vectors of an optimizer's state that are not P long, by full name."""
        rule, layers, part = self.recipe.kronecker, self.kronecker, self.personal
        sizes = {THRESHOLD: 1, **load_strategy(self.config.strategy.name).vector_sizes}
        sizes |= {} if part is None else part.sizes
        sizes |= {} if self.channel is None else self.channel.sizes
        if rule is None or layers is None:
            return sizes
        return sizes | vector_sizes(layers, rule, [spec.size for spec in self.layout.parameters])

    @cached_property
    def personal(self) -> PersonalPart | None:
        """What stays with the clients of a personalised strategy.

        Raises:
            ConfigError: the model has no such part.
        """
        strategy = load_strategy(self.config.strategy.name)
        return strategy.personal(self.config.strategy.options, self.build_model())

    @cached_property
    def channel(self) -> Channel | None:
        """What happens to what server and clients send each other.

        Raises:
            ConfigError: a codec cannot be made.
        """
        return make_channel(self.config, lambda: self._sent_part, self.privacy)

    @cached_property
    def privacy(self) -> Privacy | None:
        """What is known of the rounds' privacy, where the channel adds noise.

        Raises:
            ConfigError: noise without clipping, or without an accountant.
        """
        clients = int(np.count_nonzero(self.population.sizes))
        return make_privacy(self.config, clients, self.cohort_size())

    @cached_property
    def system(self) -> SystemPlan | None:
        """Devices and policy of rounds on the virtual clock, where there is one.

        Raises:
            ConfigError: a file of devices or of a trace cannot be read.
        """
        if not systems.is_on(self.config):
            return None
        counts = self.config.system.speed_counts == "operations"
        operations = self._operations() if counts else 1.0
        # Parameters, gradients and the optimizer's slots; activations are not counted.
        copies = 2 + len(self.recipe.rule.slots)
        return systems.make_system(
            self.config,
            self.cohort_size(),
            self.recipe.gradients_per_step,
            operations,
            copies * self.layout.parameter_nbytes,
        )

    def _operations(self) -> float:
        """Return the floating-point operations of a gradient of one example."""
        model = self.build_model()
        inputs, targets = (torch.from_numpy(part) for part in self.stand_in(1))
        model.eval()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(self.loss(model(inputs), targets))
        return float(counter.get_total_flops())

    @cached_property
    def hostility(self) -> Hostility | None:
        """Which clients are hostile, and what they do.

        Raises:
            ConfigError: the attack cannot be made.
        """
        population = self.population
        return make_hostility(
            self.config,
            lambda: self._sent_part,
            population.sizes,
            population.classes,
            self.vector_sizes,
        )

    @property
    def members(self) -> Population:
        """All clients one by one, whatever they are pooled to."""
        population = self.population
        return population.members if isinstance(population, PooledPopulation) else population

    @cached_property
    def drift(self) -> Drift | None:
        """Whose examples change with the rounds, and how.

        Raises:
            ConfigError: the drift does not fit the data or the rounds.
        """
        return make_drift(self.config, self.members)

    @cached_property
    def arrival(self) -> Arrival | None:
        """Who is there by which round, or None for all.

        Raises:
            ConfigError: nobody is there at first, or rounds are out of range.
        """
        return make_arrival(self.config, self.population.sizes)

    @property
    def everyone(self) -> Population:
        """All clients one by one, with those that never train."""
        members: object = self.members
        return members.everyone if isinstance(members, PartlyUnseen) else self.members

    @property
    def unseen(self) -> npt.NDArray[np.int64]:
        """Ids of the clients that never train and are evaluated, ascending."""
        found: npt.NDArray[np.int64] = getattr(self.members, "unseen", np.zeros(0, np.int64))
        return found

    def members_at(self, round: int) -> Population:
        """Return all clients one by one, as they are in a round."""
        drift, members = self.drift, self.members
        if drift is None or drift.is_still(round):
            return members
        return cast(Population, DriftedPopulation(members, drift, round))

    def population_at(self, round: int) -> Population:
        """Return the population as it is in a round."""
        drifted = self.members_at(round)
        if drifted is self.members:
            return self.population
        if isinstance(self.population, PooledPopulation):
            return cast(Population, PooledPopulation(drifted))
        return drifted

    def drifted_test(self, round: int) -> Examples | None:
        """Return the test set as the clients see the world in a round; None: there is none."""
        return self.members_at(round).test()

    @cached_property
    def _sent_part(self) -> SentPart:
        """Which scalars of a vector as long as the model are sent."""
        return sent_part(self.layout, self.personal, load_strategy(self.config.strategy.name))

    @cached_property
    def selecting(self) -> Selecting:
        """What selects the clients' examples."""
        return Selecting(
            self.config, self.population, self.build_model, self.loss, self._fewest_steps
        )

    @property
    def _fewest_steps(self) -> int:
        """The planned local steps of the client that has the fewest."""
        sizes = np.unique(self.population.sizes)
        return min(self.work.planned_steps(int(n)) for n in sizes if n)

    @cached_property
    def engine_choice(self) -> EngineChoice:
        """The engine of local training."""
        config = self.config
        device = torch.device(config.engine.device)
        model = self.build_model()
        if isinstance(model, Supernet):
            return EngineChoice("search", 1, self.layout.size, "the model is a supernet")
        return choose_engine(config.engine.training, model, self.recipe, device)

    @property
    def is_search(self) -> bool:
        """Whether the model is a supernet, whose architecture is searched."""
        return self.engine_choice.name == "search"

    @property
    def search_settings(self) -> SearchSettings:
        """How the architecture of a supernet is searched."""
        table = self.config.search.model_dump()
        names = [f.name for f in fields(SearchSettings)]
        return SearchSettings(**{name: table[name] for name in names})

    @cached_property
    def block_size(self) -> int:
        """Return the clients a block, as configured or by the rule of `default_block_size`."""
        requested = self.config.engine.block_size
        if requested is not None:
            return requested
        choice, work, typical = self.engine_choice, self.work, self.typical_size
        steps = work.planned_steps(typical)
        seen = steps / work.steps_per_epoch(typical) * typical
        cost = self.recipe.gradients_per_step * client_cost(choice.parameters, seen, steps)
        return default_block_size(self.cohort_size(), choice.group_size, cost)

    def local_algorithm(self) -> LocalAlgorithm:
        """Return the client side of the strategy."""
        strategy = load_strategy(self.config.strategy.name)
        options = strategy.resolved(self.config.strategy.options, base_lr(self.config))
        algorithm = strategy.client_side(options, self.personal)
        recipe, pace = self.recipe, self.selecting.pace
        algorithm = with_optimizer_state(algorithm, recipe.optimizer_state, recipe.rule.slots)
        algorithm = with_shared_threshold(algorithm, pace is not None and pace.shared)
        return with_channel(algorithm, self.channel, self.vector_sizes)

    def cohort_size(self) -> int:
        """Return the number of clients sampled a round."""
        if isinstance(self.population, PooledPopulation):
            return 1
        return cohort_size(
            self.config.run.clients_per_round, int(np.count_nonzero(self.population.sizes))
        )

    def training_clients(self) -> int:
        """Return the number of clients on whose training data the model is measured."""
        wanted, clients = self.config.evaluation.training_clients, self.population.sizes
        most = int(np.count_nonzero(clients))
        return max(1, round(wanted * most)) if isinstance(wanted, float) else min(wanted, most)

    def check(self) -> None:
        """Check that configuration, data and model fit together, on two examples.

        Raises:
            ConfigError: more clients are sampled than there are, the device is missing, the
                model's output does not fit the classes, the loss is no scalar.
        """
        with heard(self.warnings):
            self._check()

    def _check(self) -> None:
        cohort = self.cohort_size()
        clients = int(np.count_nonzero(self.population.sizes))
        if self.config.server_curriculum.is_on and cohort == clients:
            raise ConfigError(
                f'got "{self.config.server_curriculum.name}", which decides who may be sampled, '
                f"but all {clients} clients train in every round; use fewer clients_per_round",
                key="server.curriculum.name",
            )
        device = self.config.engine.device
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f'"{device}" cannot be used: {error}', key="engine.device") from None
        if self.config.engine.precision == "bf16" and self.config.run.dtype != "float32":
            raise ConfigError(
                f'"bf16" needs dtype = "float32", got "{self.config.run.dtype}"',
                key="engine.precision",
            )
        strategy = load_strategy(self.config.strategy.name)
        strategy.check(self.config.strategy.options, self.recipe)
        self._check_server_optimizer(strategy)
        self._check_personal()
        self._check_objective(strategy)
        self._check_channel(strategy)
        self._check_system(strategy)
        self.rates()
        metric = getattr(self.config.schedule.options, "metric", "")
        if metric.endswith("accuracy") and self.population.classes is None:
            raise ConfigError(
                f'got "{metric}", but the data have real targets; use "validation_loss" or '
                '"train_loss"',
                key="local.schedule.metric",
            )
        wanted = self.config.evaluation.validation_clients
        if wanted and not self.population.has_validation:
            raise ConfigError(
                f"got {wanted}, but the clients have no validation splits; "
                "set data.validation_fraction > 0",
                key="evaluation.validation_clients",
            )
        self._check_model()
        self._check_evolving()
        self._check_search()
        self._check_curvature()
        assert self.engine_choice

    def _check_evolving(self) -> None:
        """Check who drifts, who joins when, and who never trains."""
        if self.drift is not None:
            check_inputs(self.config, self.drift, self.population)
        assert self.arrival is None or self.arrival.founders
        strategy = load_strategy(self.config.strategy.name)
        if len(self.unseen) and self.personal is not None and not strategy.sends_personal:
            raise ConfigError(
                f"got {self.config.evaluation.unseen_clients} with {self.config.strategy.name}, "
                "whose clients each keep a part of the model: those that never train have none; "
                "use 0, or a strategy with one model for all (ditto has one besides)",
                key="evaluation.unseen_clients",
            )

    def _check_personal(self) -> None:
        """Check that personal models are measured, and that the model can be split."""
        if self.personal is None:
            return
        name = self.config.strategy.name
        sends_all = load_strategy(name).sends_personal
        if self.config.local.optimizer_state == "average" and not sends_all:
            raise ConfigError(
                f'got "average" with {name}, whose clients do not send all of their model, and so '
                'not all of its moments; use "reset" or "keep"',
                key="local.optimizer_state",
            )
        if self.personal.phases is not None and self._fewest_steps < 2:
            raise ConfigError(
                f"{self.config.strategy.name} trains head and body in steps of their own, but a "
                "client has a single step a round; use more epochs or steps, or a smaller "
                "batch_size",
                key="local.steps" if self.config.local.steps is not None else "local.epochs",
            )
        if not self.config.evaluation.validation_clients:
            name = self.config.strategy.name
            says = f"0 with {name}, whose models are measured on the clients' validation splits"
            if name == "local_only":
                raise ConfigError(
                    f"got {says} alone; use a number > 0 (and data.validation_fraction > 0)",
                    key="evaluation.validation_clients",
                )
            log.warning("evaluation.validation_clients is %s: test columns show the server's", says)

    def _check_objective(self, strategy: type[FederatedStrategy]) -> None:
        """Check that there is one model for all where it is measured on the training data."""
        wanted, name = self.config.evaluation, self.config.strategy.name
        if wanted.training_clients and self.personal is not None and not strategy.sends_personal:
            raise ConfigError(
                f"got {wanted.training_clients} with {name}, whose clients each keep a part of the "
                "model: there is no global model to measure; use 0, or a strategy with one model "
                "for all (ditto has one besides)",
                key="evaluation.training_clients",
            )
        if wanted.gradients and isinstance(self.population, PooledPopulation):
            raise ConfigError(
                f"got true with {name}, which trains on all clients' data as one: there are no "
                "gradients of single clients to compare",
                key="evaluation.gradients",
            )

    def _check_system(self, strategy: type[FederatedStrategy]) -> None:
        """Check devices, availability and policy, and what goes with them."""
        clients = int(np.count_nonzero(self.population.sizes))
        systems.check_system(
            self.config, strategy, self.local_algorithm(), clients, self.cohort_size()
        )
        assert self.system is None or self.system.policy

    def _check_channel(self, strategy: type[FederatedStrategy]) -> None:
        """Check what happens to updates on their way, and hostile clients."""
        check_channel(
            self.config,
            strategy,
            self.local_algorithm(),
            self.layout,
            self.population.classes,
            self._moving_buffers() if self.config.privacy.is_on else (),
        )
        privacy, clients = self.privacy, int(np.count_nonzero(self.population.sizes))
        if privacy is not None and privacy.delta >= 1 / clients:
            log.warning(
                "uplink.privacy.delta is %g, not below 1 / %d clients: with that probability a "
                "guarantee may fail that is to hold for each of them",
                privacy.delta,
                clients,
            )
        if privacy is not None and privacy.is_poisson and self.cohort_size() < clients:
            log.info("cohorts are of %d clients in expectation", self.cohort_size())

    def _moving_buffers(self) -> list[str]:
        """Return the names of the buffers that clients change and send."""
        buffers = dict(self.build_model().named_buffers())  # without frozen parameters
        kept = set() if self.personal is None else set(self.personal.buffers.tolist())
        found, first = [], 0
        for spec in self.layout.buffers:
            if spec.name in buffers and first not in kept:
                found.append(spec.name)
            first += spec.size
        return found

    def _check_server_optimizer(self, strategy: type[FederatedStrategy]) -> None:
        """Check that a server optimizer goes with the strategy."""
        name, chosen = self.config.strategy.name, self.config.server_optimizer.name
        if server_rule(self.config) is None:
            return
        options = self.config.strategy.options
        if not strategy.follows_server_optimizer() or strategy.server_rule(options) is not None:
            raise ConfigError(
                f'got "{chosen}", but {name} has a server step of its own; use "none", or a '
                "strategy whose server takes the mean update (fedavg, fedprox, scaffold, fednova)",
                key="server.optimizer.name",
            )
        server_lr = options.model_dump()["server_lr"]
        if server_lr != 1:
            raise ConfigError(
                f"got {server_lr:g}, which the server optimizer's rate replaces; set "
                "server.optimizer.lr",
                key="strategy.server_lr",
            )

    def _check_model(self) -> None:
        model = self.build_model().eval()
        assert self.layout
        inputs, targets = (torch.from_numpy(part) for part in self.stand_in(2))
        try:
            with torch.no_grad():
                output = model(inputs)
        except Exception as error:
            # A model that looks its inputs up in a table wants integers.
            population = self.population
            looks_up = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
            if (
                looks_up
                and hasattr(self.members, "use_integer_inputs")
                and inputs.is_floating_point()
                and _takes(model, inputs.long())
            ):
                population.use_integer_inputs()  # type: ignore[attr-defined]
                self._check_model()
                return
            raise ConfigError(
                f"the model cannot take inputs of shape {tuple(inputs.shape)}: {error}",
                key="model",
            ) from error
        classes = self.population.classes
        is_cross_entropy = self.loss is torch.nn.functional.cross_entropy
        if is_cross_entropy and classes is None:
            raise ConfigError(
                'cross_entropy needs integer labels, the data have real targets; use "mse"',
                key="local.loss",
            )
        if is_cross_entropy and (output.dim() < 2 or output.shape[1] < (classes or 0)):
            raise ConfigError(
                f"the model's output has shape {tuple(output.shape)} for a batch of "
                f"{len(inputs)}, but the data have {classes} classes; "
                f"it must be [batch, {classes}]",
                key="model",
            )
        try:
            loss = self.loss(output, targets)
        except Exception as error:
            raise ConfigError(
                f"the loss cannot take an output of shape {tuple(output.shape)} and a target of "
                f"shape {tuple(targets.shape)}: {error}",
                key="local.loss",
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
            raise ConfigError("the loss must be a scalar tensor", key="local.loss")
        self.selecting.check(output, targets)
        single = np.flatnonzero(self.population.sizes == 1)
        if self.needs_pairs and (len(single) or self.config.local.batch_size == 1):
            who = f"client {single[0]} has one example" if len(single) else "batch_size is 1"
            raise ConfigError(
                f"the model has BatchNorm, which knows no variance of one example, but {who}; use "
                "partition.min_examples = 2 (or more), another batch_size, or GroupNorm",
                key="model" if len(single) else "local.batch_size",
            )

    def _check_search(self) -> None:
        """Check that what is configured can search, where the model is a supernet."""
        if not self.is_search:
            return
        refused = {
            "local.optimizer.name": self.recipe.kronecker is not None,
            "local.optimizer_state": self.recipe.optimizer_state != "reset",
            "local.gradient.penalty": bool(self.recipe.penalty),
            "local.self_paced.name": self.recipe.self_pace is not None,
            "local.curriculum.name": self.config.local_curriculum.is_on,
            "strategy.name": self.personal is not None,
            "engine.training": self.config.engine.training == "stacked",
            "engine.precision": self.config.engine.precision != "full",
        }
        for key, is_refused in refused.items():
            if is_refused:
                raise ConfigError(
                    "does not go with a supernet, whose clients take plain weight steps between "
                    "architecture steps in a loop; use it when the found architecture is retrained",
                    key=key,
                )
        sizes = self.population.sizes
        small = np.flatnonzero((sizes > 0) & (sizes < 2))
        if len(small):
            raise ConfigError(
                f"client {small[0]} has one example, which a search cannot split; use another "
                "partition, or fewer clients",
                key="partition",
            )

    def _check_curvature(self) -> None:
        """Check that an optimizer with Kronecker factors can train the model, on two examples."""
        rule, layers = self.recipe.kronecker, self.kronecker
        if rule is None or layers is None:
            return
        if rule.fisher != "empirical" and hessian_kind(self.loss) is None:
            raise ConfigError(
                f'"{rule.fisher}" needs the Hessian of the loss, which is known for cross_entropy '
                f'and mse, not for {self.config.local.loss}; use "empirical"',
                key="local.optimizer.fisher",
            )
        model = self.build_model().eval()
        taps = Taps(KroneckerModel.of(model).layers)
        try:
            with taps:
                model(torch.from_numpy(self.stand_in(2).x))
            assert taps.inputs
        except UnsupportedModelError as error:
            name = self.config.optimizer.name
            raise ConfigError(f'"{name}" cannot train this model: {error}', key="model") from None


def _takes(model: nn.Module, inputs: torch.Tensor) -> bool:
    """Return whether a model takes some inputs."""
    try:
        with torch.no_grad():
            model(inputs)
    except Exception:  # a user's model may raise anything
        return False
    return True


def cohort_size(clients_per_round: int | float | str, clients: int) -> int:
    """Return the number of clients sampled a round.

    Args:
        clients_per_round: a count, a fraction in (0, 1], or "all".
        clients: clients that have examples.

    Raises:
        ConfigError: more are sampled than there are.
    """
    if clients_per_round == "all":
        return clients
    if isinstance(clients_per_round, float):
        return max(1, round(clients_per_round * clients))
    count = int(clients_per_round)
    if count > clients:
        raise ConfigError(
            f"got {count}, but only {clients} clients have examples; use at most {clients}, "
            f'a fraction in (0, 1], or "all"',
            key="clients_per_round",
        )
    return count


def configured_population(config: Config) -> Population:
    """Return the population that a configuration names.

    Raises:
        ConfigError: data and partition do not fit.
    """
    population = build_population(
        config.data.name,
        config.data.options,
        config.partition.name,
        config.partition.options,
        seed=config.seed,
        dtype=config.run.dtype,
    )
    return population_for(config, population)


def population_for(config: Config, population: Population) -> Population:
    """Return the population that a strategy trains on: all clients as one where centralised.

    Raises:
        ConfigError: so many clients are held out that nobody is left to train.
    """
    population = with_unseen(config, population)
    if config.strategy.name != "centralised":
        return population
    return cast(Population, PooledPopulation(population))


def load_strategy(name: str) -> type[FederatedStrategy]:
    """Return the class of a registered strategy, or of `"package.module:Class"`."""
    if ":" in name:
        found = import_object(name, key="strategy.name")
    else:
        found = get("strategies", name).load()
    strategy: type[FederatedStrategy] = found
    return strategy


def model_factory(config: Config, population: Population) -> ModelFactory:
    """Return the factory of the configured model, sized from the data."""
    name = config.model.name
    options = config.model.options.model_dump()
    shape = tuple(population.input_shape)
    width = population.classes if population.classes is not None else 1
    if ":" not in name:
        return partial(get("models", name).load(), shape, width, **options)
    factory = import_object(name, key="model.name")
    if not callable(factory):
        raise ConfigError(f'"{name}" is not callable', key="model.name")
    sizes = {"input_shape": shape, "classes": width}
    try:
        accepted = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        accepted = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    unknown = [key for key in options if key not in accepted and not takes_any]
    if unknown:
        raise ConfigError(
            f'"{name}" does not take it; it takes {", ".join(accepted) or "nothing"}',
            key=f"model.{unknown[0]}",
        )
    given = {k: v for k, v in sizes.items() if k in accepted or takes_any}
    return partial(factory, **{**given, **options})


def load_loss(config: Config) -> Loss:
    """Return the configured loss."""
    name = config.local.loss
    if ":" in name:
        loss = import_object(name, key="local.loss")
        if not callable(loss):
            raise ConfigError(f'"{name}" is not callable', key="local.loss")
    else:
        loss = get("losses", name, key="local.loss").load()
    found: Loss = loss
    return found
