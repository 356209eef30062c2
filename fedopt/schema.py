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
    optimizer_state: Literal["reset", "keep", "average"] = Field(
        "reset",
        description="the optimizer's moments between rounds: reset begins afresh; keep gives each "
        "client its own last ones; average gives all the weighted mean of the last cohort's",
    )
    nominal_steps: int | None = Field(
        None,
        ge=1,
        description='local steps that a round counts for in a schedule of scope "across" and in '
        "the decay of gradient noise, >= 1 (default: those of a client with the mean number of "
        "examples)",
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


class SamTable(Table):
    """Sharpness-aware minimisation (Foret et al. 2021) in every local step."""

    rho: float = Field(
        0.0, ge=0, description="radius of the perturbation, >= 0; 0: off; 0.05 is usual"
    )
    adaptive: bool = Field(
        False, description="ASAM (Kwon et al. 2021): the radius is relative to the weights"
    )
    eta: float = Field(0.01, ge=0, description="added to the weights' size by ASAM, >= 0")
    corrected: bool = Field(
        False,
        description="whether the perturbation follows the gradient with the strategy's correction "
        "rather than the client's own; the step's gradient is corrected either way",
    )

    @model_validator(mode="after")
    def _needs_radius(self) -> SamTable:
        if self.rho == 0 and (self.adaptive or self.corrected):
            key = "adaptive" if self.adaptive else "corrected"
            raise ValueError(f"{key}: needs rho > 0, got rho = 0")
        return self


class GradientTable(Table):
    """What happens to a client's gradient before the optimizer sees it, in the order given here."""

    penalty: float = Field(
        0.0,
        ge=0,
        description="mu of the term mu |grad L|^2 in the objective (Barrett & Dherin 2021), >= 0; "
        "gradient descent at rate lr has lr/4 implicitly",
    )
    skip_norm: float | None = Field(
        None,
        gt=0,
        description="a step whose gradient has a greater norm, or one that is not finite, does "
        "not happen, > 0",
    )
    skip_nonfinite: bool = Field(
        False, description="a step whose gradient is not finite does not happen"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="the gradient's norm over all parameters is cut to it, > 0"
    )
    clip_value: float | None = Field(
        None, gt=0, description="the gradient's elements are cut to it, > 0"
    )
    noise_eta: float | None = Field(
        None,
        gt=0,
        description="eta of Gaussian noise of variance eta / (1 + t)^noise_gamma at step t of the "
        "run (Neelakantan et al. 2015), > 0; they use 0.01, 0.3 or 1",
    )
    noise_gamma: float = Field(0.55, ge=0, description="how fast the noise decays, >= 0")


class LocalSwaTable(Table):
    """The mean of a client's last iterates is sent, not the last (Izmailov et al. 2018)."""

    last_steps: int | None = Field(None, ge=1, description="iterates averaged, >= 1")
    last_epochs: float | None = Field(None, gt=0, description="the same in epochs, > 0")
    decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="moving average a <- decay a + (1 - decay) w instead of the mean, in (0, 1)",
    )

    @model_validator(mode="after")
    def _one_window(self) -> LocalSwaTable:
        if self.last_steps is not None and self.last_epochs is not None:
            raise ValueError("last_epochs: last_steps and last_epochs exclude each other; give one")
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return any(v is not None for v in (self.last_steps, self.last_epochs, self.decay))


Pacing = Literal["linear", "quadratic", "root", "exponential", "logarithmic", "step"]
Order = Literal["none", "curriculum", "anti", "random"]


