"""What a check is, what it measures, and the message of one that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedopt.testing.subject import Subject
from fedopt.testing.task import NotApplicableError, Vector

Status = Literal["passed", "failed", "not applicable"]


class CheckFailedError(AssertionError):
    """A check failed; the message says which, what was expected and what was measured."""


@dataclass(frozen=True)
class Measurement:
    """What a check found.

    Args:
        error: how far the subject is off, >= 0; infinity where a number is not finite.
        expected: what should have come out, for people.
        measured: what came out, for people.
    """

    error: float
    expected: str
    measured: str


@dataclass(frozen=True)
class Check:
    """One thing that must hold of strategies of some kinds.

    Args:
        name: a word.
        statement: what must hold, one sentence.
        formula: the paper's formula.
        source: the paper, with algorithm or equation.
        kinds: the claims that it tests.
        tolerance: largest error that passes.
        reason: why the tolerance is what it is.
        measure: runs the subject and returns what it found.
        exact: whether the tolerance is 0 for subjects that promise bits.
    """

    name: str
    statement: str
    formula: str
    source: str
    kinds: tuple[str, ...]
    tolerance: float
    reason: str
    measure: Callable[[Subject], Measurement]
    exact: bool = False

    def tolerance_for(self, subject: Subject) -> float:
        """Return the largest error that passes of a subject."""
        return 0.0 if self.exact and subject.promises_bits else self.tolerance

    def tests(self, claims: Sequence[str]) -> bool:
        """Return whether it concerns what makes some claims."""
        return any(kind in claims for kind in self.kinds)

    def run(self, subject: Subject) -> Outcome:
        """Run it; what the subject raises is a failure."""
        tolerance = self.tolerance_for(subject)
        try:
            found = self.measure(subject)
        except NotApplicableError as reason:
            return Outcome(self, subject.name, "not applicable", None, tolerance, str(reason))
        except Exception as error:  # the subject is not ours and may raise anything
            says = f"{type(error).__name__}: {error}"
            found = Measurement(np.inf, "no exception", says)
        passed = found.error <= tolerance
        status: Status = "passed" if passed else "failed"
        return Outcome(self, subject.name, status, found, tolerance)


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Args:
        check: the check.
        subject: name of what was checked.
        status: `passed`, `failed` or `not applicable`.
        found: what was measured, None where it is not applicable.
        tolerance: largest error that passes.
        reason: why it is not applicable.
    """

    check: Check
    subject: str
    status: Status
    found: Measurement | None
    tolerance: float
    reason: str = ""

    @property
    def message(self) -> str:
        """All there is to say, over several lines."""
        check = self.check
        lines = [
            f'{check.name}: {self.status} for "{self.subject}"',
            f"  must hold  {check.statement}",
            f"  formula    {check.formula}",
            f"  source     {check.source}",
        ]
        if self.found is None:
            return "\n".join([*lines, f"  because    {self.reason}"])
        allowed = "0 (to the bit)" if self.tolerance == 0 else f"{self.tolerance:.3g}"
        return "\n".join(
            [
                *lines,
                f"  expected   {self.found.expected}",
                f"  measured   {self.found.measured}",
                f"  error      {self.found.error:.3g}",
                f"  tolerance  {allowed}: {check.reason}",
            ]
        )


def shown(vector: Vector) -> str:
    """Return a vector for people, in full precision where that matters."""
    numbers = np.asarray(vector, dtype=np.float64).reshape(-1)
    some = ", ".join(f"{x:.12g}" for x in numbers[:6])
    return f"[{some}{', ...' if len(numbers) > 6 else ''}]"


def difference(expected: Vector, measured: Vector) -> float:
    """Return the largest difference of elements; infinity where shapes or numbers are no good."""
    if np.shape(expected) != np.shape(measured) or not np.isfinite(measured).all():
        return float("inf")
    return float(np.abs(np.asarray(expected) - np.asarray(measured)).max(initial=0.0))


def compare(expected: Vector, measured: Vector, what: str) -> Measurement:
    """Return how far a vector is from what it should be.

    Args:
        expected: what it should be.
        measured: what it is.
        what: what the two are, such as `the model after round 3`.
    """
    error = difference(expected, measured)
    return Measurement(error, f"{what}: {shown(expected)}", f"{what}: {shown(measured)}")


def compare_rounds(
    expected: Sequence[Vector], measured: Sequence[Vector], what: str = "the model", first: int = 0
) -> Measurement:
    """Return the worst round of two trajectories.

    Args:
        expected: one vector a round.
        measured: likewise, as many.
        what: what the vectors are.
        first: round of the first of them; 0 is before training.
    """
    if len(expected) != len(measured):
        return Measurement(float("inf"), f"{len(expected)} rounds", f"{len(measured)} rounds")
    errors = [difference(e, m) for e, m in zip(expected, measured, strict=True)]
    worst = int(np.argmax(errors))
    when = f"{what} after round {first + worst}"
    return compare(expected[worst], measured[worst], when)
