"""`fedopt deploy`: real clients, in containers or as plain processes.

init, add-client, split     make the folder of a deployment
up, status, logs, down      its containers or processes
submit, stop                a run on it
serve, gateway, register, node     what those containers and processes are
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedopt.commands.common import Arguments, AsJson, Debug, Quiet, guarded

if TYPE_CHECKING:
    from types import ModuleType

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


Server = Annotated[
    Path | None, typer.Option("--server", help="the server's folder (inside its container)")
]
SuperLink = Annotated[
    str | None, typer.Option("--superlink", help="host:port of the SuperLink (likewise)")
]


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
    guarded(lambda: _actions().init(folder, clients, host or [], port), debug)


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
    guarded(lambda: _actions().add_client(name, folder, public_key), debug)


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
    guarded(lambda: _actions().split(arguments or [], folder), debug)


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
    guarded(lambda: _actions().up(names or [], folder, processes), debug)


@deploy.command()
def status(folder: Folder = DEFAULT, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what runs: processes or containers, the clients that the server sees, and runs.

    Example: fedopt deploy status
    """
    guarded(lambda: _actions().status(folder, as_json), debug)


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
    guarded(lambda: _actions().logs(name, folder, lines), debug)


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
    guarded(lambda: _actions().down(names or [], folder, processes), debug)


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
    server: Server = None,
    superlink: SuperLink = None,
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
        lambda: _actions().submit(
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
    server: Server = None,
    superlink: SuperLink = None,
    debug: Debug = False,
) -> None:
    """Stop a run that was submitted; `submit --resume` can go on with it.

    Example: fedopt deploy stop trial
    """
    guarded(lambda: _actions().stop(name, folder, server, superlink), debug)


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
    guarded(lambda: _actions().gateway(server, superlink, host, port), debug)


@deploy.command("register")
def register_keys(
    server: Annotated[Path, typer.Argument(help="the server's folder")],
    superlink: Annotated[str, typer.Option("--superlink", help="host:port of the SuperLink")],
    debug: Debug = False,
) -> None:
    """Admit the clients' keys that lie with the server.

    Example: fedopt deploy register deployment/server --superlink 127.0.0.1:9093
    """
    guarded(lambda: _actions().register(server, superlink), debug)


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


def _actions() -> ModuleType:
    """Return what the commands do, imported when one is used."""
    from fedopt.commands import deploy_actions

    return deploy_actions
