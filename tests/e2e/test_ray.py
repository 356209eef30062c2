"""Ray gives the bits of the inline engine, survives its workers, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest
import ray
import torch

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.errors import ClientError, RunError
from fedopt.experiment import Experiment
from fedopt.recorder import Recorder
from fedopt.run import in_memory, train
from fedopt.simulation.ray_grid import RayGrid
from fedopt.single_thread import single_thread

from .command import python

EXHAUSTIVE = pytest.mark.exhaustive

STRATEGIES = ["fedavg", "scaffold"]


@pytest.fixture(scope="module", autouse=True)
def session():
    """One Ray for all tests here: starting it takes longer than they do."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def tables(strategy="fedavg", engine="ray", **more):
    return {
        "rounds": 4,
        "clients_per_round": 8,
        "partition": {"name": "dirichlet", "clients": 16, "alpha": 0.1},
        "model": {"name": "mlp", "hidden": [16]},
        "strategy": {"name": strategy},
        "local": {"epochs": 2},
        "engine": {"name": engine, "block_size": 2},
        **more,
    }


def simulate(strategy, engine, workers=None, **more):
    settings = tables(strategy, engine, **more)
    if workers:
        settings["engine"]["workers"] = workers
    return fedopt.simulate(settings).summary["model_sha256"]


def actors():
    """Return the processes of our actors; Ray gives a process its actor's name."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if "ray::Worker" in " ".join(command_of(process))]


def living_actors():
    """Return the processes of our actors that do not end within seconds."""
    return psutil.wait_procs(actors(), timeout=20)[1]


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


@pytest.fixture(scope="module")
def inline():
    """Return the hash of the inline engine for each strategy."""
    return {strategy: simulate(strategy, "inline") for strategy in STRATEGIES}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_on_any_number_of_workers(inline, strategy, workers):
    assert simulate(strategy, "ray", workers) == inline[strategy]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_twice_and_others_for_another_seed(inline, strategy):
    assert simulate(strategy, "inline") == inline[strategy]
    assert simulate(strategy, "inline", seed=1) != inline[strategy]
    assert inline["fedavg"] != inline["scaffold"]


EVERYTHING = {
    "data": {"validation_fraction": 0.2},
    "evaluation": {"validation_clients": 5, "training_clients": 1.0, "gradients": True},
    "local": {
        "epochs": 2,
        "optimizer": {"name": "adam", "lr": 0.01},
        "optimizer_state": "average",
        "schedule": {"name": "one_cycle", "scope": "across"},
        "sam": {"rho": 0.05, "adaptive": True},
        "gradient": {"penalty": 0.01, "skip_norm": 3.0, "clip_norm": 1.0, "noise_eta": 1e-6},
        "swa": {"last_epochs": 1},
    },
    "server": {"swa": {"start": 2}},
    "system": {"stragglers": 0.3},
}


def test_all_techniques_at_once_have_the_same_bits():
    def run(engine, **workers):
        settings = tables("fedprox", engine, **EVERYTHING)
        settings["engine"] |= workers
        return fedopt.simulate(settings)

    expected = run("inline")
    assert expected.summary["swa"]["models"] == 3
    for workers in (1, 2):
        found = run("ray", workers=workers)
        for fact in ("model_sha256", "swa"):
            assert found.summary[fact] == expected.summary[fact]
        columns = [name for name in expected.history if name != "wall_seconds"]
        assert found.history[columns].equals(expected.history[columns])


def test_the_objective_and_its_gradients_have_the_same_bits():
    """In float64, where another order of the sums shows; the gradients travel in shared memory."""

    def columns(engine, **workers):
        more = {"dtype": "float64", "model": {"name": "mlp", "hidden": [128]}}
        more["evaluation"] = {"training_clients": 1.0, "gradients": True}
        settings = tables("fedprox", engine, **more)
        settings["engine"] |= workers
        history = fedopt.simulate(settings).history
        return history[["objective", "gradient_variance", "gradient_dissimilarity"]]

    expected = columns("inline")
    assert expected.notna().all(axis=None)
    for workers in (1, 2):
        assert columns("ray", workers=workers).equals(expected)


class Assassin(SilentProgress):
    """Kills the first worker after some rounds."""

    def __init__(self, rounds):
        self.rounds = rounds
        self.grid = None
        self.killed = []

    def update(self, row):
        if row["round"] in self.rounds:
            pid = self.grid.worker_pids()[0]
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_killed_worker_changes_nothing(inline, strategy, caplog):
    settings = tables(strategy)
    settings["engine"]["workers"] = 2
    experiment = Experiment.from_config(load(None, **settings))
    progress = Assassin(rounds=(2, 3))
    with (
        single_thread(),
        Recorder(experiment, None, progress, False, False) as recorder,
        RayGrid(experiment) as grid,
    ):
        progress.grid = grid
        train(experiment, recorder, grid)
        run = recorder.finish()
    assert len(set(progress.killed)) == 2
    assert run.summary["model_sha256"] == inline[strategy]
    assert "died" in caplog.text
    assert list(run.history["round"]) == [1, 2, 3, 4]


def own_clients(count=6):
    """Return clients whose targets tell who they are, for a regression."""
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, generator=draws), torch.full((8, 1), float(client)))
        for client in range(count)
    ]


def own_run(loss, **more):
    settings = {
        "rounds": 3,
        "clients_per_round": None,
        "local": {"steps": 2, "batch_size": "full", "optimizer": {"name": "sgd", "lr": 0.01}},
        "engine": {"name": "ray", "workers": 2, "block_size": 3},
        **more,
    }
    return fedopt.simulate(
        model=lambda: torch.nn.Linear(3, 1), loss=loss, clients=own_clients(), **settings
    )


def test_lambdas_work_and_give_the_bits_of_inline():
    def hashes(engine):
        loss = lambda output, target: (output - target).square().mean()  # noqa: E731
        run = own_run(loss, engine={"name": engine, "block_size": 3}, strategy="scaffold")
        return run.summary["model_sha256"]

    assert hashes("ray") == hashes("inline")


def failing_loss(client):
    def loss(output, target):
        if (target == client).all():
            raise ValueError("this client's sensor is broken")
        return (output - target).square().mean()

    return loss


@pytest.mark.parametrize("training", [pytest.param("loop", marks=EXHAUSTIVE), "auto"])
def test_an_error_in_a_client_names_it(training):
    engine = {"name": "ray", "workers": 2, "block_size": 3, "training": training}
    with pytest.raises(ClientError) as caught:
        own_run(failing_loss(4), engine=engine)
    assert (caught.value.client, caught.value.round) == (4, 1)
    message = str(caught.value)
    assert "client 4" in message
    assert "round 1" in message
    assert "in loss" in message, "the client's traceback"
    assert "this client's sensor is broken" in message
    assert not living_actors()


@pytest.mark.parametrize("training", [pytest.param("loop", marks=EXHAUSTIVE), "auto"])
def test_a_failing_client_is_skipped_and_counted(training):
    engine = {"name": "ray", "workers": 2, "block_size": 3, "training": training}
    run = own_run(failing_loss(4), engine={**engine, "on_client_error": "skip"})
    assert list(run.history["failed_clients"]) == [1, 1, 1]
    assert list(run.history["clients"]) == [5, 5, 5]
    failed = run.clients[run.clients["status"] == "failed"]
    assert list(failed["client"]) == [4, 4, 4]


def test_a_run_whose_clients_all_fail_fails():
    def loss(output, target):
        if output.requires_grad:  # the check before the run passes
            raise ValueError("nothing works")
        return (output - target).square().mean()

    with pytest.raises(RunError, match="all failed"):
        own_run(loss, engine={"name": "ray", "workers": 1, "on_client_error": "skip"})


def dying_loss(folder, deaths):
    """Return a loss whose worker is killed in the midst of client 4's training, some times."""

    def loss(output, target):
        if output.requires_grad and (target == 4).all():
            left = sorted(folder.iterdir())
            if left:
                left[0].unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return (output - target).square().mean()

    for number in range(deaths):
        (folder / str(number)).touch()
    return loss


