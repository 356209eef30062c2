"""The server's optimizer: any update rule, with minus the mean update as its gradient.

    x <- x - lr * U(-mean(w_i - x), state)

Plain SGD with rate 1 is federated averaging.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 1 (FedOpt).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedopt.models.layout import ParameterLayout
from fedopt.optim.rules import Rule, RuleState
from fedopt.optim.torch_rule import TorchRuleState

PREFIX = "server_optimizer."
"""What the names of its state among a checkpoint's vectors begin with."""

STEPS, WHOLE = f"{PREFIX}steps", f"{PREFIX}state_dict"


@dataclass(frozen=True)
class ServerRule:
    """An update rule and its learning rate.

    Args:
        rule: the rule.
        lr: its learning rate, > 0.
    """

    rule: Rule
    lr: float


class ServerOptimizer:
    """Takes the server's steps in double precision.

    Args:
        rule: the update rule, any but those with Kronecker factors.
        layout: of the model; rules that are not elementwise see the arrays' shapes.
    """

    def __init__(self, rule: ServerRule, layout: ParameterLayout) -> None:
        self._rule = rule
        self._layout = layout
        self._parameters = torch.zeros(layout.size, dtype=torch.float64)
        self._state: RuleState = rule.rule.init(self._tensors(self._parameters))

    def _tensors(self, flat: Tensor) -> list[Tensor]:
        """Return a vector as what the rule acts on."""
        return [flat] if self._rule.rule.is_elementwise else self._layout.views(flat)

    def step(self, parameters: Tensor, update: Tensor) -> Tensor:
        """Return the parameters `[P]` after a step along the clients' mean update `[P]`."""
        self._parameters.copy_(parameters)
        gradients = self._tensors(update.neg())
        rule, lr = self._rule.rule, self._rule.lr
        rule.update(self._tensors(self._parameters), gradients, self._state, lr)
        return self._parameters

    def vectors(self) -> dict[str, Tensor]:
        """Return the state: the counter `[1]`, and the slots `[P]` or torch's `state_dict`."""
        state = self._state
        found = {STEPS: torch.tensor([float(state.step)], dtype=torch.float64)}
        if isinstance(state, TorchRuleState):
            assert state.optimizer is not None
            whole = io.BytesIO()
            torch.save(state.optimizer.state_dict(), whole)
            found[WHOLE] = torch.frombuffer(bytearray(whole.getvalue()), dtype=torch.uint8)
            return found
        return found | {PREFIX + name: slot for name, (slot,) in state.slots.items()}

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        state = self._state
        state.step = int(vectors[STEPS])
        if isinstance(state, TorchRuleState):
            assert state.optimizer is not None
            data = io.BytesIO(vectors[WHOLE].numpy().tobytes())
            saved: dict[str, Any] = torch.load(data, weights_only=True)
            state.optimizer.load_state_dict(saved)
            return
        for name, (slot,) in state.slots.items():
            slot.copy_(vectors[PREFIX + name])
