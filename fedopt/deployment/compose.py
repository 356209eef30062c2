"""The Compose file of a deployment, and `docker-compose` as this package calls it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedopt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fedopt.deployment.folder import Deployment, DeploymentTable

HEAD = """\
# SuperLink (TLS, clients known by their keys), the gateway that clients reach, a client each, a job
# that submits a run, and a read-only page of results. Written by `fedopt deploy init`; what stands
# in ${{...}} is from {environment}.
#   {command} build
#   {command} up -d
#   {command} run --rm submit          the run of config.toml
version: "3.8"

x-hardened: &hardened
  user: "${{FEDOPT_UID:-10001}}:${{FEDOPT_GID:-10001}}"
  read_only: true
  tmpfs: ["/tmp"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  restart: unless-stopped

x-server: &server
  <<: *hardened
  image: "${{FEDOPT_SERVER_IMAGE:-fedopt-server}}"
  build:
    context: "${{FEDOPT_SOURCE:-{source}}}"
    dockerfile: server/Dockerfile
    args: &args
      BASE_IMAGE: "${{BASE_IMAGE:-python:3.11-slim-bookworm}}"
      PIP_FIND_LINKS: "${{PIP_FIND_LINKS:-}}"
      TORCH: "${{TORCH:-torch==2.13.0}}"
      TORCH_INDEX: "${{TORCH_INDEX-https://download.pytorch.org/whl/cpu}}"

x-client: &client
  <<: *hardened
  image: "${{FEDOPT_CLIENT_IMAGE:-fedopt-client}}"
  build:
    context: "${{FEDOPT_SOURCE:-{source}}}"
    dockerfile: clients/Dockerfile
    args: *args
  command: [node, /site, --server, "gateway:9092"]
  depends_on:
    gateway: {{condition: service_healthy}}
    register: {{condition: service_completed_successfully}}
  networks: [clients]
  mem_limit: "${{FEDOPT_CLIENT_MEMORY:-2g}}"
  cpus: "${{FEDOPT_CLIENT_CPUS:-1.0}}"
  pids_limit: 200
  healthcheck:
    test: [CMD, python3, -m, fedopt.deployment.health, "http://127.0.0.1:9094/health"]
    interval: 5s
    timeout: 5s
    retries: 24

services:
  superlink:
    <<: *server
    command: [serve, /server, --results, /results]
    networks: [control]
    volumes:
      - {root}/server:/server:ro
      - {root}/server/state:/server/state
      - {root}/results:/results
    mem_limit: "${{FEDOPT_SERVER_MEMORY:-4g}}"
    cpus: "${{FEDOPT_SERVER_CPUS:-2.0}}"
    pids_limit: 400
    healthcheck:
      test: [CMD, python3, -m, fedopt.deployment.health, "https://localhost:8000/health",
        /server/ca.crt]
      interval: 3s
      timeout: 5s
      retries: 40

  gateway:
    <<: *server
    command: [gateway, /server, --superlink, "superlink:8000", --port, "9092"]
    networks: [control, clients, outside]
    depends_on:
      superlink: {{condition: service_healthy}}
    volumes:
      - {root}/server/ca.crt:/server/ca.crt:ro
      - {root}/server/server.pem:/server/server.pem:ro
      - {root}/server/server.key:/server/server.key:ro
    ports:
      - "${{FEDOPT_BIND:-127.0.0.1}}:${{FEDOPT_PORT:-{port}}}:9092"
    mem_limit: 512m
    cpus: "0.5"
    pids_limit: 100
    healthcheck:
      test: [CMD, python3, -m, fedopt.deployment.health, "https://localhost:9092/health",
        /server/ca.crt]
      interval: 3s
      timeout: 5s
      retries: 40

  register:
    <<: *server
    restart: "no"
    command: [register, /server, --superlink, "superlink:8000"]
    networks: [control]
    depends_on:
      superlink: {{condition: service_healthy}}
    volumes:
      - {root}/server/ca.crt:/server/ca.crt:ro
      - {root}/server/keys:/server/keys:ro
    mem_limit: 512m

  submit:
    <<: *server
    restart: "no"
    profiles: [job]
    command: [submit, "/config/${{FEDOPT_CONFIG:-config.toml}}", --server, /server, --superlink,
      "superlink:8000", --clients, "${{FEDOPT_CLIENTS:-{clients}}}"]
    networks: [control]
    depends_on:
      superlink: {{condition: service_healthy}}
    volumes:
      - {root}/server/ca.crt:/server/ca.crt:ro
      - "${{FEDOPT_CONFIGS:-{root}}}:/config:ro"
    mem_limit: 1g

  results:
    <<: *server
    entrypoint: [python3, -m, http.server, "8080", --directory, /results]
    command: []
    networks: [results]
    volumes:
      - {root}/results:/results:ro
    ports:
      - "127.0.0.1:${{FEDOPT_RESULTS_PORT:-9080}}:8080"
    mem_limit: 128m
    cpus: "0.2"
    pids_limit: 50
    healthcheck:
      test: [CMD, python3, -m, fedopt.deployment.health, "http://127.0.0.1:8080/"]
      interval: 10s
      timeout: 5s
      retries: 12
"""

CLIENT = """
  {name}:
    <<: *client
    volumes:
      - {root}/clients/{name}/site.toml:/site/site.toml:ro
      - {root}/clients/{name}/ca.crt:/site/ca.crt:ro
      - {root}/clients/{name}/key:/site/key:ro
      - {root}/clients/{name}/data:/site/data:ro
      - {root}/clients/{name}/state:/site/state
"""

TAIL = """
# What a run's code could reach from a client is the gateway alone.
networks:
  control: {internal: true}
  clients: {internal: true}
  outside: {}
  results: {}
"""


def compose_file(
    table: DeploymentTable, root: str = ".", source: str = "..", environment: str = ".env"
) -> str:
    """Return the Compose file of a deployment (file format 3.8, for Compose v1 and v2).

    Args:
        table: what `deployment.toml` says.
        root: the deployment's folder, as seen from the file.
        source: the folder of the Dockerfiles, as seen from the file.
        environment: the file of what machines want otherwise, as seen from the file.
    """
    is_beside = environment == ".env"
    head = HEAD.format(
        root=root,
        port=table.port,
        clients=len(table.clients),
        source=source,
        environment="the .env file beside it" if is_beside else environment,
        command="docker-compose" if is_beside else f"docker-compose --env-file {environment}",
    )
    here = [client.name for client in table.clients if not client.remote]
    clients = "".join(CLIENT.format(root=root, name=name) for name in here)
    return head + clients + TAIL


def environment_file(deployment: Deployment) -> str:
    """Return the `.env` file of a deployment: what a machine may want otherwise."""
    from fedopt.deployment.folder import container_ids

    uid, gid = container_ids()
    project = re.sub(r"[^a-z0-9]+", "-", deployment.root.absolute().name.lower()).strip("-")
    return f"""\
# Read by docker-compose. None of it is secret.
FEDOPT_UID={uid}
FEDOPT_GID={gid}
# 0.0.0.0 lets clients on other machines in; the port that they connect to
FEDOPT_BIND=127.0.0.1
FEDOPT_PORT={deployment.table.port}
FEDOPT_RESULTS_PORT=9080
# the configuration that `docker-compose run --rm submit` runs, in the deployment's folder
FEDOPT_CONFIG=config.toml
COMPOSE_PROJECT_NAME=fedopt-{project}
# base image and where else pip finds wheels, for builds without the public registries
BASE_IMAGE=python:3.11-slim-bookworm
PIP_FIND_LINKS=
# torch and the index of its CPU build; an empty index takes the default build, that for CUDA
TORCH=torch==2.13.0
TORCH_INDEX=https://download.pytorch.org/whl/cpu
"""


def compose_command() -> list[str]:
    """Return the command of Compose on this machine: v2's, else v1's.

    Raises:
        ConfigError: there is none.
    """
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if not found.returncode:
            return ["docker", "compose"]
    raise ConfigError(
        "there is no docker-compose on this machine; install it, or use --processes, which needs "
        "no Docker"
    )


def compose(root: Path, words: Sequence[str], *, capture: bool = False) -> str:
    """Run Compose in a deployment's folder, and return what it printed where that is captured.

    Raises:
        ConfigError: there is no Compose.
        RunError: it failed.
    """
    done = subprocess.run(
        [*compose_command(), *words],
        cwd=root,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"docker-compose {words[0]} ended with {done.returncode}")
    return done.stdout or ""
