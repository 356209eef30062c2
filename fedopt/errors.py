"""The one exception family of fedopt.

Every error that a user can cause or meet is a `FedoptError`; the command line shows its
message without a traceback and ends with its `exit_code`. Bugs raise anything else.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class FedoptError(Exception):
    """Base of all errors that fedopt raises on purpose. Exit code 1: the run failed."""

    exit_code = 1


class ConfigError(FedoptError):
    """Bad input, found before anything is trained or written. Exit code 2.

    Args:
        message: what is wrong, as one sentence or more.
        key: the dotted configuration key, such as `strategy.mu`, where one is to blame.
    """

    exit_code = 2

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class DataError(ConfigError):
    """The data cannot be used: missing file, wrong shape, NaN. Exit code 2."""


class UndescribedDataError(DataError):
    """Data that a run's configuration must say more of: which column, which names of classes."""


class RefusalError(ConfigError):
    """A client's own rules do not admit what a server asks."""


class ClientError(FedoptError):
    """Local training of one client failed.

    Args:
        message: the cause, with the client's traceback where there is one.
        client: client id in 0..N-1.
        round: communication round, from 1.
    """

    def __init__(self, message: str, *, client: int, round: int) -> None:
        super().__init__(f"client {client} failed in round {round}: {message}")
        self.client = client
        self.round = round


class DivergenceError(ClientError):
    """A client's loss or update is not finite."""


class RunError(FedoptError):
    """A run cannot go on: every client failed, a worker cannot be replaced, a lost reply."""


class DiskFullError(RunError):
    """A file cannot be written because the disk is full, or the user's quota is used up."""


class ReplyError(RunError):
    """What a node answered is not what it was asked for, or not finite."""


class TooFewClientsError(RunError):
    """So few clients of a round answered that it has to be done again."""


class SecureAggregationError(RunError):
    """A message of secure aggregation is not allowed: foreign, altered, repeated, or unmasking."""


class ThresholdError(SecureAggregationError):
    """Too few clients are left to unmask the sum of a round: nothing of it can be learned."""


class NotFiniteError(RunError):
    """The server's model is not finite: training has diverged."""


def unwritable(what: object, error: OSError) -> RunError:
    """Return the error for something that the system does not let be written.

    Args:
        what: a path, or words for it.
        error: what the system said.
    """
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else RunError
    return kind(f"cannot write {what}: {error.strerror or error}.")


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest allowed word, or an empty string."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def unknown_name(key: str, got: str, allowed: Iterable[str]) -> ConfigError:
    """Return the error for a word that is not one of `allowed` (names are sorted in it)."""
    words = sorted(allowed)
    return ConfigError(
        f'"{got}" is not known.{did_you_mean(got, words)} One of: {", ".join(words)}.', key=key
    )
