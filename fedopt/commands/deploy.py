"""`fedopt deploy`: real clients, in containers or as plain processes.

init, add-client, split     make the folder of a deployment
up, status, logs, down      its containers or processes
submit                      a run on it
serve, gateway, register, node     what those containers and processes are
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedopt.commands.common import Arguments, AsJson, Debug, Quiet, configuration, guarded
from fedopt.errors import ConfigError

deploy = typer.Typer(
    name="deploy",
    help="Run on real clients: containers or processes, TLS, keys, their own data.\n\n"
    "Example: fedopt deploy init --clients 3",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Option("--folder", help="the deployment's folder")]
Names = Annotated[list[str] | None, typer.Argument(help="clients (default: all)")]
Processes = Annotated[
    bool, typer.Option("--processes", help="plain processes of this machine instead of Docker")
]
DEFAULT = Path("deployment")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(deploy)


@deploy.command()
def init(
    folder: Annotated[Path, typer.Argument(help="folder to make")] = DEFAULT,
    clients: Annotated[
        str, typer.Option("--clients", help="how many, or their names: hospital-a,hospital-b")
    ] = "3",
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="name or address under which clients reach the server"),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="port that clients connect to")] = 9092,
    debug: Debug = False,
) -> None:
    """Make certificates, keys, a folder for each client, and Docker's files; overwrite nothing.

    Example: fedopt deploy init --clients hospital-a,hospital-b --host fl.example.org
    """
    guarded(lambda: _init(folder, clients, host or [], port), debug)


@deploy.command("add-client")
def add_client(
    name: Annotated[str, typer.Argument(help="name of the client")],
    folder: Folder = DEFAULT,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", help="of a key made on the client's machine (default: one is made here)"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Add a client, and print what its site needs.

    Example: fedopt deploy add-client hospital-c --public-key hospital-c.pub
    """
    guarded(lambda: _add_client(name, folder, public_key), debug)


@deploy.command()
def split(
    arguments: Arguments = None,
    folder: Folder = DEFAULT,
    debug: Debug = False,
) -> None:
    """Write each client's data folder from a simulated population, for trials.

    The test set goes to the server. A folder that holds data is refused.

    Example: fedopt deploy split data=digits partition.alpha=0.5
    """
    guarded(lambda: _split(arguments or [], folder), debug)


@deploy.command()
def up(
    names: Names = None,
    folder: Folder = DEFAULT,
    processes: Processes = False,
    debug: Debug = False,
) -> None:
    """Start the SuperLink, the gateway and the clients that do not run yet.

    Example: fedopt deploy up --processes
    """
    guarded(lambda: _up(names or [], folder, processes), debug)


@deploy.command()
def status(folder: Folder = DEFAULT, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what runs: processes or containers, the clients that the server sees, and runs.

    Example: fedopt deploy status
    """
    guarded(lambda: _status(folder, as_json), debug)


@deploy.command()
def logs(
    name: Annotated[str, typer.Argument(help="superlink, gateway, or a client")],
    folder: Folder = DEFAULT,
    lines: Annotated[int, typer.Option("--lines", help="last lines shown", min=1)] = 50,
    debug: Debug = False,
) -> None:
    """Show the last lines that a process or container has printed.

    Example: fedopt deploy logs client-0
    """
    guarded(lambda: _logs(name, folder, lines), debug)


@deploy.command()
def down(
    names: Names = None,
    folder: Folder = DEFAULT,
    processes: Processes = False,
    debug: Debug = False,
) -> None:
    """Stop clients, gateway and SuperLink; data, state and results stay.

    Example: fedopt deploy down
    """
    guarded(lambda: _down(names or [], folder, processes), debug)


@deploy.command()
def submit(
    arguments: Arguments = None,
    folder: Folder = DEFAULT,
    name: Annotated[
        str | None, typer.Option("--name", help="of the run's folder (default: a new one)")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="go on with the run of this name")
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", help="own module or package that travels with the run"),
    ] = None,
    server: Annotated[
        Path | None, typer.Option("--server", help="the server's folder (inside its container)")
    ] = None,
    superlink: Annotated[
        str | None, typer.Option("--superlink", help="host:port of the SuperLink (likewise)")
    ] = None,
    clients: Annotated[
        int | None, typer.Option("--clients", help="clients that must be there", min=1)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a configuration on the clients; show its progress; end with the run's true status.

    Example: fedopt deploy submit config.toml strategy=scaffold rounds=5
    """
    guarded(
        lambda: _submit(
            arguments or [],
            folder,
            name,
            resume,
            include or [],
            (server, superlink, clients),
            as_json,
            quiet,
        ),
        debug,
    )


@deploy.command()
def stop(
    name: Annotated[str, typer.Argument(help="name of the run")],
    folder: Folder = DEFAULT,
    server: Annotated[
        Path | None, typer.Option("--server", help="the server's folder (inside its container)")
    ] = None,
    superlink: Annotated[
        str | None, typer.Option("--superlink", help="host:port of the SuperLink (likewise)")
    ] = None,
    debug: Debug = False,
) -> None:
    """Stop a run that was submitted; `submit --resume` can go on with it.

    Example: fedopt deploy stop trial
    """
    guarded(lambda: _stop(name, folder, server, superlink), debug)


@deploy.command()
def serve(
    server: Annotated[Path, typer.Argument(help="the server's folder")],
    results: Annotated[Path, typer.Option("--results", help="folder of runs' folders")],
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="port to listen on")] = 8000,
    debug: Debug = False,
) -> None:
    """Be the SuperLink (what its container and process run).

    Example: fedopt deploy serve deployment/server --results deployment/results
    """
    from fedopt.deployment import services

    guarded(lambda: services.serve(server, results, host, port), debug)


