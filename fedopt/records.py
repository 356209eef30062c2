"""Tensors in and out of Flower's records without copying them.

`flwr.app.Array` serialises on construction and copies on reading. `TensorArray` is an `Array`
that holds the numpy array itself and serialises only where bytes are asked for (a real network);
pickled, it travels out of band, so Ray keeps it in shared memory.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

_STYPE = "numpy.ndarray"


class TensorArray(Array):
    """A Flower `Array` over a numpy array that it does not copy.

    Args:
        ndarray: the values; must not be changed afterwards.
    """

    def __init__(self, ndarray: np.ndarray[Any, Any]) -> None:
        self.__dict__.update(
            dtype=str(ndarray.dtype), shape=tuple(ndarray.shape), stype=_STYPE, _ndarray=ndarray
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as Flower's wire format has it: bytes of a .npy file."""
        buffer = io.BytesIO()
        np.save(buffer, self.__dict__["_ndarray"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the array itself."""
        array: np.ndarray[Any, Any] = self.__dict__["_ndarray"]
        return array

    def deflate(self) -> bytes:
        """Return the object as Flower sends it: that of a plain `Array`."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __getstate__(self) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in ("dtype", "shape", "stype", "_ndarray")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def serialise(content: RecordDict) -> None:
    """Turn the arrays of a content into bytes, as they travel: who reads them needs no torch."""
    for record in content.array_records.values():
        for name, array in record.items():
            record[name] = Array(array.dtype, array.shape, array.stype, array.data)


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return an `ArrayRecord` that shares the memory of CPU tensors."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = TensorArray(tensor.detach().cpu().contiguous().numpy())
    return record


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of an `ArrayRecord`, which must not be written to."""
    return {name: _tensor(array.numpy()) for name, array in record.items()}


def integers(config: ConfigRecord, key: str) -> list[int]:
    """Return a list of integers of a config record (a missing or empty list is [])."""
    value = config.get(key, [])
    assert isinstance(value, list)
    return [int(v) for v in value]


def numbers(config: ConfigRecord, key: str) -> list[float]:
    """Return a list of numbers of a record (a missing or empty list is [])."""
    value = config.get(key, [])
    assert isinstance(value, list)
    return [float(v) for v in value]


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    with warnings.catch_warnings():
        # Arrays in shared memory are read-only; torch warns of writes that we never make.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
