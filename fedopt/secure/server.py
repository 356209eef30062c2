"""The server's side of one secure sum.

Each stage takes the clients' messages one by one (`add_...`) and is closed once, when all have come
or time is up (`close_...`); closing returns the messages for the clients that go on. A message that
`add_...` refuses changes nothing: its client counts as one that did not answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.errors import SecureAggregationError, ThresholdError
from fedopt.secure import keys, masks
from fedopt.secure.agreement import Agreement
from fedopt.secure.client import sign_of
from fedopt.secure.graph import is_connected, pruned
from fedopt.secure.masks import Mask
from fedopt.secure.messages import (
    Inbox,
    KeyRing,
    MaskedVector,
    PublicKeys,
    SealedShares,
    Survivors,
    UnmaskShares,
)
from fedopt.secure.shamir import Reconstruction

STAGES = ("keys", "shares", "masked vectors", "shares to unmask with", "nothing more")
"""What is collected, in this order."""


@dataclass(frozen=True, eq=False)
class SecureSum:
    """What a round gives.

    Args:
        values: name -> sum over the survivors, `[size]` in float64, or a float of a scalar.
        integers: the exact sum of the quantised vectors, `[L]`.
        survivors: clients in the sum, in ascending order.
        quantisation_error: name -> bound of the error of each coordinate from quantisation.
    """

    values: dict[str, Any]
    integers: npt.NDArray[np.int64]
    survivors: tuple[int, ...]
    quantisation_error: dict[str, float]


class ServerSession:
    """Collects the messages of one secure sum; memory is one vector, whatever the clients.

    Args:
        agreement: of the round; its bytes are the first message to each client.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self._stage = 0
        self._expected: set[int] = set(agreement.clients)
        """Whose messages the stage takes."""
        self._keys: dict[int, PublicKeys] = {}
        self._seen: set[bytes] = set()
        self._shares: dict[int, SealedShares] = {}
        self._summing: set[int] = set()
        """Whose shares were passed on, U2 in the paper."""
        self._survivors: set[int] = set()
        """Whose vectors are in the sum, U3."""
        self._answers: dict[int, UnmaskShares] = {}
        self._sum = np.zeros(0, dtype=np.uint64)

    @property
    def stage(self) -> str:
        """What is collected now, one of `STAGES`."""
        return STAGES[self._stage]

    @property
    def waiting_for(self) -> tuple[int, ...]:
        """Clients whose message of this stage has not come."""
        came: Iterable[int] = (
            self._keys,
            self._shares,
            self._survivors,
            self._answers,
            self._expected,
        )[self._stage]
        return tuple(sorted(self._expected - set(came)))

    def add_keys(self, message: PublicKeys) -> None:
        """Take a client's public keys.

        Raises:
            SecureAggregationError: it is not expected, or one of the keys came before.
        """
        self._check(0, message.tag, message.client, self._keys)
        pair = {message.encryption, message.masking}
        if len(pair) < 2 or pair & self._seen:
            raise SecureAggregationError(f"client {message.client} sent a public key twice.")
        self._seen |= pair
        self._keys[message.client] = message

    def close_keys(self) -> dict[int, KeyRing]:
        """Return the neighbours' keys for each client that goes on.

        Raises:
            ThresholdError: no client has enough neighbours left.
        """
        self._leave(0, pruned(self.agreement.graph, self._keys, self.agreement.shares_needed))
        return {
            client: KeyRing(
                self.agreement.tag,
                {
                    peer: (self._keys[peer].encryption, self._keys[peer].masking)
                    for peer in self._neighbours(client)
                },
            )
            for client in sorted(self._expected)
        }

    def add_shares(self, message: SealedShares) -> None:
        """Take a client's sealed shares.

        Raises:
            SecureAggregationError: it is not expected, or they are not for just its neighbours.
        """
        self._check(1, message.tag, message.client, self._shares)
        if set(message.sealed) != set(self._neighbours(message.client)):
            raise SecureAggregationError(
                f"client {message.client} did not send shares for just its neighbours."
            )
        self._shares[message.client] = message

    def close_shares(self) -> dict[int, Inbox]:
        """Return what was sealed for each client that goes on.

        Raises:
            ThresholdError: no client has enough neighbours left.
        """
        self._leave(1, pruned(self.agreement.graph, self._shares, self.agreement.shares_needed))
        self._summing = set(self._expected)
        inboxes = {
            client: Inbox(
                self.agreement.tag,
                {peer: self._shares[peer].sealed[client] for peer in self._neighbours(client)},
            )
            for client in sorted(self._expected)
        }
        self._sum = np.zeros(self.agreement.layout.length, dtype=np.uint64)
        return inboxes

    def add_masked(self, message: MaskedVector) -> None:
        """Add a client's masked vector to the sum.

        Raises:
            SecureAggregationError: it is not expected, came before, or has another length.
        """
        self._check(2, message.tag, message.client, self._survivors)
        words = message.words
        if words.dtype != np.uint64 or words.shape != self._sum.shape:
            raise SecureAggregationError(
                f"client {message.client} sent {words.dtype} of shape {words.shape}; expected "
                f"uint64 of shape {self._sum.shape}."
            )
        self._sum += words
        self._survivors.add(message.client)

    def close_masked(self) -> dict[int, Survivors]:
        """Return the list of survivors for each of them.

        Raises:
            ThresholdError: the masks of a client could not be removed, since too few of its holders
                are left, or the survivors fall apart, so that sums of parts of them would be seen.
        """
        self._enter(2)
        self._check_count(self._survivors)
        graph, needed = self.agreement.graph, self.agreement.shares_needed
        for client in sorted(self._concerned()):
            left = self._holders(client)
            if len(left) < needed:
                raise ThresholdError(
                    f"round {self.agreement.round}: {len(left)} holders of the shares of client "
                    f"{client} are left; {needed} are needed to unmask the sum."
                )
        if not is_connected(graph, self._survivors):
            raise ThresholdError(
                f"round {self.agreement.round}: the {len(self._survivors)} clients that are left "
                "are no longer connected by masks; more neighbours are needed."
            )
        self._leave(2, self._survivors)
        return {
            client: Survivors(
                self.agreement.tag, self.agreement.sort([client, *self._neighbours(client)])
            )
            for client in sorted(self._survivors)
        }

    def add_unmask(self, message: UnmaskShares) -> None:
        """Take a client's shares to unmask with.

        Raises:
            SecureAggregationError: it is not expected, or they are of other clients than was asked.
        """
        self._check(3, message.tag, message.client, self._answers)
        near = {*self.agreement.graph[message.client], message.client} & self._summing
        if set(message.seeds) != near & self._survivors or set(message.keys) != (
            near - self._survivors
        ):
            raise SecureAggregationError(
                f"client {message.client} did not send the shares that it was asked for."
            )
        self._answers[message.client] = message

    def close_unmask(self) -> SecureSum:
        """Remove the masks and return the sum.

        Raises:
            ThresholdError: too few shares of a secret came back.
            SecureAggregationError: shares do not give what their owner had committed to.
        """
        self._enter(3)
        owners = self._concerned()
        unmasking = self._masks_of(owners)
        masks.apply(self._sum, unmasking)
        self._stage = 4
        self._expected = set()
        layout = self.agreement.layout
        return SecureSum(
            layout.decode(self._sum),
            self._sum.view(np.int64),
            self.agreement.sort(list(self._survivors)),
            {p.name: p.fixed_point.error(len(self._survivors)) for p in layout.parts},
        )

    def _masks_of(self, owners: set[int]) -> list[Mask]:
        """Return what has to be applied to the sum, from the shares of the owners' secrets."""
        digest = self.agreement.digest
        reconstruction = Reconstruction(self.agreement.shares_needed)
        unmasking: list[Mask] = []
        for owner in sorted(owners):
            survived = owner in self._survivors
            shares = {
                self.agreement.points[holder]: (
                    self._answers[holder].seeds if survived else self._answers[holder].keys
                )[owner]
                for holder in self._holders(owner) & set(self._answers)
            }
            try:
                secret = reconstruction.secret(shares)
            except SecureAggregationError as error:
                raise type(error)(
                    f"client {owner}, round {self.agreement.round}: {error}"
                ) from None
            if survived:
                known = keys.commitment(secret, digest) == self._shares[owner].commitment
                unmasking.append(Mask(keys.self_key(secret, digest), -1))
            else:
                known = keys.public_key(secret) == self._keys[owner].masking
                unmasking += [
                    Mask(
                        keys.pair_key(secret, self._keys[peer].masking, digest),
                        -sign_of(peer, owner),
                    )
                    for peer in sorted(self._holders(owner))
                ]
            if not known:
                raise SecureAggregationError(
                    f"client {owner}, round {self.agreement.round}: the shares that came back do "
                    "not give its secret; one of them is wrong."
                )
        return unmasking

    def _concerned(self) -> set[int]:
        """Return whose masks are in the sum: survivors, and those that dropped out beside one."""
        return {c for c in self._summing if c in self._survivors or self._holders(c)}

    def _holders(self, client: int) -> set[int]:
        """Return the survivors that hold shares of a client's secrets."""
        return {client, *self.agreement.graph[client]} & self._survivors

    def _neighbours(self, client: int) -> list[int]:
        """Return a client's neighbours among those expected in this stage."""
        return [peer for peer in self.agreement.graph[client] if peer in self._expected]

    def _check(self, stage: int, tag: bytes, client: int, came: Iterable[int]) -> None:
        """Refuse a message of another round, out of turn, of a stranger, or a second one."""
        self._enter(stage)
        if tag != self.agreement.tag:
            raise SecureAggregationError(
                f"client {client} sent a message of another round or run (round "
                f"{self.agreement.round})."
            )
        if client not in self._expected:
            raise SecureAggregationError(
                f"client {client} is not among those whose {STAGES[stage]} are expected (round "
                f"{self.agreement.round})."
            )
        if client in came:
            raise SecureAggregationError(f"client {client} sent its {STAGES[stage]} twice.")

    def _enter(self, stage: int) -> None:
        if self._stage != stage:
            raise SecureAggregationError(
                f"{STAGES[stage]} cannot be taken now: the stage is {self.stage}."
            )

    def _leave(self, stage: int, going_on: set[int]) -> None:
        """Close a stage; the next one expects the clients given."""
        self._enter(stage)
        self._check_count(going_on)
        self._expected = set(going_on)
        self._stage = stage + 1

    def _check_count(self, going_on: set[int]) -> None:
        """Refuse to go on with fewer clients than the threshold."""
        if len(going_on) < self.agreement.shares_needed:
            raise ThresholdError(
                f"round {self.agreement.round}: {len(going_on)} of {len(self.agreement.clients)} "
                f"clients can go on after {self.stage}; {self.agreement.shares_needed} are needed."
            )
