"""A deployment as plain processes on loopback: TLS, keys, three clients, kills; no Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import psutil
import pytest

from fedopt.deployment import pki, processes
from fedopt.deployment.folder import Deployment

from .command import FEDOPT, fedopt

pytestmark = pytest.mark.slow

RUN = [
    *("strategy=scaffold", "partition.clients=3", "clients_per_round=3", "rounds=2"),
    *("local.epochs=1", "model.hidden=[32]", "engine.block_size=1"),
]


def free_port():
    """Return a port of which the next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A deployment of three clients that is up, with a trial's data."""
    folder = tmp_path_factory.mktemp("clinics")
    fedopt(folder, "deploy", "init", "--clients", "3", "--port", free_port())
    fedopt(folder, "deploy", "split", *RUN)
    try:
        fedopt(folder, "deploy", "up", "--processes")
        yield folder
    finally:
        for name in ("superlink", "gateway", "client-0", "client-1", "client-2"):
            print(fedopt(folder, "deploy", "logs", name, "--lines", 40, check=False).stdout)
        fedopt(folder, "deploy", "down", check=False)


@pytest.fixture(scope="module")
def deployment(folder):
    return Deployment.open(folder / "deployment")


@pytest.fixture(scope="module")
def undisturbed(folder):
    return json.loads(fedopt(folder, "deploy", "submit", *RUN, "--name", "whole", "--json").stdout)