@deploy.command()
def gateway(
    server: Annotated[Path, typer.Argument(help="the server's folder")],
    superlink: Annotated[str, typer.Option("--superlink", help="host:port of the SuperLink")],
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="port to listen on")] = 9092,
    debug: Debug = False,
) -> None:
    """Be the gateway: the port that clients reach, which passes on nothing but their requests.

    Example: fedopt deploy gateway deployment/server --superlink 127.0.0.1:8000
    """
    guarded(lambda: _gateway(server, superlink, host, port), debug)


@deploy.command("register")
def register_keys(
    server: Annotated[Path, typer.Argument(help="the server's folder")],
    superlink: Annotated[str, typer.Option("--superlink", help="host:port of the SuperLink")],
    debug: Debug = False,
) -> None:
    """Admit the clients' keys that lie with the server.

    Example: fedopt deploy register deployment/server --superlink 127.0.0.1:9093
    """
    guarded(lambda: _register(server, superlink), debug)


@deploy.command()
def node(
    site: Annotated[Path, typer.Argument(help="the client's folder")],
    server: Annotated[
        str | None, typer.Option("--server", help="host:port (default: as site.toml says)")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", help="of the node's own service, on this machine alone")
    ] = 9094,
    debug: Debug = False,
) -> None:
    """Be a client: check its data, then connect to the server.

    Example: fedopt deploy node deployment/clients/hospital-a --server fl.example.org:9092
    """
    from fedopt.deployment import services

    guarded(lambda: services.node(site, server, port), debug)


@deploy.command()
def check(
    site: Annotated[Path, typer.Argument(help="the client's folder")], debug: Debug = False
) -> None:
    """Check a client's folder: key, certificate, data, state.

    Example: fedopt deploy check deployment/clients/hospital-a
    """
    from fedopt.deployment import services

    guarded(lambda: typer.echo(services.check_site(site)), debug)


def _init(folder: Path, clients: str, hosts: list[str], port: int) -> None:
    from fedopt.deployment.folder import init as make

    words = [word.strip() for word in clients.split(",") if word.strip()]
    if len(words) == 1 and words[0].lstrip("-").isdigit():
        count = int(words[0])
        if not 1 <= count <= 1000:
            raise ConfigError(f"must be in 1..1000, got {count}", key="--clients")
        words = [f"client-{place}" for place in range(count)]
    if not words:
        raise ConfigError("give how many, or their names", key="--clients")
    made = make(folder, hosts or ["localhost"], port, words)
    names = ", ".join(client.name for client in made.table.clients)
    typer.echo(
        f"{folder}: {len(words)} clients ({names}), server at {made.table.hosts[0]}:{port}\n"
        f"data of a trial:    fedopt deploy split CONFIG.toml --folder {folder}\n"
        f"or each client's:   {folder}/clients/NAME/data (.npz, CSV, Parquet, images by class)\n"
        f"then:               fedopt deploy up --folder {folder}   (--processes without Docker)"
    )


def _add_client(name: str, folder: Path, public_key: Path | None) -> None:
    from fedopt.deployment.folder import Deployment
    from fedopt.deployment.folder import add_client as add

    if public_key is not None and not public_key.exists():
        raise ConfigError(f"{public_key} does not exist", key="--public-key")
    grown = add(Deployment.open(folder), name, public_key)
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


