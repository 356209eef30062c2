"""The devices, availabilities and policies that a configuration can name."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedopt.registry import Entry, Options, register


class PlainOptions(Options):
    """What takes neither time nor energy, or is always there, has no options."""


class SharedDeviceOptions(Options):
    """What all devices of a distribution share."""

    latency: float = Field(0.05, ge=0, description="seconds before a transfer begins, >= 0")
    memory: float = Field(8.0, gt=0, description="main memory in GiB, > 0")
    watts: float = Field(5.0, ge=0, description="power while computing, in W, >= 0")
    joules_per_megabyte: float = Field(
        0.2, ge=0, description="energy of a megabyte sent or received, in J, >= 0"
    )


class LogNormalOptions(SharedDeviceOptions):
    """Log-normal speed and bandwidth."""

    speed: float = Field(1000.0, gt=0, description="median examples (or operations) a second, > 0")
    speed_sigma: float = Field(
        0.8, ge=0, description="standard deviation of the logarithm of the speed, >= 0"
    )
    downlink: float = Field(20.0, gt=0, description="median download in Mbit/s, > 0")
    uplink: float = Field(5.0, gt=0, description="median upload in Mbit/s, > 0")
    bandwidth_sigma: float = Field(
        0.8, ge=0, description="standard deviation of the logarithm of both bandwidths, >= 0"
    )


class UniformOptions(SharedDeviceOptions):
    """Uniform speed and bandwidth."""

    speed: tuple[float, float] = Field(
        (100.0, 2000.0),
        strict=False,
        description="smallest and largest examples (or operations) a second, > 0",
    )
    downlink: tuple[float, float] = Field(
        (5.0, 50.0), strict=False, description="smallest and largest download in Mbit/s, > 0"
    )
    uplink: tuple[float, float] = Field(
        (1.0, 20.0), strict=False, description="smallest and largest upload in Mbit/s, > 0"
    )

    @model_validator(mode="after")
    def _in_order(self) -> UniformOptions:
        for name in ("speed", "downlink", "uplink"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: need 0 < smallest <= largest, got {[low, high]}")
        return self


class ClassOptions(Options):
    """A mixture of named classes."""

    names: tuple[str, ...] = Field(
        ("phone_fast", "phone_slow", "laptop"),
        strict=False,
        description="classes: datacentre, workstation, laptop, phone_fast, phone_slow, "
        "single_board, microcontroller; orders of magnitude, not measurements",
    )
    weights: tuple[float, ...] = Field(
        (), strict=False, description="weight of each, > 0 (default: all alike)"
    )
    sigma: float = Field(
        0.3,
        ge=0,
        description="standard deviation of the logarithm of each client's own factors of speed "
        "and bandwidths, >= 0",
    )

    @model_validator(mode="after")
    def _fit(self) -> ClassOptions:
        from fedopt.errors import did_you_mean
        from fedopt.system.devices import CLASSES

        for name in self.names:
            if name not in CLASSES:
                raise ValueError(
                    f'names: "{name}" is not known.{did_you_mean(name, CLASSES)} '
                    f"One of: {', '.join(CLASSES)}"
                )
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"names: need one or more different ones, got {list(self.names)}")
        if self.weights and len(self.weights) != len(self.names):
            raise ValueError(
                f"weights: need {len(self.names)}, one a name, got {list(self.weights)}"
            )
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"weights: must be > 0, got {list(self.weights)}")
        return self


class DeviceFileOptions(Options):
    """A CSV file."""

    path: str = Field(
        "devices.csv",
        description="CSV file with a row a client: speed, and any of downlink, uplink (bytes/s), "
        "latency (s), memory (bytes), watts, joules_per_byte, client",
    )


class BernoulliOptions(Options):
    """There in each slot with a probability."""

    probability: float = Field(0.5, gt=0, le=1, description="of being there, in (0, 1]")
    slot: float = Field(600.0, gt=0, description="seconds of a slot, > 0")


class MarkovOptions(Options):
    """There and away in turns."""

    mean_there: float = Field(3600.0, gt=0, description="mean seconds of being there, > 0")
    mean_away: float = Field(3600.0, gt=0, description="mean seconds of being away, > 0")


class DayNightOptions(Options):
    """By the sun of the client's time zone."""

    mean: float = Field(0.5, gt=0, le=1, description="mean probability of being there, in (0, 1]")
    amplitude: float = Field(0.5, ge=0, le=1, description="its daily swing, in [0, 1]")
    peak: float = Field(2.0, ge=0, lt=24, description="local hour of the peak, in [0, 24)")
    slot: float = Field(600.0, gt=0, description="seconds of a slot, > 0")


