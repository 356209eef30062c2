"""Checkpoints: exact, verified, whole or not at all."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedopt.server.checkpoint import Checkpoint, digest, load_all, saved_rounds

ARRAYS = {
    "conv.weight": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "bias": torch.tensor([1e-45, -0.0, float("inf")]),
    "counter": torch.tensor(2**53 + 1),
    "empty": torch.zeros(0),
}


def checkpoint(round: int = 3) -> Checkpoint:
    return Checkpoint(
        round,
        ARRAYS,
        {"control_variate": torch.randn(7, dtype=torch.float64)},
        {5: 0, 10**12: 4, 2: 1},
        {"bytes_up": 12.0, "wall_seconds": 0.1 + 0.2},
    )


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.round == other.round
    assert dict(one.client_rows) == dict(other.client_rows)
    assert dict(one.totals) == dict(other.totals)
    assert digest(one.arrays) == digest(other.arrays)
    assert digest(one.vectors) == digest(other.vectors)
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype
        assert torch.equal(array, other.arrays[name])


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = checkpoint()
    path = before.save(tmp_path / "new" / "folder")
    assert path.name == "round_000003.safetensors"
    assert_same(before, Checkpoint.load(path))


@given(st.dictionaries(st.integers(0, 2**62), st.integers(0, 2**62), max_size=20))
def test_any_index_survives(rows: dict[int, int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Checkpoint(1, {"w": torch.zeros(1)}, {}, rows, {}).save(Path(folder))
        assert dict(Checkpoint.load(path).client_rows) == rows


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = checkpoint().save(tmp_path)
    whole = path.read_bytes()
    data_starts = 8 + int.from_bytes(whole[:8], "little")
    for position in range(data_starts, len(whole), 13):
        torn = bytearray(whole)
        torn[position] ^= 0x10
        path.write_bytes(bytes(torn))
        with pytest.raises(ValueError, match="checksum"):
            Checkpoint.load(path)
    for length in (0, 1, 7, 8, data_starts - 1, data_starts, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="round_000003"):
            Checkpoint.load(path)


def test_a_damaged_header_is_found(tmp_path: Path) -> None:
    """A flipped byte of the header gives an error or the same contents, never others."""
    before = checkpoint()
    path = before.save(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(8, header):
        torn = bytearray(whole)
        torn[position] ^= 0x01
        path.write_bytes(bytes(torn))
        try:
            after = Checkpoint.load(path)
        except ValueError:
            continue
        assert_same(before, after)


def test_a_damaged_checkpoint_is_skipped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for round in (2, 4, 6):
        checkpoint(round).save(tmp_path)
    newest = saved_rounds(tmp_path)[6]
    newest.write_bytes(newest.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING, logger="fedopt"):
        found = load_all(tmp_path)
    assert [c.round for c in found] == [2, 4]
    assert "round_000006" in caplog.text


def test_rounds_are_in_numerical_order_and_other_files_are_ignored(tmp_path: Path) -> None:
    for round in (1_000_000, 7, 999_999):
        checkpoint(round).save(tmp_path)
    (tmp_path / "round_12.safetensors").touch()
    (tmp_path / "round_000001.safetensors.tmp").touch()
    assert list(saved_rounds(tmp_path)) == [7, 999_999, 1_000_000]
    assert saved_rounds(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_keeps_the_old_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = checkpoint()
    path = before.save(tmp_path)

    def full(*_arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space"):
        checkpoint().save(tmp_path)
    with pytest.raises(OSError, match="no space"):
        checkpoint(4).save(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(before, Checkpoint.load(path))


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    tensor = torch.arange(4.0)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.double()},
        {"a": tensor.view(2, 2)},
        {"a": tensor + 1},
        {"a": tensor.view(torch.int32)},
        {"a": tensor, "b": tensor},
        {},
    ]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest({"a": tensor, "b": tensor + 1}) == digest({"b": tensor + 1, "a": tensor})
    matrix = torch.randn(3, 4)
    assert digest({"a": matrix.T}) == digest({"a": matrix.T.contiguous()})
