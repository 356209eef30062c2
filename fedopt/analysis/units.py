"""Numbers as people read them: bytes, durations and metrics as short text."""

from __future__ import annotations

import math


def human_bytes(count: float) -> str:
    """Return a byte count with a decimal (SI) unit, such as `3.2 MB`; count >= 0."""
    value = float(count)
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # 999.95 would round to "1000.0": it belongs to the next unit.
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} PB"


def human_seconds(seconds: float) -> str:
    """Return a duration as `m:ss`, `h:mm:ss` or `d days h:mm:ss`; seconds >= 0."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hour}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def human_metric(value: float) -> str:
    """Return a loss or score with four significant digits, trailing zeros kept: `0.3120`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3 or size >= 1e5:
        return f"{value:.3e}"
    return f"{value:.4f}" if size < 10 else f"{value:.5g}"
