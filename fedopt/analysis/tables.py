"""One CSV table of a run, appended to as rounds end, on disk or in memory.

Cells are checked and rendered by the kind of their column, so that what is read back equals
what was written, bit for bit. Which tables a run has is in `store.py`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedopt.analysis.columns import CLIENT_STATUSES, Column, Kind, names
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError, RunError, did_you_mean, unwritable

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = int | float | str | None


class Table:
    """An append-only CSV file, or the same text in memory.

    Rows are appended whole: one write a call, flushed at once. Rounds never go backwards.

    Args:
        columns: the columns, the first of them `round`.
        path: the file, which must not exist unless `reopen`; None keeps the text in memory.
        reopen: go on with the file that is there.

    Raises:
        FileExistsError: the file exists and `reopen` is false.
    """

    def __init__(
        self, columns: Sequence[Column], path: Path | None, *, reopen: bool = False
    ) -> None:
        self.columns = tuple(columns)
        self.path = path
        self._names = names(columns)
        self._renderers = tuple(_RENDERERS[column.kind] for column in columns)
        self._last_round = -1
        self._file: io.BufferedIOBase
        if path is None:
            self._file = io.BytesIO()
        else:
            self._file = open(path, "ab" if reopen else "xb")  # noqa: SIM115 (closed in close)
        if not reopen:
            self._append(",".join(self._names) + "\n")

    @property
    def last_round(self) -> int | None:
        """The last round that has a row; None where there is none."""
        return self._last_round if self._last_round >= 0 else None

    def add(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Append rows that are given by columns.

        Args:
            columns: equally long sequences (lists, arrays or tensors) by column name; a column
                left out is empty, and so is a cell that is None or NaN.

        Raises:
            ValueError: an unknown column, no `round`, unequal lengths, a value that is not of
                its column's kind, or a round before the last one.
            RunError: the file cannot be written.
        """
        self._check_names(columns)
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns must be equally long, got {lengths}")
        rounds = [operator.index(value) for value in _values(columns["round"])]  # type: ignore[arg-type]
        if not rounds:
            return
        if min(rounds) < self._last_round:
            raise ValueError(f"round {min(rounds)} comes after round {self._last_round}")
        empty = [""] * len(rounds)
        cells = [
            _render(name, render, columns[name]) if name in columns else empty
            for name, render in zip(self._names, self._renderers, strict=True)
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*cells, strict=True))
        self._append(text.getvalue())
        self._last_round = max(rounds)

    def truncate(self, after_round: int) -> None:
        """Drop the rows of rounds after `after_round`, and a last line that was cut short.

        Args:
            after_round: the last round to keep.

        Raises:
            ConfigError: a line other than the last is damaged.
            RunError: the file cannot be written.
        """
        kept, self._last_round = _keep(self.payload(), len(self.columns), after_round, self.path)
        if self.path is None:
            self._file = io.BytesIO()
            self._file.write(kept)
            return
        self.close()
        try:
            write_atomically(self.path, kept)
            self._file = open(self.path, "ab")  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def payload(self) -> bytes:
        """Return the table's bytes as they are."""
        if isinstance(self._file, io.BytesIO):
            return self._file.getvalue()
        assert self.path is not None
        return self.path.read_bytes()

    def close(self) -> None:
        """Close the file; a table in memory stays readable."""
        if self.path is not None:
            with contextlib.suppress(OSError):  # on a full disk, what `add` has said already
                self._file.close()

    def sync(self) -> None:
        """Have the rows so far written to the disk itself.

        Raises:
            RunError: they cannot be.
        """
        if self.path is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def _append(self, text: str) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _check_names(self, columns: Mapping[str, object]) -> None:
        for name in columns:
            if name not in self._names:
                raise ValueError(
                    f'"{name}" is not a column.{did_you_mean(name, self._names)} '
                    f"One of: {', '.join(self._names)}."
                )
        if "round" not in columns:
            raise ValueError("the column round is missing")


def parse_frame(payload: bytes, columns: Sequence[Column], source: Path | None) -> DataFrame:
    """Return a table's bytes as a data frame.

    Args:
        payload: the CSV text; a last line that was cut short is left out.
        columns: the columns it must have, in this order.
        source: the file, for messages.

    Returns:
        A frame in which real columns are float64, integer columns int64 (float64 with NaN
        where a cell is empty) and text columns str.

    Raises:
        ConfigError: the columns are not the expected ones, or a cell cannot be read.
    """
    import pandas

    payload = payload[: payload.rfind(b"\n") + 1]
    _check_shape(payload, columns, source)
    types = {column.name: "float64" for column in columns if column.kind == "real"}
    words = ("text", "digest", "words")
    types |= {column.name: "str" for column in columns if column.kind in words}
    # The default parser is exact from pandas 3.1 on, where the option is deprecated.
    version = tuple(int(part) for part in pandas.__version__.split(".")[:2])
    exact = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    try:
        frame: DataFrame = pandas.read_csv(
            io.BytesIO(payload),
            dtype=types,
            keep_default_na=False,
            na_values=[""],
            **exact,  # type: ignore[call-overload]
        )
        integers = [column.name for column in columns if column.kind == "integer"]
        for name in integers:
            if frame[name].dtype != "int64":
                # Empty tables come as objects; a column with gaps has NaN in them.
                frame[name] = frame[name].astype("float64" if len(frame) else "int64")
    except ValueError as error:  # pandas.errors.ParserError is one
        raise ConfigError(f"{_label(source)} is damaged: {error}.") from error
    return frame


