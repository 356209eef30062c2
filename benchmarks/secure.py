"""What secure aggregation costs: milliseconds and bytes by stage, over complete and sparse graphs.

`python -m benchmarks.secure` does whole secure sums in one process with one thread, for vectors of
10^4 to 10^7 coordinates. A tenth of the clients drops out after it has sent its shares, the dearest
moment. Every message goes through its bytes, and each sum is compared with the plain sum of the
quantised vectors: `secure` exits with 1 where a bit differs. Times are the process's own (processor
time), so that other processes matter little.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.measuring import Row, machine, show, warn_if_busy, write_csv
from fedopt.errors import ConfigError
from fedopt.secure import (
    Agreement,
    ClientSession,
    Inbox,
    KeyRing,
    Layout,
    MaskedVector,
    PublicKeys,
    SealedShares,
    ServerSession,
    Survivors,
    UnmaskShares,
    suggest,
)
from fedopt.secure.masks import Mask, apply

STAGES = ("keys", "shares", "masked", "unmask")
GRAPHS = ("complete", "sparse")
DROPPED, CORRUPT = 0.1, 0.1
"""What the sparse graph is made for; so many drop out here."""
LIMIT = 100.0


@dataclass
class Costs:
    """Of one secure sum.

    Args:
        client: stage -> seconds of each client.
        server: stage -> seconds.
        up: stage -> bytes of each client's message.
        down: stage -> bytes of each message to a client.
    """

    client: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    server: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    up: dict[str, list[int]] = field(default_factory=lambda: {s: [] for s in STAGES})
    down: dict[str, list[int]] = field(default_factory=lambda: {s: [] for s in STAGES})

    @contextmanager
    def by_client(self, stage: str) -> Iterator[None]:
        """Add what is done inside to a client's times."""
        began = time.process_time()
        yield
        self.client[stage].append(time.process_time() - began)

    @contextmanager
    def by_server(self, stage: str) -> Iterator[None]:
        """Add what is done inside to the server's time."""
        began = time.process_time()
        yield
        self.server[stage] += time.process_time() - began


def secure_sum(agreement: Agreement, vectors: Sequence[np.ndarray]) -> tuple[Costs, bool]:
    """Return what a secure sum cost, and whether it is the plain sum to the bit.

    Args:
        agreement: of clients 0..n-1, whose layout has the one part "delta".
        vectors: client i gives `vectors[i % len(vectors)]`.
    """
    costs, server = Costs(), ServerSession(agreement)
    plan = agreement.to_bytes()
    sessions: dict[int, bytes] = {}
    for client in agreement.clients:
        costs.down["keys"].append(len(plan))
        with costs.by_client("keys"):
            session, keys = ClientSession.start(Agreement.from_bytes(plan), client)
            sessions[client], data = session.to_bytes(), keys.to_bytes()
        costs.up["keys"].append(len(data))
        with costs.by_server("keys"):
            server.add_keys(PublicKeys.from_bytes(data))
    with costs.by_server("keys"):
        rings = {client: ring.to_bytes() for client, ring in server.close_keys().items()}
    for client, ring in rings.items():
        costs.down["shares"].append(len(ring))
        with costs.by_client("shares"):
            session = ClientSession.from_bytes(sessions[client])
            data = session.share(KeyRing.from_bytes(ring)).to_bytes()
            sessions[client] = session.to_bytes()
        costs.up["shares"].append(len(data))
        with costs.by_server("shares"):
            server.add_shares(SealedShares.from_bytes(data))
    with costs.by_server("shares"):
        inboxes = {client: inbox.to_bytes() for client, inbox in server.close_shares().items()}
    plain = np.zeros(agreement.layout.length, dtype=np.uint64)
    every = round(1 / DROPPED)
    for client, inbox in inboxes.items():
        costs.down["masked"].append(len(inbox))
        if client % every == every - 1:
            continue
        values = {"delta": vectors[client % len(vectors)]}
        with costs.by_client("masked"):
            session = ClientSession.from_bytes(sessions[client])
            data = session.mask(Inbox.from_bytes(inbox), values).to_bytes()
            sessions[client] = session.to_bytes()
        costs.up["masked"].append(len(data))
        with costs.by_server("masked"):
            server.add_masked(MaskedVector.from_bytes(data))
        plain += agreement.layout.encode(values)
    with costs.by_server("masked"):
        questions = {client: q.to_bytes() for client, q in server.close_masked().items()}
    for client, question in questions.items():
        costs.down["unmask"].append(len(question))
        with costs.by_client("unmask"):
            session = ClientSession.from_bytes(sessions[client])
            data = session.unmask(Survivors.from_bytes(question)).to_bytes()
            sessions[client] = session.to_bytes()
        costs.up["unmask"].append(len(data))
        with costs.by_server("unmask"):
            server.add_unmask(UnmaskShares.from_bytes(data))
    with costs.by_server("unmask"):
        result = server.close_unmask()
    return costs, bool(np.array_equal(result.integers.view(np.uint64), plain))


def graphs(clients: int) -> list[tuple[str, int | None, int]]:
    """Return what is compared: name, neighbours, threshold."""
    try:
        neighbours, threshold = suggest(clients, dropped=DROPPED, corrupt=CORRUPT)
    except ConfigError:
        neighbours = None
    found = [("complete", None, 2 * clients // 3 + 1)]
    if neighbours is not None:
        found.append(("sparse", neighbours, threshold))
    return found


def rows_of(
    clients: int, length: int, names: Sequence[str], vectors: Sequence[np.ndarray]
) -> Iterator[Row]:
    """Yield a row a stage, for each graph of those named."""
    layout = Layout.finest({"delta": LIMIT}, {"delta": length}, clients)
    for name, neighbours, threshold in graphs(clients):
        if name not in names:
            continue
        agreement = Agreement(
            "benchmark", 0, 1, tuple(range(clients)), layout, neighbours, threshold
        )
        costs, is_exact = secure_sum(agreement, vectors)
        for stage in STAGES:
            yield {
                "clients": clients,
                "graph": name,
                "neighbours": agreement.holders - 1,
                "threshold": threshold,
                "coordinates": length,
                "stage": stage,
                "client, ms": 1000 * statistics.median(costs.client[stage]),
                "server, ms": 1000 * costs.server[stage],
                "bytes up": round(statistics.mean(costs.up[stage])),
                "bytes down": round(statistics.mean(costs.down[stage])),
                "exact": "yes" if is_exact else "no",
            }


def rate_of_masks(length: int) -> float:
    """Return bytes a second of one mask that is added to a long vector, the best of five."""
    words = np.zeros(length, dtype=np.uint64)
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        apply(words, [Mask(bytes(32), 1)])
        best = max(best, 8 * length / (time.process_time() - began))
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--coordinates", type=int, nargs="+", default=[10**i for i in range(4, 8)])
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--quick", action="store_true", help="10 clients and 10^4 coordinates")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.coordinates = [10], [10_000]
    console = Console(width=140)
    facts = machine()
    warn_if_busy(console)
    rate = rate_of_masks(max(options.coordinates))
    facts["one mask"] = f"{rate / 1e6:.0f} MB/s"
    console.print(f"one mask on one core: {facts['one mask']}")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for length, clients in itertools.product(options.coordinates, options.clients):
        vectors = [rng.uniform(-LIMIT, LIMIT, length) for _ in range(3)]
        found = list(rows_of(clients, length, options.graphs, vectors))
        rows += found
        show(console, f"{clients} clients, {length:,} coordinates", found)
    write_csv(options.out / "secure.csv", rows, facts)
    return 0 if all(row["exact"] == "yes" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
