"""What a sweep varies, read from `key=values` words, and the points of it.

    key=a,b,c             these values
    key=1..5  1..9..2     whole numbers, both ends included, with a step
    key=0.1..0.5..0.1     numbers with a step
    key=linear(0,1,5)     five evenly spaced numbers; without a count, any number between
    key=log(1e-3,1,7)     seven numbers evenly spaced by their logarithm; likewise
    seed=0,1,2            repetitions of every point

A value is what it is for `fedopt run`: TOML, or a bare word. Commas inside brackets, braces,
parentheses and quotes do not separate.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedopt.config import CHOICES, OPEN, Config
from fedopt.errors import ConfigError, did_you_mean
from fedopt.registry import entries
from fedopt.schema import RunTable
from fedopt.seeds import generator

SEED = "seed"
_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_SPAN = re.compile(rf"((?:{_NUMBER})?)\.\.((?:{_NUMBER})?)(?:\.\.({_NUMBER}))?")
_CALL = re.compile(r"([A-Za-z_]+)\((.*)\)")
_MOST_VALUES = 10_000
_PAIRS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Value:
    """A value of a key.

    Args:
        text: as `fedopt run key=text` takes it.
        plain: what it is.
    """

    text: str
    plain: Any


@dataclass(frozen=True)
class Listed:
    """A key with values one by one.

    Args:
        key: dotted key.
        values: at least one.
        is_integer_span: whether they are successive whole numbers, so that a search may use their
            order.
    """

    key: str
    values: tuple[Value, ...]
    is_integer_span: bool = False


@dataclass(frozen=True)
class Interval:
    """A key with any number between two.

    Args:
        key: dotted key.
        low: smallest.
        high: largest.
        scale: evenly by value or by logarithm.
    """

    key: str
    low: float
    high: float
    scale: Literal["linear", "log"]

    def at(self, share: float) -> Value:
        """Return the number at a share in [0, 1] of the way, to six significant digits."""
        return number_value(_between(self.low, self.high, self.scale, share))

    def __str__(self) -> str:
        return f"{self.scale}({self.low:g}, {self.high:g})"


Dimension = Listed | Interval
Point = tuple[tuple[str, Value], ...]
"""A value for each varied key but the seed."""


@dataclass(frozen=True)
class Space:
    """What words say.

    Args:
        fixed: words that give a key one value, as they are.
        dimensions: what is varied, in the order given.
        seeds: repetitions of every point; empty: the configuration's own.
    """

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    seeds: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The varied keys, without the seed."""
        return tuple(dimension.key for dimension in self.dimensions)

    def grid(self) -> list[Point]:
        """Return every combination, the last key changing fastest.

        Raises:
            ConfigError: a key has an interval without a count.
        """
        for dimension in self.dimensions:
            if isinstance(dimension, Interval):
                call = f"{dimension.scale}({dimension.low:g}, {dimension.high:g}, 5)"
                raise ConfigError(
                    f"{dimension} has no values to go through one by one: give a count, such as "
                    f"{call}, or draw from it with --random N or --search tpe",
                    key=dimension.key,
                )
        listed = [d for d in self.dimensions if isinstance(d, Listed)]
        size = math.prod(len(d.values) for d in listed)
        if size > _MOST_VALUES:
            raise ConfigError(
                f"the grid has {size:,} combinations, more than {_MOST_VALUES:,}; give fewer "
                "values, or draw from it with --random N"
            )
        rows = itertools.product(*(d.values for d in listed))
        return [tuple(zip(self.keys, row, strict=True)) for row in rows]

    def random(self, count: int, seed: int) -> list[Point]:
        """Return points drawn independently; of values one by one, no combination twice.

        The first points are the same for any count. At most all combinations are returned.

        Args:
            count: how many, >= 1.
            seed: of the draws.
        """
        if all(isinstance(d, Listed) for d in self.dimensions):
            points = self.grid()
            order = generator(seed, "sweep").permutation(len(points))
            return [points[index] for index in order[:count]]
        return [
            tuple(
                (d.key, _drawn(d, seed, number, place)) for place, d in enumerate(self.dimensions)
            )
            for number in range(count)
        ]

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, by which two sweeps can be told apart."""
        space: dict[str, Any] = {}
        for dimension in self.dimensions:
            listed = isinstance(dimension, Listed)
            space[dimension.key] = (
                [value.text for value in dimension.values] if listed else str(dimension)  # type: ignore[union-attr]
            )
        return {"fixed": list(self.fixed), "space": space, "seeds": list(self.seeds)}


def read_space(words: Sequence[str]) -> Space:
    """Return what `key=values` words say.

    Raises:
        ConfigError: a word is not of that form, a key is given twice, or values make no sense.
    """
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    seeds: tuple[int, ...] = ()
    seen: set[str] = set()
    for word in words:
        key, sign, raw = word.partition("=")
        key, raw = key.strip(), raw.strip()
        if not sign or not key:
            raise ConfigError(f'"{word}" is not of the form key=values')
        if key in seen:
            raise ConfigError("given twice; put all values behind one =, with commas", key=key)
        seen.add(key)
        dimension = read_dimension(key, raw)
        if key == SEED:
            seeds = _seeds(dimension)
        elif isinstance(dimension, Listed) and len(dimension.values) == 1:
            fixed.append(f"{key}={dimension.values[0].text}")
        else:
            dimensions.append(dimension)
    return Space(tuple(fixed), tuple(dimensions), seeds)


def read_dimension(key: str, raw: str) -> Dimension:
    """Return the values of a key, as the text behind its `=` gives them.

    Raises:
        ConfigError: they make no sense.
    """
    if _is_toml(raw):
        return Listed(key, (Value(raw, _plain(raw)),))
    items = split_commas(raw, key)
    if len(items) == 1:
        call = _CALL.fullmatch(items[0])
        if call:
            return _called(key, call[1], call[2], is_alone=True)
        if _is_span(items[0]):
            values, is_integer = _span(key, items[0])
            return Listed(key, values, is_integer)
        return Listed(key, (Value(raw, raw),))
    values = tuple(value for item in items for value in _item(key, item))
    texts = [value.text for value in values]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} is given twice", key=key)
    return Listed(key, values)


def split_commas(text: str, key: str = "") -> list[str]:
    """Return the parts of a text between commas that stand outside brackets and quotes.

    Raises:
        ConfigError: a part is empty, a bracket has no partner, or a quote does not end.
    """
    parts, start, quote = [], 0, ""
    open_: list[str] = []
    for place, letter in enumerate(text):
        if quote:
            is_end = letter == quote and (quote == "'" or text[place - 1] != "\\")
            quote = "" if is_end else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _PAIRS:
            open_.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not open_ or open_.pop() != letter:
                raise ConfigError(f'"{text}" has a "{letter}" too many', key=key or None)
        elif letter == "," and not open_:
            parts.append(text[start:place])
            start = place + 1
    if quote or open_:
        raise ConfigError(f'"{text}" lacks a closing {quote or open_[-1]}', key=key or None)
    parts.append(text[start:])
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise ConfigError(f'"{text}" has an empty value', key=key or None)
    return parts


def number_value(number: float) -> Value:
    """Return a number, to six significant digits, as a value."""
    rounded = float(f"{number:.6g}")
    return Value(repr(rounded), rounded)


def known_keys() -> list[str]:
    """Return every dotted key that a configuration can have, of whatever it names."""
    keys = dict.fromkeys(RunTable.model_fields)
    for table, schema in Config.TABLES.items():
        keys |= dict.fromkeys([table, *(f"{table}.{name}" for name in schema.model_fields)])
    for table, kind in CHOICES.items():
        keys |= dict.fromkeys([table, f"{table}.name"])
        for entry in entries(kind):
            keys |= dict.fromkeys(f"{table}.{name}" for name in entry.options.model_fields)
    return list(keys)


def key_hint(keys: Sequence[str]) -> str:
    """Return ` Did you mean ...` for the first key that no configuration can have, or ""."""
    known = known_keys()
    for key in keys:
        if key in known or key.rpartition(".")[0] in OPEN:
            continue
        ends = [other for other in known if other.endswith(f".{key.rpartition('.')[2]}")]
        near = sorted(ends, key=lambda other: (not other.startswith("local."), len(other)))
        if near:
            words = ", ".join(f'"{other}"' for other in near[:3])
            return f" Did you mean {words.replace(', ', ' or ')}?"
        return did_you_mean(key, known)
    return ""


def _is_toml(raw: str) -> bool:
    try:
        tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return False
    return True


def _plain(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _item(key: str, item: str) -> Iterator[Value]:
    """Yield the values of a part between commas."""
    call = _CALL.fullmatch(item)
    if call:
        dimension = _called(key, call[1], call[2], is_alone=False)
        assert isinstance(dimension, Listed)
        yield from dimension.values
    elif not _is_toml(item) and _is_span(item):
        yield from _span(key, item)[0]
    else:
        yield Value(item, _plain(item))


def _is_span(text: str) -> bool:
    match = _SPAN.fullmatch(text)
    return match is not None and bool(match[1] or match[2])  # ".." is a folder


def _span(key: str, text: str) -> tuple[tuple[Value, ...], bool]:
    """Return the numbers of `A..B` or `A..B..STEP`, and whether they are successive integers."""
    match = _SPAN.fullmatch(text)
    assert match is not None
    if not match[1] or not match[2]:
        raise ConfigError(f'"{text}" lacks an end; write it as 1..5', key=key)
    words = [match[1], match[2], match[3] or "1"]
    is_integer = all(re.fullmatch(r"[+-]?\d+", word) for word in words)
    if not is_integer and not match[3]:
        raise ConfigError(
            f'"{text}" needs a step, as in {match[1]}..{match[2]}..0.1, or a count, as in '
            f"linear({match[1]}, {match[2]}, 5)",
            key=key,
        )
    low, high, step = (float(word) for word in words)
    if step == 0 or (high - low) * step < 0:
        raise ConfigError(f'"{text}" never arrives: its step leads away from its end', key=key)
    count = math.floor((high - low) / step + 1e-9) + 1
    if count > _MOST_VALUES:
        raise ConfigError(f'"{text}" has {count:,} values, more than {_MOST_VALUES:,}', key=key)
    if is_integer:
        numbers = range(int(low), int(low) + count * int(step), int(step))
        return tuple(Value(str(n), n) for n in numbers), int(step) == 1
    return tuple(number_value(low + turn * step) for turn in range(count)), False


def _called(key: str, name: str, inside: str, is_alone: bool) -> Dimension:
    """Return what `log(...)` or `linear(...)` stands for."""
    if name not in ("log", "linear"):
        hint = did_you_mean(name, ("log", "linear"))
        raise ConfigError(f'"{name}(...)" is not known.{hint} One of: linear, log.', key=key)
    form = f"{name}(low, high) or {name}(low, high, count)"
    try:
        numbers = [float(part) for part in split_commas(inside)]
    except (ValueError, ConfigError):
        numbers = []
    if len(numbers) not in (2, 3) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f'got "{name}({inside})", expected {form}', key=key)
    low, high = numbers[:2]
    if low >= high or (name == "log" and low <= 0):
        need = "0 < low < high" if name == "log" else "low < high"
        raise ConfigError(f'got "{name}({inside})", which needs {need}', key=key)
    interval = Interval(key, low, high, name)  # type: ignore[arg-type]
    if len(numbers) == 2:
        if is_alone:
            return interval
        raise ConfigError(f'"{name}({inside})" needs a count beside other values', key=key)
    count = int(numbers[2])
    if count != numbers[2] or not 2 <= count <= _MOST_VALUES:
        raise ConfigError(
            f'got "{name}({inside})": the count must be an integer in 2..{_MOST_VALUES}', key=key
        )
    return Listed(key, tuple(interval.at(turn / (count - 1)) for turn in range(count)))


def _between(low: float, high: float, scale: str, share: float) -> float:
    if share in (0.0, 1.0):
        return high if share else low
    if scale == "log":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


def _drawn(dimension: Dimension, seed: int, number: int, place: int) -> Value:
    draw = generator(seed, "sweep", number, place)
    if isinstance(dimension, Listed):
        return dimension.values[int(draw.integers(len(dimension.values)))]
    return dimension.at(float(draw.random()))


def _seeds(dimension: Dimension) -> tuple[int, ...]:
    if isinstance(dimension, Interval):
        raise ConfigError(f"got {dimension}; use whole numbers, such as 0,1,2 or 0..4", key=SEED)
    for value in dimension.values:
        if not isinstance(value.plain, int) or isinstance(value.plain, bool):
            raise ConfigError(f'got "{value.text}"; use whole numbers, such as 0..4', key=SEED)
    return tuple(value.plain for value in dimension.values)


def flat_point(point: Point) -> Mapping[str, Any]:
    """Return a point as plain values by key."""
    return {key: value.plain for key, value in point}
