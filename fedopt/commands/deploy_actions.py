"""What the commands of `fedopt deploy` do; what they are called is in `fedopt.commands.deploy`.

Torch and Flower are imported by what needs them alone, so that a folder is made at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedopt.analysis.store import stamped_name
from fedopt.atomic import write_atomically
from fedopt.commands.common import configuration, show_summary
from fedopt.config import Config, split_arguments
from fedopt.deployment import folder as folders
from fedopt.deployment.compose import compose
from fedopt.deployment.folder import CONFIG, Deployment, complete, own
from fedopt.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from fedopt.deployment.flower import Flower
INSIDE = ("--server", "/server", "--superlink", "superlink:8000")
"""Where a container of the server finds its folder and the SuperLink."""


def init(folder: Path, clients: str, hosts: list[str], port: int) -> None:
    """Make a deployment's folder and say what comes next."""
    words = [word.strip() for word in clients.split(",") if word.strip()]
    if len(words) == 1 and words[0].lstrip("-").isdigit():
        count = int(words[0])
        if not 1 <= count <= 1000:
            raise ConfigError(f"must be in 1..1000, got {count}", key="--clients")
        words = [f"client-{place}" for place in range(count)]
    if not words:
        raise ConfigError("give how many, or their names", key="--clients")
    made = folders.init(folder, hosts or ["localhost"], port, words)
    names = ", ".join(client.name for client in made.table.clients)
    typer.echo(
        f"{folder}: {len(words)} clients ({names}), server at {made.table.hosts[0]}:{port}\n"
        f"data of a trial:    fedopt deploy split CONFIG.toml --folder {folder}\n"
        f"or each client's:   {folder}/clients/NAME/data (.npz, CSV, Parquet, images by class)\n"
        f"then:               fedopt deploy up --folder {folder}   (--processes without Docker)"
    )


def add_client(name: str, folder: Path, public_key: Path | None) -> None:
    """Add a client and say what its site needs."""
    if public_key is not None and not public_key.exists():
        raise ConfigError(f"{public_key} does not exist", key="--public-key")
    grown = folders.add_client(Deployment.open(folder), name, public_key)
    client, site = grown.named(name), grown.client(name)
    key = "its own key" if public_key is not None else f"{site}/key (secret; by a safe way)"
    typer.echo(
        f"{name} is client {client.id} of {len(grown.table.clients)}; its key is admitted by the "
        f"next fedopt deploy up, and it takes part in runs submitted after it has connected.\n"
        f"Its site needs\n"
        f"  {site}/site.toml   (its rules are its own to write)\n"
        f"  {site}/ca.crt      (by which it knows the server)\n"
        f"  {key}\n"
        f"  a folder data/ with its examples, and a folder state/ that it can write to\n"
        f"and there: fedopt deploy node FOLDER, or the container {name} of docker-compose.yml"
    )


def split(arguments: list[str], folder: Path) -> None:
    """Write a trial's data."""
    from fedopt.deployment.trial import split as write

    deployment = Deployment.open(folder)
    wanted = f"partition.clients={len(deployment.table.clients)}"
    given = any(word.startswith("partition.clients=") for word in arguments)
    has_file = split_arguments(arguments)[0] is not None
    config = configuration(arguments if given or has_file else [*arguments, wanted])
    for line in write(config, deployment):
        typer.echo(line)
    own(folder)


def up(names: list[str], folder: Path, as_processes: bool) -> None:
    """Start what does not run yet."""
    from fedopt.deployment import processes

    deployment = Deployment.open(folder)
    complete(deployment)
    if as_processes:
        for process in processes.up(deployment, names):
            typer.echo(f"{process.name}: process {process.pid}")
        _remember(deployment, "processes")
        return
    _remember(deployment, "docker")
    services = [deployment.named(name).name for name in names]
    compose(folder, ["up", "-d", *services])