def _split(arguments: list[str], folder: Path) -> None:
    from fedopt.deployment.folder import Deployment, own
    from fedopt.deployment.trial import split as write

    deployment = Deployment.open(folder)
    wanted = f"partition.clients={len(deployment.table.clients)}"
    given = any(word.startswith("partition.clients=") for word in arguments)
    has_file = bool(arguments) and "=" not in arguments[0]
    config = configuration([*arguments] if given or has_file else [*arguments, wanted])
    for line in write(config, deployment):
        typer.echo(line)
    own(folder)


def _up(names: list[str], folder: Path, as_processes: bool) -> None:
    from fedopt.deployment import compose, processes
    from fedopt.deployment.folder import Deployment, complete

    deployment = Deployment.open(folder)
    complete(deployment)
    if as_processes:
        for process in processes.up(deployment, names):
            typer.echo(f"{process.name}: process {process.pid}")
        _remember(deployment, "processes")
        return
    _remember(deployment, "docker")
    services = [deployment.named(name).name for name in names]
    compose.compose(folder, ["up", "-d", *services])


def _status(folder: Path, as_json: bool) -> None:
    import json

    from fedopt.deployment import processes
    from fedopt.deployment.folder import Deployment

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


def _mode(deployment: Any) -> str:
    """Return how the deployment was last started: `processes`, `docker`, or `stopped`: never."""
    path = deployment.root / "run" / "mode"
    return path.read_text().strip() if path.exists() else "stopped"


def _remember(deployment: Any, mode: str) -> None:
    from fedopt.atomic import write_atomically

    (deployment.root / "run").mkdir(exist_ok=True)
    write_atomically(deployment.root / "run" / "mode", mode.encode())


def _containers(folder: Path) -> dict[str, str]:
    import shutil
    import subprocess

    from fedopt.deployment.compose import compose

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


def _logs(name: str, folder: Path, lines: int) -> None:
    from fedopt.deployment import compose, processes
    from fedopt.deployment.folder import Deployment
    from fedopt.errors import unknown_name

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
    compose.compose(folder, ["logs", "--no-color", "--tail", str(lines), name])


def _down(names: list[str], folder: Path, as_processes: bool) -> None:
    from fedopt.deployment import compose, processes
    from fedopt.deployment.folder import Deployment

    deployment = Deployment.open(folder)
    stopped = processes.down(deployment, names)
    for process in stopped:
        typer.echo(f"{process.name}: stopped")
    if as_processes or _mode(deployment) != "docker":
        return
    if names:
        compose.compose(folder, ["stop", *(deployment.named(name).name for name in names)])
    else:
        compose.compose(folder, ["down"])


def _submit(
    arguments: list[str],
    folder: Path,
    name: str | None,
    resume: str | None,
    include: list[Path],
    inside: tuple[Path | None, str | None, int | None],
    as_json: bool,
    quiet: bool,
) -> None:
    import re

    from fedopt.deployment import processes
    from fedopt.deployment.folder import Deployment

    server, superlink, clients = inside
    if resume is not None and (arguments or name):
        raise ConfigError("takes no configuration: the run goes on with its own", key="--resume")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", name):
        raise ConfigError(f'"{name}" is not the plain name of a folder', key="--name")
    if (server is None) != (superlink is None):
        raise ConfigError("--server and --superlink go together", key="--server")
    if server is None:
        deployment = Deployment.open(folder)
        clients = clients or len(deployment.table.clients)
        arguments = with_kept_configuration(deployment.root, arguments)
    from fedopt.deployment.submit import prepared

    config = None if resume is not None else prepared(configuration(arguments), clients)
    if server is None and not processes.is_up(deployment):
        if _mode(deployment) == "processes":
            raise ConfigError(f"{folder} is not up; fedopt deploy up --processes --folder {folder}")
        _submit_in_container(deployment, config, name, resume, include, as_json, quiet)
        return
    import tempfile

    from fedopt.deployment.flower import Flower

    with tempfile.TemporaryDirectory(prefix="fedopt-flower-") as home:
        if server is not None and superlink is not None:
            flwr = Flower(Path(home), superlink, server / "ca.crt")
        else:
            flwr = processes.flower(deployment)
        _run(flwr, resume or name or _new_name(config), config, include, as_json, quiet)


def with_kept_configuration(root: Path, arguments: list[str]) -> list[str]:
    """Return the words of a submission, with the configuration of the split where none is given."""
    from fedopt.deployment.folder import CONFIG

    has_file = bool(arguments) and "=" not in arguments[0]
    kept = root / CONFIG
    return arguments if has_file or not kept.exists() else [str(kept), *arguments]


