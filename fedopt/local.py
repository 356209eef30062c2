"""From the `local` tables of a configuration to what clients do: the recipe and the rates.

What does not go together is refused here, with the reason; what a strategy does not go with is
refused by the strategy.
"""

from __future__ import annotations

from fedopt.client.rates import RatePlan
from fedopt.client.recipe import LocalAverage, Recipe, Sharpness
from fedopt.client.self_paced import SelfPace
from fedopt.config import Choice, Config
from fedopt.errors import ConfigError
from fedopt.optim.adapter import make_rule
from fedopt.optim.curvature import KroneckerRule
from fedopt.optim.rules import Rule
from fedopt.optim.transforms import GradientTransforms
from fedopt.schedules import make_schedule
from fedopt.schedules.plateau import Plateau
from fedopt.server.optimizer import ServerRule


def make_recipe(config: Config) -> Recipe:
    """Return how the clients of a configuration take their steps.

    Raises:
        ConfigError: the optimizer cannot be made, or does not go with what is asked of it.
    """
    rule, _ = configured_rule(config)
    sam, gradient, swa = config.sam, config.gradient, config.local_swa
    kept = config.local.optimizer_state
    tells = rule.is_elementwise or isinstance(rule, KroneckerRule)
    if kept != "reset" and not tells:
        raise ConfigError(
            f'"{kept}" needs to know what the optimizer remembers, which '
            f'"{config.optimizer.name}" does not tell; use "reset", or sgd with momentum, adam, '
            "adamw, adagrad, rmsprop, lion, kfac or ekfac",
            key="local.optimizer_state",
        )
    if kept != "reset" and not rule.slots:
        raise ConfigError(
            f'"{kept}" has nothing to keep: {config.optimizer.name} without momentum remembers '
            'nothing between steps; use "reset", or set local.optimizer.momentum > 0',
            key="local.optimizer_state",
        )
    return Recipe(
        rule=rule,
        sam=Sharpness(sam.rho, sam.adaptive, sam.eta, sam.corrected) if sam.rho else None,
        transforms=GradientTransforms(
            clip_norm=gradient.clip_norm,
            clip_value=gradient.clip_value,
            noise_eta=gradient.noise_eta,
            noise_gamma=gradient.noise_gamma,
            skip_norm=gradient.skip_norm,
            skip_nonfinite=gradient.skip_nonfinite,
        ),
        penalty=gradient.penalty,
        average=LocalAverage(swa.last_steps, swa.last_epochs, swa.decay) if swa.is_on else None,
        optimizer_state=kept,
        cycles_momentum=cycles_momentum(config, rule.momentum_like),
        self_pace=SelfPace(config.self_paced.name, config.self_paced.ratio)
        if config.self_paced.is_on
        else None,
    )


def cycles_momentum(config: Config, momentum: float | None) -> bool:
    """Return whether the schedule changes the rule's momentum.

    Args:
        config: the configuration.
        momentum: the rule's own momentum or beta1; None or 0 where it has none.

    Raises:
        ConfigError: the schedule is to cycle the momentum of a rule without one.
    """
    wanted = getattr(config.schedule.options, "cycle_momentum", False)
    if wanted is None:
        return bool(momentum)
    if wanted and not momentum:
        raise ConfigError(
            f"got true, but {config.optimizer.name} has no momentum to cycle"
            f"{'' if momentum is None else ' (it is 0)'}; use false, or an optimizer with momentum",
            key="local.schedule.cycle_momentum",
        )
    return bool(wanted)


def make_rates(config: Config, recipe: Recipe, nominal_steps: int) -> RatePlan:
    """Return the learning rates of a configuration over the rounds of its run.

    Args:
        config: the configuration.
        recipe: how the clients take their steps.
        nominal_steps: the local steps that a round counts for.

    Raises:
        ConfigError: the schedule's bounds do not go with the optimizer's learning rate.
    """
    options = config.schedule.options.model_dump()
    scope = options.pop("scope")
    if "cycle_momentum" in options:
        options["cycle_momentum"] = recipe.cycles_momentum
    lr = base_lr(config)
    if config.schedule.name == "plateau":  # the server sends the factor with each round
        return RatePlan(make_schedule("constant", lr), scope, config.rounds, nominal_steps)
    try:
        schedule = make_schedule(config.schedule.name, lr, **options)
    except ConfigError as error:  # begins with the schedule's name
        text = str(error).removeprefix(f"{config.schedule.name}.")
        raise ConfigError(f"local.schedule.{text}") from None
    return RatePlan(schedule, scope, config.rounds, nominal_steps)


def base_lr(config: Config) -> float:
    """Return the optimizer's learning rate, which schedules begin with or are derived from."""
    return configured_rule(config)[1]


def configured_rule(config: Config) -> tuple[Rule, float]:
    """Return the update rule of `[local.optimizer]` and its learning rate.

    Raises:
        ConfigError: the optimizer cannot be made; the key is that of the configuration.
    """
    return _rule(config.optimizer, "local.optimizer")


def server_rule(config: Config) -> ServerRule | None:
    """Return the update rule of `[server.optimizer]`, or None for the strategy's own step.

    Raises:
        ConfigError: the optimizer cannot be made; the key is that of the configuration.
    """
    if config.server_optimizer.name == "none":
        return None
    return ServerRule(*_rule(config.server_optimizer, "server.optimizer"))


def _rule(choice: Choice, table: str) -> tuple[Rule, float]:
    """Return the update rule that a table names, and its learning rate."""
    try:
        return make_rule(choice.name, **choice.options.model_dump())
    except ConfigError as error:
        blamed = error.key or "optimizer"
        key = "name" if blamed == "optimizer" else blamed
        text = str(error).removeprefix(f"{blamed}: ")
        raise ConfigError(text, key=f"{table}.{key}") from error.__cause__


def make_plateau(config: Config) -> Plateau | None:
    """Return what lowers the clients' learning rates on the server, where it is configured."""
    if config.schedule.name != "plateau":
        return None
    options = config.schedule.options.model_dump()
    options.pop("scope")
    mode = "max" if options["metric"].endswith("accuracy") else "min"
    return Plateau(mode=mode, **options)
