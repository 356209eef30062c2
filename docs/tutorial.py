# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tutorial
#
# From unlike clients to a fair comparison of three strategies, in a notebook. Everything runs in
# under a minute on two cores. `docs/tutorial.py` is the source of this notebook;
# `python docs/make_tutorial.py` executes it.

# %%
import numpy as np
import pandas as pd
import torch

import fedopt
from fedopt.data import partition

# %% [markdown]
# ## Clients that differ
#
# The data set `digits` is inside the package. Its classes are spread over clients by a Dirichlet law:
# the smaller `alpha`, the fewer classes a client has. Here are the classes of three clients of a
# hundred.

# %%
labels = np.arange(1437) % 10
rows = []
for alpha in (100.0, 0.1):
    dealt = partition("dirichlet", labels, 100, seed=0, alpha=alpha)
    for client in range(3):
        own = labels[dealt.indices[dealt.offsets[client] : dealt.offsets[client + 1]]]
        rows.append(
            {"alpha": alpha, "client": client, **dict(enumerate(np.bincount(own, minlength=10)))}
        )
pd.DataFrame(rows)

# %% [markdown]
# ## A run
#
# `fedopt.simulate` takes the tables of the configuration as keywords. What is not given has a default:
# `fedopt explain KEY` says which. `engine="inline"` trains in this process; without it clients train in
# Ray workers, one a core, with the same bits. `progress=True` shows the rounds while they go on.

# %%
task = {"rounds": 30, "partition": {"alpha": 0.1}, "engine": "inline"}
fedavg = fedopt.simulate(task, strategy="fedavg", progress=True)
fedavg.history[["round", "train_loss", "test_loss", "test_accuracy", "bytes_up"]].tail(3)

# %% [markdown]
# ## Other strategies, on the same draw
#
# The seed draws the split, the clients, the cohorts and the batches, alike for all strategies.

# %%
runs = {
    "fedavg": fedavg,
    "fedprox": fedopt.simulate(task, strategy={"name": "fedprox", "mu": 0.1}),
    "scaffold": fedopt.simulate(task, strategy="scaffold"),
}
pd.DataFrame(
    {
        name: {
            "final accuracy": run.summary["final"]["test_accuracy"],
            "best accuracy": run.summary["best"]["test_accuracy"]["value"],
            "MB sent": (run.history[["bytes_up", "bytes_down"]].iloc[-1].sum()) / 1e6,
        }
        for name, run in runs.items()
    }
).T.round(4)

# %% [markdown]
# SCAFFOLD sends two vectors each way, so its curve is one thing by rounds and another by bytes:

# %%
runs["scaffold"].plot(x="bytes")

# %% [markdown]
# ## Techniques combine
#
# A schedule over the whole run, sharper minima avoided (SAM), long gradients cut, and a mean of the last
# models on the server; any strategy takes them.

# %%
combined = fedopt.simulate(
    task,
    strategy="scaffold",
    local={
        "schedule": {"name": "cosine", "scope": "across"},
        "sam": {"rho": 0.05},
        "gradient": {"clip_norm": 5.0},
    },
    server={"swa": {"start": 0.75}},
)
combined.history[["round", "lr", "test_accuracy", "swa_test_accuracy"]].tail(3)

# %% [markdown]
# One seed and 359 test images: differences of a point say little. Before concluding, repeat over seeds
# and tune each side.
#
# ## Your own model and data
#
# A client is a pair of arrays, a model is a function that returns a module.

# %%
rng = np.random.default_rng(0)


def clinic(shift):
    """Return the patients of a clinic, whose features lie around `shift`."""
    x = rng.normal(shift, 1.0, size=(80, 3)).astype("float32")
    return x, (x.sum(axis=1) > 3 * shift).astype("int64")


own = fedopt.simulate(
    clients=[clinic(shift) for shift in np.linspace(-1, 1, 8)],
    test=clinic(0.0),
    model=lambda: torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
    ),
    clients_per_round=4,
    rounds=20,
    engine="inline",
)
print(own)

# %% [markdown]
# ## When something is wrong
#
# Bad input is refused before anything is trained, with the nearest word:

# %%
try:
    fedopt.simulate(strategy="scafold")
except fedopt.ConfigError as error:
    print(error)

# %% [markdown]
# ## Where to go on
#
# `out="runs/mine"` writes a folder with curves, rows, model and configuration. On the command line the
# same is `fedopt run strategy=scaffold rounds=30 --out runs/mine`. [Concepts](concepts.md) has the
# words, [choosing techniques](choosing.md) says what to try, [extending](extending.md) has strategies
# of your own.
