"""`python -m fedopt.testing [NAME]...` certifies what comes with fedopt and prints a table.

Names are those of the table's first column; none: all.

Exit codes: 0 all passed, 1 a check failed, 2 a name is not known.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console


def main(names: Sequence[str]) -> int:
    """Print the table, and the messages of checks that failed; return the exit code.

    Args:
        names: of strategies and codecs; none: all.
    """
    if set(names) & {"-h", "--help"}:
        print(__doc__)
        return 0
    from fedopt.testing.registered import reports
    from fedopt.testing.report import table_of

    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        found = reports(names)
    except ValueError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 2
    console.print(table_of(found))
    failed = [outcome for report in found for outcome in report.failed]
    for outcome in failed:
        console.print(f"\n{outcome.message}", markup=False)
    passed = sum(len(report.passed) for report in found)
    skipped = sum(len(report.not_applicable) for report in found)
    console.print(f"\n{passed} passed, {len(failed)} failed, {skipped} not applicable")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
