"""The checks, by what they test."""

from __future__ import annotations

from fedopt.testing.check import Check
from fedopt.testing.checks import (
    averaging,
    compression,
    controls,
    general,
    identities,
    personal,
    robust,
    servers,
)

ALL: tuple[Check, ...] = (
    *general.CHECKS,
    *averaging.CHECKS,
    *identities.CHECKS,
    *controls.CHECKS,
    *servers.CHECKS,
    *robust.CHECKS,
    *personal.CHECKS,
    *compression.CHECKS,
)
"""All checks, in the order of reports."""
