"""The programs that kill runs and that let them run long, at tiny settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kills

ROOT = Path(kills.__file__).parents[1]


def execute(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a process of its own: these fork, and measure themselves."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", kills.STRATEGIES)
def test_runs_survive_being_killed(name: str) -> None:
    words = ["--kills", "3", "--without-ray", "--seed", "1", "--strategies", name]
    result = execute("benchmarks.kills", *words)
    assert result.returncode == 0, result.stderr
    assert f"{name}: 3 of 3 kills survived" in result.stdout


@pytest.mark.exhaustive
def test_a_worker_is_killed_in_every_round(tmp_path: Path) -> None:
    deaths, is_same = kills.kill_workers(kills.STRATEGIES["scaffold"], tmp_path, seed=0)
    assert is_same
    assert deaths >= kills.ROUNDS // 2


def test_a_run_that_is_spoilt_would_be_found(tmp_path: Path) -> None:
    """What is compared is not vacuous: another seed has another outcome in every part."""
    from fedopt.run import simulate

    def found(seed: int) -> kills.Outcome:
        from fedopt.config import load

        words = [*kills.SETTINGS, *kills.STRATEGIES["scaffold"], f"seed={seed}"]
        simulate(load(None, words), out=tmp_path / str(seed))
        return kills.outcome(tmp_path / str(seed))

    one, other = found(0), found(1)
    assert one.model != other.model
    assert not set(one.rounds) & set(other.rounds)
    assert not set(one.clients.values()) & set(other.clients.values())
    assert len(one.clients) > 20


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_nothing_is_left_after_a_long_run(engine: str) -> None:
    result = execute("benchmarks.soak", "--rounds", "160", "--engine", engine)
    assert result.returncode == 0, result.stderr
    assert "round    160" in result.stdout
