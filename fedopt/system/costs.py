"""What a client's part in a round costs: seconds of each stage, bytes, joules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.system.devices import Devices

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """What clients do in a round, on any device.

    Args:
        sizes: training examples of each client, `[n]`, >= 1.
        batch_size: examples a step; None: all of the client's.
        down: bytes that a client is sent.
        up: bytes that it sends back.
        passes: gradients a step: 2 with sharpness-aware minimisation, and so on.
        operations: floating-point operations of a gradient of one example, where devices' speed
            counts operations; 1 where it counts examples.
        merges_single: whether a last batch of one is added to the one before it.
    """

    sizes: Integers
    batch_size: int | None
    down: int
    up: int
    passes: int = 1
    operations: float = 1.0
    merges_single: bool = False

    def examples(self, steps: Integers) -> Integers:
        """Return the examples in some steps of each client; a pass's last batch may be short."""
        batch = self.sizes if self.batch_size is None else np.minimum(self.batch_size, self.sizes)
        whole, left = np.divmod(self.sizes, batch)
        an_epoch = whole + ((left > 1) if self.merges_single else (left > 0))
        passes, rest = np.divmod(steps, an_epoch)
        seen: Integers = passes * self.sizes + rest * batch
        return seen


@dataclass(frozen=True)
class Stages:
    """Seconds of the stages of each client's part, `[n]` each.

    Args:
        download: latency and transfer of what the server sends.
        compute: the local steps.
        upload: latency and transfer of what the client sends.
    """

    download: Floats
    compute: Floats
    upload: Floats

    @property
    def total(self) -> Floats:
        """Seconds of all three."""
        return self.download + self.compute + self.upload


def compute_seconds(devices: Devices, work: Work, steps: Integers) -> Floats:
    """Return the seconds of some steps of each client."""
    seen = work.examples(steps) * work.passes * work.operations
    seconds: Floats = seen / devices.speed
    return seconds


def stages(devices: Devices, work: Work, steps: Integers) -> Stages:
    """Return the seconds of each client's part with some steps.

    Args:
        devices: of the clients.
        work: what they do.
        steps: local steps of each.
    """
    return Stages(
        devices.latency + work.down / devices.downlink,
        compute_seconds(devices, work, steps),
        devices.latency + work.up / devices.uplink,
    )


def fitting_steps(devices: Devices, work: Work, seconds: Floats, most: Integers) -> Integers:
    """Return the most steps of each client that take at most some seconds, 0..most.

    Args:
        devices: of the clients.
        work: what they do.
        seconds: time for computing, of each.
        most: the most steps, of each.
    """
    low, high = np.zeros_like(most), most.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = compute_seconds(devices, work, middle) <= seconds
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def joules(devices: Devices, compute: Floats, nbytes: Floats | Integers) -> Floats:
    """Return the energy of computing for some seconds and of transferring some bytes."""
    spent: Floats = devices.watts * compute + devices.joules_per_byte * nbytes
    return spent
