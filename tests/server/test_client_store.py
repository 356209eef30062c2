"""The store of client state: a state machine against a dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedopt.server.client_store import ClientStateStore

FIELDS = ("a", "b")
SIZE = 2
clients = st.integers(0, 5)
cohorts = st.lists(clients, min_size=1, max_size=6, unique=True)


class Store(RuleBasedStateMachine):
    """Rounds that are accepted, partly accepted or lost; checkpoints; crashes and resuming."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "rows"
        self.model: dict[int, float] = {}
        self.pending: dict[int, float] = {}
        self.saved: dict[int, tuple[dict[int, float], dict[int, int]]] = {}
        self.counter = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        self.store = self.open(None)

    def open(self, checkpoints: dict[int, dict[int, int]] | None) -> ClientStateStore:
        return ClientStateStore(self.path, FIELDS, SIZE, torch.float32, checkpoints)

    def value(self, number: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((1, SIZE), number), "b": torch.full((1, SIZE), -number)}

    @rule(cohort=cohorts, written=st.integers(0, 6))
    def begin(self, cohort: list[int], written: int) -> None:
        """Begin a round; some workers write, then perhaps all is lost."""
        read, write = self.store.begin(cohort)
        assert len(set(write)) == len(cohort)
        for client, row in zip(cohort, read, strict=True):
            got = self.store.file.read([row])
            expected = self.model.get(client, 0.0)
            assert torch.equal(got["a"], torch.full((1, SIZE), expected))
        self.pending = {}
        for client, row in list(zip(cohort, write, strict=True))[:written]:
            self.counter += 1
            self.store.file.write([row], self.value(float(self.counter)))
            self.pending[client] = float(self.counter)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        accepted = data.draw(st.sets(st.sampled_from(sorted(self.pending))))
        self.store.commit(sorted(accepted))
        self.model |= {client: self.pending[client] for client in accepted}
        self.pending = {}

    @rule()
    def checkpoint(self) -> None:
        round = max(self.saved, default=0) + 1
        index = self.store.checkpoint(round)
        assert set(index) == set(self.model)
        self.saved[round] = (dict(self.model), index)

    @precondition(lambda self: len(self.saved) > 1)
    @rule()
    def release(self) -> None:
        oldest = min(self.saved)
        self.store.release(oldest)
        del self.saved[oldest]

    @precondition(lambda self: self.saved)
    @rule(lose_newest=st.booleans())
    def crash_and_resume(self, lose_newest: bool) -> None:
        if lose_newest and len(self.saved) > 1:
            del self.saved[max(self.saved)]
        self.model = dict(self.saved[max(self.saved)][0])
        self.pending = {}
        self.store = self.open({round: index for round, (_, index) in self.saved.items()})

    @invariant()
    def committed_values_survive(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.clients() == sorted(self.model)
        for client in range(6):
            got, expected = self.store.read(client), self.model.get(client, 0.0)
            assert torch.equal(got["a"], torch.full((SIZE,), expected))
            assert torch.equal(got["b"], torch.full((SIZE,), -expected))

    @invariant()
    def rows_of_kept_checkpoints_survive(self) -> None:
        for values, index in self.saved.values():
            for client, row in index.items():
                got = self.store.file.read([row])["a"]
                assert torch.equal(got, torch.full((1, SIZE), values[client]))

    @invariant()
    def the_file_does_not_grow_without_bound(self) -> None:
        if hasattr(self, "store"):
            rows = self.path.stat().st_size / self.store.file.row_nbytes
            # Six clients: their committed rows, a round's pending ones, those of checkpoints.
            assert rows <= 6 * (2 + len(self.saved) + self.lost_checkpoints())

    def lost_checkpoints(self) -> int:
        """Checkpoints whose rows once were held, an upper bound on what was ever needed."""
        return max(self.saved, default=0)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_rows_are_reused(tmp_path: Path) -> None:
    """Without checkpoints two rows a client are enough, however many rounds there are."""
    store = ClientStateStore(tmp_path / "rows", ("a",), 4, torch.float64)
    for number in range(50):
        _, write = store.begin([0, 1, 2])
        store.file.write(write, {"a": torch.full((3, 4), float(number)).double()})
        store.commit([0, 1, 2])
    assert (tmp_path / "rows").stat().st_size <= 6 * store.file.row_nbytes
    assert torch.equal(store.read(1)["a"], torch.full((4,), 49.0).double())


def test_released_rows_are_reused(tmp_path: Path) -> None:
    store = ClientStateStore(tmp_path / "rows", ("a",), 4, torch.float64)
    for number in range(1, 40):
        _, write = store.begin([0, 1])
        store.file.write(write, {"a": torch.full((2, 4), float(number)).double()})
        store.commit([0, 1])
        store.checkpoint(number)
        store.release(number - 1)
    assert (tmp_path / "rows").stat().st_size <= 6 * store.file.row_nbytes


def test_size_follows_the_clients_that_trained(tmp_path: Path) -> None:
    store = ClientStateStore(tmp_path / "rows", ("a",), 4, torch.float64)
    _, write = store.begin([10**12, 3])
    store.file.write(write, {"a": torch.ones(2, 4).double()})
    store.commit([10**12])
    assert store.clients() == [10**12]
    assert (tmp_path / "rows").stat().st_size == 2 * store.file.row_nbytes
