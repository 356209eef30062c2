"""Synthetic(alpha, beta): devices with their own linear model, made when they are asked for."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.data.catalogue import SyntheticOptions
from fedopt.data.label_noise import flip_labels
from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.data.protocol import Dtype, Examples, check_dtype, facts, held_out, need_classes
from fedopt.errors import ConfigError
from fedopt.seeds import generator

_CACHED_NBYTES = 32 * 2**20
"""What is kept of devices that were asked for last."""


class SyntheticPopulation:
    """The generator of FedProx, device by device.

    Device k has int(lognormal(4, 2)) + 50 examples; u_k ~ N(0, alpha), B_k ~ N(0, beta);
    W_k, b_k ~ N(u_k, 1); v_k ~ N(B_k, 1); x ~ N(v_k, diag(j**-1.2)); y = argmax(x W_k + b_k).
    With `iid`, v = 0 and one W, b ~ N(0, 1) serves all devices. alpha and beta are standard
    deviations, as in the published code, unless `variances`. The law is that of the code, the
    draws are not: each device's derive from (seed, device), so a device is the same whatever
    else is generated, and a million devices cost two arrays of sizes.

    Of a device's n examples the first int((1 - test_fraction) n) are its training part (the
    code shuffles before it cuts; here the examples are independent draws already), of which the
    last `validation_fraction` is held out. `label_noise` is drawn per device.

    Args:
        options: parameters of the law.
        clients: number of devices, >= 1.
        seed: seed of all draws.
        dtype: type of inputs.

    Raises:
        ConfigError: the number of devices or the type is not allowed.

    Source: Li et al. (2020), Federated Optimization in Heterogeneous Networks, section 5.1, and
    the published generate_synthetic.py and generate_iid.py.
    """

    name = "synthetic"
    source = "generated; Li et al. (2020), section 5.1"

    def __init__(
        self, options: SyntheticOptions, clients: int, seed: int, dtype: Dtype = "float32"
    ) -> None:
        check_dtype(dtype)
        if clients < 1:
            raise ConfigError(f"must be >= 1, got {clients}", key="partition.clients")
        self._options = options
        self._seed = seed
        self._dtype = np.dtype(dtype)
        draws = generator(seed, "synthetic sizes").lognormal(
            options.size_log_mean, options.size_log_sigma, clients
        )
        self._all_sizes: IntArray = draws.astype(np.int64) + options.size_min
        self._sizes = self._kept(self._all_sizes)
        self._sizes -= held_out(self._sizes, options.validation_fraction)
        self._cache: OrderedDict[int, Examples] = OrderedDict()
        self._cached_nbytes = 0

    @property
    def clients(self) -> int:
        """Number of devices."""
        return int(self._sizes.size)

    @property
    def sizes(self) -> IntArray:
        """Training examples per device, without those held out; [clients]."""
        return self._sizes

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._options.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self._options.features,)

    @property
    def has_validation(self) -> bool:
        """Whether any device has examples held out for validation."""
        return self._options.validation_fraction > 0 and bool(
            held_out(self._kept(self._all_sizes), self._options.validation_fraction).any()
        )

    def train(self, client: int) -> Examples:
        """Return the training examples of a device."""
        size = self._check(client)
        return self._part(client, 0, size)._replace(y=self._training_labels(client, size))

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of some devices, one device's after another's."""
        parts = [self.train(client) for client in clients]
        if len(parts) == 1:
            return parts[0]
        return Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a device; there may be none."""
        start = self._check(client)
        return self._part(client, start, int(self._kept(self._all_sizes[client])))

    def test(self) -> Examples | None:
        """Return the test parts of the first `test_clients` devices; None: there are none."""
        first = range(min(self._options.test_clients, self.clients))
        starts = self._kept(self._all_sizes[: len(first)])
        parts = [
            self._part(client, int(starts[client]), int(self._all_sizes[client]))
            for client in first
            if starts[client] < self._all_sizes[client]
        ]
        if not parts:
            return None
        return Examples(
            np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
        )

    def label_counts(self, clients: IntArray) -> IntArray:
        """Return the training examples of each class, noise included; [len(clients), classes]."""
        classes = need_classes(self)
        counts = np.zeros((len(clients), classes), dtype=np.int64)
        for row, client in enumerate(clients):
            size = self._check(int(client))
            labels = self._training_labels(int(client), size)
            counts[row] = np.bincount(labels, minlength=classes)
        return counts

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files: name, counts, shapes, source."""
        kept = self._kept(self._all_sizes)
        tests = min(self._options.test_clients, self.clients)
        return facts(
            self,
            validation_examples=int((kept - self._sizes).sum()),
            test_examples=int((self._all_sizes - kept)[:tests].sum()),
            source=self.source,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached_nbytes": 0}

    def _check(self, client: int) -> int:
        """Return a device's training size."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} is not in 0..{self.clients - 1}")
        return int(self._sizes[client])

    def _kept(self, sizes: IntArray) -> IntArray:
        """Return how many examples are not for testing: int(0.9 n) by default, at least one."""
        share = (sizes * (1 - self._options.test_fraction)).astype(np.int64)
        return np.maximum(share, 1)

    def _training_labels(self, client: int, size: int) -> IntArray:
        """Return the first labels of a device as it trains on them, a fresh array [size]."""
        labels: IntArray = self._device(client).y
        share = self._options.label_noise
        if share:
            labels = flip_labels(labels, self.classes, share, self._seed, client)
        return labels[:size].copy()

    def _part(self, client: int, start: int, stop: int) -> Examples:
        x, y = self._device(client)
        return Examples(x[start:stop].copy(), y[start:stop].copy())

    def _device(self, client: int) -> Examples:
        """Return all examples of a device; those of the last few are remembered."""
        found = self._cache.get(client)
        if found is not None:
            self._cache.move_to_end(client)
            return found
        x, y = self._generate(client)
        made = Examples(x.astype(self._dtype), y)
        if made.x.nbytes <= _CACHED_NBYTES // 2:
            self._cache[client] = made
            self._cached_nbytes += made.x.nbytes
            while self._cached_nbytes > _CACHED_NBYTES:
                self._cached_nbytes -= self._cache.popitem(last=False)[1].x.nbytes
        return made

    def _generate(self, client: int) -> tuple[AnyArray, IntArray]:
        features = self._options.features
        rng = generator(self._seed, "synthetic device", client)
        if self._options.iid:
            weight, bias = self._draw_model(generator(self._seed, "synthetic model"), 0.0)
            centre = np.zeros(features)
        else:
            weight, bias = self._draw_model(rng, self._spread(self._options.alpha) * rng.normal())
            shift = self._spread(self._options.beta) * rng.normal()
            centre = shift + rng.standard_normal(features)
        deviation = np.arange(1, features + 1) ** -0.6
        noise = rng.standard_normal((int(self._all_sizes[client]), features))
        x = centre + deviation * noise
        return x, np.argmax(x @ weight + bias, axis=1)

    def _draw_model(
        self, rng: np.random.Generator, mean: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Draw the weights [features, classes] and the bias [classes] around a common mean."""
        shape = (self._options.features, self._options.classes)
        return mean + rng.standard_normal(shape), mean + rng.standard_normal(shape[1])

    def _spread(self, value: float) -> float:
        return math.sqrt(value) if self._options.variances else value
