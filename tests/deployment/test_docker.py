"""The Compose file on a real Docker engine: three clients over TLS, known by their keys.

`.ci/docker` finds or makes an engine, builds the images, and sets FEDOPT_DOCKER: to `all`, or in
its stage `test` to `1`, which leaves the long ones out (test_processes.py has the like).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from fedopt.deployment.compose import compose_command, compose_file
from fedopt.deployment.folder import ClientTable, DeploymentTable

from .command import FEDOPT, execute, fedopt

ROOT = Path(__file__).resolve().parents[2]
PORT = 19492
RUN = [
    *("strategy=scaffold", "partition.clients=3", "clients_per_round=3", "rounds=3"),
    *("local.epochs=1", "engine.block_size=1", "engine.on_client_error=skip"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("FEDOPT_DOCKER") not in ("1", "all"),
        reason="needs a Docker engine with the two images; run .ci/docker",
    ),
]


long = pytest.mark.skipif(
    os.environ.get("FEDOPT_DOCKER") != "all", reason="takes minutes; run .ci/docker"
)


def test_the_compose_file_of_the_repository_is_that_of_three_clients():
    clients = tuple(ClientTable(name=f"client-{i}", id=i) for i in range(3))
    table = DeploymentTable(hosts=("localhost",), port=9092, clients=clients)
    written = (ROOT / "docker-compose.yml").read_text()
    assert written == compose_file(
        table, root="./deployment", source=".", environment="deployment/.env"
    )


def docker(folder, *words, **options):
    return execute(folder, "docker", *words, **options)


def container(folder, service):
    return execute(folder / "deployment", *compose_command(), "ps", "-q", service).stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A deployment that is up, with a trial's data."""
    folder = tmp_path_factory.mktemp("hospital")
    fedopt(folder, "deploy", "init", "--clients", "3", "--port", PORT)
    fedopt(folder, "deploy", "split", *RUN)
    environ = folder / "deployment" / ".env"
    text = environ.read_text().replace(
        "FEDOPT_RESULTS_PORT=9080", f"FEDOPT_RESULTS_PORT={PORT + 2}"
    )
    environ.write_text(text)
    try:
        fedopt(folder, "deploy", "up")
        yield folder
    finally:
        for service in ("superlink", "gateway", "client-0", "client-1"):
            print(fedopt(folder, "deploy", "logs", service, "--lines", 30, check=False).stdout)
        fedopt(folder, "deploy", "down", check=False)


