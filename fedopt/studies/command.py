"""One study from its name to its page; `fedopt reproduce` is a thin cover of it."""

from __future__ import annotations

import dataclasses
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
            "tables": {s.title: list(s.data) for s in self.tables if s.name != "claims"},
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
        pages: a folder that gets the page as well, and its tables and figures in a folder there.
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
    if study.needs is not None:
        study.needs()
    form, left_out = _with_data(quick(study) if is_quick else whole(study, seeds))
    limit = check_jobs(jobs, available_cores())
    directory = out or default_directory("runs", ["reproduce", study.slug])
    _check_folder(directory, form)
    directory.mkdir(parents=True, exist_ok=True)
    lock = RunLock(directory)
    try:
        write_atomically(directory / NAME_FILE, to_json(_identity(form)).encode())
        return _reproduced(form, directory, limit, pages, stream, left_out)
    finally:
        lock.release()


def _with_data(form: Form) -> tuple[Form, list[str]]:
    """Return a form without the conditions whose data are not there, and why they are not.

    Raises:
        ConfigError: no condition is left.
    """
    kept = []
    missing: dict[str, list[str]] = {}
    for condition in form.study.conditions:
        try:
            if condition.needs is not None:
                condition.needs()
            kept.append(condition)
        except ConfigError as error:
            missing.setdefault(str(error), []).append(condition.name)
    if not kept:
        raise ConfigError("; ".join(missing), key="study")
    left_out = [
        f"{names[0] if len(names) == 1 else f'{len(names)} conditions ({names[0]} and others)'} "
        f"left out: {why}"
        for why, names in missing.items()
    ]
    study = dataclasses.replace(form.study, conditions=tuple(kept))
    return dataclasses.replace(form, study=study), left_out


def _reproduced(
    form: Form,
    directory: Path,
    jobs: int,
    pages: Path | None,
    stream: TextIO | None,
    left_out: Sequence[str],
) -> Reproduction:
    """Run a study and what follows from it, and write down what came of them."""
    store = Store(directory / "runs")
    runs = _Runs(form, store, jobs, stream)
    for line in left_out:
        runs.watch.say(line)
    results = runs.run()
    checked = check_claims(results)
    parts = [(results, checked)]
    follow_up = form.study.follow_up
    later = follow_up(results) if follow_up is not None else None
    if later is not None:
        after = _Runs(dataclasses.replace(form, study=later), store, jobs, stream)
        parts.append((after.run(), ()))
        runs.ended |= after.ended
        runs.failed |= after.failed
    seconds = math.fsum(record.seconds for _, record in runs.ended.values())
    bill = bill_of(len(runs.ended), seconds)
    files = write_study(parts, bill, directory, left_out, pages)
    tables = [section for part in parts for section in sections_of(*part)]
    made = Reproduction(directory, results, checked, tables, files, bill, runs.failed)
    write_atomically(directory / SUMMARY_FILE, to_json(made.summary).encode())
    return made


class _Runs:
    """The runs of a form: which there are, how they ended."""

    def __init__(self, form: Form, store: Store, jobs: int, stream: TextIO | None) -> None:
        self._form, self._store, self._jobs = form, store, jobs
        self.ended: dict[str, tuple[RunTask, Record]] = {}
        self.failed: dict[str, str] = {}
        self.schedule = Schedule(form, self._score)
        self.watch = _Watch(self.schedule, jobs, stream)

    def run(self) -> Results:
        """Run what is not in the store, and return all of it.

        Raises:
            RunError: every run failed.
            InterruptedRunError: Ctrl-C or SIGTERM.
        """
        self.watch.begin(self._form)
        run_tasks(self._form, self.schedule, self._store, self._jobs, self._note)
        outcomes = {
            key: Outcome(task, self.ended[task.name][1], self._store.history(task))
            for key, task in self.schedule.reported.items()
            if task.name in self.ended and self.ended[task.name][1].status != "failed"
        }
        if not outcomes:
            name, why = next(iter(self.failed.items()), ("none", "there is none"))
            raise RunError(f"every run failed; the first, {name}: {why}")
        return Results(self._form, outcomes, self.schedule.chosen, self.schedule.scores)

    def _note(self, task: RunTask, record: Record, is_kept: bool) -> None:
        self.ended[task.name] = task, record
        if record.status == "failed":
            self.failed[f"{task.label}, seed {task.seed}"] = record.error
        self.watch.ended(task, record, is_kept)

    def _score(self, arm: Arm, runs: Sequence[RunTask]) -> float:
        """Return the mean of the tuning measure; the worst there is where a run has none."""
        tuning = self._form.study.tuning
        assert tuning is not None
        values = []
        for task in runs:
            is_whole = self.ended[task.name][1].status == "completed"
            value = tuning.by.of(self._store.history(task), arm) if is_whole else None
            values.append(worst(tuning.by.better) if value is None else value)
        return math.fsum(values) / len(values)


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
        self.say(f"{form.study.name}: {self._schedule.total} runs{known}")

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
        self.say(words)

    def say(self, text: str) -> None:
        """Write a line."""
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
