"""The clients and tasks of the checks."""

from __future__ import annotations

import numpy as np

from fedopt.testing.task import Quadratics

CURVATURES = ((1.0, 2.5, 0.7), (6.0, 1.2, 3.0), (2.0, 4.0, 1.5), (3.5, 0.9, 5.0), (1.7, 3.1, 2.2))
OPTIMA = ((1.3, -0.4, 0.9), (-1.1, 2.3, 0.2), (0.6, 0.7, -1.9), (-0.8, -1.5, 1.1), (0.1, 1.9, -0.3))
EXAMPLES = (1, 2, 3, 5, 4)

EQUAL = Quadratics.of(CURVATURES, OPTIMA)
"""Five clients in three dimensions who disagree, one example each."""

UNEQUAL = Quadratics.of(CURVATURES, OPTIMA, EXAMPLES)
"""The same with 1 to 5 examples."""

LINE = Quadratics.of([row[0] for row in CURVATURES], [row[0] for row in OPTIMA], EXAMPLES)
"""Five clients on a line, so that linear layers train them, with 1 to 5 examples."""

EQUAL_LINE = Quadratics.of([row[0] for row in CURVATURES], [row[0] for row in OPTIMA])
"""The same with one example each."""

START = np.array([0.4, -0.2, 0.8])
"""The first model: not zero, so that what begins there by mistake is seen."""


def with_hostile(distance: float) -> Quadratics:
    """Return the five equal clients and a sixth whose optimum is anywhere.

    Args:
        distance: how far, in each coordinate.
    """
    return Quadratics.of([*CURVATURES, (4.0, 4.0, 4.0)], [*OPTIMA, (distance, -distance, distance)])


ROUNDING = 1e-12
"""Some hundred roundings of numbers around one, in double precision."""

ROUNDED = "some hundred roundings of numbers around one, in double precision"

CONVERGED = 1e-8
"""What is left of the distance to a fixed point after the rounds of a check, with room."""

CONVERGENCE = "the distance to the fixed point shrinks by a factor below one a round"
