"""In which order examples become available."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ORDERS = ("curriculum", "anti", "random")


def difficulty_order(
    scores: npt.ArrayLike, name: str = "curriculum", rng: np.random.Generator | None = None
) -> npt.NDArray[np.int64]:
    """Return the positions of examples in the order in which they become available, `[n]`.

    Args:
        scores: difficulty of each example, `[n]`; only the order counts, ties keep theirs.
        name: `curriculum` (easy first), `anti` (hard first), or `random`, the control.
        rng: draws the order `random`.

    Raises:
        ValueError: a name that is not known, scores that are not finite, or no `rng` for `random`.

    Source: Bengio et al. 2009; the controls are those of Wu, Dyer and Neyshabur 2021, section 3.
    """
    if name not in ORDERS:
        raise ValueError(f'order must be one of {", ".join(ORDERS)}, got "{name}"')
    values = np.asarray(scores, dtype=np.float64)
    if name == "random":
        if rng is None:
            raise ValueError("order random needs rng, what draws it")
        return rng.permutation(len(values))
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return np.argsort(values if name == "curriculum" else -values, kind="stable")