def parse_rows(
    payload: bytes, columns: Sequence[Column], source: Path | None
) -> list[dict[str, Cell]]:
    """Return a table's bytes as one dictionary a row, without pandas; see `parse_frame`."""
    payload = payload[: payload.rfind(b"\n") + 1]
    _check_shape(payload, columns, source)
    parsers = [(column.name, _PARSERS[column.kind]) for column in columns]
    try:
        reader = csv.reader(io.StringIO(payload.decode(), newline=""))
        next(reader)
        return [
            {
                name: parse(cell) if cell else None
                for (name, parse), cell in zip(parsers, line, strict=True)
            }
            for line in reader
        ]
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{_label(source)} is damaged: {error}.") from error


def _check_shape(payload: bytes, columns: Sequence[Column], source: Path | None) -> None:
    header = payload.partition(b"\n")[0].decode(errors="replace").split(",")
    missing = [name for name in names(columns) if name not in header]
    if missing:
        raise ConfigError(f"{_label(source)} lacks the columns {', '.join(missing)}.")
    if tuple(header) != names(columns):
        raise ConfigError(
            f"{_label(source)} has other columns than {', '.join(names(columns))}, in this order."
        )
    # Parsers fill up short lines without a word.
    if payload.count(b",") != payload.count(b"\n") * (len(columns) - 1):
        raise ConfigError(f"{_label(source)} is damaged: not all of its lines are whole.")


def _keep(payload: bytes, width: int, after_round: int, source: Path | None) -> tuple[bytes, int]:
    """Return the header and the rows up to `after_round`, and the last round among them."""
    header, *lines = payload.splitlines(keepends=True) or [b""]
    kept, last = [header], -1
    for number, line in enumerate(lines, start=2):
        first = line.split(b",", 1)[0]
        whole = line.endswith(b"\n") and line.count(b",") == width - 1 and first.isdigit()
        if not whole:
            if number == len(lines) + 1:
                break
            raise ConfigError(f"line {number} of {_label(source)} is damaged.")
        if int(first) <= after_round:
            kept.append(line)
            last = max(last, int(first))
    return b"".join(kept), last


def _render(name: str, render: Callable[[object], str], column: Sequence[object]) -> Iterable[str]:
    values = _values(column)
    kinds = set(map(type, values))  # most columns of large cohorts have one: four times as fast
    if render is _integer and kinds == {int}:
        return map(str, values)
    if render is _real and kinds == {float}:
        return ["" if value != value else repr(value) for value in values]
    try:
        return [render(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _values(column: Sequence[object]) -> Sequence[object]:
    """Return the column's items as Python values, exactly (arrays and tensors have `tolist`)."""
    to_list = getattr(column, "tolist", None)
    return to_list() if to_list is not None else column


def _integer(value: object) -> str:
    return "" if value is None or value != value else str(operator.index(value))  # type: ignore[arg-type]


def _real(value: object) -> str:
    return "" if value is None or value != value else repr(float(value))  # type: ignore[arg-type]


def _status(value: object) -> str:
    if value not in CLIENT_STATUSES:
        raise ValueError(f"{value!r} is not one of {', '.join(CLIENT_STATUSES)}")
    return str(value)


def _digest(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is not 64 hexadecimal digits")
    return value


def _words(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not _PLAIN.fullmatch(value):
        raise ValueError(f"{value!r} is not letters, digits, spaces and simple signs")
    return value


_PLAIN = re.compile(r"[\w .:/()-]*")

_DIGEST = re.compile(r"[0-9a-f]{64}")

_RENDERERS: dict[Kind, Callable[[object], str]] = {
    "integer": _integer,
    "real": _real,
    "text": _status,
    "digest": _digest,
    "words": _words,
}
_PARSERS: dict[Kind, Callable[[str], Cell]] = {
    "integer": int,
    "real": float,
    "text": str,
    "digest": str,
    "words": str,
}


def _label(source: Path | None) -> str:
    return str(source) if source else "the table"


def _unwritable(path: Path | None, error: OSError) -> RunError:
    return unwritable(_label(path), error)


def last_whole_round(payload: bytes) -> int:
    """Return the round of the last whole line of a table; 0 where there is none."""
    *lines, _ = payload.split(b"\n")
    for line in reversed(lines):
        first = line.split(b",", 1)[0]
        if first.isdigit():
            return int(first)
    return 0