class PacedTable(Table):
    """What becomes available in which order, and when."""

    name: Order = Field(
        "none",
        description="order in which data become available: easy first (`curriculum`), hard first "
        "(`anti`), `random` (the control), or all at once",
    )
    pacing: Pacing = Field(
        "linear", description="how the available share grows (Wu et al. 2021, table 2)"
    )
    start: float = Field(
        0.2, gt=0, le=1, description="share available at the start of training, in (0, 1]"
    )
    full_at: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of the training after which all are available, in (0, 1]; more would "
        "never reach all data",
    )

    @model_validator(mode="after")
    def _is_named(self) -> PacedTable:
        given = sorted(self.model_fields_set)
        if given and "name" not in given:
            raise ValueError(
                f"name: missing, so that {', '.join(given)} would have no effect; use "
                '"curriculum", "anti" or "random", or say "none"'
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything is held back."""
        return self.name != "none"


class CurriculumTable(PacedTable):
    """Which of its examples a client trains on by when."""

    score: str = Field(
        "loss",
        description="difficulty of an example: `loss` or `margin` of the reference model, a path "
        'to a .npy file of numbers (clients one after another), or "package.module:function" of '
        "(client, inputs, targets)",
    )
    reference: Literal["global", "local", "teacher"] = Field(
        "global",
        description="model that scores: the server's of the round (`global`), that model after "
        "the client's own training of the round, which costs as much again (`local`), or a file's",
    )
    teacher: str | None = Field(
        None, description="model.safetensors of a run with the same model; needs reference teacher"
    )
    scope: Literal["across", "within"] = Field(
        "across", description="pacing over the rounds of the run, or over the steps of each round"
    )

    @model_validator(mode="after")
    def _has_teacher(self) -> CurriculumTable:
        if (self.reference == "teacher") != (self.teacher is not None):
            got = "nothing" if self.teacher is None else f'"{self.teacher}"'
            raise ValueError(
                f'teacher: got {got} with reference = "{self.reference}"; the reference "teacher" '
                "and the path of its file go together"
            )
        return self


class SelfPacedTable(Table):
    """Examples weighed by their own loss, of which those above a threshold have none."""

    name: Literal["none", "hard", "linear", "log", "mixture"] = Field(
        "none",
        description="weights: 1 below the threshold (`hard`; Kumar et al. 2010), or falling with "
        "the loss (Jiang et al. 2014)",
    )
    threshold: float | None = Field(
        None, gt=0, description="loss in the first round from which on examples have no weight, > 0"
    )
    growth: float = Field(1.2, ge=1, description="factor of `threshold` a round, >= 1")
    quantile: float | None = Field(
        None,
        gt=0,
        le=1,
        description="the threshold leaves this share of a client's losses below it, in (0, 1], "
        "instead of `threshold`; costs a forward pass over its examples a round",
    )
    quantile_step: float = Field(
        0.05, ge=0, description="what is added to `quantile` a round, >= 0; from 1 on all count"
    )
    scope: Literal["client", "shared"] = Field(
        "client",
        description="whether each client has the quantile of its own losses, or all have the mean "
        "of the last cohort's, one number up and down",
    )
    ratio: float = Field(
        0.5, gt=0, lt=1, description="`mixture`: full weight below ratio times the threshold"
    )

    @model_validator(mode="after")
    def _has_one_threshold(self) -> SelfPacedTable:
        if self.name == "none":
            if self.threshold is not None or self.quantile is not None:
                key = "threshold" if self.threshold is not None else "quantile"
                raise ValueError(
                    f'{key}: needs name, one of hard, linear, log, mixture, got "none"'
                )
            return self
        if (self.threshold is None) == (self.quantile is None):
            both = self.threshold is not None
            raise ValueError(
                f"threshold: give either threshold or quantile, got {'both' if both else 'neither'}"
            )
        if self.scope == "shared" and self.quantile is None:
            raise ValueError("scope: shared needs quantile; a threshold is the same for all anyway")
        return self

    @property
    def is_on(self) -> bool:
        """Whether examples are weighed."""
        return self.name != "none"


class SearchTable(Table):
    """Architecture search: used where the model is a supernet (Liu et al. 2019, DARTS)."""

    gradient: Literal["second", "first", "finite"] = Field(
        "second",
        description="architecture gradient: exact through the unrolled weight step (`second`), "
        "without it (`first`), or the paper's finite difference (`finite`)",
    )
    xi: float | None = Field(
        None, ge=0, description="rate of the unrolled step, >= 0; default: that of the weights"
    )
    lr: float = Field(3e-4, gt=0, description="learning rate of the architecture's Adam, > 0")
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of its first moment, in [0, 1)")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of its second moment, in [0, 1)")
    weight_decay: float = Field(
        1e-3, ge=0, description="L2 penalty on the architecture parameters, >= 0"
    )
    validation_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of a client's examples for architecture steps, in (0, 1)",
    )
    skip_limit: int | None = Field(
        None,
        ge=1,
        description="the search ends when the normal cell has so many skip connections (DARTS+)",
    )
    retrain_rounds: int | None = Field(
        None, ge=1, description="rounds of retraining from scratch; default: `rounds`"
    )
    retrain_lr: float | None = Field(
        None, gt=0, description="learning rate of retraining; default: local.optimizer.lr"
    )
    random_samples: int = Field(
        5,
        ge=0,
        description="architectures drawn from the same space, retrained alike and compared, >= 0",
    )


class ServerCurriculumTable(PacedTable):
    """Which clients are sampled by when, by their loss.

    Clients whose loss is not known yet come first.
    """

    measure_every: int | None = Field(
        None,
        ge=1,
        description="rounds between measurements of the server's model on all clients' training "
        "data, from round 1, >= 1; their bytes are counted (default: the loss of a client's last "
        "participation, which costs nothing)",
    )


class ServerSwaTable(Table):
    """A running mean of the server's models, evaluated and saved beside the last; not fed back."""

    start: StrictInt | StrictFloat | None = Field(
        None,
        description="when averaging begins: after a share of the rounds in [0, 1), with the "
        "every-th round from there, or in a round, 1..rounds (default: off; 0 where decay is "
        "given); 0.75 is usual",
    )
    every: int = Field(1, ge=1, description="rounds between the models averaged, >= 1")
    decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="moving average (EMA) a <- decay a + (1 - decay) x instead of the mean, "
        "in (0, 1)",
    )
    batch_norm_clients: int = Field(
        20,
        ge=1,
        description="clients on whose training data the statistics of BatchNorm are computed "
        "anew for the averaged model, >= 1; the data stay with them",
    )

    @model_validator(mode="after")
    def _begins_in_time(self) -> ServerSwaTable:
        start = self.start
        if isinstance(start, bool) or (isinstance(start, int) and start < 1):
            raise ValueError(f"start: a round must be >= 1, got {start}")
        if isinstance(start, float) and not 0 <= start < 1:
            raise ValueError(f"start: a share must be in [0, 1), got {start}")
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return self.start is not None or self.decay is not None

    def first_round(self, rounds: int) -> int:
        """Return the first round whose model is averaged.

        After a share of the rounds it is the `every`-th: with the cyclic rate of the same start
        and length, the last of a cycle, where the rate is lowest.
        """
        start = self.start or 0.0
        return start if isinstance(start, int) else int(start * rounds) + self.every


