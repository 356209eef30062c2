"""Checkpoints: one file a round, written whole or not at all, verified when read.

A checkpoint holds the model, the strategy's vectors, the index of client state and the cumulative
counts. Nothing random is in it: all draws derive from the seed. The file is a safetensors file
whose header carries the counts and a SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedopt.atomic import write_atomically

log = logging.getLogger("fedopt")

_NAME = re.compile(r"round_(\d{6,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Args:
        round: the round that was completed.
        arrays: the model's arrays by name.
        vectors: the strategy's vectors by name.
        client_rows: client -> row of its state.
        totals: cumulative counts by column name.
    """

    round: int
    arrays: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    client_rows: Mapping[int, int]
    totals: Mapping[str, float]

    def save(self, folder: Path) -> Path:
        """Write the checkpoint into a folder, atomically, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model/{name}": a.contiguous() for name, a in self.arrays.items()}
        tensors |= {f"vectors/{name}": v.contiguous() for name, v in self.vectors.items()}
        pairs = sorted(self.client_rows.items())
        tensors["client_rows"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        facts = json.dumps({"round": self.round, "totals": dict(self.totals)})
        metadata = {"facts": facts, "sha256": _checksum(tensors, facts)}
        path = folder / f"round_{self.round:06d}.safetensors"
        write_atomically(path, save(tensors, metadata))
        return path

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and verify a checkpoint.

        Raises:
            ValueError: the file is torn or does not match its checksum.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        facts = metadata.get("facts", "")
        if _checksum(tensors, facts) != metadata.get("sha256"):
            raise ValueError(f"{path.name} does not match its checksum")
        known = json.loads(facts)
        rows = tensors.pop("client_rows").tolist()
        return cls(
            known["round"],
            _under(tensors, "model/"),
            _under(tensors, "vectors/"),
            dict(rows),
            known["totals"],
        )


def saved_rounds(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder, round -> path, ascending."""
    found = {}
    for path in folder.glob("round_*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def load_all(folder: Path) -> list[Checkpoint]:
    """Return the readable checkpoints of a folder, oldest first; say which were skipped."""
    found = []
    for path in saved_rounds(folder).values():
        try:
            found.append(Checkpoint.load(path))
        except ValueError as error:
            log.warning("checkpoint skipped: %s", error)
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, dtypes, shapes and bytes, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # read where it lies
    return sha.hexdigest()


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{digest(tensors)}|{facts}".encode()).hexdigest()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