def submitted(folder, name, *words):
    return subprocess.Popen(
        [*FEDOPT, "deploy", "submit", *RUN, *words, "--name", name, "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_round(folder, name, round, process, seconds=180):
    path = folder / "deployment" / "results" / name / "rounds.csv"
    deadline = time.monotonic() + seconds
    # Its header, and round 0, are not rounds.
    while not path.exists() or rounds_in(path) < round:
        if process.poll():
            raise AssertionError(process.stderr.read())
        assert time.monotonic() < deadline, f"round {round} of {name} does not come"
        time.sleep(0.2)


def rounds_in(path):
    table = pd.read_csv(path)
    return 0 if table.empty else int(table["round"].max())


def test_the_bits_are_those_of_the_simulation(folder, undisturbed):
    simulated = fedopt(
        folder,
        *("run", *RUN, "engine.name=inline", "engine.on_client_error=skip"),
        *("--json", "--out", "simulated"),
    )
    assert undisturbed["status"] == "completed"
    assert undisturbed["model_sha256"] == json.loads(simulated.stdout)["model_sha256"]
    told = fedopt(folder, "compare", "simulated", "deployment/results/whole", "--json")
    assert json.loads(told.stdout)["deployment"]["equal_bits"] is True


def test_status_shows_clients_and_runs(folder, undisturbed):
    told = json.loads(fedopt(folder, "deploy", "status", "--json").stdout)
    assert told["mode"] == "processes"
    assert set(told["services"].values()) == {"running"}
    assert [node["status"] for node in told["nodes"]] == ["online"] * 3
    assert [run["status"] for run in told["runs"]] == ["finished:completed"]


def statuses(folder, name):
    """Return what became of each client in each round so far: rounds by clients."""
    table = pd.read_csv(folder / "deployment" / "results" / name / "clients.csv")
    return table.pivot(index="round", columns="client", values="status")


@pytest.mark.exhaustive
def test_a_killed_client_is_lost_by_name_and_takes_part_again(folder, deployment, undisturbed):
    process = submitted(folder, "killed", "rounds=60", "deployment.round_seconds=25")
    wait_for_round(folder, "killed", 1, process)
    processes.kill(deployment, "client-1")
    wait_for_round(folder, "killed", 2, process)
    fedopt(folder, "deploy", "up", "client-1", "--processes")
    deadline = time.monotonic() + 180
    while statuses(folder, "killed")[1].iloc[-1] != "trained":
        assert time.monotonic() < deadline, statuses(folder, "killed")
        time.sleep(1)
    fedopt(folder, "deploy", "stop", "killed")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "client 1 (client-1)" in err
    assert "ended as stopped" in err
    found = statuses(folder, "killed")
    assert (found[[0, 2]] == "trained").all(axis=None)
    assert "failed" in found[1].tolist()


def test_a_killed_server_app_is_gone_on_from_to_the_same_bits(folder, deployment, undisturbed):
    process = submitted(folder, "broken")
    wait_for_round(folder, "broken", 1, process)
    superlink = next(p for p in processes.status(deployment) if p.name == "superlink")
    for child in psutil.Process(superlink.pid).children(recursive=True):
        if any("flwr-serverapp" in word for word in child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    # Flower may go on listing the run for a while; who resumes need not wait for it to notice.
    again = fedopt(folder, "deploy", "submit", "--resume", "broken", "--json")
    assert json.loads(again.stdout)["model_sha256"] == undisturbed["model_sha256"]
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "fedopt deploy submit --resume broken" in err


def test_a_run_that_fails_ends_with_its_reason_and_exit_code_1(folder, undisturbed):
    done = fedopt(
        folder,
        *("deploy", "submit", *RUN, "deployment.min_clients=4", "deployment.wait_seconds=1"),
        check=False,
    )
    assert done.returncode == 1
    # How many say who they are within a second depends on the machine.
    assert re.search(r"[0-3] of 4 clients are connected after 1 s", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["strategy=scafold"], 'Did you mean "scaffold"?'),
        (["strategy=centralised"], "strategy.name"),
        (["--resume", "broken", "rounds=3"], "takes no configuration"),
        (["--name", "../x"], "plain name"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(folder, words, says):
    done = fedopt(folder, "deploy", "submit", *words, check=False)
    assert done.returncode == 2
    assert says in done.stderr


# Who is kept out -------------------------------------------------------------------------------


def node(folder, seconds=180):
    """Start a client in a folder; return what it said within some seconds, and its exit code."""
    # A file, not a pipe: Flower's helper process holds it until its parent has been waited for.
    log = folder / "node.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            [*FEDOPT, "deploy", "node", str(folder), "--port", str(free_port())],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return log.read_text(), None
    return log.read_text(), process.returncode


def copied(deployment, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(deployment.client("client-0"), site, ignore=shutil.ignore_patterns("state"))
    (site / "state").mkdir()
    return site


def test_an_unregistered_key_cannot_join(deployment, tmp_path):
    site = copied(deployment, tmp_path)
    (site / "key").unlink()
    pki.make_client_key(site / "key")
    out, code = node(site)
    assert code not in (0, None)
    assert "Failed to activate SuperNode" in out or "not authenticated" in out.lower(), out


def test_a_server_of_another_authority_is_not_trusted(deployment, tmp_path):
    site = copied(deployment, tmp_path)
    (site / "ca.crt").unlink()
    pki.make_authority(tmp_path / "other.key", site / "ca.crt")
    out, code = node(site, seconds=20)
    assert code != 0
    assert "CERTIFICATE_VERIFY_FAILED" in out or "certificate verify failed" in out, out
    assert "SuperNode ID" not in out


def test_plaintext_is_refused(deployment):
    for port in (deployment.table.port, processes.control_port(deployment)):
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def test_the_gateway_passes_on_what_clients_ask_and_nothing_else(deployment):
    context = ssl.create_default_context(cafile=str(deployment.authority))
    root = f"https://127.0.0.1:{deployment.table.port}"
    with urllib.request.urlopen(f"{root}/health", context=context, timeout=5) as answer:
        assert answer.status == 200
    for path in (
        *("/v1/control/list-runs", "/v1/runtime/responses", "/docs", "/openapi.json"),
        *("/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs"),
        *("/v1/fleet/x/../../control/list-runs", "//v1/control/list-runs"),
    ):
        request = urllib.request.Request(f"{root}{path}", data=b"", method="POST")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, context=context, timeout=5)
        assert error.value.code == 403, path


def test_no_private_key_is_readable_by_others_or_in_a_log(folder, deployment, undisturbed):
    root = folder / "deployment"
    private = [
        path
        for path in root.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:200]
    ]
    assert len(private) == 5  # authority, server, three clients
    logs = "".join(path.read_text(errors="replace") for path in (root / "logs").iterdir())
    for path in private:
        assert path.stat().st_mode & 0o077 == 0
        assert path.read_text().splitlines()[1] not in logs
    for path in root.rglob("secret"):
        assert path.stat().st_mode & 0o077 == 0


def test_down_stops_all_of_it_and_keeps_results(folder, deployment, undisturbed):
    before = [p.pid for p in processes.status(deployment) if p.pid is not None]
    families = [q.pid for p in before for q in psutil.Process(p).children(recursive=True)]
    fedopt(folder, "deploy", "down")
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, [*before, *families])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in [*before, *families] if psutil.pid_exists(pid)]
    assert (folder / "deployment" / "results" / "whole" / "summary.json").exists()
    assert Path(folder / "deployment" / "clients" / "client-0" / "data" / "train.npz").exists()
