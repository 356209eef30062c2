"""A file for the changes of a round's clients, where the server wants each and they are many.

Workers write a group's changes into it as soon as the group has trained; the server maps it, and
reads the coordinates that it works on. So neither holds all of a round's changes in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedopt.client.state import RowFile
from fedopt.client.trainer import Block
from fedopt.models.layout import ParameterLayout

SPOOLED_NBYTES = 64 * 2**20
"""Bytes of a round's changes from which on they go through a file."""


class Spool:
    """The file of a round.

    Args:
        path: where it is made.
        clients: K, the clients of the round.
        layout: of the model.
    """

    def __init__(self, path: Path, clients: int, layout: ParameterLayout) -> None:
        self._clients = clients
        self.file = RowFile(str(path), ("delta",), (layout.size,), layout.dtype)
        with path.open("wb") as file:
            file.truncate(clients * layout.parameter_nbytes)
        scalars = clients * layout.size
        mapped = torch.from_file(str(path), shared=True, size=scalars, dtype=layout.dtype)
        self.rows: Tensor = mapped.view(clients, layout.size)

    def placed(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks, each with the rows of its clients."""
        found, first = [], 0
        for block in blocks:
            rows = range(first, first + len(block.clients))
            found.append(replace(block, change_rows=rows))
            first = rows.stop
        return found

    def close(self) -> None:
        """Remove the file; `rows` stay as long as somebody looks at them."""
        Path(self.file.path).unlink(missing_ok=True)
