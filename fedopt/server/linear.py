"""What strategies that count the coefficients of a client's gradients ask of its steps."""

from __future__ import annotations

from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError


def refuse_nonlinear(strategy: str, does: str, recipe: Recipe) -> None:
    """Refuse an optimizer that is not linear in this round's gradients.

    Args:
        strategy: its name, for the message.
        does: what it does with the coefficients, for the message.
        recipe: how the clients take their steps.

    Raises:
        ConfigError: the optimizer is not SGD, or goes on with an earlier round's momentum.
    """
    if recipe.rule.effective_lr_sum([1.0]) is None:
        raise ConfigError(
            f"{strategy} {does} the coefficients of a client's gradients in its update, which "
            f"{recipe.rule_name} does not have; use sgd, with or without momentum",
            key="local.optimizer.name",
        )
    if recipe.optimizer_state != "reset" and recipe.rule.slots:
        raise ConfigError(
            f'got "{recipe.optimizer_state}", but {strategy} {does} the coefficients of this '
            'round\'s gradients; use "reset"',
            key="local.optimizer_state",
        )
