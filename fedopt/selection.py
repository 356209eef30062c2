"""From the curriculum tables of a configuration to what selects examples, all of it checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from fedopt.client.curriculum import Curriculum, Pace, Selector, UserScore
from fedopt.client.losses import Loss
from fedopt.client.scoring import ExampleScorer
from fedopt.client.self_paced import example_losses
from fedopt.config import Config
from fedopt.data.population import Population
from fedopt.data.unseen import PartlyUnseen
from fedopt.errors import ConfigError
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.registry import import_object

TABLE = "local.curriculum"


class Scores:
    """Difficulties from a file, clients one after another.

    Args:
        path: the .npy file.
        sizes: training examples of each client, `[N]`.

    Raises:
        ConfigError: the file cannot be read, or does not hold one finite number an example.
    """

    def __init__(self, path: str, sizes: npt.NDArray[np.int64]) -> None:
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f'"{path}" cannot be read: {error}', key=f"{TABLE}.score") from error
        total = int(sizes.sum())
        if values.dtype.kind not in "biuf":
            raise ConfigError(
                f'"{path}" holds {values.dtype}, it must hold numbers', key=f"{TABLE}.score"
            )
        if values.shape != (total,) or not np.isfinite(values.astype(np.float64)).all():
            raise ConfigError(
                f'"{path}" has shape {values.shape}; it must hold {total} finite numbers, one for '
                "each training example, clients one after another",
                key=f"{TABLE}.score",
            )
        self._values = values
        self._ends = np.cumsum(sizes)

    def __call__(self, client: int, x: Any, y: Any) -> npt.NDArray[np.float64]:
        """Return the difficulties of a client's examples."""
        end = int(self._ends[client])
        found: npt.NDArray[np.float64] = self._values[end - len(y) : end].astype(np.float64)
        return found