def status(folder: Path, as_json: bool) -> None:
    """Show services, nodes and runs."""
    from fedopt.deployment import processes

    deployment = Deployment.open(folder)
    told: dict[str, Any] = {"mode": _mode(deployment), "nodes": None, "runs": None}
    if told["mode"] != "docker":
        told["services"] = {
            p.name: "stopped" if p.pid is None else "running" for p in processes.status(deployment)
        }
    if processes.is_up(deployment):
        flwr = processes.flower(deployment)
        told["nodes"] = [
            {"node_id": str(n.get("node-id")), "status": n.get("status")} for n in flwr.nodes()
        ]
        told["runs"] = [
            {"id": str(r["run-id"]), "app": str(r.get("fab-id", "")), "status": r["status"]}
            for r in flwr.runs()
        ]
    if told["mode"] == "docker":
        told["services"] = _containers(folder)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"{told['mode']}:")
    for name, state in told["services"].items():
        typer.echo(f"  {name:<24} {state}")
    for key in ("nodes", "runs"):
        if told[key] is not None:
            typer.echo(f"{key}:" + ("" if told[key] else " none"))
            for row in told[key]:
                typer.echo("  " + "  ".join(str(value) for value in row.values()))


def _mode(deployment: Deployment) -> str:
    """Return how the deployment was last started: `processes`, `docker`, or `stopped`: never."""
    path = deployment.root / "run" / "mode"
    return path.read_text().strip() if path.exists() else "stopped"


def _remember(deployment: Deployment, mode: str) -> None:
    (deployment.root / "run").mkdir(exist_ok=True)
    write_atomically(deployment.root / "run" / "mode", mode.encode())


