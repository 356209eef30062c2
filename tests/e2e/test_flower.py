"""`flwr run` trains this project's apps on Flower's own runtime, to the bits of `fedopt run`."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from .command import environment, execute, fedopt, summary

ROOT = Path(__file__).resolve().parents[2]
FLWR = [sys.executable, "-c", "from flwr.cli.app import app; app()"]
FINISHED = "finished:"


def make_project(folder):
    """Copy what a user of the repository runs with Flower, and files that must stay out of it."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("server", "clients"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("simulations/study.toml", "docs/page.md", "tests/conftest.py"):
        (folder / name).parent.mkdir()
        (folder / name).touch()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Flower:
    """The `flwr` command in a project, with a home and a SuperLink of its own."""

    def __init__(self, project, home):
        self.project = project
        self.environ = {
            "FLWR_HOME": str(home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{Path(sys.executable).parent}:{environment()['PATH']}",
        }
        self.database = str(home / "local-superlink" / "state.db")

    def __call__(self, *arguments):
        return execute([*FLWR, *arguments], self.project, **self.environ)

    def run(self, **run_config):
        """Run the apps to their end and return the final status."""
        declared = {k: v for k, v in run_config.items() if k in ("out", "config-file")}
        declared["overrides"] = " ".join(
            f"{key.replace('__', '.')}={value}"
            for key, value in run_config.items()
            if key not in declared
        )
        words = (f"{key}={json.dumps(value)}" for key, value in declared.items())
        nodes = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"
        command = ["run", ".", "local", "--format", "json", "--federation-config", nodes]
        started = self(*command, "--run-config", " ".join(words))
        assert started.code == 0, started.err
        run_id = started.json["run-id"]
        deadline = time.monotonic() + 180
        status = "unknown"
        # The exit code of `flwr run` says nothing of the run.
        while not status.startswith(FINISHED) and time.monotonic() < deadline:
            time.sleep(1)
            listed = self("ls", "local", "--run-id", run_id, "--format", "json")
            status = listed.json["runs"][0]["status"]
        return status, self("log", run_id, "local", "--show").out

    def stop(self):
        """Stop the detached SuperLink: nobody else does."""
        for process in psutil.process_iter(["cmdline"]):
            if self.database in (process.info["cmdline"] or []):
                family = [process, *process.children(recursive=True)]
                for member in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.terminate()
                _, alive = psutil.wait_procs(family, timeout=10)
                for member in alive:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    make_project(project)
    runner = Flower(project, tmp_path_factory.mktemp("flower-home"))
    try:
        yield runner
    finally:
        runner.stop()


def test_the_bundle_holds_the_two_apps_and_does_not_shadow_the_package(flower):
    package = flower.project / "fedopt"
    package.mkdir()
    (package / "__init__.py").touch()
    try:
        assert flower("build").code == 0
    finally:
        shutil.rmtree(package)
    (bundle,) = flower.project.glob("*.fab")
    try:
        with zipfile.ZipFile(bundle) as archive:
            names = {name for name in archive.namelist() if not name.startswith(".info/")}
    finally:
        bundle.unlink()
    assert {"pyproject.toml", "server/app.py", "clients/app.py"} <= names
    assert {name.partition("/")[0] for name in names} == {"pyproject.toml", "server", "clients"}


@pytest.mark.slow
def test_flwr_run_gives_the_bits_of_fedopt_run(flower, tmp_path):
    out = tmp_path / "flower"
    status, log = flower.run(
        rounds=2, clients_per_round=5, partition__clients=10, seed=3, out=str(out)
    )
    assert status == "finished:completed", log
    settings = ["rounds=2", "clients_per_round=5", "partition.clients=10", "seed=3"]
    inline = fedopt(tmp_path, "run", *settings, "engine=inline", "--out", "inline", "--json")
    found = summary(out)
    assert found["status"] == "completed"
    assert found["model_sha256"] == inline.json["model_sha256"]
    for table in ("rounds.csv", "clients.csv"):
        assert (out / table).read_text().count("\n") == {"rounds.csv": 3, "clients.csv": 11}[table]
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.toml", "model.safetensors", "convergence.png", "population.png"}


@pytest.mark.exhaustive
def test_flwr_run_reads_a_config_file(flower, tmp_path):
    (tmp_path / "scaffold.toml").write_text(
        'strategy = "scaffold"\nmodel = "logistic"\n[local]\nsteps = 3\n[engine]\nname = "inline"\n'
    )
    out = tmp_path / "flower"
    status, log = flower.run(
        **{"config-file": str(tmp_path / "scaffold.toml")},
        strategy__name="scaffold",
        rounds=3,
        clients_per_round=6,
        partition__clients=12,
        out=str(out),
    )
    assert status == "finished:completed", log
    settings = ["scaffold.toml", "rounds=3", "clients_per_round=6", "partition.clients=12"]
    inline = fedopt(tmp_path, "run", *settings, "--out", "inline", "--json")
    assert summary(out)["model_sha256"] == inline.json["model_sha256"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_flwr_run_fails_where_the_configuration_is_bad(flower, tmp_path):
    status, log = flower.run(strategy__name="scafold", rounds=2, out=str(tmp_path / "out"))
    assert status == "finished:failed"
    assert 'Did you mean "scaffold"?' in log
    assert not (tmp_path / "out").exists()
