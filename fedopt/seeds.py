"""Every random draw of a run, derived from `hash(seed, purpose, ids...)`.

Nothing random is stored, passed around or advanced: the same (seed, purpose, round, client)
gives the same bits in any process, in any order, after any restart.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *ids: int) -> int:
    """Return a 128-bit integer that depends on all arguments (BLAKE2b).

    Args:
        seed: the run's seed, any integer in -2**63..2**63-1.
        purpose: what the draw is for, such as `"batches"`; keeps unrelated draws independent.
        ids: round, client or other integers that tell draws of one purpose apart.
    """
    payload = struct.pack(f"<{1 + len(ids)}q", seed, *ids)
    digest = hashlib.blake2b(payload, digest_size=16, person=_person(purpose)).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """Return a numpy generator (Philox, counter based) keyed by `derive(...)`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *ids)))


def torch_seed(seed: int, purpose: str, *ids: int) -> int:
    """Return a 63-bit seed for `torch.manual_seed`."""
    return derive(seed, purpose, *ids) & (2**63 - 1)


def torch_generator(seed: int, purpose: str, *ids: int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator on `device` seeded by `derive(...)`."""
    import torch

    return torch.Generator(device=device).manual_seed(torch_seed(seed, purpose, *ids))


def seed_torch(value: int, device: torch.device) -> None:
    """Seed torch's default generator on the CPU, and on `device` where that is another.

    `torch.manual_seed` does the same, but formats a stack trace for every accelerator that is
    not there, which takes longer than training a small client.
    """
    import torch

    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _person(purpose: str) -> bytes:
    raw = purpose.encode()
    return raw if len(raw) <= 16 else hashlib.blake2b(raw, digest_size=16).digest()