def _containers(folder: Path) -> dict[str, str]:

    ids = compose(folder, ["ps", "-a", "-q"], capture=True).split()
    if not ids or not shutil.which("docker"):
        return {}
    form = (
        '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} '
        "{{if .State.Health}}{{.State.Health.Status}}{{end}}"
    )
    done = subprocess.run(
        ["docker", "inspect", "--format", form, *ids], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    return {row[0]: row[1].strip() for row in rows}


def logs(name: str, folder: Path, lines: int) -> None:
    """Show the last lines of a service."""
    from fedopt.deployment import processes

    deployment = Deployment.open(folder)
    every = [processes.SUPERLINK, processes.GATEWAY, *(c.name for c in deployment.table.clients)]
    if name not in every:
        raise unknown_name("NAME", name, every)
    file = processes.log_file(deployment, name)
    if _mode(deployment) != "docker":
        if not file.exists():
            raise ConfigError(f"{name} has not been started")
        text = file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        typer.echo("\n".join(text))
        return
    compose(folder, ["logs", "--no-color", "--tail", str(lines), name])


def down(names: list[str], folder: Path, as_processes: bool) -> None:
    """Stop services."""
    from fedopt.deployment import processes

    deployment = Deployment.open(folder)
    stopped = processes.down(deployment, names)
    for process in stopped:
        typer.echo(f"{process.name}: stopped")
    if as_processes or _mode(deployment) != "docker":
        return
    if names:
        compose(folder, ["stop", *(deployment.named(name).name for name in names)])
    else:
        compose(folder, ["down"])


def submit(
    arguments: list[str],
    folder: Path,
    name: str | None,
    resume: str | None,
    include: list[Path],
    inside: tuple[Path | None, str | None, int | None],
    as_json: bool,
    quiet: bool,
) -> None:
    """Submit a run, follow it, and show its summary."""
    from fedopt.deployment import processes
    from fedopt.deployment.submit import prepared
    from fedopt.run import run_words

    server, superlink, clients = inside
    if resume is not None and (arguments or name):
        raise ConfigError("takes no configuration: the run goes on with its own", key="--resume")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", name):
        raise ConfigError(f'"{name}" is not the plain name of a folder', key="--name")
    if (server is None) != (superlink is None):
        raise ConfigError("--server and --superlink go together", key="--server")
    deployment = Deployment.open(folder) if server is None else None
    if deployment is not None:
        clients = clients or len(deployment.table.clients)
        arguments = with_kept_configuration(deployment.root, arguments)
    if resume is not None:
        config, run = None, resume
    else:
        config = prepared(configuration(arguments), clients)
        run = name or stamped_name(run_words(config))
    if deployment is not None and not processes.is_up(deployment):
        if _mode(deployment) == "processes":
            raise ConfigError(f"{folder} is not up; fedopt deploy up --processes --folder {folder}")
        _submit_in_container(deployment, run, config, include, as_json, quiet)
        return
    with _reached(deployment, server, superlink) as flwr:
        _run(flwr, run, config, include, as_json, quiet)


def with_kept_configuration(root: Path, arguments: list[str]) -> list[str]:
    """Return the words of a submission, with the configuration of the split where none is given."""
    kept = root / CONFIG
    has_file = split_arguments(arguments)[0] is not None
    return arguments if has_file or not kept.exists() else [str(kept), *arguments]


@contextmanager
def _reached(
    deployment: Deployment | None, server: Path | None, superlink: str | None
) -> Iterator[Flower]:
    """Give Flower's command line: against a deployment of this machine, or the SuperLink named."""
    from fedopt.deployment import processes
    from fedopt.deployment.flower import Flower

    if deployment is not None:
        yield processes.flower(deployment)
        return
    assert server is not None
    assert superlink is not None
    with tempfile.TemporaryDirectory(prefix="fedopt-flower-") as home:
        yield Flower(Path(home), superlink, server / "ca.crt")


def _run(
    flwr: Flower, name: str, config: Config | None, include: list[Path], as_json: bool, quiet: bool
) -> None:
    from fedopt.deployment.submit import follow, show_line, submit

    sent = submit(flwr, name, config, include)
    if not quiet:
        print(f"run {name} is submitted; its folder is in the server's results", file=sys.stderr)
    try:
        summary = follow(flwr, sent, (lambda line: None) if quiet else show_line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the run {name} goes on without being watched; fedopt deploy status shows it"
        ) from None
    footer = [f"results on the server: {summary['run_dir']}"]
    show_summary(dict(summary), as_json, quiet, footer)


def _submit_in_container(
    deployment: Deployment,
    name: str,
    config: Config | None,
    include: list[Path],
    as_json: bool,
    quiet: bool,
) -> None:
    """Submit from inside the server's network, which alone reaches the SuperLink."""
    with tempfile.TemporaryDirectory(prefix="fedopt-submit-", dir=deployment.root) as folder:
        os.chmod(folder, 0o755)
        words = ["run", "--rm", "-T", "-v", f"{Path(folder).absolute()}:/job:ro"]
        inner = ["submit", *INSIDE]
        if config is not None:
            (Path(folder) / "run.toml").write_text(config.to_toml(), encoding="utf-8")
            inner += ["/job/run.toml", "--name", name]
        else:
            inner += ["--resume", name]
        for place, path in enumerate(include):
            words += ["-v", f"{path.absolute()}:/include/{place}/{path.name}:ro"]
            inner += ["--include", f"/include/{place}/{path.name}"]
        inner += [*(["--json"] if as_json else []), *(["--quiet"] if quiet else [])]
        own(deployment.root)
        compose(deployment.root, [*words, "submit", *inner])


def stop(name: str, folder: Path, server: Path | None, superlink: str | None) -> None:
    """Stop a run."""
    from fedopt.deployment import processes
    from fedopt.deployment.submit import stop_others

    deployment = Deployment.open(folder) if server is None else None
    if deployment is not None and not processes.is_up(deployment):
        compose(folder, ["run", "--rm", "-T", "submit", "stop", name, *INSIDE])
        return
    with _reached(deployment, server, superlink) as flwr:
        stopped = stop_others(flwr, name)
    if not stopped:
        raise ConfigError(f'no run "{name}" is under way')
    typer.echo(f"{name}: stopped; go on with it: fedopt deploy submit --resume {name}")


def gateway(server: Path, superlink: str, host: str, port: int) -> None:
    """Serve the gateway."""
    from fedopt.deployment.gateway import serve_gateway
    from fedopt.deployment.services import check_private

    check_private(server / "server.key")
    files = (server / "ca.crt", server / "server.pem", server / "server.key")
    serve_gateway(f"https://{superlink}", *files, host, port)


def register(server: Path, superlink: str) -> None:
    """Admit keys."""
    from fedopt.deployment.processes import register as admit

    with _reached(None, server, superlink) as flwr:
        new = admit(flwr, server)
    typer.echo(f"admitted: {', '.join(new) or 'nobody new'}")
