"""Certification: all checks of a subject's claims, and the table of what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedopt.testing.check import Check, CheckFailedError, Outcome
from fedopt.testing.checks import ALL
from fedopt.testing.kinds import claims_of, with_default
from fedopt.testing.subject import Subject

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


@dataclass(frozen=True)
class Report:
    """What became of a subject's checks.

    Args:
        subject: its name.
        claims: what was claimed.
        outcomes: one a check, in the order of the checks.
    """

    subject: str
    claims: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    def _of(self, status: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def passed(self) -> list[Outcome]:
        """The checks that passed."""
        return self._of("passed")

    @property
    def failed(self) -> list[Outcome]:
        """The checks that failed."""
        return self._of("failed")

    @property
    def not_applicable(self) -> list[Outcome]:
        """The checks that do not concern the subject, each with its reason."""
        return self._of("not applicable")

    @property
    def untested(self) -> list[str]:
        """The claims of which no check of their own could run."""
        found = []
        for claim in self.claims:
            own = [o for o in self.outcomes if claim in o.check.kinds]
            if own and all(o.status == "not applicable" for o in own):
                found.append(claim)
        return found

    @property
    def ok(self) -> bool:
        """Whether no check failed, and each claim was tested."""
        return not self.failed and not self.untested

    def raise_if_failed(self) -> None:
        """Raise with the messages of all checks that failed, and the claims that were not tested.

        Raises:
            CheckFailedError: some failed.
        """
        messages = [outcome.message for outcome in self.failed]
        messages += [self._untested(claim) for claim in self.untested]
        if messages:
            raise CheckFailedError("\n\n".join(messages))

    def _untested(self, claim: str) -> str:
        reasons = {o.reason for o in self.outcomes if claim in o.check.kinds}
        return (
            f'no check of the claim "{claim}" could run on "{self.subject}": '
            f"{'; '.join(sorted(reasons))}. Where its options have other names, give "
            "options={...}."
        )

    def table(self) -> Table:
        """Return a table for the terminal (rich)."""
        return table_of([self])

    def __str__(self) -> str:
        width = max((len(o.check.name) for o in self.outcomes), default=0)
        rows = (
            f"  {outcome.check.name:<{width}}  {outcome.status:<14}  {_numbers(outcome)}"
            for outcome in self.outcomes
        )
        lines = [f"{self.subject} as {', '.join(self.claims)}", *rows]
        return "\n".join([*lines, *(self._untested(claim) for claim in self.untested)])


def _numbers(outcome: Outcome) -> str:
    if outcome.found is None:
        return outcome.reason
    allowed = "0" if outcome.tolerance == 0 else f"{outcome.tolerance:.0e}"
    return f"error {outcome.found.error:.1e}, tolerance {allowed}"


def table_of(reports: Iterable[Report]) -> Table:
    """Return one table of several reports (rich): a row a check."""
    from rich.table import Table

    table = Table("subject", "check", "status", "error", "tolerance", "source", box=None)
    for report in reports:
        for number, outcome in enumerate(report.outcomes):
            found = outcome.found
            table.add_row(
                report.subject if number == 0 else "",
                outcome.check.name,
                f"[{STYLES[outcome.status]}]{outcome.status}[/]",
                "" if found is None else f"{found.error:.1e}",
                "" if found is None else "0" if not outcome.tolerance else f"{outcome.tolerance:g}",
                outcome.check.source if found is not None else outcome.reason,
            )
    return table


def checks_for(kind: str | Iterable[str]) -> list[Check]:
    """Return the checks of some claims, with those of every strategy unless they are of a codec.

    Args:
        kind: a claim or several; see `KINDS`.

    Raises:
        ValueError: a claim is not known.
    """
    claims = with_default(claims_of(kind))
    return [check for check in ALL if check.tests(claims)]


def certify(subject: Subject, claims: str | Sequence[str] | None = None) -> Report:
    """Run all checks of what a subject claims to be.

    Args:
        subject: what is certified.
        claims: what it is certified as; None: what it claims itself.

    Raises:
        ValueError: a claim is not known.
    """
    wanted = subject.claims if claims is None else claims_of(claims)
    wanted = with_default(wanted)
    outcomes = tuple(check.run(subject) for check in ALL if check.tests(wanted))
    return Report(subject.name, wanted, outcomes)