class ClipTable(Table):
    """Clipping of each client's update before it is summed."""

    norm: float | None = Field(
        None,
        gt=0,
        description="longest that a client's update may be, > 0 (default: off); with a quantile, "
        "that of the first round",
    )
    quantile: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the norm follows this quantile of the clients' norms, in [0, 1] (Andrew et "
        "al. 2021; default: the norm stays)",
    )
    lr: float = Field(0.2, gt=0, description="learning rate of a norm that follows a quantile, > 0")

    @model_validator(mode="after")
    def _begins_somewhere(self) -> ClipTable:
        if self.quantile is not None and self.norm is None:
            raise ValueError("norm: a quantile needs the norm of the first round, > 0")
        default = type(self).model_fields["lr"].default  # which config.toml says of every run
        if self.lr != default and self.quantile is None:
            raise ValueError("lr: has no effect without a quantile, which the norm follows")
        return self


class PrivacyTable(Table):
    """Differential privacy of the server's models, for each client."""

    noise_multiplier: float = Field(
        0.0,
        ge=0,
        description="standard deviation of the Gaussian noise in a round's sum of updates, in "
        "clipping norms, >= 0 (0: off); epsilon is in rounds.csv",
    )
    delta: float = Field(
        1e-5,
        gt=0,
        lt=1,
        description="probability with which the guarantee may fail, in (0, 1); should be far "
        "below 1 / clients",
    )
    sampling: Literal["poisson", "fixed"] = Field(
        "poisson",
        description="poisson: each client is in a cohort independently, so that clients_per_round "
        "is the expectation; fixed: cohorts of that size, with the larger epsilon of replacing a "
        "client",
    )
    count_noise: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the noise on the number of clients below an adaptive "
        "norm, > noise_multiplier / 2 (default: clients_per_round / 20, or noise_multiplier where "
        "that is more)",
    )

    @model_validator(mode="after")
    def _has_noise(self) -> PrivacyTable:
        given = sorted(self.model_fields_set)
        if given and "noise_multiplier" not in given:
            raise ValueError(
                f"noise_multiplier: missing, so that {', '.join(given)} would have no effect; "
                "without noise there is no privacy"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether noise is added."""
        return self.noise_multiplier > 0


class SystemTable(Table):
    """Heterogeneity of the devices."""

    stragglers: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the sampled clients that do only a uniformly drawn part of their "
        "local epochs (FedProx, section 5.2), in [0, 1]",
    )
    speed_counts: Literal["examples", "operations"] = Field(
        "examples",
        description="what the devices' speed counts a second: examples of a gradient, or its "
        "floating-point operations, counted on the model",
    )


class FailuresTable(Table):
    """Parts of clients that fail, independently in each round."""

    before: float = Field(0.0, ge=0, le=1, description="probability before training, in [0, 1]")
    during: float = Field(
        0.0, ge=0, le=1, description="probability at a uniform moment of training, in [0, 1]"
    )
    upload: float = Field(
        0.0, ge=0, le=1, description="probability on the way up, all bytes sent, in [0, 1]"
    )


class ArrivalTable(Table):
    """Clients that join after the first round, and are not sampled before."""

    share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the clients that join late, in [0, 1); drawn once, as their order is",
    )
    first: int = Field(2, ge=2, description="round in which the first of them join, in 2..rounds")
    last: int | None = Field(
        None,
        ge=2,
        description="round by which all have joined, in first..rounds (default: half of the "
        "rounds, or first)",
    )
    pattern: Literal["uniform", "step"] = Field(
        "uniform",
        description="uniform: as many a round; step: in waves, evenly spaced from first to last",
    )
    waves: int = Field(1, ge=1, description="step: number of waves, >= 1; one joins at first")

    @model_validator(mode="after")
    def _has_share(self) -> ArrivalTable:
        given = sorted(self.model_fields_set)
        if given and "share" not in given:
            raise ValueError(
                f"share: missing, so that {', '.join(given)} would have no effect; use a share in "
                "(0, 1)"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether anybody joins late."""
        return self.share > 0


class EngineTable(Table):
    """Where and how local training runs; only block_size and precision change the results."""

    name: Literal["inline", "ray"] = Field("ray", description="inline: no Ray; ray: actors")
    workers: int | None = Field(
        None, ge=1, description="Ray actors, >= 1 (default: one a core, at most the blocks)"
    )
    training: Literal["auto", "loop", "stacked"] = Field(
        "auto",
        description="engine of local training: loop, one client after another, any model; "
        "stacked, many at once, dense layers; auto chooses by model, optimizer and device",
    )
    precision: Literal["full", "bf16"] = Field(
        "full",
        description="arithmetic of the passes through the model: full, that of dtype; bf16, "
        "bfloat16 where it is safe, parameters and updates staying in float32; part of the "
        "result's bits",
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
    max_client_failures: int | None = Field(
        None,
        ge=1,
        description="skip: failures of one client, over all rounds, after which another one ends "
        "the run, >= 1 (default: no limit)",
    )

    @model_validator(mode="after")
    def _skips(self) -> EngineTable:
        if self.max_client_failures is not None and self.on_client_error != "skip":
            raise ValueError('max_client_failures: needs on_client_error = "skip"')
        return self


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
    unseen_clients: StrictInt | StrictFloat = Field(
        0,
        description="clients that never train and are evaluated on all of their training data: a "
        "count >= 0, or a share in (0, 1); drawn once",
    )
    training_clients: StrictInt | StrictFloat = Field(
        0,
        description="clients on whose training data the loss of the global model is measured: a "
        "count >= 0 (0: none; at least as many as there are: all), or a share in (0, 1]; all give "
        "the global objective, others are drawn afresh each time",
    )
    gradients: bool = Field(
        False,
        description="measure also how much the gradients of these clients' losses differ, at the "
        "global model; needs training_clients",
    )
    sharpness_every: int = Field(
        0,
        ge=0,
        description="rounds between measurements of the test loss's sharpness; 0: never, else "
        "the last always",
    )
    sharpness_examples: int = Field(
        1000, ge=1, description="test examples, the first so many, of that measurement, >= 1"
    )
    sharpness_rho: float = Field(
        0.05, gt=0, description="radius of the perturbation of test_ball_increase, > 0"
    )

    @model_validator(mode="after")
    def _leaves_somebody(self) -> EvaluationTable:
        value = self.unseen_clients
        if isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"unseen_clients: a count must be >= 0, got {value}")
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"unseen_clients: a share must be in (0, 1), got {value}")
        return self

    @model_validator(mode="after")
    def _measures_somebody(self) -> EvaluationTable:
        value = self.training_clients
        if isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"training_clients: a count must be >= 0, got {value}")
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError(f"training_clients: a share must be in (0, 1], got {value}")
        if self.gradients and not value:
            raise ValueError(
                "gradients: got true, but the losses of no clients are measured; use "
                "training_clients > 0 (1.0: all)"
            )
        return self


