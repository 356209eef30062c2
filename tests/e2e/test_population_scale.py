"""A round costs what its sampled clients cost, in memory too, not what the population has."""

from __future__ import annotations

import json

import pytest

from .command import python

GIB = 2**30

# Sizes are drawn from a narrower law than the paper's, whose heaviest devices alone (over a
# million examples) would be all that is measured.
PROGRAM = """
import json, resource, sys
import fedopt

def simulate(clients, count, strategy):
    return fedopt.simulate(
        data={{"name": "synthetic", "size_log_sigma": 1.0, "test_clients": 30}},
        partition={{"name": "synthetic", "clients": clients}},
        model="logistic", strategy={{"name": strategy}}, clients_per_round=count, rounds=3,
        local={{"steps": 2, "batch_size": 10}}, engine={{"name": "inline"}}, out=None)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

simulate(30, 30, {strategy!r})
base = peak()
run = simulate({clients}, 100, {strategy!r})
print(json.dumps({{
    "grown": peak() - base,
    "clients": run.summary["clients_in_population"],
    "rounds": len(run.history),
    "trained": sorted(set(run.clients["client"].tolist())),
    "losses": run.history["train_loss"].tolist(),
}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "clients"), [("fedavg", 1_000_000), ("scaffold", 100_000), ("scaffold", 1_000_000)]
)
def test_a_large_population_fits_into_little_memory(tmp_path, strategy, clients):
    result = python(tmp_path, PROGRAM.format(strategy=strategy, clients=clients))
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["clients"], found["rounds"]) == (clients, 3)
    assert 290 <= len(found["trained"]) <= 300
    assert max(found["trained"]) > clients / 2
    assert all(0 < loss < 100 for loss in found["losses"])
    assert found["grown"] < GIB / 4
    assert not list(tmp_path.iterdir())
