"""The losses and attacks that a configuration can name. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from fedopt.registry import Entry, Options, register


class LossOptions(Options):
    """Losses take no options."""


register(
    Entry(
        kind="losses",
        name="cross_entropy",
        target="torch.nn.functional:cross_entropy",
        options=LossOptions,
        description="mean cross-entropy of logits against integer labels",
        source="torch.nn.functional.cross_entropy",
    )
)
register(
    Entry(
        kind="losses",
        name="mse",
        target="fedopt.client.losses:mean_squared_error",
        options=LossOptions,
        description="mean squared error; the target is shaped like the output",
        source="torch.nn.functional.mse_loss",
    )
)


class NoAttackOptions(Options):
    """Honest clients have no options."""


class AttackOptions(Options):
    """What every attack takes."""

    fraction: float = Field(
        0.2, gt=0, le=1, description="share of the clients that are hostile, in (0, 1]; drawn once"
    )


class SignFlipOptions(AttackOptions):
    """Updates turned round."""

    scale: float = Field(1.0, gt=0, description="an update is multiplied by -scale, > 0")


class NoiseOptions(AttackOptions):
    """Gaussian noise."""

    scale: float = Field(10.0, gt=0, description="norm of the noise, in norms of the update, > 0")


class AlieOptions(AttackOptions):
    """A little is enough."""

    z: float = Field(
        1.5, gt=0, description="standard deviations between what is sent and the mean, > 0"
    )


def _attack(name: str, target: str, options: type[Options], description: str, source: str) -> None:
    where = f"fedopt.client.attacks:{target}"
    register(Entry("attacks", name, where, options, description, source))


_attack("none", "Attack", NoAttackOptions, "all clients are honest", "-")
_attack(
    "label_flip",
    "LabelFlip",
    AttackOptions,
    "hostile clients train on the labels classes - 1 - y",
    "Tolpegin et al. 2020",
)
_attack(
    "sign_flip",
    "SignFlip",
    SignFlipOptions,
    "hostile clients send their update turned round and scaled",
    "Li et al. 2019 (RSA), section 4",
)
_attack(
    "noise",
    "ScaledNoise",
    NoiseOptions,
    "hostile clients add Gaussian noise to their update",
    "Blanchard et al. 2017, section 5",
)
_attack(
    "alie",
    "Alie",
    AlieOptions,
    "hostile clients together send an update inside the spread of the honest ones",
    "Baruch et al. 2019, algorithm 3",
)
