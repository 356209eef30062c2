"""One study from its name to its page; `fedopt reproduce` is a thin cover of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from fedopt.analysis.sections import Section
from fedopt.analysis.store import SUMMARY_FILE, default_directory, to_json
from fedopt.analysis.units import human_seconds
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError, RunError
from fedopt.run_lock import RunLock
from fedopt.studies.catalogue import study_of
from fedopt.studies.page import Checked, bill_of, check_claims, sections_of, write_study
from fedopt.studies.results import Outcome, Results
from fedopt.studies.runner import Record, Store, run_tasks
from fedopt.studies.study import Arm
from fedopt.studies.tasks import Form, RunTask, Schedule, quick, whole, worst
from fedopt.sweep.children import available_cores, check_jobs

NAME_FILE = "study.json"


@dataclass(frozen=True)
class Reproduction:
    """A study that was run.

    Args:
        directory: where all of it lies.
        results: its runs.
        checked: its claims.
        tables: what is printed.
        files: that were written.
        bill: what the runs cost.
        failed: a run that failed -> why.
    """

    directory: Path
    results: Results
    checked: Checked
    tables: Sequence[Section]
    files: Sequence[Path]
    bill: str
    failed: dict[str, str]

    @property
    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        study = self.results.study
        return {
            "study": study.name,
            "form": "quick" if self.results.form.is_quick else "full",
            "status": "failed" if self.failed else "completed",
            "seeds": list(study.seeds),
            "claims": [
                {"claim": claim.text, "paper": claim.paper, **asdict(finding)}
                for claim, finding in self.checked
            ],
            "tables": {section.name: list(section.data) for section in self.tables[1:]},
            "failed": self.failed,
            "run_dir": str(self.directory),
        }


def reproduce(
    name: str,
    out: Path | None = None,
    *,
    is_quick: bool = False,
    seeds: int | None = None,
    jobs: int | None = None,
    pages: Path | None = None,
    stream: TextIO | None = None,
) -> Reproduction:
    """Run a study, or go on with one, and write down what came of it.

    Args:
        name: of the study.
        out: its folder; that of the same study goes on; None makes a new one in `runs/`.
        is_quick: run the quick form.
        seeds: how many are reported, >= 2; None: as the study says.
        jobs: runs at once; None: one a core.
        pages: a folder that gets the page, its tables and its figures as well.
        stream: where progress is shown; None: nowhere.

    Raises:
        ConfigError: bad input, or data are not there; nothing was started.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.
        RunError: so many runs failed that nothing can be said.
    """
    study = study_of(name)
    if seeds is not None and (is_quick or seeds < 2):
        says = "--quick has its own" if is_quick else "an interval needs at least 2"
        raise ConfigError(f"got {seeds}; {says}", key="--seeds")
    form = quick(study) if is_quick else whole(study, seeds)
    if study.needs is not None:
        study.needs()
    limit = check_jobs(jobs, available_cores())
    directory = out or default_directory("runs", ["reproduce", study.slug])
    _check_folder(directory, form)
    directory.mkdir(parents=True, exist_ok=True)
    lock = RunLock(directory)
    try:
        write_atomically(directory / NAME_FILE, to_json(_identity(form)).encode())
        return _run(form, directory, limit, pages, stream)
    finally:
        lock.release()


def _run(
    form: Form, directory: Path, jobs: int, pages: Path | None, stream: TextIO | None
) -> Reproduction:
    store = Store(directory / "runs")
    failed: dict[str, str] = {}
    ended: dict[str, tuple[RunTask, Record]] = {}

    def score(arm: Arm, runs: Sequence[RunTask]) -> float:
        tuning = form.study.tuning
        assert tuning is not None
        values = []
        for task in runs:
            record = ended[task.name][1]
            value = tuning.by.of(store.history(task), arm) if record.status == "completed" else None
            values.append(worst(tuning.by.better) if value is None else value)
        return math.fsum(values) / len(values)

    schedule = Schedule(form, score)
    watch = _Watch(schedule, jobs, stream)
    watch.begin(form)

    def note(task: RunTask, record: Record, is_kept: bool) -> None:
        if record.status == "failed":
            failed[f"{task.label}, seed {task.seed}"] = record.error
        watch.ended(task, record, is_kept)

    class Noted:
        """The schedule, with each run's record kept before what depends on it is decided."""

        def next(self) -> RunTask | None:
            return schedule.next()

        def ended(self, task: RunTask) -> None:
            record = store.record(task)
            assert record is not None
            ended[task.name] = task, record
            schedule.ended(task)

    run_tasks(form, Noted(), store, jobs, note)
    outcomes = {
        key: Outcome(task, ended[task.name][1], store.history(task))
        for key, task in schedule.reported().items()
        if task.name in ended and ended[task.name][1].status != "failed"
    }
    if not outcomes:
        first = next(iter(failed.items()), ("", ""))
        raise RunError(f"every run failed; the first, {first[0]}: {first[1]}")
    results = Results(form, outcomes, schedule.chosen, schedule.scores)
    checked = check_claims(results)
    bill = bill_of(len(ended), math.fsum(record.seconds for _, record in ended.values()))
    files = write_study(results, checked, bill, directory)
    if pages is not None:
        write_study(results, checked, bill, pages)
    made = Reproduction(
        directory, results, checked, sections_of(results, checked), files, bill, failed
    )
    write_atomically(directory / SUMMARY_FILE, to_json(made.summary).encode())
    return made


class _Watch:
    """Says how a study goes: a line a run, and about how long it will take."""

    def __init__(self, schedule: Schedule, jobs: int, stream: TextIO | None) -> None:
        self._schedule, self._jobs, self._stream = schedule, jobs, stream
        self._done = self._made = 0
        self._began = time.monotonic()

    def begin(self, form: Form) -> None:
        """Say what is to come."""
        took = form.study.seconds[1 if form.is_quick else 0]
        known = ""
        if math.isfinite(took):
            wall = human_seconds(took / self._jobs)
            known = f"; about {wall} at {self._jobs} at once, as fast as where it was measured"
        self._say(f"{form.study.name}: {self._schedule.total} runs{known}")

    def ended(self, task: RunTask, record: Record, is_kept: bool) -> None:
        """Say how a run ended."""
        self._done += 1
        total = max(self._schedule.total, self._done)
        words = f"[{self._done}/{total}] {task.label}, seed {task.seed}: {record.status}"
        if is_kept:
            words += " before"
        else:
            self._made += 1
            took = record.seconds
            words += f" in {human_seconds(took) if took >= 10 else f'{took:.1f} s'}"
            each = (time.monotonic() - self._began) / self._made
            words += f"; about {human_seconds(each * (total - self._done))} left"
        if record.error:
            words += f": {record.error.splitlines()[0]}"
        self._say(words)

    def _say(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text + "\n")
            self._stream.flush()


def _identity(form: Form) -> dict[str, Any]:
    return {"study": form.study.name, "form": "quick" if form.is_quick else "full"}


def _check_folder(directory: Path, form: Form) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ConfigError: it does.
    """
    path = directory / NAME_FILE
    if not directory.exists() or not any(directory.iterdir()):
        return
    try:
        held = path.read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(
            f"{directory} is not empty, and not the folder of a study.", key="--out"
        ) from None
    if held != to_json(_identity(form)):
        raise ConfigError(f"{directory} holds another study: {held.strip()}.", key="--out")
