"""Secure aggregation: the server learns the sum of the clients' vectors and no single one.

The protocol of Bonawitz et al. 2017 for a server that follows it (semi-honest), with the sparse
graph of Bell et al. 2020 (SecAgg+) as an option. This package has no transport: it makes and takes
messages, each a small dataclass with `to_bytes` and `from_bytes`. It imports neither torch nor
Flower.

```python
layout = Layout.finest({"delta": 100.0, "weight": 1e6}, {"delta": 4810, "weight": None}, clients=8)
agreement = Agreement("run-1", seed=0, round=1, clients=tuple(range(8)), layout=layout, threshold=5)
server = ServerSession(agreement)
```

| stage | server to client | client | client to server | server |
| --- | --- | --- | --- | --- |
| 0 | `agreement.to_bytes()` | `ClientSession.start` | `PublicKeys` | `add_keys`, `close_keys` |
| 1 | `KeyRing` | `session.share` | `SealedShares` | `add_shares`, `close_shares` |
| 2 | `Inbox` | `session.mask` | `MaskedVector` | `add_masked`, `close_masked` |
| 3 | `Survivors` | `session.unmask` | `UnmaskShares` | `add_unmask`, `close_unmask` |

`close_...` returns client -> message for the clients that go on; the last one returns a
`SecureSum`. What a weighted mean needs is two parts of the layout: clients give `weight * delta`
and `weight`, and the server divides the sums.

Between the stages a client keeps `session.to_bytes()`, which is secret, and saves it before its
reply leaves. Every stage happens once: a client whose reply was lost has dropped out of the round
(`unmask` alone may be repeated, for the same survivors). A client that cannot answer simply does
not; the server closes a stage when it has waited long enough. `SecureAggregationError` from
`add_...` concerns that one message, which then counts as not sent; from `close_...`, as
`ThresholdError`, it ends the round, of which nothing is learned. `suggest` gives neighbours and
threshold for a number of clients.

Sources: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning"; Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead".
"""

from __future__ import annotations

from fedopt.errors import SecureAggregationError, ThresholdError
from fedopt.secure.agreement import Agreement
from fedopt.secure.client import ClientSession
from fedopt.secure.fixed_point import FixedPoint, Layout, Part
from fedopt.secure.graph import suggest
from fedopt.secure.messages import (
    Inbox,
    KeyRing,
    MaskedVector,
    PublicKeys,
    SealedShares,
    Survivors,
    UnmaskShares,
)
from fedopt.secure.server import SecureSum, ServerSession

__all__ = [
    "Agreement",
    "ClientSession",
    "FixedPoint",
    "Inbox",
    "KeyRing",
    "Layout",
    "MaskedVector",
    "Part",
    "PublicKeys",
    "SealedShares",
    "SecureAggregationError",
    "SecureSum",
    "ServerSession",
    "Survivors",
    "ThresholdError",
    "UnmaskShares",
    "suggest",
]
