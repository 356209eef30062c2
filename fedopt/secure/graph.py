"""Who masks with whom: the complete graph, or a ring of k neighbours in a public random order.

The ring (a Harary graph) joins each client to the k/2 before and the k/2 behind it. Its order is a
hash of (seed, round, client), so that everybody computes the same graph and nobody chooses places.

Source: Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
section 3.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Mapping, Sequence

from fedopt.errors import ConfigError

Graph = Mapping[int, tuple[int, ...]]
"""Client -> its neighbours, in ascending order."""


def public_order(clients: Sequence[int], seed: int, round: int) -> list[int]:
    """Return the clients in the public random order of a round.

    Args:
        clients: distinct ids in 0..2**64-1.
        seed: any integer in -2**63..2**63-1.
        round: from 0.
    """

    def key(client: int) -> bytes:
        payload = struct.pack("<qQQ", seed, round, client)
        return hashlib.blake2b(payload, digest_size=16, person=b"fedopt ring").digest()

    return sorted(clients, key=key)


def graph_of(clients: Sequence[int], seed: int, round: int, neighbours: int | None) -> Graph:
    """Return each client's neighbours.

    Args:
        clients: distinct ids.
        seed: as in `public_order`.
        round: as in `public_order`.
        neighbours: an even number below `len(clients) - 1`; None or more joins all with all.
    """
    count = len(clients)
    if neighbours is None or neighbours >= count - 1:
        everybody = sorted(clients)
        return {
            client: (*everybody[:place], *everybody[place + 1 :])
            for place, client in enumerate(everybody)
        }
    ring = public_order(clients, seed, round)
    half = neighbours // 2
    return {
        client: tuple(
            sorted(ring[(place + step) % count] for step in range(-half, half + 1) if step)
        )
        for place, client in enumerate(ring)
    }


def pruned(graph: Graph, alive: Collection[int], holders: int) -> set[int]:
    """Return the clients that keep `holders` holders of their shares, themselves among them.

    A client with fewer is left out, which may leave others with fewer, and so on.
    """
    left = set(alive)
    waiting = list(left)
    while waiting:
        client = waiting.pop()
        if client in left and sum(n in left for n in graph[client]) + 1 < holders:
            left.discard(client)
            waiting.extend(n for n in graph[client] if n in left)
    return left


def is_connected(graph: Graph, alive: Collection[int]) -> bool:
    """Return whether the neighbours among `alive` reach each other; else sums of parts leak."""
    left = set(alive)
    if not left:
        return False
    waiting = [left.pop()]
    while waiting:
        found = left.intersection(graph[waiting.pop()])
        left -= found
        waiting.extend(found)
    return not left


def suggest(
    clients: int,
    *,
    dropped: float,
    corrupt: float = 0.0,
    security_bits: int = 40,
    correctness_bits: int = 20,
) -> tuple[int | None, int]:
    """Return (neighbours, threshold) of the sparsest graph that is safe enough.

    With k neighbours and threshold t, over the random order of the clients:

    - an honest client has t or more corrupt neighbours with a probability of at most
      n P[Hypergeometric(n - 1, corrupt n, k) >= t]; these could unmask it with the server;
    - the honest clients that are left fall apart with at most n (corrupt + dropped)^(k/2), since
      that takes k/2 missing ones in a row; these two are to stay below 2^-security_bits together;
    - a client has fewer than t neighbours left with at most n P[Hypergeometric(n - 1, n - 1 -
      dropped n, k) < t], to stay below 2^-correctness_bits: the round would fail.

    Of the thresholds allowed with the least k, the highest is returned.

    Args:
        clients: n, at least 2.
        dropped: share of the clients that may drop out, in [0, 1).
        corrupt: share of the clients that may collude with the server, in [0, 1).
        security_bits: as above.
        correctness_bits: as above.

    Raises:
        ConfigError: not even the complete graph will do.

    Source: Bell et al. 2020, section 3 (definition of a good graph), with exact tails.
    """
    if clients < 2:
        raise ConfigError(f"got {clients}; at least 2 are needed.", key="clients")
    for key, share in (("dropped", dropped), ("corrupt", corrupt)):
        if not 0 <= share < 1:
            raise ConfigError(f"got {share}; allowed is 0 up to, not including, 1.", key=key)
    gone, bad = math.ceil(dropped * clients), math.ceil(corrupt * clients)
    others = clients - 1
    for k in range(2, others, 2):
        apart = clients * _in_a_row(clients, min(clients, gone + bad), k // 2)
        corrupt_tail = _tail(others, min(bad, others), k)
        left_tail = _tail(others, others - min(gone, others), k)
        for t in range(k, 1, -1):
            safe = clients * corrupt_tail[t] + apart <= 2.0**-security_bits
            if safe and clients * (1 - left_tail[t]) <= 2.0**-correctness_bits:
                return k, t
    t = clients - max(gone, 1)  # a client that drops out is not among the holders of its key
    if t <= bad or t < 2:
        raise ConfigError(
            f"{clients} clients of which {gone} may drop out and {bad} may be corrupt: too few are "
            "left, even if all mask with all."
        )
    return None, t


def _in_a_row(population: int, marked: int, length: int) -> float:
    """Return the probability that given places, as many as `length`, are all marked ones."""
    return math.prod(max(0, marked - i) / (population - i) for i in range(length))


def _tail(population: int, marked: int, draws: int) -> list[float]:
    """Return P[X >= x], x = 0..draws, X the marked ones among `draws` without replacement."""
    ways = math.comb(population, draws)
    total = 0
    tail = [0.0] * (draws + 1)
    for x in range(draws, -1, -1):
        if draws - x <= population - marked:
            total += math.comb(marked, x) * math.comb(population - marked, draws - x)
        tail[x] = total / ways
    return tail
