"""One sweep from words to results; `fedopt sweep` is a thin cover of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fedopt.analysis.store import default_directory
from fedopt.analysis.targets import Target
from fedopt.config import split_arguments
from fedopt.errors import ConfigError, unknown_name
from fedopt.interruption import InterruptedRunError
from fedopt.sweep.book import BOOK_FILE, Book, Task, read_book
from fedopt.sweep.children import available_cores, check_jobs
from fedopt.sweep.drive import Source, drive
from fedopt.sweep.plan import Design, Listing
from fedopt.sweep.results import Outcome, write_results
from fedopt.sweep.space import read_space
from fedopt.sweep.tuner import Tuner, import_optuna
from fedopt.sweep.watch import Watch

METHODS = ("grid", "random", "tpe")


@dataclass(frozen=True)
class Search:
    """Which points of a space are run.

    Args:
        method: one of `METHODS`.
        count: points, of `random` and `tpe`; None for `grid`.
        seed: of the draws.
        halves: `tpe`: whether hopeless trials are stopped early.
        metric: that points are ranked by; None: by what is measured.
    """

    method: str = "grid"
    count: int | None = None
    seed: int = 0
    halves: bool = True
    metric: str | None = None

    @classmethod
    def asked(
        cls,
        random: int | None,
        search: str | None,
        trials: int | None,
        seed: int,
        halves: bool,
        metric: str | None,
    ) -> Search:
        """Return what options of the command line ask for.

        Raises:
            ConfigError: they do not go together.
        """
        if search is not None and search not in METHODS:
            raise unknown_name("--search", search, METHODS)
        if random is not None and search not in (None, "random"):
            raise ConfigError(f"does not go with --search {search}", key="--random")
        method = search or ("random" if random is not None else "grid")
        count = random if random is not None else trials
        if method == "grid":
            if count is not None:
                raise ConfigError("a grid has no trials; use --search tpe", key="--trials")
            return cls("grid", None, seed, False, metric)
        if random is not None and trials is not None:
            raise ConfigError("--random N says it already", key="--trials")
        if count is None:
            raise ConfigError(f"--search {method} needs --trials N", key="--trials")
        if count < 1:
            key = "--random" if random is not None else "--trials"
            raise ConfigError(f"got {count}; use a number >= 1", key=key)
        return cls(method, count, seed, halves and method == "tpe", metric)

    def plain(self, metric: str) -> dict[str, Any]:
        """Return it as plain values, by which two sweeps can be told apart."""
        facts: dict[str, Any] = {"method": self.method, "metric": metric}
        if self.method != "grid":
            facts |= {"count": self.count, "search_seed": self.seed}
        if self.method == "tpe":
            facts["halving"] = self.halves
        return facts


def run_sweep(
    arguments: Sequence[str],
    out: Path | None,
    search: Search,
    *,
    target: Target | None = None,
    jobs: int | None = None,
    retry: bool = False,
    stream: TextIO | None = None,
) -> Outcome:
    """Run a sweep, or go on with one.

    Args:
        arguments: a TOML file, then `key=values` words; none where `out` is a sweep to go on with.
        out: its folder; None makes a new one in `runs/`.
        search: which points are run.
        target: a value to be reached, for the tables; not part of the sweep.
        jobs: runs at once; None: as many as there are cores.
        retry: run again what failed in an earlier call.
        stream: where progress is shown; None: nowhere.

    Raises:
        ConfigError: bad input; nothing was started.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.
    """
    if not arguments and out is not None and (out / BOOK_FILE).is_file():
        arguments, search = _recorded(out, search)
    path, words = split_arguments(arguments)
    space = read_space(words)
    design = Design(path, space)
    check_jobs(jobs, available_cores())
    tasks: list[Task] | None = None
    if search.method == "grid":
        tasks = design.tasks(space.grid())
    elif search.method == "random":
        assert search.count is not None
        tasks = design.tasks(space.random(search.count, search.seed))
    else:
        import_optuna()
        if not space.dimensions:
            raise ConfigError("nothing is varied: give a key several values", key="--search tpe")
        design.check_ends()
    metric = design.metric(search.metric)
    definition = {"kind": "sweep", **search.plain(metric), **design.plain()}
    directory = out or default_directory("runs", ["sweep", *_words(design, tasks)])
    with Book(directory, definition, arguments) as book:
        if tasks is not None:
            source: Source = Listing(tasks)
        else:
            assert search.count is not None
            source = Tuner(
                design,
                book,
                metric,
                search.count,
                search.seed,
                search.halves,
                jobs or available_cores(),
            )
        return run_all(book, source, metric, target, search.method != "grid", jobs, retry, stream)


def run_all(
    book: Book,
    source: Source,
    metric: str,
    target: Target | None,
    is_ranked: bool,
    jobs: int | None,
    retry: bool,
    stream: TextIO | None,
) -> Outcome:
    """Run what a source names, and write what it came to; also where it is interrupted."""
    try:
        with Watch(book, lambda: source.total, stream) as watch:
            drive(book, source, watch, jobs, retry)
    except InterruptedRunError:
        write_results(book, metric, target, is_ranked, "interrupted")
        raise
    failed = any(state.status == "failed" for state in book.states.values())
    return write_results(book, metric, target, is_ranked, "failed" if failed else "completed")


def _recorded(out: Path, search: Search) -> tuple[list[str], Search]:
    """Return the words and the search of a sweep that is to go on."""
    book = read_book(out)
    held = book["definition"]
    if held.get("kind") != "sweep":
        raise ConfigError(f"{out} holds an {held.get('kind')}; use fedopt {held.get('kind')}")
    return list(book["arguments"]), Search(
        held["method"],
        held.get("count"),
        held.get("search_seed", 0),
        held.get("halving", False),
        held["metric"],
    )


def _words(design: Design, tasks: list[Task] | None) -> list[str]:
    return [key.rpartition(".")[2] for key in design.space.keys[:3]] or [design.base.strategy.name]
