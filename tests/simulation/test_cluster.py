"""A cluster of two Ray nodes gives the bits that one process gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import fedopt

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start two Ray nodes with one core each on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    assert not ray.is_initialized()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_two_nodes_give_the_bits_of_one_process(address: str, strategy: str) -> None:
    tables: dict[str, Any] = {"strategy": strategy, "rounds": 3, "local": {"epochs": 1}}
    alone = fedopt.simulate(**tables, engine={"name": "inline", "block_size": 4})
    engine = {"name": "ray", "address": address, "workers": 2, "block_size": 4}
    cluster = fedopt.simulate(**tables, engine=engine)
    assert cluster.summary["model_sha256"] == alone.summary["model_sha256"]
    assert not ray.is_initialized(), "the run leaves the cluster it joined"
