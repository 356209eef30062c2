"""What is written of a study: tables, claims, curves, figures, and the page that tells it all.

results.csv   a line a run that counts: its numbers
tuning.csv    a line an alternative that was tried: its score
claims.csv    a line a claim
*.png, *.csv  the figures, and what each shows
NAME.md       the page
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedopt.analysis.curves import Settings, column_panel, look_of
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.plots import Plot, panel_plot
from fedopt.analysis.sections import Section
from fedopt.analysis.targets import Target
from fedopt.analysis.units import human_seconds
from fedopt.atomic import write_atomically
from fedopt.errors import unwritable
from fedopt.studies.results import Results
from fedopt.studies.study import Claim, Drawing, Finding, Measure
from fedopt.studies.tasks import worst

Checked = Sequence[tuple[Claim, Finding]]


def check_claims(results: Results) -> Checked:
    """Return each claim of a study with what came of it."""
    return [(claim, claim.check(results)) for claim in results.study.claims]


Part = tuple[Results, Checked]
"""A study's results with its claims; the first is the study itself, others follow from it."""


def sections_of(results: Results, checked: Checked) -> list[Section]:
    """Return the tables: claims, then each measure by arm and condition."""
    tables = [_measure_section(results, measure) for measure in results.study.measures]
    return [_claims_section(checked), *tables] if checked else tables


