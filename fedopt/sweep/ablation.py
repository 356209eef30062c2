"""What each technique of a recipe brings: the whole, without each, each alone, and none.

Effects are differences of runs of the same seed: of the whole to the whole without a technique, and
of a technique alone to the baseline. Where the server averages models (`server.swa`), the averaged
model is what the run delivers, and is what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fedopt.analysis.columns import TEST_METRICS
from fedopt.analysis.comparison import Comparison, Difference, RunRow, difference, value_of
from fedopt.analysis.comparison_tables import amount
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.paired import paired_interval
from fedopt.analysis.sections import Section
from fedopt.analysis.targets import COSTS, Target, is_higher_better
from fedopt.config import Config
from fedopt.errors import ConfigError
from fedopt.sweep.techniques import Technique, names_of, techniques_of, without

WHOLE, BASELINE = "whole", "baseline"
IN_WHOLE, ALONE, TOGETHER, INTERACTION = "in the whole", "alone", "together", "interaction"
_COST_OF = {cost.name: cost for cost in COSTS}


@dataclass(frozen=True)
class Variants:
    """The configurations of an ablation.

    Args:
        techniques: that the recipe combines.
        configs: by label, each configuration once.
        same_as: label -> label of the equal configuration that is run in its place.
        refused: label -> why it is not allowed.
    """

    techniques: tuple[Technique, ...]
    configs: Mapping[str, Config]
    same_as: Mapping[str, str]
    refused: Mapping[str, str]

    def found(self, label: str) -> str | None:
        """Return the label under which a variant is run, None where it is refused."""
        return None if label in self.refused else self.same_as.get(label, label)


@dataclass(frozen=True)
class Effect:
    """What a technique brings in a quantity.

    Args:
        technique: its name, or `all`.
        role: `IN_WHOLE`, `ALONE`, `TOGETHER` (the whole to the baseline), or `INTERACTION`: what
            the whole has beyond the sum of what each brings alone.
        quantity: as in `fedopt.analysis.comparison.Difference`.
        difference: in pairs of equal seed; None where a variant was refused or failed.
    """

    technique: str
    role: str
    quantity: str
    difference: Difference | None


def variants_of(config: Config, instead: Mapping[str, Any]) -> Variants:
    """Return the variants of a recipe.

    Args:
        config: the recipe.
        instead: see `fedopt.sweep.techniques.without`.

    Raises:
        ConfigError: it uses no technique, or cannot do without any of them.
    """
    techniques = techniques_of(config)
    if not techniques:
        raise ConfigError(
            "the configuration uses no technique that could be left out: it is the baseline. Give "
            "one that combines some, such as local.sam.rho=0.05 local.schedule=one_cycle"
        )
    asked = {WHOLE: (), BASELINE: tuple(techniques)}
    asked |= {f"without {t.name}": (t,) for t in techniques}
    asked |= {f"only {t.name}": tuple(o for o in techniques if o is not t) for t in techniques}
    configs: dict[str, Config] = {}
    same_as: dict[str, str] = {}
    refused: dict[str, str] = {}
    for label, absent in asked.items():
        try:
            variant = without(config, absent, instead)
        except ConfigError as error:
            refused[label] = str(error)
            continue
        equal = [other for other, held in configs.items() if held == variant]
        if equal:
            same_as[label] = equal[0]
        else:
            configs[label] = variant
    if BASELINE in refused:
        raise ConfigError(
            f"without {names_of(techniques)} the configuration is not allowed: {refused[BASELINE]}"
        )
    return Variants(tuple(techniques), configs, same_as, refused)


def delivered(group: Group, config: Config) -> Group:
    """Return runs whose test metrics are those of the averaged model, where there is one."""
    if not config.server_swa.is_on:
        return group
    return replace(group, runs=tuple(_delivered(run) for run in group.runs))


def _delivered(run: StoredRun) -> StoredRun:
    columns: dict[str, pd.Series[float]] = {}
    for name in TEST_METRICS:
        averaged = run.history[f"swa_{name}"]
        columns[name] = averaged.where(averaged.notna(), run.history[name])
    return replace(run, history=run.history.assign(**columns))


def default_target(found: Comparison, metric: str) -> Target:
    """Return what the baseline ends with, the mean over its seeds, to four digits."""
    labels = [group.label for group in found.groups]
    mean = found.mean_of(labels.index(BASELINE), f"final {metric}")
    assert mean is not None
    step = 10.0 ** (math.floor(math.log10(abs(mean.mean) or 1.0)) - 3)
    rounding = math.floor if is_higher_better(metric) else math.ceil
    return Target(metric, float(f"{rounding(mean.mean / step) * step:.4g}"))


def effects_of(found: Comparison, variants: Variants, metric: str) -> list[Effect]:
    """Return what each technique brings in the final metric, and in the costs up to the target."""
    rows = {group.label: some for group, some in zip(found.groups, found.rows, strict=True)}
    quantities = [f"final {metric}", f"best {metric}", *(cost.name for cost in COSTS)]
    effects = []

    def of(label: str) -> Sequence[RunRow]:
        name = variants.found(label)
        return rows.get(name, ()) if name else ()

    for technique in variants.techniques:
        pairs = (
            (IN_WHOLE, WHOLE, f"without {technique.name}"),
            (ALONE, f"only {technique.name}", BASELINE),
        )
        for role, one, other in pairs:
            effects += [
                Effect(technique.name, role, q, difference(technique.name, of(one), of(other), q))
                for q in quantities
            ]
    effects += [
        Effect("all", TOGETHER, q, difference("all", of(WHOLE), of(BASELINE), q))
        for q in quantities
    ]
    if len(variants.techniques) > 1:
        alone = [of(f"only {technique.name}") for technique in variants.techniques]
        effects += [
            Effect("all", INTERACTION, q, _interaction(of(WHOLE), of(BASELINE), alone, q))
            for q in quantities
        ]
    return effects


def _interaction(
    whole: Sequence[RunRow],
    baseline: Sequence[RunRow],
    alone: Sequence[Sequence[RunRow]],
    quantity: str,
) -> Difference | None:
    """Return what the whole has beyond the baseline and the sum of what each brings alone.

    (whole - baseline) - sum_t (only t - baseline),   seed by seed
    """
    tables = [
        {row.seed: value_of(row, quantity) for row in some} for some in (whole, baseline, *alone)
    ]
    if not all(tables):
        return None
    seeds = [seed for seed in tables[0] if all(seed in table for table in tables)]
    beyond = []
    for seed in seeds:
        values = [table[seed] for table in tables]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            top, base, *each = known
            beyond.append((top - base) - math.fsum(value - base for value in each))
    if not seeds or (not beyond and quantity in _COST_OF and _is_unmeasured(tables)):
        return None
    interval = paired_interval(beyond, [0.0] * len(beyond)) if len(beyond) > 1 else None
    mean = interval.mean if interval else (beyond[0] if beyond else None)
    is_higher = quantity not in _COST_OF and is_higher_better(quantity.partition(" ")[2])
    left_out = len(seeds) - len(beyond)
    return Difference("all", quantity, is_higher, interval, mean, len(beyond), left_out)


def _is_unmeasured(tables: Sequence[Mapping[Any, float | None]]) -> bool:
    return all(value is None for table in tables for value in table.values())


def effects_section(effects: Sequence[Effect], metric: str, target: Target, title: str) -> Section:
    """Return the table of what each technique brings."""
    name = metric.replace("_", " ")
    headings = [
        "technique",
        "",
        f"final {name}",
        "",
        f"rounds to {target.value:g}",
        "",
        "pairs",
    ]
    by_key = {(e.technique, e.role, e.quantity): e.difference for e in effects}
    cells, data = [], [effect_record(effect) for effect in effects]
    for technique, role in dict.fromkeys((e.technique, e.role) for e in effects):
        final = by_key[technique, role, f"final {metric}"]
        rounds = by_key[technique, role, "rounds"]
        pairs = "-" if final is None else str(final.pairs)
        if rounds is not None and rounds.left_out:
            pairs += f", {rounds.pairs} for rounds"
        cells.append(
            [
                technique,
                role,
                _difference_text(final, is_cost=False),
                _verdict(final, role),
                _difference_text(rounds, is_cost=True),
                _verdict(rounds, role),
                pairs,
            ]
        )
    notes = [
        "in the whole: the whole less the whole without it; alone: it alone less the baseline; "
        "together: the whole less the baseline",
        "mean difference of the same seeds and its 95 % t interval, not adjusted for their number",
        "fewer rounds are better; pairs of which one did not reach the target are left out",
    ]
    if any(effect.role == INTERACTION for effect in effects):
        notes.append(
            "interaction: what the whole has beyond the sum of what each brings alone; + more than "
            "the sum in accuracy, - more than the sum in rounds"
        )
    return Section("effects", title, headings, cells, data, notes, left=("technique", ""))


def effect_record(effect: Effect) -> dict[str, Any]:
    """Return an effect as plain values: a row of `ablation.csv`."""
    d = effect.difference
    interval = d.interval if d else None
    return {
        "technique": effect.technique,
        "role": effect.role,
        "quantity": effect.quantity,
        "difference": d.mean if d else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p_value": interval.p_value if interval else None,
        "pairs": d.pairs if d else 0,
        "left_out": d.left_out if d else 0,
        "verdict": _verdict(d, effect.role),
    }


def _difference_text(d: Difference | None, is_cost: bool) -> str:
    if d is None or d.mean is None:
        return "-"
    show = (lambda v: amount(v, sign=True)) if is_cost else "{:+.4f}".format
    text = str(show(d.mean))
    if d.interval is not None:
        text += f" ({show(d.interval.low)} to {show(d.interval.high)})"
    return text


def _verdict(d: Difference | None, role: str) -> str:
    if d is None:
        return "not run"
    if role == INTERACTION and d.interval is not None:
        if not d.interval.excludes_zero:
            return "none shown"
        is_more = (d.interval.mean > 0) == d.is_higher_better
        return "more than the sum" if is_more else "less than the sum"
    return d.verdict
