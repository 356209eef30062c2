"""A client's side of one secure sum.

Four calls in a fixed order, each once: `start`, `share`, `mask`, `unmask`. Between them the
session is bytes, since a deployed client handles each message in a new process. What a stage no
longer needs is dropped from the session.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt

from fedopt.errors import SecureAggregationError, ThresholdError
from fedopt.secure import keys, masks, shamir, wire
from fedopt.secure.agreement import Agreement
from fedopt.secure.messages import (
    Inbox,
    KeyRing,
    MaskedVector,
    PublicKeys,
    SealedShares,
    Survivors,
    UnmaskShares,
)

_KIND = 8
STAGES = ("share", "mask", "unmask", "unmask again")
"""What may be called next: of a new session, and after each call."""


class ClientSession:
    """What a client knows between the stages of one secure sum; made by `start`.

    A call that raises leaves the session as it was. **Never call a stage of a copy**: two masked
    vectors of one session, or two answers to `unmask` for different survivors, tell what the masks
    hide. Save the new bytes before a reply leaves the client.

    Attributes:
        agreement: of the round.
        client: own id.
    """

    def __init__(self, agreement: Agreement, client: int) -> None:
        agreement.check_member(client)
        self.agreement = agreement
        self.client = client
        self._stage = 0
        self._own: dict[int, bytes] = {}
        """0: private encryption key; 1: private masking key; 2: seed; 3: own share of the seed."""
        self._peers: dict[int, bytes] = {}
        """Neighbour -> its encryption and masking key."""
        self._held: dict[int, bytes] = {}
        """Neighbour -> its share of its seed and of its private masking key, for this client."""
        self._answer: bytes = b""

    @classmethod
    def start(cls, agreement: Agreement, client: int) -> tuple[ClientSession, PublicKeys]:
        """Stage 0: make two key pairs from the system's randomness.

        Args:
            agreement: of the round, as the server sent it.
            client: own id, one of its clients.

        Returns:
            The session, and the message for the server.
        """
        session = cls(agreement, client)
        session._own = {0: keys.new_secret(), 1: keys.new_secret()}
        public = [keys.public_key(session._own[i]) for i in (0, 1)]
        return session, PublicKeys(agreement.tag, client, *public)

    @property
    def next_stage(self) -> str:
        """What may be called next, one of `STAGES`."""
        return STAGES[self._stage]

    def share(self, ring: KeyRing) -> SealedShares:
        """Stage 1: share a new seed and the private masking key among the neighbours.

        Args:
            ring: public keys of the neighbours.

        Raises:
            ThresholdError: there are too few of them.
            SecureAggregationError: keys that are not of neighbours, doubled, or of no use.
        """
        self._enter(0, ring.tag)
        agreement, me = self.agreement, self.client
        strangers = set(ring.keys) - set(agreement.graph[me])
        if strangers:
            raise self._refusal(f"got keys of {_listed(strangers)}, which are not its neighbours")
        self._check_holders(len(ring.keys) + 1, "sent their keys")
        public = [key for pair in ring.keys.values() for key in pair]
        public += [keys.public_key(self._own[i]) for i in (0, 1)]
        if len(set(public)) != len(public):
            raise self._refusal("got the same public key twice")
        seed = keys.new_secret()
        holders = agreement.sort([me, *ring.keys])
        points = [agreement.points[holder] for holder in holders]
        of_seed = shamir.split(seed, agreement.shares_needed, points)
        of_key = shamir.split(self._own[1], agreement.shares_needed, points)
        shares = dict(zip(holders, zip(of_seed, of_key, strict=True), strict=True))
        sealed = {
            peer: keys.seal(
                b"".join(shares[peer]), self._own[0], encryption, agreement.digest, me, peer
            )
            for peer, (encryption, _) in ring.keys.items()
        }
        self._own |= {2: seed, 3: shares[me][0]}
        self._peers = {peer: b"".join(pair) for peer, pair in ring.keys.items()}
        self._stage = 1
        commitment = keys.commitment(seed, agreement.digest)
        return SealedShares(agreement.tag, me, commitment, sealed)

    def mask(
        self, inbox: Inbox, values: Mapping[str, npt.ArrayLike], *, clip: bool = False
    ) -> MaskedVector:
        """Stage 2: quantise the values and put them under masks.

        Args:
            inbox: sealed shares of the neighbours that sum.
            values: as `Layout.encode` takes them.
            clip: as there.

        Raises:
            ThresholdError: too few neighbours sent shares.
            SecureAggregationError: shares of a stranger, or that do not open.
            DataError: the values do not fit.
        """
        self._enter(1, inbox.tag)
        agreement, me = self.agreement, self.client
        strangers = set(inbox.sealed) - set(self._peers)
        if strangers:
            raise self._refusal(f"got shares of {_listed(strangers)}, to which it sent none")
        self._check_holders(len(inbox.sealed) + 1, "sent shares")
        digest = agreement.digest
        held: dict[int, bytes] = {}
        applied = [masks.Mask(keys.self_key(self._own[2], digest), 1)]
        for peer, sealed in inbox.sealed.items():
            encryption, masking = _halves(self._peers[peer])
            held[peer] = keys.unseal(sealed, self._own[0], encryption, digest, peer, me)
            for share in _halves(held[peer]):
                shamir.residue(share)
            pair = keys.pair_key(self._own[1], masking, digest)
            applied.append(masks.Mask(pair, sign_of(me, peer)))
        words = agreement.layout.encode(values, clip=clip)
        masks.apply(words, applied)
        self._held = held
        self._peers = {}
        self._own = {3: self._own[3]}
        self._stage = 2
        return MaskedVector(agreement.tag, me, words)

    def unmask(self, survivors: Survivors) -> UnmaskShares:
        """Stage 3: give shares of the survivors' seeds, and of the other neighbours' masking keys.

        Asked again for the same survivors, it answers the same.

        Raises:
            ThresholdError: fewer than the threshold survive.
            SecureAggregationError: the client itself or a stranger is concerned, or another set of
                survivors was answered before: both together would unmask a client.
        """
        if self._stage == 3:
            self._check_tag(survivors.tag)
            answer = UnmaskShares.from_bytes(self._answer)
            if set(survivors.clients) != set(answer.seeds):
                raise self._refusal("has answered for other survivors in this round")
            return answer
        self._enter(2, survivors.tag)
        left = set(survivors.clients)
        if len(left) != len(survivors.clients):
            raise self._refusal("got a survivor twice")
        if self.client not in left:
            raise self._refusal("has sent its vector, but is not among the survivors")
        strangers = left - {self.client} - set(self._held)
        if strangers:
            raise self._refusal(f"is asked about {_listed(strangers)}, of which it has no shares")
        self._check_holders(len(left), "sent their vectors")
        seeds = {self.client: self._own[3]}
        lost: dict[int, bytes] = {}
        for peer, shares in self._held.items():
            of_seed, of_key = _halves(shares)
            if peer in left:
                seeds[peer] = of_seed
            else:
                lost[peer] = of_key
        answer = UnmaskShares(self.agreement.tag, self.client, seeds, lost)
        self._answer = answer.to_bytes()
        self._held, self._own = {}, {}
        self._stage = 3
        return answer

    def to_bytes(self) -> bytes:
        """Return the session as bytes: **secret**, they must not leave the client."""
        return (
            wire.header(_KIND)
            + wire.text(self.agreement.to_bytes())
            + wire.numbers([self.client, self._stage])
            + wire.table({k: v.ljust(shamir.SHARE_NBYTES, b"\0") for k, v in self._own.items()})
            + wire.table(self._peers)
            + wire.table(self._held)
            + wire.text(self._answer)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientSession:
        """Return the session of `to_bytes`.

        Raises:
            SecureAggregationError: the bytes are none.
        """
        reader = wire.Reader(data, _KIND, "a client's session")
        agreement = Agreement.from_bytes(reader.text())
        place = reader.numbers()
        if len(place) != 2 or place[1] >= len(STAGES):
            raise SecureAggregationError("the bytes of a client's session are damaged.")
        session = cls(agreement, place[0])
        session._stage = place[1]
        own = reader.table(shamir.SHARE_NBYTES)
        session._own = {k: v if k == 3 else v[: keys.KEY_NBYTES] for k, v in own.items()}
        session._peers = reader.table(2 * keys.KEY_NBYTES)
        session._held = reader.table(2 * shamir.SHARE_NBYTES)
        session._answer = reader.text()
        reader.end()
        return session

    def _enter(self, stage: int, tag: bytes) -> None:
        """Refuse a message of another round, or out of turn."""
        self._check_tag(tag)
        if self._stage != stage:
            raise self._refusal(
                f'cannot do "{STAGES[stage]}" now: next is "{self.next_stage}", and each stage '
                "happens once"
            )

    def _check_tag(self, tag: bytes) -> None:
        if tag != self.agreement.tag:
            raise self._refusal("got a message of another round or run")

    def _check_holders(self, count: int, did: str) -> None:
        needed = self.agreement.shares_needed
        if count < needed:
            raise ThresholdError(
                f"client {self.client}, round {self.agreement.round}: {count} of its "
                f"{self.agreement.holders} holders {did}, itself among them; {needed} are needed."
            )

    def _refusal(self, what: str) -> SecureAggregationError:
        return SecureAggregationError(
            f"client {self.client} {what} (round {self.agreement.round})."
        )


def sign_of(client: int, peer: int) -> int:
    """Return the sign with which a client applies the mask it shares with a peer."""
    return 1 if client < peer else -1


def _halves(both: bytes) -> tuple[bytes, bytes]:
    middle = len(both) // 2
    return both[:middle], both[middle:]


def _listed(clients: set[int]) -> str:
    shown = ", ".join(map(str, sorted(clients)[:5]))
    return f"{shown} and {len(clients) - 5} more" if len(clients) > 5 else shown