def _run(
    flwr: Any, name: str, config: Any, include: list[Path], as_json: bool, quiet: bool
) -> None:
    from fedopt.deployment.submit import follow, show_line, submit

    logging.getLogger("fedopt").setLevel(logging.WARNING)
    sent = submit(flwr, name, config, include)
    if not quiet:
        print(f"run {name} is submitted; its folder is in the server's results", file=sys.stderr)
    try:
        summary = follow(flwr, sent, (lambda line: None) if quiet else show_line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the run {name} goes on without being watched; fedopt deploy status shows it"
        ) from None
    _show(summary, as_json, quiet)


def _show(summary: Any, as_json: bool, quiet: bool) -> None:
    from fedopt.analysis.store import to_json

    if as_json:
        typer.echo(to_json(summary), nl=False)
    elif not quiet:
        from rich.console import Console

        from fedopt.analysis.summary import final_table

        Console().print(final_table(summary))
        typer.echo(f"results on the server: {summary['run_dir']}")


def _new_name(config: Any) -> str:
    from datetime import datetime

    words = [config.strategy.name, config.data.name, f"s{config.seed}"]
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return "_".join([stamp, *(word.replace(":", "-").replace("/", "-") for word in words)])


def _submit_in_container(
    deployment: Any,
    config: Any,
    name: str | None,
    resume: str | None,
    include: list[Path],
    as_json: bool,
    quiet: bool,
) -> None:
    """Submit from inside the server's network, which alone reaches the SuperLink."""
    import os
    import tempfile

    from fedopt.deployment.compose import compose
    from fedopt.deployment.folder import own

    with tempfile.TemporaryDirectory(prefix="fedopt-submit-", dir=deployment.root) as folder:
        os.chmod(folder, 0o755)
        words = ["run", "--rm", "-T", "-v", f"{Path(folder).absolute()}:/job:ro"]
        inner = ["submit", "--server", "/server", "--superlink", "superlink:8000"]
        if config is not None:
            (Path(folder) / "run.toml").write_text(config.to_toml(), encoding="utf-8")
            inner += ["/job/run.toml"]
            inner += ["--name", name or _new_name(config)]
        else:
            inner += ["--resume", str(resume)]
        for place, path in enumerate(include):
            words += ["-v", f"{path.absolute()}:/include/{place}/{path.name}:ro"]
            inner += ["--include", f"/include/{place}/{path.name}"]
        inner += [*(["--json"] if as_json else []), *(["--quiet"] if quiet else [])]
        own(deployment.root)
        compose(deployment.root, [*words, "submit", *inner])


def _stop(name: str, folder: Path, server: Path | None, superlink: str | None) -> None:
    import tempfile

    from fedopt.deployment import processes
    from fedopt.deployment.compose import compose
    from fedopt.deployment.flower import Flower
    from fedopt.deployment.folder import Deployment
    from fedopt.deployment.submit import stop_others

    with tempfile.TemporaryDirectory(prefix="fedopt-flower-") as home:
        if server is not None and superlink is not None:
            flwr = Flower(Path(home), superlink, server / "ca.crt")
        else:
            deployment = Deployment.open(folder)
            if not processes.is_up(deployment):
                inner = ["stop", name, "--server", "/server", "--superlink", "superlink:8000"]
                compose(folder, ["run", "--rm", "-T", "submit", *inner])
                return
            flwr = processes.flower(deployment)
        stopped = stop_others(flwr, name)
    if not stopped:
        raise ConfigError(f'no run "{name}" is under way')
    typer.echo(f"{name}: stopped; go on with it: fedopt deploy submit --resume {name}")


def _gateway(server: Path, superlink: str, host: str, port: int) -> None:
    from fedopt.deployment.gateway import serve_gateway
    from fedopt.deployment.services import check_private

    check_private(server / "server.key")
    files = (server / "ca.crt", server / "server.pem", server / "server.key")
    serve_gateway(f"https://{superlink}", *files, host, port)


def _register(server: Path, superlink: str) -> None:
    import tempfile

    from fedopt.deployment.flower import Flower
    from fedopt.deployment.processes import register

    with tempfile.TemporaryDirectory(prefix="fedopt-flower-") as home:
        new = register(Flower(Path(home), superlink, server / "ca.crt"), server)
    typer.echo(f"admitted: {', '.join(new) or 'nobody new'}")
