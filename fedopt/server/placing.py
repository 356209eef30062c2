"""Which node a client's message goes to.

In a simulation any node takes any client, so clients are dealt by load. Real clients are where
they are: such a grid has `hosts`, client id -> node id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

from fedopt.client.trainer import Block
from fedopt.errors import RunError


@runtime_checkable
class Hosting(Protocol):
    """A grid whose nodes each have their own clients."""

    @property
    def hosts(self) -> Mapping[int, int]:
        """Client id -> id of the node that has its data; all clients of the run."""

    def refresh(self) -> None:
        """Look who has come or is back."""

    def wait_for_clients(self, clients: int) -> None:
        """Wait until so many clients of the run are connected.

        Raises:
            RunError: they are not, for as long as is waited.
        """


def hosts_of(grid: Grid) -> Mapping[int, int] | None:
    """Return the clients' nodes, or None where any node takes any client."""
    return grid.hosts if isinstance(grid, Hosting) else None


def shares(grid: Grid, clients: Sequence[int]) -> dict[int, list[int]]:
    """Return node -> the clients that it answers for, nodes ascending, none without clients."""
    hosts = hosts_of(grid)
    if hosts is None:
        nodes = sorted(grid.get_node_ids())
        if not nodes:
            raise RunError("no node is connected")
        dealt = {node: list(clients[place :: len(nodes)]) for place, node in enumerate(nodes)}
    else:
        dealt = {}
        for client in clients:
            dealt.setdefault(hosts[client], []).append(client)
    return {node: mine for node, mine in sorted(dealt.items()) if mine}


def placed(blocks: Sequence[Block], hosts: Mapping[int, int]) -> dict[int, list[Block]]:
    """Return node -> its blocks in ascending order; each block is of one client."""
    dealt: dict[int, list[Block]] = {}
    for block in sorted(blocks, key=lambda b: b.id):
        (client,) = block.clients
        dealt.setdefault(hosts[client], []).append(block)
    return dealt
