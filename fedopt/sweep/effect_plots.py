"""What each technique of an ablation brings, as intervals beside zero."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedopt.analysis.plots import Plot
from fedopt.analysis.style import COLOURS, DPI, SMALL, TEXT, WIDTH, tidy
from fedopt.analysis.targets import Target
from fedopt.sweep.ablation import ALONE, IN_WHOLE, TOGETHER, Effect, effect_record

_ROW = 0.34  # inches of a technique
_FRAME = 1.15  # inches of axes, labels and legend
_LOOKS = {
    IN_WHOLE: (0.14, "o", 0, True),
    ALONE: (-0.14, "s", 1, False),
    TOGETHER: (0.0, "D", 6, True),
}  # shift in rows, marker, colour, whether it is filled
_FAINT = 0.35


def effect_plot(effects: Sequence[Effect], metric: str, target: Target) -> Plot:
    """Draw the effects on the final metric, and on the rounds to the target.

    Args:
        effects: of all techniques.
        metric: the final metric.
        target: whose rounds are drawn.
    """
    shown = [effect for effect in effects if effect.role in _LOOKS]
    names = list(dict.fromkeys(effect.technique for effect in shown))
    figure = Figure(
        figsize=(WIDTH, _FRAME + _ROW * len(names)),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.07),
    )
    left, right = figure.subplots(1, 2, sharey=True)
    word = metric.replace("_", " ")
    final, rounds = f"final {metric}", "rounds"
    _draw(left, shown, names, final)
    _draw(right, shown, names, rounds)
    left.set_xlabel(f"difference in final {word}", fontsize=TEXT)
    right.set_xlabel(f"difference in rounds to {word} {target.value:g}", fontsize=TEXT)
    left.set_yticks(range(len(names)), ["all together" if n == "all" else n for n in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    handles = {
        label: handle
        for axes in (left, right)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawn = [e for e in shown if e.quantity in (final, rounds) and e.difference is not None]
    note = "mean difference of equal seeds, 95 % t interval"
    if any(e.difference and e.difference.pairs == 1 for e in drawn):
        note += "; faint: one pair alone, no interval"
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize=SMALL,
        frameon=False,
        title=note,
        title_fontproperties={"size": SMALL},
    )
    return Plot(figure, pd.DataFrame(map(effect_record, drawn)))


def _draw(axes: Axes, effects: Sequence[Effect], names: Sequence[str], quantity: str) -> None:
    axes.axvline(0, color="#404040", linewidth=0.7)
    for effect in effects:
        d = effect.difference
        if effect.quantity != quantity or d is None or d.mean is None:
            continue
        shift, marker, colour, is_filled = _LOOKS[effect.role]
        ends = d.interval
        error = None if ends is None else [[d.mean - ends.low], [ends.high - d.mean]]
        axes.errorbar(
            [d.mean],
            [names.index(effect.technique) - shift],
            xerr=error,
            color=COLOURS[colour],
            marker=marker,
            markersize=4.0,
            markerfacecolor=COLOURS[colour] if is_filled else "white",
            linestyle="",
            elinewidth=1.0,
            capsize=2.0,
            alpha=1.0 if ends else _FAINT,
            label=effect.role if ends else f"_{effect.role}",
        )
    tidy(axes)
    axes.grid(False, axis="y")
