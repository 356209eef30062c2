"""FedJAX: `federated_averaging` with its default (jit) backend, held to one core.

Its environment has no torch: the bare loop runs in a process of its own on the same core, and
waits while FedJAX works.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
with contextlib.suppress(AttributeError, OSError):  # only some systems can hold a process to a core
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np

if not hasattr(jax, "tree_map"):  # FedJAX calls it by its old name
    jax.tree_map = jax.tree_util.tree_map

import fedjax
from fedjax.algorithms import fed_avg

from benchmarks.peers import common

Parameters = list[Any]


def _convolve(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """5x5 convolution, ReLU and 2x2 pooling, on [B, H, W, C]."""
    y = jax.lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    y = jax.nn.relu(y + bias)
    return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _forward(workload: common.Workload, parameters: Parameters, x: jax.Array) -> jax.Array:
    layers = [parameters[i : i + 2] for i in range(0, len(parameters), 2)]
    if workload.model == "cnn":
        x = x.reshape(-1, 28, 28, 1)
        for weight, bias in layers[:2]:
            x = _convolve(x, weight, bias)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        layers = layers[2:]
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def main() -> None:
    """Measure one workload."""
    options = common.options(["one core"])
    workload = options.workload
    features, labels = common.data(workload)
    clients = [
        fedjax.ClientDataset({"x": features[k], "y": labels[k].astype(np.int32)})
        for k in range(workload.clients)
    ]

    def loss(parameters: Parameters, batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(_forward(workload, parameters, batch["x"]))
        return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1).mean()

    batching = fedjax.ShuffleRepeatBatchHParams(
        batch_size=workload.batch_size, num_epochs=1, skip_shuffle=True
    )
    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(workload.learning_rate),
        fedjax.optimizers.sgd(1.0),
        batching,
    )
    state = algorithm.init([jnp.asarray(p) for p in common.starting_parameters(workload)])
    with common.BareProcess(options.reference_python, workload) as reference:
        referee = common.Referee(
            workload, options.rounds, options.warmup, reference, count_steps=False
        )
        done = False
        referee.start()
        for number in range(referee.total):
            keys = jax.random.split(jax.random.PRNGKey(number), workload.cohort)
            chosen = [
                (k, clients[k], key)
                for k, key in zip(common.cohort(workload, number), keys, strict=True)
            ]
            state, _ = algorithm.apply(state, chosen)
            jax.block_until_ready(state.params)
            parameters = state.params
            done = referee.round_done(lambda p=parameters: [np.asarray(v) for v in p])
        assert done
    row = common.Row("fedjax", options.mode, workload.name)
    row.versions = common.versions("fedjax", "jax", "jaxlib", "numpy")
    row.steps_per_client = float(sum(1 for _ in clients[0].shuffle_repeat_batch(batching)))
    row.note = "bare loop in its own process, same core; steps are its batches, not counted calls"
    options.write(referee.fill(row))


if __name__ == "__main__":
    main()
