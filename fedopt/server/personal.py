"""Personalisation: FedBN, FedPer, FedRep and Ditto; and clients that train alone.

    FedBN       all but the normalisation layers is averaged; these, with their running statistics,
                stay with the clients
    FedPer      all but the head is averaged
    FedRep      likewise; the first steps of a round train the head, the others the body
    Ditto       FedAvg, and a personal model v: v <- v - lr (g_i(v) + lam (v - x)), as many steps
    local_only  nothing is exchanged: each client goes on with its own model

What stays with a client lives in the client store. A client that has not trained yet has the
server's values. Validation splits are evaluated with the clients' own models; the test set with the
server's, whose personal part stays what it was at first.

Source: Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", algorithm 1; Arivazhagan et al. 2019, "Federated Learning with Personalization
Layers", algorithms 1 and 2; Collins et al. 2021, "Exploiting Shared Representations for
Personalized Federated Learning", algorithm 1; Li et al. 2021, "Ditto: Fair and Robust Federated
Learning Through Personalization", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedopt.client.algorithm import LocalAlgorithm
from fedopt.client.personal import (
    DittoLocal,
    LocalOnlyLocal,
    PersonalPart,
    personal_part,
)
from fedopt.errors import ConfigError, did_you_mean
from fedopt.models.layout import ParameterLayout
from fedopt.server.catalogue import (
    DittoOptions,
    FedBnOptions,
    FedPerOptions,
    FedRepOptions,
    LayersOptions,
    LocalOnlyOptions,
)
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""The normalisation layers: batch and instance norms, and those of single examples."""


def norm_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers of a model's normalisation layers."""
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, NORMS):
            held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found += [f"{prefix}.{name}" if prefix else name for name, _ in held]
    return found


def head_names(layout: ParameterLayout, wanted: Sequence[str]) -> list[str]:
    """Return the names of the arrays that stay with the clients.

    Args:
        layout: of the model.
        wanted: names, or what they begin with up to a dot; none for those of the last layer.

    Raises:
        ConfigError: a name is not one of the model's, or nothing is left to share.
    """
    names = [spec.name for spec in layout.parameters]
    key = "strategy.personal"
    if not wanted:
        layer = names[-1].rpartition(".")[0]
        found = [name for name in names if name.rpartition(".")[0] == layer]
    else:
        found = []
        for start in wanted:
            mine = [n for n in names if n == start or n.startswith(f"{start.rstrip('.')}.")]
            if not mine:
                hint = did_you_mean(start, names)
                raise ConfigError(
                    f'got "{start}", which no array of the model has.{hint} '
                    f"Arrays: {', '.join(names)}.",
                    key=key,
                )
            found += [name for name in mine if name not in found]
    if len(found) == len(names):
        raise ConfigError(
            "leaves nothing to share: all arrays of the model stay with the clients; name fewer, "
            'or use "local_only"',
            key=key,
        )
    return found


def whole_model(model: nn.Module) -> PersonalPart:
    """Return the whole model as what stays with a client."""
    layout = ParameterLayout.of(model)
    return personal_part(
        layout,
        [spec.name for spec in layout.parameters],
        [spec.name for spec in layout.buffers],
    )


class FedBn(FederatedStrategy):
    """Federated averaging of all but the normalisation layers.

    Source: Li et al. 2021 (FedBN), algorithm 1.
    """

    options_type = FedBnOptions

    @classmethod
    def personal(cls, options: FedBnOptions, model: nn.Module) -> PersonalPart:
        """Return the normalisation layers."""
        names = norm_names(model)
        if not names:
            raise ConfigError(
                'got "fedbn", but the model has no normalisation layer with parameters; use '
                'one that has, or another strategy ("fedper" keeps the head)',
                key="strategy.name",
            )
        return personal_part(ParameterLayout.of(model), names, names)


class FedPer(FederatedStrategy):
    """Federated averaging of the body.

    Source: Arivazhagan et al. 2019, algorithms 1 and 2.
    """

    options_type: ClassVar[type[LayersOptions]] = FedPerOptions

    @classmethod
    def personal(cls, options: LayersOptions, model: nn.Module) -> PersonalPart:
        """Return the head."""
        layout = ParameterLayout.of(model)
        return personal_part(layout, head_names(layout, options.personal))


class FedRep(FederatedStrategy):
    """Federated averaging of a body that is trained after the head.

    Source: Collins et al. 2021, algorithm 1.
    """

    options_type = FedRepOptions

    @classmethod
    def personal(cls, options: FedRepOptions, model: nn.Module) -> PersonalPart:
        """Return the head, with the share of the steps that train it."""
        layout = ParameterLayout.of(model)
        names = head_names(layout, options.personal)
        return personal_part(layout, names, head_share=options.head_share)


class Ditto(FederatedStrategy):
    """Federated averaging with personal models beside it.

    Source: Li et al. 2021 (Ditto), algorithm 1.
    """

    options_type = DittoOptions
    sends_personal: ClassVar[bool] = True
    trainings: ClassVar[int] = 2

    @classmethod
    def personal(cls, options: DittoOptions, model: nn.Module) -> PersonalPart:
        """Return the whole model."""
        return whole_model(model)

    @classmethod
    def client_side(cls, options: DittoOptions, part: PersonalPart | None) -> LocalAlgorithm:
        """Return Ditto's client."""
        assert part is not None
        return DittoLocal(options.lam, part)


class LocalOnly(FederatedStrategy):
    """Clients that train alone, as a reference.

    Source: none: the reference that papers on personalisation compare with.
    """

    options_type = LocalOnlyOptions
    takes_server_optimizer: ClassVar[bool] = False
    exchanges: ClassVar[bool] = False

    @classmethod
    def personal(cls, options: LocalOnlyOptions, model: nn.Module) -> PersonalPart:
        """Return the whole model."""
        return whole_model(model)

    @classmethod
    def client_side(cls, options: LocalOnlyOptions, part: PersonalPart | None) -> LocalAlgorithm:
        """Return a client that sends nothing."""
        assert part is not None
        return LocalOnlyLocal(part)

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Return the parameters as they were."""
        return parameters