def write_study(
    parts: Sequence[Part],
    bill: str,
    directory: Path,
    left_out: Sequence[str] = (),
    pages: Path | None = None,
) -> list[Path]:
    """Write the page, its tables and its figures; each file in one step.

    Args:
        parts: the study, then what follows from it.
        bill: what the runs cost, a sentence.
        directory: where to; made if need be.
        left_out: what was not run, and why.
        pages: a folder that gets the page as well, NAME.md, and the rest in its folder NAME; made
            if need be.

    Returns:
        The files in `directory`.

    Raises:
        RunError: one cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    texts: dict[str, str] = {}
    shown: list[list[Drawing]] = []
    for number, (results, checked) in enumerate(parts):
        behind = "" if number == 0 else "_after"
        frames = {
            f"results{behind}.csv": pd.DataFrame(_result_rows(results)),
            f"tuning{behind}.csv": pd.DataFrame(_tuning_rows(results)),
            f"claims{behind}.csv": pd.DataFrame(_claim_rows(checked)),
        }
        texts |= {
            file: frame.to_csv(index=False, quoting=csv.QUOTE_MINIMAL)
            for file, frame in frames.items()
            if len(frame)
        }
        drawn = []
        for drawing in results.study.drawings:
            plot = _figure(results, drawing)
            if plot is not None:
                files += plot.save(directory / f"{drawing.name}.png", with_data=True)
                drawn.append(drawing)
        shown.append(drawn)
    for file, text in texts.items():
        files.append(directory / file)
        _write(files[-1], text.encode())
    slug, tables = parts[0][0].study.slug, list(texts)
    if pages is not None:
        (pages / slug).mkdir(parents=True, exist_ok=True)
        for path in files:
            _write(pages / slug / path.name, path.read_bytes())
        page = _page(parts, bill, shown, tables, left_out, f"{slug}/")
        _write(pages / f"{slug}.md", page.encode())
    files.append(directory / f"{slug}.md")
    _write(files[-1], _page(parts, bill, shown, tables, left_out, "").encode())
    return files


def _write(path: Path, payload: bytes) -> None:
    try:
        write_atomically(path, payload)
    except OSError as error:
        raise unwritable(path, error) from error


# Tables -----------------------------------------------------------------------------------------


def _claims_section(checked: Checked) -> Section:
    rows = _claim_rows(checked)
    return Section(
        "claims",
        "claims",
        ["claim", "paper", "here", "verdict"],
        [[row["claim"], row["paper"] or "-", row["here"], row["verdict"]] for row in rows],
        rows,
        left=["claim", "paper", "here", "verdict"],
    )


def _measure_section(results: Results, measure: Measure) -> Section:
    study = results.study
    conditions = [
        c for c in study.conditions if any(results.has(c.name, a.name) for a in study.arms)
    ]
    arms = [a for a in study.arms if any(results.has(c.name, a.name) for c in conditions)]
    data: list[dict[str, Any]] = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm.name}
        for condition in conditions:
            is_there = results.has(condition.name, arm.name)
            text = results.cell(condition.name, arm.name, measure) if is_there else ""
            row[condition.name] = text
        data.append(row)
    table = pd.DataFrame(data).set_index("arm")
    if len(conditions) > len(arms):  # a table that is long is easier to read than one that is wide
        table = table.T.rename_axis("condition")
    way = f"; {measure.better} is better" if measure.better else ""
    n = len(study.seeds)
    notes = [
        f"mean over {n} seeds ± half of the 95 % interval of Student's t" if n > 1 else "one seed"
    ]
    return Section(
        measure.name,
        f"{measure.name}{way}",
        [str(table.index.name), *table.columns],
        table.reset_index().to_numpy().tolist(),
        data,
        notes,
        left=[str(table.index.name)],
    )


def _result_rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for (condition, arm, seed), outcome in results.outcomes.items():
        row: dict[str, Any] = {"condition": condition, "arm": arm, "seed": seed}
        row["chosen"] = " ".join(results.chosen[condition, arm])
        row["status"] = outcome.record.status
        for measure in results.study.measures:
            row[measure.name] = results.value(condition, arm, measure.name, seed)
        row["cpu_seconds"] = round(outcome.record.seconds, 1)
        row["model_sha256"] = outcome.record.model_sha256
        rows.append(row)
    return rows


def _tuning_rows(results: Results) -> list[dict[str, Any]]:
    tuning = results.study.tuning
    if tuning is None:
        return []
    return [
        {
            "condition": condition,
            "arm": arm,
            "rung": rung + 1,
            "alternative": " ".join(point),
            tuning.by.name: None if score == worst(tuning.by.better) else score,
            "chosen": point == results.chosen.get((condition, arm)),
        }
        for (condition, arm, rung), scores in results.scores.items()
        for point, score in scores.items()
    ]


def _claim_rows(checked: Checked) -> list[dict[str, str]]:
    return [
        {
            "claim": claim.text,
            "paper": claim.paper,
            "here": finding.here,
            "verdict": finding.verdict,
        }
        for claim, finding in checked
    ]


# Figures ----------------------------------------------------------------------------------------


def _figure(results: Results, drawing: Drawing) -> Plot | None:
    """Return a figure; None where nothing that it shows was run."""
    study = results.study
    arms = [a for a in study.arms if not drawing.arms or a.name in drawing.arms]
    looks = {arm.name: look_of(place, len(arms)) for place, arm in enumerate(arms)}
    target = None if drawing.target is None else Target(drawing.metric, drawing.target)
    panels = []
    for condition in study.conditions:
        if drawing.conditions and condition.name not in drawing.conditions:
            continue
        groups = []
        for arm in arms:
            if not results.has(condition.name, arm.name):
                continue
            outcomes = [results.outcomes[condition.name, arm.name, s] for s in study.seeds]
            frames = [arm.shown(outcome.history, drawing.metric) for outcome in outcomes]
            if all(_is_measured(frame, drawing.metric) for frame in frames):
                runs = tuple(StoredRun(arm.name, frame, {}, None) for frame in frames)
                groups.append(Group(arm.name, runs, is_counted=False))
        if groups:
            panel = column_panel(
                drawing.metric, groups, Settings(drawing.x, 1, target), looks=looks
            )
            panels.append(dataclasses.replace(panel, title=condition.name))
    if not panels:
        return None
    if len(panels) > 1:  # the legend is of all panels: where a target is reached is each one's own
        panels = [
            dataclasses.replace(
                panel,
                lines=tuple(dataclasses.replace(line, note="") for line in panel.lines),
            )
            for panel in panels
        ]
    n = len(study.seeds)
    notes = f"mean over {n} seeds with a 95 % band" if n > 1 else ""
    return panel_plot(panels, drawing.x, notes=notes)


def _is_measured(frame: pd.DataFrame, metric: str) -> bool:
    return metric in frame and bool(frame[metric].notna().any())


# The page ---------------------------------------------------------------------------------------


def _page(
    parts: Sequence[Part],
    bill: str,
    shown: Sequence[Sequence[Drawing]],
    tables: Sequence[str],
    left_out: Sequence[str],
    folder: str,
) -> str:
    """Return the page as Markdown; `folder` is that of the files it links to, with a slash."""
    (results, checked), later = parts[0], parts[1:]
    study = results.study
    out = io.StringIO()

    def say(text: str = "") -> None:
        out.write(text + "\n")

    def show(results: Results, drawings: Sequence[Drawing]) -> None:
        for measure in results.study.measures:
            say(_measure_section(results, measure).markdown())
        for drawing in drawings:
            say(f"![{drawing.caption}]({folder}{drawing.name}.png)\n")
            say(f"{drawing.caption}. [Data]({folder}{drawing.name}.csv).\n")

    say(f"# {study.title}\n")
    say(f"Source: {study.source}.\n")
    say(study.question.strip() + "\n")
    if results.form.is_quick:
        say("This is the quick form: fewer rounds and seeds. It shows that the study works.\n")
    # Minutes to hours: not run by the tests of the documentation.
    say("<!-- not run: the full form takes long; tests/reproduce runs the quick one -->")
    say("```sh")
    say(f"fedopt reproduce {study.name}{' --quick' if results.form.is_quick else ''}")
    say("```\n")
    say("## What came of it\n")
    if study.reading and not results.form.is_quick:
        say(study.reading.strip() + "\n")
    say(_claims_section(checked).markdown())
    say("## What is not as in the paper\n")
    for point in (*study.differs, *(f"{line}." for line in left_out)):
        say(f"- {point}")
    say("\n## Results\n")
    show(results, shown[0])
    for (after, _), drawings in zip(later, shown[1:], strict=True):
        say("## What follows from it\n")
        show(after, drawings)
        say(_words_table(after))
    if any(len(point) for point in results.chosen.values()):
        say("## What was chosen\n")
        say(_chosen_table(results))
    say("## Set-up\n")
    say("```toml")
    say(study.base.strip())
    say("```\n")
    say(_words_table(results))
    tuned = study.tuning
    chosen_on = "" if tuned is None else f"; alternatives are chosen on {_seeds(tuned.seeds)}"
    say(f"Seeds: {_seeds(study.seeds)}{chosen_on}.\n")
    say(f"{bill} Made with {_versions()}.\n")
    say("Tables: " + ", ".join(f"[{name}]({folder}{name})" for name in tables) + ".")
    return out.getvalue()


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _chosen_table(results: Results) -> str:
    """Return which alternative each arm has in each condition."""
    study = results.study
    lines = ["| condition | arm | chosen | score |", "| :-- | :-- | :-- | --: |"]
    for (condition, arm), point in results.chosen.items():
        if not point:
            continue
        rungs = [r for c, a, r in results.scores if (c, a) == (condition, arm)]
        score = ""
        if rungs and study.tuning:
            value = results.scores[condition, arm, max(rungs)].get(point, math.nan)
            score = format(value, study.tuning.by.form)
        lines.append(f"| {condition} | {arm} | `{' '.join(point)}` | {score} |")
    by = f"\nScore: {study.tuning.by.name}, mean over the tuning seeds.\n" if study.tuning else ""
    return "\n".join(lines) + "\n" + by


def _words_table(results: Results) -> str:
    """Return the words of each condition and arm."""
    study = results.study
    lines = ["| | | words |", "| :-- | :-- | :-- |"]
    for kind, things in (("condition", study.conditions), ("arm", study.arms)):
        for thing in things:
            words = f"`{' '.join(thing.words)}`" if thing.words else "none"
            lines.append(f"| {kind} | {thing.name} | {words} |")
    if results.form.words:
        lines.append(f"| all | quick form | `{' '.join(results.form.words)}` |")
    return "\n".join(lines) + "\n"


def _versions() -> str:
    import torch

    import fedopt

    python = platform.python_version()
    return f"fedopt {fedopt.__version__}, torch {torch.__version__}, Python {python}"


def bill_of(runs: int, seconds: float) -> str:
    """Return what runs cost as a sentence."""
    return f"{runs} runs took {human_seconds(seconds)} of processor time."
