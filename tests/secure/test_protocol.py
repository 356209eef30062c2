"""The protocol: exact sums whoever drops out when, clear errors, and no answer that unmasks one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.errors import ConfigError, DataError, SecureAggregationError, ThresholdError
from fedopt.secure import (
    Agreement,
    ClientSession,
    FixedPoint,
    Inbox,
    KeyRing,
    Layout,
    MaskedVector,
    Part,
    PublicKeys,
    SealedShares,
    ServerSession,
    Survivors,
    UnmaskShares,
)
from fedopt.secure.graph import is_connected, pruned
from fedopt.secure.keys import pair_key, public_key, self_key
from fedopt.secure.masks import Mask, apply

from .rounds import Federation, agreement, small_layout, values_of


@st.composite
def federations(draw: st.DrawFn) -> Federation:
    ids = draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12, unique=True))
    neighbours = draw(st.sampled_from([None, 2, 4, 6, 20]))
    holders = min(len(ids), (neighbours or 100) + 1)
    limit = draw(st.sampled_from([0.5, 100.0, 1e9]))
    layout = Layout.finest(
        {"delta": limit, "weight": 1e6},
        {"delta": draw(st.integers(1, 20)), "weight": None},
        len(ids),
    )
    made = Agreement(
        session=draw(st.text(min_size=1, max_size=5)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        round=draw(st.integers(0, 2**64 - 1)),
        clients=tuple(ids),
        layout=layout,
        neighbours=neighbours,
        threshold=draw(st.integers(2, holders)),
    )
    seed = draw(st.integers(0, 1000))
    return Federation(made, {c: values_of(layout, c % 1000, seed) for c in ids})


def can_be_unmasked(made: Agreement, summing: set[int], left: set[int], said: set[int]) -> bool:
    """Say from the definition whether the sum of `left` can be had, if `said` answer at the end."""
    for client in summing:
        near = {client, *made.graph[client]} & left
        if (client in left or near) and len(near & said) < made.shares_needed:
            return False
    return len(left) >= made.shares_needed and is_connected(made.graph, left)


@given(federations(), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=70)
def test_the_sum_is_exact_whoever_drops_out_or_refused(
    federation: Federation, rng: random.Random, rate: float
) -> None:
    made = federation.agreement
    dropped = [{c for c in made.clients if rng.random() < rate} for _ in range(4)]
    everybody, needed = set(made.clients), made.shares_needed
    keyed = pruned(made.graph, everybody - dropped[0], needed)
    summing = pruned(made.graph, keyed - dropped[1], needed)
    left = summing - dropped[2]
    if not can_be_unmasked(made, summing, left, left - dropped[3]):
        with pytest.raises(ThresholdError, match="needed"):
            federation.all(*dropped)
        return
    result = federation.all(*dropped)
    assert result.survivors == tuple(sorted(left))
    expected = federation.plain_sum(left)
    assert np.array_equal(result.integers, expected)
    decoded = made.layout.decode(expected.view(np.uint64))
    assert np.array_equal(result.values["delta"], decoded["delta"])
    # Weights are whole numbers, so their sum is exact.
    assert result.values["weight"] == sum(federation.values[c]["weight"] for c in left)
    plain = np.sum([federation.values[c]["delta"] for c in left], axis=0)
    # The bound of the quantisation, and the rounding of float64 sums of up to 12 numbers.
    allowed = result.quantisation_error["delta"] + 12 * 2.0**-52 * 12 * abs(plain).max()
    limit = made.layout.parts[0].fixed_point.limit
    assert np.all(np.abs(result.values["delta"] - plain) <= allowed + 2.0**-49 * limit)


@pytest.mark.parametrize("neighbours", [None, 6])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_third_may_drop_out_at_each_stage(neighbours: int | None, stage: int) -> None:
    made = agreement(12, neighbours=neighbours, threshold=3 if neighbours else 8)
    federation = Federation(made)
    dropped: list[Any] = [(), (), (), ()]
    dropped[stage] = (1, 4, 7, 10)
    result = federation.all(*dropped)
    left = set(range(12)) - (set(dropped[stage]) if stage < 3 else set())
    assert set(result.survivors) == left
    assert np.array_equal(result.integers, federation.plain_sum(left))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_below_the_threshold_nothing_comes_out(stage: int) -> None:
    dropped: list[Any] = [(), (), (), ()]
    dropped[stage] = (0, 1, 2)
    with pytest.raises(ThresholdError, match=r"round 1.*[24] .* are needed|4 are needed"):
        Federation(agreement(6, threshold=4)).all(*dropped)


def test_survivors_that_fall_apart_are_not_unmasked() -> None:
    made = agreement(12, neighbours=2, threshold=2)
    ring = [0]
    while len(ring) < 12:
        ring.append(next(n for n in made.graph[ring[-1]] if n not in ring))
    federation = Federation(made)
    inboxes = federation.shares(federation.keys())
    with pytest.raises(ThresholdError, match="connected"):
        federation.vectors(inboxes, dropped=(ring[3], ring[9]))


def test_late_answers_may_still_complete_a_stage() -> None:
    federation = Federation(agreement(5, threshold=4))
    questions = federation.vectors(federation.shares(federation.keys()))
    with pytest.raises(ThresholdError):
        federation.unmask(dict(list(questions.items())[:3]))
    assert federation.server.waiting_for == (3, 4)
    result = federation.unmask(dict(list(questions.items())[3:]))
    assert np.array_equal(result.integers, federation.plain_sum(range(5)))
    assert federation.server.stage == "nothing more"


# What a single masked vector tells.


def test_a_masked_vector_looks_uniform_whatever_it_hides() -> None:
    """Bytes and lowest bits of a vector of zeros and of one of equal large numbers.

    The masks come from the system's randomness, so the seed cannot be fixed; chi-square with 255
    degrees of freedom is above 406 with a probability of 3e-9, four byte positions and two vectors
    included below 3e-8.
    """
    length = 50_000
    made = agreement(4, layout=Layout((Part("delta", length, FixedPoint(1e6, 30)),)))
    hidden = {c: {"delta": np.full(length, 0.0 if c == 0 else 1e6)} for c in range(4)}
    federation = Federation(made, hidden)
    federation.vectors(federation.shares(federation.keys()))
    for client in (0, 1):
        columns = federation.masked[client].words.view(np.uint8).reshape(length, 8)
        for column in (0, 3, 6, 7):
            counts = np.bincount(columns[:, column], minlength=256)
            assert np.sum((counts - length / 256) ** 2) / (length / 256) < 406
    # Masks of two clients share one stream, but their vectors must not look related.
    same = federation.masked[0].words == federation.masked[1].words
    assert not same.any()


def test_masks_of_a_fixed_seed_are_uniform_and_independent() -> None:
    """Chi-square of bytes, and correlations of neighbouring words, of masks with fixed keys."""
    length = 65_536
    words = np.zeros(length, dtype=np.uint64)
    apply(words, [Mask(self_key(bytes(range(32)), bytes(32)), 1)])
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert np.sum((counts - 8 * length / 256) ** 2) / (8 * length / 256) < 330  # p < 0.001
    centred = words.astype(np.float64) / 2.0**64 - 0.5
    # The standard deviation of a correlation of L independent numbers is L^-1/2, here 0.004.
    assert abs(np.corrcoef(centred[:-1], centred[1:])[0, 1]) < 0.016


def test_two_rounds_of_the_same_vector_share_no_word() -> None:
    masked = []
    for _ in range(2):  # the same agreement twice: keys are new all the same
        federation = Federation(agreement(4))
        federation.vectors(federation.shares(federation.keys()))
        masked.append(federation.masked[0].words)
    assert not np.any(masked[0] == masked[1])


def test_pair_keys_agree_and_differ_by_round_use_and_pair() -> None:
    a, b, c = (bytes([i]) * 32 for i in (1, 2, 3))
    one, two = bytes(32), b"\1" * 32
    assert pair_key(a, public_key(b), one) == pair_key(b, public_key(a), one)
    found = {
        pair_key(a, public_key(b), one),
        pair_key(a, public_key(b), two),
        pair_key(a, public_key(c), one),
        self_key(a, one),
        self_key(a, two),
        self_key(b, one),
    }
    assert len(found) == 6


# What clients refuse.


def answered(
    made: Agreement, dropped: tuple[int, ...] = ()
) -> tuple[Federation, dict[int, Survivors]]:
    federation = Federation(made)
    return federation, federation.vectors(federation.shares(federation.keys()), dropped)


def test_each_stage_happens_once_and_in_order() -> None:
    made = agreement(4)
    federation = Federation(made)
    rings = federation.keys()
    session = federation.session(0)
    with pytest.raises(SecureAggregationError, match='cannot do "mask" now: next is "share"'):
        session.mask(Inbox(made.tag, {}), federation.values[0])
    with pytest.raises(SecureAggregationError, match='"unmask"'):
        session.unmask(Survivors(made.tag, (0, 1, 2, 3)))
    inboxes = federation.shares(rings)
    session = federation.session(0)
    with pytest.raises(SecureAggregationError, match='"share" now: next is "mask"'):
        session.share(rings[0])
    session.mask(inboxes[0], federation.values[0])
    for inbox in (inboxes[0], Inbox(made.tag, {})):
        with pytest.raises(SecureAggregationError, match='"mask" now: next is "unmask"'):
            session.mask(inbox, federation.values[0])


@given(st.integers(4, 9), st.sampled_from([None, 4]), st.data())
@settings(max_examples=40)
def test_no_answers_together_unmask_a_client(
    clients: int, neighbours: int | None, data: st.DataObject
) -> None:
    """Whatever is asked again, nothing new is answered; none has both secrets of a client."""
    made = agreement(clients, neighbours=neighbours, threshold=3)
    federation, questions = answered(made, (0,) if clients > 4 else ())
    client = data.draw(st.sampled_from(sorted(questions)))
    session = federation.session(client)
    first = session.unmask(questions[client])
    assert not set(first.seeds) & set(first.keys)
    assert set(first.seeds) == set(questions[client].clients)
    again = ClientSession.from_bytes(session.to_bytes()).unmask(questions[client])
    assert again == first
    others = data.draw(st.sets(st.sampled_from(made.clients)))
    if others != set(first.seeds):
        with pytest.raises(SecureAggregationError, match="other survivors"):
            session.unmask(Survivors(made.tag, tuple(sorted(others))))
    # What was not given is no longer there to be given.
    kept = session.to_bytes()
    held = federation.session(client)._held
    for peer, shares in held.items():
        of_seed, of_key = shares[:33], shares[33:]
        withheld = of_key if peer in first.seeds else of_seed
        assert withheld not in kept


@pytest.mark.parametrize(
    ("clients", "match"),
    [
        ((1, 2, 3, 4), "not among the survivors"),
        ((0, 1, 2, 9), "asked about 9"),
        ((0, 1, 1, 2), "twice"),
        ((), "not among the survivors"),
    ],
)
def test_inconsistent_survivors_are_refused(clients: tuple[int, ...], match: str) -> None:
    federation, _ = answered(agreement(5, threshold=3))
    session = federation.session(0)
    with pytest.raises(SecureAggregationError, match=match):
        session.unmask(Survivors(federation.agreement.tag, clients))
    assert session.next_stage == "unmask"


def test_a_client_refuses_to_unmask_for_too_few() -> None:
    federation, questions = answered(agreement(5, threshold=4))
    session = federation.session(0)
    with pytest.raises(ThresholdError, match="client 0, round 1: 3 of its 5 holders"):
        session.unmask(Survivors(federation.agreement.tag, (0, 1, 2)))
    session.unmask(questions[0])


def test_clients_refuse_too_few_keys_and_shares() -> None:
    federation = Federation(agreement(5, threshold=4))
    rings = federation.keys()
    few = KeyRing(rings[0].tag, dict(list(rings[0].keys.items())[:2]))
    with pytest.raises(ThresholdError, match="3 of its 5 holders sent their keys"):
        federation.session(0).share(few)
    inboxes = federation.shares(rings)
    short = Inbox(inboxes[0].tag, dict(list(inboxes[0].sealed.items())[:2]))
    with pytest.raises(ThresholdError, match="3 of its 5 holders sent shares"):
        federation.session(0).mask(short, federation.values[0])


def test_keys_of_strangers_doubled_or_worthless_are_refused() -> None:
    made = agreement(8, neighbours=4, threshold=3)
    federation = Federation(made)
    ring = federation.keys()[0]
    stranger = next(c for c in range(1, 8) if c not in made.graph[0])
    some, other = list(ring.keys)[:2]
    session = federation.session(0)
    own = tuple(public_key(session._own[i]) for i in (0, 1))
    cases: list[tuple[dict[int, tuple[bytes, bytes]], str]] = [
        ({stranger: ring.keys[some]}, "not its neighbours"),
        ({some: ring.keys[other]}, "same public key twice"),
        ({some: (own[0], ring.keys[some][1])}, "same public key twice"),
        ({some: (bytes(32), ring.keys[some][1])}, "not a key of X25519"),
    ]
    for change, match in cases:
        with pytest.raises(SecureAggregationError, match=match):
            session.share(KeyRing(ring.tag, {**ring.keys, **change}))
    session.share(ring)


def test_a_worthless_masking_key_is_refused_before_anything_leaves() -> None:
    federation = Federation(agreement(3, threshold=2))
    rings = federation.keys()
    (one, (encryption, _)), *rest = rings[0].keys.items()
    rings[0] = KeyRing(rings[0].tag, {one: (encryption, bytes(32)), **dict(rest)})
    inboxes = federation.shares(rings)
    with pytest.raises(SecureAggregationError, match="not a key of X25519"):
        federation.session(0).mask(inboxes[0], federation.values[0])


def test_foreign_altered_and_misdirected_shares_do_not_open() -> None:
    made = agreement(5, threshold=3)
    federation, old = Federation(made), Federation(made)  # the same agreement: only keys differ
    inboxes = federation.shares(federation.keys())
    replayed = old.shares(old.keys())
    good = inboxes[0].sealed
    flipped = bytearray(good[1])
    flipped[-1] ^= 1
    cases = [
        {1: good[2]},  # of another sender
        {1: inboxes[2].sealed[1]},  # for another receiver
        {1: inboxes[1].sealed[0]},  # its own, sent back
        {1: replayed[0].sealed[1]},  # of another execution
        {1: bytes(flipped)},
        {1: bytes(len(good[1]))},
        {1: good[1][:20]},
        {1: b""},
    ]
    session = federation.session(0)
    for change in cases:
        with pytest.raises(SecureAggregationError, match="client 0 cannot open"):
            session.mask(Inbox(made.tag, {**good, **change}), federation.values[0])
    with pytest.raises(SecureAggregationError, match="got shares of 9"):
        session.mask(Inbox(made.tag, {**good, 9: good[1]}), federation.values[0])
    session.mask(inboxes[0], federation.values[0])


@pytest.mark.parametrize(
    "change",
    [
        {"session": "other"},
        {"seed": 1},
        {"round": 2},
        {"threshold": 3},
        {"neighbours": 2},
        {"layout": small_layout(6)},
        {"layout": small_layout(bits=19)},
        {"layout": small_layout(limit=99.0)},
        {"clients": (0, 1, 2, 3, 5)},
    ],
)
def test_messages_of_another_agreement_are_refused(change: dict[str, Any]) -> None:
    made = agreement(5, threshold=2)
    other = replace(made, **change)
    assert other.digest != made.digest
    federation = Federation(made)
    keys = ClientSession.start(other, 0)[1]
    with pytest.raises(SecureAggregationError, match="another round or run"):
        federation.server.add_keys(keys)
    rings = federation.keys()
    with pytest.raises(SecureAggregationError, match="another round or run"):
        federation.session(0).share(KeyRing(other.tag, rings[0].keys))
    inboxes = federation.shares(rings)
    with pytest.raises(SecureAggregationError, match="another round or run"):
        federation.session(0).mask(Inbox(other.tag, inboxes[0].sealed), federation.values[0])
    questions = federation.vectors(inboxes)
    for _ in range(2):  # before and after the answer
        with pytest.raises(SecureAggregationError, match="another round or run"):
            federation.session(0).unmask(Survivors(other.tag, questions[0].clients))
        session = federation.session(0)
        session.unmask(questions[0])
        federation.sessions[0] = session.to_bytes()


def test_values_that_do_not_fit_leave_the_session_usable() -> None:
    federation = Federation(agreement(4))
    inboxes = federation.shares(federation.keys())
    session = federation.session(0)
    for bad in (101.0, np.nan, -np.inf):
        with pytest.raises(DataError, match=r'"delta"\[2\]'):
            session.mask(inboxes[0], {"delta": [0, 0, bad, 0, 0], "weight": 1})
    clipped = session.mask(inboxes[0], {"delta": [0, 0, 101, 0, 0], "weight": 1}, clip=True)
    assert clipped.words.shape == (6,)


# What the server refuses.


def test_the_server_takes_each_message_once_from_those_expected() -> None:
    made = agreement(5, threshold=3)
    federation = Federation(made)
    server = federation.server
    _, keys = ClientSession.start(made, 0)
    server.add_keys(keys)
    with pytest.raises(SecureAggregationError, match="client 0 sent its keys twice"):
        server.add_keys(keys)
    with pytest.raises(SecureAggregationError, match="client 9 is not among"):
        server.add_keys(replace(keys, client=9))
    with pytest.raises(SecureAggregationError, match="public key twice"):
        server.add_keys(replace(keys, client=1))
    with pytest.raises(SecureAggregationError, match="public key twice"):
        server.add_keys(PublicKeys(made.tag, 1, b"\5" * 32, b"\5" * 32))
    with pytest.raises(SecureAggregationError, match="cannot be taken now: the stage is keys"):
        server.close_masked()
    assert server.waiting_for == (1, 2, 3, 4)


def test_the_server_refuses_what_clients_should_not_send() -> None:
    made = agreement(5, threshold=3)
    federation = Federation(made)
    server = federation.server
    rings = federation.keys(dropped=(4,))
    session = federation.session(0)
    message = session.share(rings[0])
    federation.sessions[0] = session.to_bytes()
    missing = dict(list(message.sealed.items())[1:])
    for sealed in (missing, {**message.sealed, 4: message.sealed[1]}):
        with pytest.raises(SecureAggregationError, match="for just its neighbours"):
            server.add_shares(replace(message, sealed=sealed))
    server.add_shares(message)
    del rings[0]
    inboxes = federation.shares(rings)
    session = federation.session(0)
    vector = session.mask(inboxes[0], federation.values[0])
    federation.sessions[0] = session.to_bytes()
    for words in (vector.words[:-1], vector.words.view(np.int64), vector.words[None]):
        with pytest.raises(SecureAggregationError, match="expected uint64"):
            server.add_masked(replace(vector, words=words))
    server.add_masked(vector)
    with pytest.raises(SecureAggregationError, match="twice"):
        server.add_masked(vector)
    with pytest.raises(SecureAggregationError, match="client 4 is not among"):
        server.add_masked(replace(vector, client=4))
    del inboxes[0]
    questions = federation.vectors(inboxes, dropped=(3,))
    with pytest.raises(SecureAggregationError, match="masked vectors cannot be taken now"):
        server.add_masked(replace(vector, client=3))  # too late: its key may be known by now
    answer = federation.session(0).unmask(questions[0])
    wrong = replace(answer, seeds={**answer.seeds, 3: answer.keys[3]}, keys={})
    with pytest.raises(SecureAggregationError, match="did not send the shares"):
        server.add_unmask(wrong)
    result = federation.unmask(questions)
    assert np.array_equal(result.integers, federation.plain_sum((0, 1, 2)))


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_wrong_share_is_noticed_and_its_owner_named(kind: str) -> None:
    federation, questions = answered(agreement(5, threshold=4), (2,))
    server = federation.server
    for client, question in questions.items():
        answer = federation.session(client).unmask(question)
        if client == 1:
            shares = dict(getattr(answer, kind))
            owner = min(shares)
            shares[owner] = (int.from_bytes(shares[owner], "little") ^ 1).to_bytes(33, "little")
            answer = replace(answer, **{kind: shares})
        server.add_unmask(answer)
    named = 0 if kind == "seeds" else 2
    with pytest.raises(SecureAggregationError, match=f"client {named}, round 1: the shares"):
        server.close_unmask()


# Bytes.


def messages() -> list[Any]:
    """One of each kind, of a real round."""
    made = agreement(4, threshold=3)
    federation = Federation(made)
    session, keys = ClientSession.start(made, 0)
    found: list[Any] = [made, session, keys]
    rings = federation.keys()
    session = federation.session(0)
    found += [rings[0], session.share(rings[0]), session]
    inboxes = federation.shares(rings)
    questions = federation.vectors(inboxes, (3,))
    session = federation.session(0)
    found += [inboxes[0], federation.masked[0], questions[0], session.unmask(questions[0]), session]
    return found


KINDS = (
    Agreement,
    ClientSession,
    PublicKeys,
    KeyRing,
    SealedShares,
    Inbox,
    MaskedVector,
    Survivors,
    UnmaskShares,
)


def test_bytes_come_back_and_are_of_one_kind() -> None:
    found = messages()
    assert {type(message) for message in found} == set(KINDS)
    for message in found:
        data = message.to_bytes()
        assert type(message).from_bytes(data).to_bytes() == data
        for kind in KINDS:
            if kind is not type(message):
                with pytest.raises(SecureAggregationError, match=r"not .* of this version"):
                    kind.from_bytes(data)


@pytest.mark.parametrize("message", messages(), ids=lambda m: type(m).__name__)
def test_damaged_bytes_are_refused_or_read_as_they_are(message: Any) -> None:
    """Cut short, lengthened, changed at random: an error of ours, or the same bytes again."""
    kind, data = type(message), message.to_bytes()
    rng = random.Random(0)
    outcomes: Counter[bool] = Counter()
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.5:
            changed = changed[: rng.randrange(len(changed))]
        elif rng.random() < 0.2:
            changed += bytes(rng.randrange(1, 9))
        try:
            again = kind.from_bytes(bytes(changed)).to_bytes()
        except (SecureAggregationError, ConfigError):
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert kind is ClientSession or again == bytes(changed)
    assert outcomes[False] > 50


def test_messages_keep_the_secrets_that_sessions_hold() -> None:
    federation = Federation(agreement(4))
    rings = federation.keys()
    private = federation.session(1)._own
    session = federation.session(1)
    sealed = session.share(rings[1])
    seed = session._own[2]
    for data in (sealed.to_bytes(), rings[0].to_bytes()):
        assert not any(secret in data for secret in (private[0], private[1], seed))
    assert all(secret in session.to_bytes() for secret in (private[0], private[1], seed))
    federation.sessions[1] = session.to_bytes()
    federation.server.add_shares(sealed)
    del rings[1]
    federation.vectors(federation.shares(rings))
    # Its own secrets are of no more use once the vector is masked, and are gone.
    kept = federation.sessions[1]
    assert not any(secret in kept for secret in (private[0], private[1], seed))


# Agreements.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 1}, r"secure.threshold: got 1; allowed is 2 to 5"),
        ({"threshold": 6}, r"secure.threshold: got 6; allowed is 2 to 5"),
        ({"neighbours": 2, "threshold": 4}, r"allowed is 2 to 3"),
        ({"neighbours": 3}, r"secure.neighbours: got 3; an even number"),
        ({"neighbours": 0}, r"secure.neighbours: got 0"),
        ({"session": ""}, r"secure.session"),
        ({"seed": 2**63}, r"secure.seed"),
        ({"round": -1}, r"secure.seed"),
        ({"layout": small_layout(bits=61, limit=1.0)}, r"at most 60"),
    ],
)
def test_agreements_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        agreement(5, **options)


@pytest.mark.parametrize("clients", [(), (1,), (1, 1), (1, 1, 2), (-1, 2), (1, 2**64)])
def test_clients_are_distinct_and_at_least_two(clients: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"secure.clients"):
        Agreement("run", 0, 1, clients, small_layout())


def test_the_default_threshold_is_more_than_two_thirds_of_the_holders() -> None:
    for clients in range(2, 40):
        for neighbours in (None, 4):
            made = agreement(clients, neighbours=neighbours)
            assert made.threshold == made.shares_needed
            assert 2 * made.holders / 3 < made.shares_needed <= made.holders
            assert Agreement.from_bytes(made.to_bytes()) == made


def test_order_of_clients_does_not_matter_and_strangers_cannot_start() -> None:
    made = agreement(4)
    assert replace(made, clients=(3, 1, 0, 2)).digest == made.digest
    with pytest.raises(SecureAggregationError, match="client 4 does not take part"):
        ClientSession.start(made, 4)


def test_a_weighted_mean_from_two_parts() -> None:
    layout = Layout.finest({"delta": 1e4, "weight": 1e3}, {"delta": 3, "weight": None}, 4)
    deltas = {c: np.array([c, -1.0, 0.5]) for c in range(4)}
    weights = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    values = {c: {"delta": weights[c] * deltas[c], "weight": weights[c]} for c in range(4)}
    server_sum = Federation(agreement(4, layout=layout, threshold=3), values).all((), (), (3,))
    mean = server_sum.values["delta"] / server_sum.values["weight"]
    assert np.array_equal(mean, [(20 + 60) / 60, -1.0, 0.5])  # all exact in binary but the division


def test_the_server_needs_no_clients_secrets_to_begin() -> None:
    server = ServerSession(agreement(3))
    assert server.stage == "keys"
    assert server.waiting_for == (0, 1, 2)
