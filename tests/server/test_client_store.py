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
clients = st.integers(0, 3)
cohorts = st.lists(clients, max_size=3, unique=True)


class Store(RuleBasedStateMachine):
    """Rounds that are accepted, partly accepted or lost; checkpoints; crashes and resuming."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "rows"
        self.model: dict[int, float] = {}
        self.saved: dict[int, tuple[dict[int, float], dict[int, int]]] = {}
        self.counter = 0
        self.most_saved = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        self.store = self.open(None)

    def open(self, checkpoints: dict[int, dict[int, int]] | None) -> ClientStateStore:
        return ClientStateStore(
            self.path, FIELDS, (SIZE,) * len(FIELDS), torch.float32, checkpoints
        )

    def value(self, number: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((1, SIZE), number), "b": torch.full((1, SIZE), -number)}

    def begin(self, cohort: list[int]) -> dict[int, float]:
        """Begin a round whose workers write all of their rows; return what they wrote."""
        read, write = self.store.begin(cohort)
        assert len(set(write)) == len(cohort)
        written = {}
        for client, old, new in zip(cohort, read, write, strict=True):
            expected = torch.full((1, SIZE), self.model.get(client, 0.0))
            assert torch.equal(self.store.file.read([old])["a"], expected)
            self.counter += 1
            written[client] = float(self.counter)
            self.store.file.write([new], self.value(written[client]))
        return written

    @rule(cohort=cohorts, refused=cohorts)
    def accept(self, cohort: list[int], refused: list[int]) -> None:
        """A round of which the server accepts all clients but some."""
        written = self.begin(cohort)
        accepted = [client for client in cohort if client not in refused]
        self.store.commit(accepted)
        self.model |= {client: written[client] for client in accepted}

    @rule(cohort=cohorts)
    def lose(self, cohort: list[int]) -> None:
        """A round whose replies are lost."""
        self.begin(cohort)

    @rule()
    def checkpoint(self) -> None:
        round = max(self.saved, default=0) + 1
        index = self.store.checkpoint(round)
        assert set(index) == set(self.model)
        self.saved[round] = (dict(self.model), index)
        self.most_saved = max(self.most_saved, len(self.saved))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        round = data.draw(st.sampled_from(sorted(self.saved)))
        self.store.release(round)
        del self.saved[round]

    @precondition(lambda self: self.saved)
    @rule(lose_newest=st.booleans())
    def crash_and_resume(self, lose_newest: bool) -> None:
        if lose_newest and len(self.saved) > 1:
            del self.saved[max(self.saved)]
        self.model = dict(self.saved[max(self.saved)][0])
        self.store = self.open({round: index for round, (_, index) in self.saved.items()})

    @invariant()
    def committed_values_survive(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.clients() == sorted(self.model)
        for client in range(4):
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
            # Of four clients: the committed rows, a round's pending ones, those of checkpoints.
            assert rows <= 4 * (2 + self.most_saved)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_rows_are_reused(tmp_path: Path) -> None:
    """Without checkpoints two rows a client are enough, however many rounds there are."""
    store = ClientStateStore(tmp_path / "rows", ("a",), (4,), torch.float64)
    for number in range(50):
        _, write = store.begin([0, 1, 2])
        store.file.write(write, {"a": torch.full((3, 4), float(number)).double()})
        store.commit([0, 1, 2])
    assert (tmp_path / "rows").stat().st_size <= 6 * store.file.row_nbytes
    assert torch.equal(store.read(1)["a"], torch.full((4,), 49.0).double())


def test_released_rows_are_reused(tmp_path: Path) -> None:
    store = ClientStateStore(tmp_path / "rows", ("a",), (4,), torch.float64)
    for number in range(1, 40):
        _, write = store.begin([0, 1])
        store.file.write(write, {"a": torch.full((2, 4), float(number)).double()})
        store.commit([0, 1])
        store.checkpoint(number)
        store.release(number - 1)
    assert (tmp_path / "rows").stat().st_size <= 6 * store.file.row_nbytes


def test_size_follows_the_clients_that_trained(tmp_path: Path) -> None:
    store = ClientStateStore(tmp_path / "rows", ("a",), (4,), torch.float64)
    _, write = store.begin([10**12, 3])
    store.file.write(write, {"a": torch.ones(2, 4).double()})
    store.commit([10**12])
    assert store.clients() == [10**12]
    assert (tmp_path / "rows").stat().st_size == 2 * store.file.row_nbytes
