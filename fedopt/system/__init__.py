"""Heterogeneous systems on a virtual clock: devices, availability, failures, server policies.

Imports neither torch nor Flower: who takes part when, and what it costs in seconds, joules and
bytes, is known from the configuration and the seed before anything is trained.
"""

from __future__ import annotations
