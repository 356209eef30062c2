"""A cluster of two Ray nodes gives the bits that one process gives."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
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


@pytest.mark.skipif(
    "FEDOPT_REMOVE_RAY_NODE" not in os.environ,
    reason="set FEDOPT_REMOVE_RAY_NODE: of two Ray nodes on one machine, the driver may be that of "
    "the one that is removed, which ends the process",
)
def test_a_node_that_is_gone_changes_no_bit(tmp_path: Path) -> None:
    """Its worker begins anew on what is left of the cluster, and its blocks are run again."""
    from ray.cluster_utils import Cluster

    tables: dict[str, Any] = {
        "strategy": "scaffold",
        "rounds": 6,
        "local": {"epochs": 1},
        "evaluation": {"every": 1},
    }
    alone = fedopt.simulate(**tables, engine={"name": "inline", "block_size": 4})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = cluster.add_node(num_cpus=1)
        gone = threading.Event()

        def remove() -> None:
            rounds = tmp_path / "run" / "rounds.csv"
            while not rounds.exists() or rounds.read_text().count("\n") < 3:
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)
            gone.set()

        threading.Thread(target=remove, daemon=True).start()
        engine = {"name": "ray", "address": cluster.address, "workers": 3, "block_size": 4}
        run = fedopt.simulate(**tables, engine=engine, out=tmp_path / "run")
        assert gone.wait(60)
    finally:
        cluster.shutdown()
    assert run.summary["model_sha256"] == alone.summary["model_sha256"]
