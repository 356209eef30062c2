"""What is certified: anything that can run a task and say what it claims to be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fedopt.testing.kinds import OPTIONS
from fedopt.testing.task import NotApplicableError, Task, Trajectory


class Subject(Protocol):
    """Something that trains quadratic clients."""

    @property
    def name(self) -> str:
        """What it is called in reports."""
        ...

    @property
    def claims(self) -> tuple[str, ...]:
        """The kinds that it claims to be, with those that they include."""
        ...

    @property
    def promises_bits(self) -> bool:
        """Whether what is equal must be so to the last bit, or else up to rounding."""
        ...

    def run(self, task: Task) -> Trajectory:
        """Do a task from a fresh start.

        Raises:
            NotApplicableError: the subject has no such option, or cannot do such a thing.
        """
        ...

    def fedavg(self) -> Subject:
        """Return plain federated averaging that runs in the same way, to compare with."""
        ...


def name_of(factory: Any) -> str:
    """Return what a class, a function or an object is called."""
    return str(getattr(factory, "__name__", type(factory).__name__))


def keywords_of(factory: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Return the keywords that a function or class takes, and whether it takes any other.

    A class whose constructor hands keywords on takes those of its base classes.
    """
    sources: list[Any] = [factory]
    if inspect.isclass(factory):
        sources = [vars(c)["__init__"] for c in factory.__mro__[:-1] if "__init__" in vars(c)]
    found: set[str] = set()
    for source in sources:
        try:
            parameters = inspect.signature(source).parameters.values()
        except (TypeError, ValueError):
            return frozenset(found), True
        found |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return frozenset(found), False
    return frozenset(found), True


def translated(
    options: Mapping[str, Any], taken: frozenset[str], names: Mapping[str, str], who: str
) -> dict[str, Any]:
    """Return a task's options by the keywords of a factory.

    Args:
        options: by the names in `OPTIONS`.
        taken: the factory's keywords.
        names: the checks' names -> the factory's, where they differ from those in `OPTIONS`.
        who: name of the subject, for the message.

    Raises:
        NotApplicableError: there is no keyword for an option.
    """
    found = {}
    for option, value in options.items():
        candidates = (names[option],) if option in names else (option, *OPTIONS.get(option, ()))
        keyword = next((c for c in candidates if c in taken or option in names), None)
        if keyword is None:
            raise NotApplicableError(f"{who} takes no option {option}")
        found[keyword] = value
    return found