class Checked:
    """A user's function of difficulty, whose answers are checked.

    Args:
        path: `"package.module:function"`.

    Raises:
        ConfigError: it cannot be imported or called.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        if not callable(self._function):
            raise ConfigError(f'"{path}" is not callable', key=f"{TABLE}.score")

    @property
    def _function(self) -> Any:
        return import_object(self._path, key=f"{TABLE}.score")

    def __call__(self, client: int, x: Any, y: Any) -> npt.NDArray[np.float64]:
        """Return the difficulties of a client's examples.

        Raises:
            ConfigError: they are not one finite number an example.
        """
        found = np.asarray(self._function(client, x, y), dtype=np.float64)
        if found.shape != (len(y),) or not np.isfinite(found).all():
            raise ConfigError(
                f'"{self._path}" returned shape {found.shape} for client {client} with {len(y)} '
                "examples; it must return one finite number for each",
                key=f"{TABLE}.score",
            )
        return found


class Selecting:
    """What a configuration selects, built and checked.

    Args:
        config: the configuration.
        population: the clients' examples.
        build_model: makes a new module.
        loss: the mean over a batch.
        fewest_steps: the planned local steps of the client that has the fewest.
    """

    def __init__(
        self,
        config: Config,
        population: Population,
        build_model: Callable[[], nn.Module],
        loss: Loss,
        fewest_steps: int,
    ) -> None:
        self._config = config
        self._population = population
        self._build_model = build_model
        self._loss = loss
        self._fewest_steps = fewest_steps

    @property
    def is_on(self) -> bool:
        """Whether anything selects."""
        return self._config.local_curriculum.is_on or self._config.self_paced.is_on

    @cached_property
    def curriculum(self) -> Curriculum | None:
        """The curriculum, or None.

        Raises:
            ConfigError: the teacher or the scores cannot be used.
        """
        table = self._config.local_curriculum
        if not table.is_on:
            return None
        is_user = table.score not in ("loss", "margin")
        return Curriculum(
            order=table.name,
            score="user" if is_user else table.score,
            reference=table.reference,
            pacing=table.pacing,
            start=table.start,
            full_at=table.full_at,
            scope=table.scope,
            rounds=self._config.rounds,
            teacher=self._teacher(table.teacher) if table.teacher is not None else None,
            user=self._user(table.score) if is_user else None,
        )

    @property
    def pace(self) -> Pace | None:
        """The pace of self-paced learning, or None."""
        table = self._config.self_paced
        if not table.is_on:
            return None
        return Pace(
            threshold=table.threshold,
            growth=table.growth,
            quantile=table.quantile,
            quantile_step=table.quantile_step,
            shared=table.scope == "shared",
        )

    def selector(self, device: torch.device) -> Selector | None:
        """Return what selects on a device, or None where nothing does."""
        if not self.is_on:
            return None
        scorer = ExampleScorer(self._build_model(), self._loss, device)
        curriculum = self.curriculum
        if curriculum is not None and curriculum.teacher is not None:
            teacher = curriculum.teacher
            moved = ModelState(teacher.parameters.to(device), teacher.buffers)
            curriculum = Curriculum(**{**vars(curriculum), "teacher": moved})
        return Selector(curriculum, self.pace, scorer, self._config.seed)

    def check(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        """Check what is selected by on a few examples.

        Args:
            output: of the model, on the first examples of a client.
            targets: of these examples.

        Raises:
            ConfigError: the loss is no mean over examples, a margin has no classes, the scores
                cannot be used, or the pacing never reaches all data within a round.
        """
        if not self.is_on:
            return
        table = self._config.local_curriculum
        if table.is_on and table.scope == "within":
            last = (self._fewest_steps - 1) / self._fewest_steps
            if table.full_at > last and table.start < 1:
                raise ConfigError(
                    f'got {table.full_at:g}: the pacing "{table.pacing}" never reaches all data, '
                    f"as a client's last of {self._fewest_steps} steps begins at {last:.3g} of the "
                    "round; use at most that, or more local steps",
                    key=f"{TABLE}.full_at",
                )
        curriculum = self.curriculum
        is_margin = curriculum is not None and curriculum.score == "margin"
        if is_margin and (self._population.classes is None or output.dim() != 2):
            raise ConfigError(
                'got "margin", which needs labels and one logit a class; use "loss"',
                key=f"{TABLE}.score",
            )
        if curriculum is not None and curriculum.user is not None:
            client = int(np.flatnonzero(self._population.sizes)[0])
            told = getattr(self._population, "stand_in", None)  # where the data are elsewhere
            examples = self._population.train(client) if told is None else told(2)
            curriculum.user(client, examples.x, examples.y)
        uses_losses = self.pace is not None or (
            curriculum is not None and curriculum.needs_scores and curriculum.score == "loss"
        )
        if uses_losses:
            self._check_loss(output, targets)

    def _check_loss(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        key = "local.self_paced.name" if self.pace is not None else f"{TABLE}.score"
        says = "which needs a loss that is the mean over its examples"
        try:
            mean = float(example_losses(self._loss, output, targets).mean())
        except Exception as error:  # a user's loss may raise anything
            raise ConfigError(
                f"got a {says}, but the configured one cannot be told for one example: {error}",
                key=key,
            ) from error
        whole = float(self._loss(output, targets))
        if not np.isclose(mean, whole, rtol=1e-3, atol=1e-6):
            raise ConfigError(
                f"works example by example, {says}; on {len(targets)} examples the configured "
                f"loss is {whole:.6g}, the mean of their own losses {mean:.6g}",
                key=key,
            )

    def _teacher(self, path: str) -> ModelState:
        key = f"{TABLE}.teacher"
        if not Path(path).is_file():
            raise ConfigError(
                f'"{path}" is not a file; give model.safetensors of a run\'s folder', key=key
            )
        try:
            arrays = load_file(path)
        except Exception as error:  # the file may be anything
            raise ConfigError(f'"{path}" is no safetensors file: {error}', key=key) from error
        try:
            return ParameterLayout.of(self._build_model()).state(arrays)
        except ConfigError as error:
            raise ConfigError(f'"{path}" is of another model: {error}', key=key) from error

    def _user(self, score: str) -> UserScore:
        if score.endswith(".npy"):
            sizes, population = self._population.sizes, cast(object, self._population)
            if isinstance(population, PartlyUnseen):  # the file tells of their examples as well
                sizes = population.all_sizes
            return Scores(score, np.asarray(sizes))
        if ":" in score:
            return Checked(score)
        raise ConfigError(
            f'got "{score}"; use "loss", "margin", the path of a .npy file, or '
            '"package.module:function"',
            key=f"{TABLE}.score",
        )
