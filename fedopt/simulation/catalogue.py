"""The grids that a configuration can name as `engine.name`. Imports no Ray."""

from __future__ import annotations

from fedopt.registry import Entry, Options, register


class GridOptions(Options):
    """Grids take their options from the `[engine]` table."""


register(
    Entry(
        kind="engines",
        name="inline",
        target="fedopt.simulation.inline:InlineGrid",
        options=GridOptions,
        description="clients train one after another in the calling process; no Ray",
        source="fedopt",
    )
)
register(
    Entry(
        kind="engines",
        name="ray",
        target="fedopt.simulation.ray_grid:RayGrid",
        options=GridOptions,
        description="clients train in single-threaded Ray actors, one a core",
        source="Moritz et al. 2018 (Ray)",
    )
)