class DeploymentTable(Table):
    """Real clients: whom the server waits for, and how long; no effect in a simulation."""

    min_clients: int = Field(
        1,
        ge=1,
        description="clients that must be connected before the first round, >= 1; `fedopt deploy "
        "submit` asks for all of the deployment's unless this is given",
    )
    min_survivors: int = Field(
        1,
        ge=1,
        description="updates without which a round is done again, once enough clients are "
        "connected, >= 1",
    )
    wait_seconds: float = Field(
        600.0, gt=0, description="how long the server waits for that many clients, in seconds, > 0"
    )
    round_seconds: float = Field(
        3600.0,
        gt=0,
        description="deadline of a round's replies in seconds, > 0; who is later is lost for the "
        "round",
    )
    probe: bool = Field(
        False,
        description="measure each client's link before the first round, so that devices can be "
        "fitted to it (transfers.csv, fedopt compare --devices)",
    )
    secure: bool = Field(
        False,
        description="secure aggregation: the server learns the sum of the updates and no single "
        "one (Bonawitz et al. 2017)",
    )
    secure_threshold: float = Field(
        0.66,
        gt=0.5,
        le=1,
        description="share of a round's clients that must stay to its end for the sum to be "
        "learnt, in (0.5, 1]",
    )
    secure_range: float = Field(
        16.0,
        gt=0,
        description="largest absolute value that a weighted update's scalar may have in the fixed "
        "point numbers of secure aggregation, > 0; larger ones are refused, not cut",
    )


class CheckpointTable(Table):
    """Checkpoints in the run's folder."""

    every: int = Field(50, ge=0, description="rounds between checkpoints; 0: none")
    minutes: float | None = Field(
        None,
        gt=0,
        description="minutes after which a round has a checkpoint too, > 0 (default: rounds alone "
        "decide); never part of the result's bits",
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept, >= 1")
