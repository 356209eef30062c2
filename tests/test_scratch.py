"""Scratch memory is lent again when, and only when, nothing looks into it any more."""

from __future__ import annotations

import gc

import pytest
import torch

from fedopt.records import to_record
from fedopt.scratch import ALIGNMENT, Scratch


def test_memory_is_used_again_once_it_is_free() -> None:
    scratch = Scratch()
    first = scratch.take(100)
    place = first.data_ptr()
    second = scratch.take(100)
    assert second.data_ptr() != place
    del first
    assert scratch.take(100).data_ptr() == place
    assert scratch.take(50).data_ptr() not in (place, second.data_ptr())


def test_views_and_records_keep_it() -> None:
    scratch = Scratch()
    vector = scratch.take(100, torch.float32)
    place = vector.data_ptr()
    views = [vector.view(10, 10)[3], vector.numpy()[5:7], to_record({"a": vector.view(4, 25)})]
    del vector
    while views:
        gc.collect()
        assert scratch.take(100, torch.float32).data_ptr() != place
        views.pop()
    gc.collect()
    assert scratch.take(100, torch.float32).data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vectors_are_what_was_asked_for(dtype: torch.dtype) -> None:
    scratch = Scratch()
    for size in (0, 1, 13, 4096):
        vector = scratch.take(size, dtype)
        assert (vector.shape, vector.dtype) == ((size,), dtype)
        assert not size or vector.data_ptr() % ALIGNMENT == 0
        assert torch.equal(vector.fill_(1), torch.ones(size, dtype=dtype))
