"""Update rules applied to a group of clients, each with its own state and step counter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import LocalTerms
from fedopt.models.layout import ParameterLayout
from fedopt.optim.rules import Rule, RuleState

Gradients = list[Tensor]


class RuleUpdates:
    """Applies the rule to the clients of a group, each with its own state.

    Clients with the same learning rate, momentum and step counter, usually all, are updated at
    once. Rules that are not elementwise get one client at a time.
    """

    def __init__(
        self,
        rule: Rule,
        parameters: Sequence[Tensor],
        layout: ParameterLayout,
        terms: LocalTerms,
    ) -> None:
        self._rule = rule
        self._layout = layout
        clients = len(parameters[0])
        self.steps = np.zeros(clients, dtype=np.int64)
        self._slots: dict[str, list[Tensor]] = {}
        self._own: list[RuleState] = []
        if not rule.is_elementwise:
            self._own = [rule.init([p[i] for p in parameters]) for i in range(clients)]
        else:
            self._slots = rule.init(parameters).slots
            if terms.optimizer_state is not None and terms.optimizer_steps is not None:
                self.steps[:] = terms.optimizer_steps.numpy()
                self._resume(terms.optimizer_state)

    def _resume(self, kept: Mapping[str, Tensor]) -> None:
        """Take the kept slots of the clients that have taken a step; the others begin afresh."""
        has_state = torch.from_numpy(self.steps > 0)
        for name, tensors in self._slots.items():
            rows = kept[name].expand(len(self.steps), -1)
            for tensor, view in zip(tensors, self._layout.views(rows), strict=True):
                where = has_state.to(view.device)
                tensor[where.to(tensor.device)] = view[where].to(tensor)

    def apply(
        self,
        parameters: list[Tensor],
        gradients: Gradients,
        rates: npt.NDArray[np.float64],
        momenta: npt.NDArray[np.float64] | None,
        applied: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Update the clients whose step is applied (None: all), in place."""
        active = len(rates)
        steps = self.steps[:active]
        alike = [steps, rates] if momenta is None else [steps, rates, momenta]
        if (
            self._rule.is_elementwise
            and (applied is None or applied.all())
            and all((values == values[0]).all() for values in alike)
        ):
            everyone: list[tuple[slice | Tensor, list[int]]] = [(slice(active), [0])]
        else:
            everyone = self._alike(alike, applied)
        for where, members in everyone:
            first = members[0]
            momentum = None if momenta is None else float(momenta[first])
            self._update(where, members, parameters, gradients, float(rates[first]), momentum)
        steps += 1 if applied is None else applied

    def _alike(
        self, alike: Sequence[npt.NDArray[np.generic]], applied: npt.NDArray[np.bool_] | None
    ) -> list[tuple[slice | Tensor, list[int]]]:
        """Return the applied clients in groups that one update serves."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for i in range(len(alike[0])):
            if applied is None or applied[i]:
                key: tuple[object, ...] = tuple(values[i] for values in alike)
                groups.setdefault(key if self._rule.is_elementwise else (i,), []).append(i)
        found: list[tuple[slice | Tensor, list[int]]] = []
        for members in groups.values():
            run = members[-1] - members[0] + 1 == len(members)
            where = slice(members[0], members[-1] + 1) if run else torch.tensor(members)
            found.append((where, members))
        return found

    def _update(
        self,
        where: slice | Tensor,
        members: list[int],
        parameters: list[Tensor],
        gradients: Gradients,
        lr: float,
        momentum: float | None,
    ) -> None:
        if self._own:
            (i,) = members
            mine, own = [p[i] for p in parameters], [g[i] for g in gradients]
            self._rule.update(mine, own, self._own[i], lr, momentum)
            return
        if isinstance(where, Tensor):
            where = where.to(parameters[0].device)
        part = [p[where] for p in parameters]
        state = RuleState(
            int(self.steps[members[0]]),
            {name: [t[where] for t in tensors] for name, tensors in self._slots.items()},
        )
        self._rule.update(part, [g[where] for g in gradients], state, lr, momentum)
        if isinstance(where, Tensor):  # gathered copies go back
            for whole, copy in zip(parameters, part, strict=True):
                whole.index_copy_(0, where, copy)
            for name, tensors in self._slots.items():
                for whole, copy in zip(tensors, state.slots[name], strict=True):
                    whole.index_copy_(0, where, copy)

    def vectors(self) -> dict[str, Tensor]:
        """Return the slots as vectors `[G, P]`."""
        return {name: self._layout.vector(tensors) for name, tensors in self._slots.items()}