class TraceOptions(Options):
    """A CSV file of intervals."""

    path: str = Field(
        "trace.csv",
        description="CSV file with the columns client, start, end (seconds); clients that are not "
        "in it are never there",
    )
    period: float | None = Field(
        None, gt=0, description="seconds after which the trace begins again, > 0 (default: never)"
    )


class DeadlineOptions(Options):
    """Late clients."""

    seconds: float = Field(
        60.0,
        gt=0,
        description="virtual seconds a round, > 0; with strategy.partial_work = keep late clients "
        "send the steps that fit",
    )


class OverSelectionOptions(Options):
    """More clients than are wanted."""

    factor: float = Field(
        1.3, ge=1, description="clients sampled for each that is wanted, >= 1; the first count"
    )


class SemiSynchronousOptions(Options):
    """As many steps as fit."""

    seconds: float = Field(
        60.0, gt=0, description="virtual seconds a round, transfers included, > 0"
    )
    most: float = Field(1.0, gt=0, le=1, description="the most steps, in planned ones, in (0, 1]")


class FedBuffOptions(Options):
    """Buffered asynchronous updates."""

    buffer: int | None = Field(
        None,
        ge=1,
        description="updates of a server step, >= 1 (default: clients_per_round, the number of "
        "clients that train at a time)",
    )
    exponent: float = Field(
        0.5, ge=0, description="an update counts (1 + staleness)^-exponent, >= 0"
    )


class FedAsyncOptions(Options):
    """Asynchronous mixing."""

    mixing: float = Field(
        0.6, gt=0, le=1, description="alpha, share of a fresh client's model in the mix, in (0, 1]"
    )
    exponent: float = Field(
        0.5, ge=0, description="alpha shrinks with (1 + staleness)^-exponent, >= 0"
    )


def _register(
    kind: str, name: str, target: str, options: type[Options], description: str, source: str
) -> None:
    register(Entry(kind, name, f"fedopt.system.{target}", options, description, source))


_register("devices", "none", "devices:NoDevices", PlainOptions, "no time, no energy", "-")
_register(
    "devices",
    "classes",
    "devices:ClassDevices",
    ClassOptions,
    "a mixture of named classes of devices",
    "fedopt; orders of magnitude",
)
_register(
    "devices",
    "log_normal",
    "devices:LogNormalDevices",
    LogNormalOptions,
    "log-normal speed and bandwidth",
    "fedopt; the log-normal law",
)
_register(
    "devices",
    "uniform",
    "devices:UniformDevices",
    UniformOptions,
    "uniform speed and bandwidth",
    "fedopt; the uniform law",
)
_register(
    "devices",
    "file",
    "devices:ListedDevices",
    DeviceFileOptions,
    "a CSV file with a row a client",
    "the user's file",
)
_register("availabilities", "always", "availability:Always", PlainOptions, "at all times", "-")
_register(
    "availabilities",
    "bernoulli",
    "availability:Bernoulli",
    BernoulliOptions,
    "in each slot with a probability",
    "fedopt; independent draws",
)
_register(
    "availabilities",
    "markov",
    "availability:Markov",
    MarkovOptions,
    "there and away in turns, for exponential times",
    "fedopt; a two-state Markov process",
)
_register(
    "availabilities",
    "day_night",
    "availability:DayNight",
    DayNightOptions,
    "by the hour of the client's time zone",
    "fedopt; the daily swing that Bonawitz et al. 2019, section 9, report",
)
_register(
    "availabilities",
    "trace",
    "availability:Trace",
    TraceOptions,
    "in the intervals of a CSV file",
    "the user's file",
)
_register(
    "policies",
    "synchronous",
    "rounds:Synchronous",
    PlainOptions,
    "the server waits for the whole cohort",
    "McMahan et al. 2017, algorithm 1",
)
_register(
    "policies",
    "deadline",
    "rounds:Deadline",
    DeadlineOptions,
    "late clients are dropped, or send the steps that fit",
    "Bonawitz et al. 2019; Li et al. 2020, section 5.2",
)
_register(
    "policies",
    "over_selection",
    "rounds:OverSelection",
    OverSelectionOptions,
    "more clients than are wanted are sampled, and the first are taken",
    "Bonawitz et al. 2019, section 2.2",
)
_register(
    "policies",
    "semi_synchronous",
    "rounds:SemiSynchronous",
    SemiSynchronousOptions,
    "each client does the steps that fit into the period",
    "Stripelis et al. 2022",
)
_register(
    "policies",
    "fedbuff",
    "asynchronous:Buffered",
    FedBuffOptions,
    "clients come and go; the server takes a step when its buffer of updates is full",
    "Nguyen et al. 2022 (FedBuff), algorithm 1",
)
_register(
    "policies",
    "fedasync",
    "asynchronous:Buffered",
    FedAsyncOptions,
    "clients come and go; each model that arrives is mixed into the server's",
    "Xie et al. 2019 (FedAsync), algorithm 1",
)