def submitted(folder, name, *words):
    started = time.monotonic()
    process = subprocess.Popen(
        [*FEDOPT, "deploy", "submit", *RUN, *words, "--name", name, "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.started = started
    return process


def rounds(folder, name):
    path = folder / "deployment" / "results" / name / "rounds.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def wait_for_round(folder, name, round, process, seconds=240):
    deadline = time.monotonic() + seconds
    while rounds(folder, name) < round:
        if process.poll() is not None and process.returncode:
            raise AssertionError(process.stderr.read())
        assert time.monotonic() < deadline, f"round {round} of {name} does not come"
        time.sleep(0.3)


def finished(process):
    out, err = process.communicate(timeout=420)
    assert process.returncode == 0, err
    return json.loads(out), err


def clients_of(folder, name):
    table = pd.read_csv(folder / "deployment" / "results" / name / "clients.csv")
    return table.pivot(index="round", columns="client", values="status")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """A run from `up` to its end, and what it printed."""
    process = submitted(folder, "undisturbed")
    wait_for_round(folder, "undisturbed", 1, process)
    first = time.monotonic() - process.started
    summary, err = finished(process)
    return summary, err, first


def test_containers_give_the_bits_of_the_simulation(folder, undisturbed):
    summary, err, first = undisturbed
    assert "round 3/3" in err
    simulated = fedopt(folder, "run", *RUN, "engine.name=inline", "--json", "--out", "simulated")
    assert summary["model_sha256"] == json.loads(simulated.stdout)["model_sha256"]
    print(f"from submission to the end of round 1: {first:.0f} s")
    compared = fedopt(folder, "compare", "simulated", "deployment/results/undisturbed", "--json")
    assert json.loads(compared.stdout)["deployment"]["equal_bits"] is True


def test_no_container_runs_as_root_or_can_write_its_image(folder):
    for service in ("superlink", "gateway", "client-0", "results"):
        name = container(folder, service)
        told = json.loads(docker(folder, "inspect", name).stdout)[0]
        assert told["Config"]["User"].split(":")[0] not in ("", "0", "root")
        assert told["HostConfig"]["ReadonlyRootfs"] is True
        assert told["HostConfig"]["CapDrop"] == ["ALL"]
        assert told["HostConfig"]["Memory"] > 0
        done = docker(folder, "exec", name, "sh", "-c", "touch /x /opt/x", check=False)
        assert done.returncode != 0


def test_images_hold_no_key_and_no_compiler(folder):
    look = (
        "for c in gcc cc g++ make pip; do command -v $c; done; "
        "grep -rIlE 'BEGIN (OPENSSH |EC |)PRIVATE KEY' / --include='*' "
        "--exclude-dir=proc --exclude-dir=sys 2>/dev/null | grep -v '/site-packages/'"
    )
    for image in ("fedopt-server", "fedopt-client"):
        found = docker(folder, "run", "--rm", "--entrypoint", "sh", image, "-c", look, check=False)
        assert found.stdout.split() in ([], ["/usr/bin/pip"]), image  # the base image's own pip
        history = docker(folder, "history", "--no-trunc", image).stdout
        assert "PRIVATE KEY" not in history


def test_no_private_key_is_readable_by_others_or_in_a_log(folder, undisturbed):
    root = folder / "deployment"
    keys = [root / "ca" / "ca.key", root / "server" / "server.key"]
    keys += [root / "clients" / f"client-{i}" / "key" for i in range(3)]
    logs = "".join(
        fedopt(folder, "deploy", "logs", name, "--lines", 100000).stdout
        for name in ("superlink", "gateway", "client-0", "client-1", "client-2")
    )
    for key in keys:
        assert key.stat().st_mode & 0o077 == 0
        body = key.read_text().splitlines()[1]
        assert body not in logs


def wait_until_back(folder, name, client, seconds=240):
    """Wait until a client that was lost has trained again."""
    deadline = time.monotonic() + seconds
    while clients_of(folder, name)[client].iloc[-1] != "trained":
        assert time.monotonic() < deadline, clients_of(folder, name)
        time.sleep(1)


def stopped(folder, name, process):
    """Stop a run, and return what its submission said."""
    fedopt(folder, "deploy", "stop", name)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    return err


@long
def test_a_killed_container_is_lost_by_name_and_takes_part_again(folder, undisturbed):
    process = submitted(folder, "killed", "rounds=60", "deployment.round_seconds=25")
    wait_for_round(folder, "killed", 1, process)
    name = container(folder, "client-1")
    docker(folder, "kill", name)
    wait_for_round(folder, "killed", 2, process)
    docker(folder, "start", name)
    wait_until_back(folder, "killed", 1)
    assert "client 1 (client-1)" in stopped(folder, "killed", process)
    status = clients_of(folder, "killed")
    assert (status[[0, 2]] == "trained").all(axis=None)
    assert "failed" in set(status[1])


@long
def test_a_client_that_is_cut_off_is_lost_by_name_and_takes_part_again(folder, undisturbed):
    name = container(folder, "client-2")
    told = json.loads(docker(folder, "inspect", name).stdout)[0]
    (network,) = told["NetworkSettings"]["Networks"]
    process = submitted(folder, "cut", "rounds=60", "deployment.round_seconds=20")
    wait_for_round(folder, "cut", 1, process)
    docker(folder, "network", "disconnect", network, name)
    wait_for_round(folder, "cut", 2, process)
    docker(folder, "network", "connect", network, name)
    wait_until_back(folder, "cut", 2)
    assert "client 2 (client-2)" in stopped(folder, "cut", process)
    status = clients_of(folder, "cut")
    assert (status[[0, 1]] == "trained").all(axis=None)
    assert "failed" in set(status[2])


@long
def test_a_killed_superlink_is_gone_on_from(folder, undisturbed):
    summary, _, _ = undisturbed
    process = submitted(folder, "resumed")
    wait_for_round(folder, "resumed", 1, process)
    docker(folder, "kill", container(folder, "superlink"))
    process.communicate(timeout=120)
    assert process.returncode == 1
    fedopt(folder, "deploy", "up")
    again = fedopt(folder, "deploy", "submit", "--resume", "resumed", "--json")
    assert json.loads(again.stdout)["model_sha256"] == summary["model_sha256"]


def test_clients_reach_nothing_but_the_gateway(folder):
    probe = (
        "import ssl, urllib.request as u\n"
        "c = ssl.create_default_context(cafile='/site/ca.crt')\n"
        "for url in ('https://gateway:9092/v1/control/list-runs',):\n"
        "    try: u.urlopen(u.Request(url, data=b''), context=c, timeout=5)\n"
        "    except Exception as e: print(getattr(e, 'code', type(e).__name__))\n"
        "try: u.urlopen('https://superlink:8000/health', context=c, timeout=5)\n"
        "except Exception as e: print('unreachable')\n"
    )
    done = docker(folder, "exec", container(folder, "client-0"), "python3", "-c", probe)
    assert done.stdout.split() == ["403", "unreachable"]


def test_results_are_served_read_only(folder, undisturbed):
    import urllib.request

    url = f"http://127.0.0.1:{PORT + 2}/undisturbed/summary.json"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert json.load(answer)["status"] == "completed"
    name = container(folder, "results")
    assert docker(folder, "exec", name, "touch", "/results/x", check=False).returncode != 0
