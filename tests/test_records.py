"""Tensors through Flower's records: nothing copied here, everything the same on the wire."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedopt.records import TensorArray, from_record, integers, to_record

TENSORS = {
    "float32": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "float64": torch.tensor([1e-300, -0.0, float("inf")], dtype=torch.float64),
    "counter": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "columns": torch.arange(6.0).reshape(2, 3).T,
}


def assert_same(got: dict[str, torch.Tensor]) -> None:
    assert list(got) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_records_share_memory() -> None:
    tensor = torch.zeros(4)
    back = from_record(to_record({"a": tensor}))["a"]
    assert back.data_ptr() == tensor.data_ptr()


def test_records_keep_names_order_types_and_values() -> None:
    assert_same(from_record(to_record(TENSORS)))


def test_records_survive_pickling() -> None:
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(to_record(TENSORS), protocol=5, buffer_callback=buffers.append)
    assert_same(from_record(pickle.loads(payload, buffers=buffers)))
    assert len(buffers) >= 4, "arrays must travel out of band, or Ray copies them"


def test_records_survive_flowers_wire_format() -> None:
    content = RecordDict({"arrays": to_record(TENSORS)})
    sent = {key: thing.deflate() for key, thing in get_all_nested_objects(content).items()}
    received = inflate_object_from_contents(content.object_id, sent)
    assert isinstance(received, RecordDict)
    assert_same(from_record(received.array_records["arrays"]))


def test_an_array_is_what_flower_would_have_made() -> None:
    values = np.arange(12.0).reshape(3, 4)
    mine, theirs = TensorArray(values), Array(values)
    assert (mine.dtype, mine.shape, mine.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert mine.data == theirs.data
    assert mine.deflate() == theirs.deflate()


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_read_in_silence() -> None:
    values = np.ones(3)
    values.flags.writeable = False
    record = ArrayRecord()
    record["a"] = TensorArray(values)
    assert torch.equal(from_record(record)["a"], torch.ones(3, dtype=torch.float64))


def test_missing_lists_are_empty() -> None:
    config = ConfigRecord({"some": [3, 4]})
    assert integers(config, "some") == [3, 4]
    assert integers(config, "none") == []