def test_a_worker_killed_while_it_trains_changes_nothing(tmp_path, caplog):
    def hashes(deaths):
        run = own_run(
            dying_loss(tmp_path, deaths),
            strategy="scaffold",
            engine={"name": "ray", "workers": 2, "block_size": 3, "training": "loop"},
        )
        return run.summary["model_sha256"]

    first = hashes(deaths=2)
    assert caplog.text.count("died") == 2
    assert not list(tmp_path.iterdir())
    assert hashes(deaths=0) == first


@pytest.mark.exhaustive
def test_a_client_that_kills_every_worker_ends_the_run(tmp_path):
    with pytest.raises(RunError, match="workers died"):
        own_run(dying_loss(tmp_path, 50), engine={"name": "ray", "workers": 1, "block_size": 3})
    assert not living_actors()


def test_no_actor_is_left_after_a_run_and_ray_is_left_running():
    settings = tables()
    settings["engine"]["workers"] = 2
    experiment = Experiment.from_config(load(None, **settings))
    with RayGrid(experiment) as grid:
        pids = grid.worker_pids()
        found = actors()
        assert {process.pid for process in found} == set(pids)
    assert ray.is_initialized()
    assert not psutil.wait_procs(found, timeout=20)[1]
    assert not living_actors()


def test_an_in_memory_experiment_is_checked_before_any_worker_starts():
    with pytest.raises(fedopt.ConfigError, match=r"local\.loss"):
        in_memory(
            load(None, clients_per_round="all"),
            lambda: torch.nn.Linear(3, 1),
            lambda output, target: output,
            own_clients(),
        )


def test_a_ray_of_our_own_is_shut_down_also_after_an_error(tmp_path):
    program = """
import json, psutil, ray, torch, fedopt

def loss(output, target):
    if output.requires_grad and (target == bad).all():
        raise ValueError("broken")
    return (output - target).square().mean()

def simulate():
    return fedopt.simulate(
        model=lambda: torch.nn.Linear(1, 1), loss=loss, rounds=2, clients_per_round=None,
        clients=[(torch.ones(4, 1), torch.full((4, 1), float(c))) for c in range(3)],
        local={"steps": 1}, engine={"name": "ray", "workers": 1})

facts = []
for bad in (-1, 2):
    try:
        outcome = simulate().summary["status"]
    except fedopt.ClientError as error:
        outcome = error.client
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    facts.append([outcome, ray.is_initialized(), len(alive)])
print(json.dumps(facts))
"""
    result = python(tmp_path, program)
    assert result.code == 0, result.err
    assert json.loads(result.out) == [["completed", False, 0], [2, False, 0]]
