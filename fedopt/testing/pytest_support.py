"""Checks as pytest parameters: a test file of five lines certifies a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fedopt.testing.check import Check, CheckFailedError
from fedopt.testing.kinds import claims_of, with_default
from fedopt.testing.report import checks_for
from fedopt.testing.subject import Subject

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class BoundCheck:
    """A check of one subject: call it in a test.

    Args:
        check: the check.
        subject: the subject.
    """

    check: Check
    subject: Subject

    def __call__(self) -> None:
        """Run it; a check that does not concern the subject is skipped with the reason.

        Raises:
            CheckFailedError: it failed.
        """
        __tracebackhide__ = True
        outcome = self.check.run(self.subject)
        if outcome.status == "not applicable":
            import pytest

            pytest.skip(outcome.reason)
        if outcome.status == "failed":
            raise CheckFailedError(outcome.message)

    def __repr__(self) -> str:
        return f"{self.subject.name}-{self.check.name}"


def bound_checks(
    subjects: Iterable[Subject], claims: str | Sequence[str] | None = None
) -> list[BoundCheck]:
    """Return every check of every subject.

    Args:
        subjects: what is certified.
        claims: what all of them are certified as; None: what each claims itself.

    Raises:
        ValueError: a claim is not known.
    """
    return [
        BoundCheck(check, subject)
        for subject in subjects
        for check in checks_for(
            with_default(subject.claims if claims is None else claims_of(claims))
        )
    ]


def conformance(
    *subjects: Subject, claims: str | Sequence[str] | None = None
) -> Callable[[Test], Test]:
    """Return a decorator that runs a test once a check, with the argument `check` to be called.

    Args:
        subjects: what is certified.
        claims: what all of them are certified as; None: what each claims itself.

    Raises:
        ValueError: a claim is not known.
    """
    import pytest

    checks = bound_checks(subjects, claims)
    decorate: Callable[[Test], Test] = pytest.mark.parametrize("check", checks, ids=repr)
    return decorate
