"""One ablation from words to results; `fedopt ablate` is a thin cover of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from fedopt.analysis.comparison import Comparison, comparison
from fedopt.analysis.comparison_tables import group_records, groups_section
from fedopt.analysis.plots import convergence_plot
from fedopt.analysis.sections import Section
from fedopt.analysis.store import SUMMARY_FILE, default_directory, to_json
from fedopt.analysis.targets import Target
from fedopt.config import split_arguments
from fedopt.errors import ConfigError
from fedopt.interruption import InterruptedRunError
from fedopt.sweep.ablation import (
    BASELINE,
    WHOLE,
    Effect,
    Variants,
    default_target,
    delivered,
    effect_record,
    effects_of,
    effects_section,
    variants_of,
)
from fedopt.sweep.book import Book, State, Task
from fedopt.sweep.children import available_cores, check_jobs
from fedopt.sweep.drive import drive
from fedopt.sweep.effect_plots import effect_plot
from fedopt.sweep.plan import Design, Listing
from fedopt.sweep.results import (
    MOST_CURVES,
    Bill,
    add_up,
    failures_of,
    histories_of,
    point_groups,
    run_record,
    write_page,
)
from fedopt.sweep.space import read_space
from fedopt.sweep.techniques import names_of, read_instead
from fedopt.sweep.watch import Watch


@dataclass(frozen=True)
class Ablation:
    """What an ablation came to.

    Args:
        directory: its folder.
        tables: for people.
        bill: of all runs.
        states: of all runs, by name.
        summary: the contents of `summary.json`.
        notes: what has to be said besides.
    """

    directory: Path
    tables: tuple[Section, ...]
    bill: Bill
    states: dict[str, State]
    summary: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def failures(self) -> dict[str, State]:
        """The runs that failed."""
        return {name: state for name, state in self.states.items() if state.status == "failed"}


def run_ablation(
    arguments: Sequence[str],
    out: Path | None,
    *,
    seeds: int = 5,
    target: Target | None = None,
    metric: str | None = None,
    instead: Sequence[str] = (),
    jobs: int | None = None,
    retry: bool = False,
    stream: TextIO | None = None,
) -> Ablation:
    """Run an ablation, or go on with one.

    Args:
        arguments: a TOML file, then `key=value` words: the recipe.
        out: its folder; None makes a new one in `runs/`.
        seeds: repetitions: the recipe's seed and those that follow it, >= 1.
        target: whose rounds are counted; None: what the baseline ends with.
        metric: that is compared; None: that of the target, or by what is measured.
        instead: `key=value` words for what is absent, in place of the defaults.
        jobs: runs at once; None: as many as there are cores.
        retry: run again what failed in an earlier call.
        stream: where progress is shown; None: nowhere.

    Raises:
        ConfigError: bad input; nothing was started.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.
    """
    if seeds < 1:
        raise ConfigError(f"got {seeds}; use a number >= 1", key="--seeds")
    path, words = split_arguments(arguments)
    space = read_space(words)
    if space.dimensions or len(space.seeds) > 1:
        key = space.keys[0] if space.keys else "seed"
        hint = "--seeds N says how often" if key == "seed" else "use fedopt sweep for that"
        raise ConfigError(f"an ablation takes one value a key; {hint}", key=key)
    design = Design(path, space)
    metric = design.metric(metric or (target.metric if target else None))
    check_jobs(jobs, available_cores())
    replaced = read_instead(read_space(instead))
    variants = variants_of(design.base, replaced)
    tasks = _tasks(variants, design.base.seed, seeds)
    definition = {"kind": "ablation", "seeds": seeds, "instead": list(instead), **design.plain()}
    definition["seeds"] = [task.seed for task in tasks if task.label == WHOLE]
    definition["techniques"] = [technique.name for technique in variants.techniques]
    directory = out or default_directory("runs", ["ablation", design.base.strategy.name])
    with Book(directory, definition, arguments) as book:
        source = Listing(tasks)
        if stream is not None:
            stream.write(
                f"{len(variants.techniques)} techniques: {names_of(variants.techniques)}; "
                f"{len(variants.configs)} variants, {len(tasks)} runs\n"
            )
        try:
            with Watch(book, lambda: source.total, stream) as watch:
                drive(book, source, watch, jobs, retry)
        except InterruptedRunError:
            write_ablation(book, variants, metric, target, "interrupted")
            raise
        failed = any(state.status == "failed" for state in book.states.values())
        status = "failed" if failed else "completed"
        return write_ablation(book, variants, metric, target, status)


def write_ablation(
    book: Book, variants: Variants, metric: str, target: Target | None, status: str
) -> Ablation:
    """Write what an ablation came to so far: tables, figures, `summary.json`."""
    histories = histories_of(book)
    rows = [
        run_record(name, state, histories.get(name), metric) for name, state in book.states.items()
    ]
    book.write("results.csv", pd.DataFrame(rows).to_csv(index=False))
    bill = add_up(list(histories.values()))
    groups = [delivered(g, variants.configs[g.label]) for g in point_groups(book)]
    labels = [group.label for group in groups]
    notes = [f"{label} is not allowed: {why}" for label, why in variants.refused.items()]
    tables: list[Section] = []
    effects: list[Effect] = []
    found: Comparison | None = None
    if BASELINE in labels:
        is_given = target is not None
        if target is None:
            target = default_target(comparison(groups, [metric]), metric)
        found = comparison(groups, [metric], target, BASELINE)
        effects = effects_of(found, variants, metric)
        goal = f"{target.value:g}" + ("" if is_given else ", which the baseline ends with")
        title = f"what each technique brings; target: {metric.replace('_', ' ')} {goal}"
        tables = [effects_section(effects, metric, target, title)]
        means = groups_section(found, ("rounds", "bytes", "client_gradients"))
        tables += [means] if means is not None else []
        if any(config.server_swa.is_on for config in variants.configs.values()):
            notes.append("test metrics are those of the averaged model once server.swa has one")
        book.write("ablation.csv", pd.DataFrame(map(effect_record, effects)).to_csv(index=False))
        book.write("points.csv", pd.DataFrame(group_records(found)).to_csv(index=False))
        effect_plot(effects, metric, target).save(book.directory / "effects.png")
        _draw_curves(book, found, metric, target)
    summary = {
        "kind": "ablation",
        "status": status,
        "sweep_dir": str(book.directory),
        "metric": metric,
        "target": str(target) if found is not None else None,
        "techniques": [technique.name for technique in variants.techniques],
        "same_as": dict(variants.same_as),
        "refused": dict(variants.refused),
        "effects": [effect_record(effect) for effect in effects],
        "points": group_records(found) if found is not None else [],
        "failed": failures_of(book),
        "bill": bill.facts(),
    }
    outcome = Ablation(
        book.directory, tuple(tables), bill, dict(book.states), summary, tuple(notes)
    )
    book.write("ablation.md", _markdown(outcome))
    book.write(SUMMARY_FILE, to_json(summary))
    if found is not None:
        write_page(book, target)
    return outcome


def _tasks(variants: Variants, first: int, seeds: int) -> list[Task]:
    tasks = []
    for trial, (label, config) in enumerate(variants.configs.items()):
        for seed in range(first, first + seeds):
            slug = re.sub(r"[^A-Za-z0-9.]+", "-", label)
            seeded = replace(config, run=config.run.model_copy(update={"seed": seed}))
            values = {"variant": label, "seed": seed}
            tasks.append(Task(f"{trial:02d}_{slug}_seed-{seed}", label, values, seeded, trial))
    return tasks


def _draw_curves(book: Book, found: Comparison, metric: str, target: Target) -> None:
    """Draw the whole, the baseline and the whole without each technique."""
    first = [group for group in found.groups if group.label in (WHOLE, BASELINE)]
    others = [group for group in found.groups if group.label.startswith("without ")]
    shown = [*first, *others][:MOST_CURVES]
    metrics = [] if metric in ("test_accuracy", "test_loss") else [metric]
    plot = convergence_plot(shown, metrics=metrics, target=target)
    plot.save(book.directory / "convergence.png")


def _markdown(outcome: Ablation) -> str:
    lines = [f"# {outcome.directory.resolve().name}\n"]
    lines += [section.markdown() for section in outcome.tables]
    lines += [f"{note[:1].upper()}{note[1:]}.\n" for note in outcome.notes]
    lines.append(f"The bill of all runs: {outcome.bill.text()}.\n")
    if outcome.failures:
        lines.append("Failed:\n")
        for name, state in outcome.failures.items():
            lines.append(f"- `{name}`: {state.error.splitlines()[0] if state.error else '?'}")
        lines.append("")
    return "\n".join(lines)
