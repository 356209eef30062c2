"""The tables of a configuration with a fixed schema; descriptions become the reference.

Tables whose `name` chooses an entry of the registry take that entry's options instead (see
`fedopt.config`). This module imports neither torch nor Flower nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator


class Table(BaseModel):
    """A table with a fixed schema: unknown keys and wrong types are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class RunTable(Table):
    """The keys at the top of the file."""

    seed: int = Field(
        0, ge=-(2**63), lt=2**63, description="every random draw derives from it; any integer"
    )
    rounds: int = Field(200, ge=1, description="communication rounds, >= 1")
    clients_per_round: StrictInt | StrictFloat | Literal["all"] = Field(
        20,
        description='clients sampled a round: a count >= 1, a fraction in (0, 1], or "all"',
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="dtype of parameters and inputs"
    )

    @model_validator(mode="after")
    def _cohort(self) -> RunTable:
        value = self.clients_per_round
        if isinstance(value, bool) or (isinstance(value, int) and value < 1):
            raise ValueError(f"clients_per_round: a count must be >= 1, got {value}")
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError(f"clients_per_round: a fraction must be in (0, 1], got {value}")
        return self


class LocalTable(Table):
    """What a client does in a round, besides its optimizer."""

    epochs: float | None = Field(
        None, gt=0, description="passes over the client's examples, > 0; fractions allowed"
    )
    steps: int | None = Field(
        None, ge=1, description="optimizer steps instead of epochs, >= 1 (default: 5 epochs)"
    )
    batch_size: int | None = Field(
        10, ge=1, description='examples a step, >= 1; "full" takes all of the client\'s examples'
    )
    loss: str = Field(
        "cross_entropy", description='a registered loss, or "package.module:function"'
    )

    @model_validator(mode="before")
    @classmethod
    def _full_batch(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("batch_size") == "full":
            return {**value, "batch_size": None}
        return value

    @model_validator(mode="after")
    def _one_amount(self) -> LocalTable:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("steps: epochs and steps exclude each other; give one")
        return self


class SystemTable(Table):
    """Heterogeneity of the devices."""

    stragglers: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the sampled clients that do only a uniformly drawn part of their "
        "local epochs (FedProx, section 5.2), in [0, 1]",
    )


class EngineTable(Table):
    """Where and how local training runs; none of it changes the results but block_size."""

    name: Literal["inline", "ray"] = Field("ray", description="inline: no Ray; ray: actors")
    workers: int | None = Field(
        None, ge=1, description="Ray actors, >= 1 (default: one a core, at most the blocks)"
    )
    training: Literal["auto", "loop", "stacked"] = Field(
        "auto",
        description="engine of local training: loop, one client after another, any model; "
        "stacked, many at once, dense layers; auto chooses by model, optimizer and device",
    )
    device: str = Field("cpu", description='torch device of local training: "cpu" or "cuda"')
    address: str | None = Field(
        None, description='address of a Ray cluster, or "auto" (default: a private local one)'
    )
    block_size: int | None = Field(
        None,
        ge=1,
        description="clients whose updates are summed before they leave a worker, >= 1 "
        "(default: the cohort in at most 32 blocks); part of the result's bits",
    )
    on_client_error: Literal["fail", "skip"] = Field(
        "fail", description="fail: an error in one client ends the run; skip: count and go on"
    )


class EvaluationTable(Table):
    """What is measured, and when."""

    every: int = Field(1, ge=1, description="rounds between evaluations, >= 1; the last always")
    batch_size: int = Field(1024, ge=1, description="examples a forward pass, >= 1")
    validation_clients: int = Field(
        0,
        ge=0,
        description="clients whose validation split is evaluated (0: none); they are drawn "
        "afresh each time",
    )


class CheckpointTable(Table):
    """Checkpoints in the run's folder."""

    every: int = Field(50, ge=0, description="rounds between checkpoints; 0: none")
    keep: int = Field(2, ge=1, description="newest checkpoints kept, >= 1")
