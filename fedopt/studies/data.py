"""Data that studies need: whether it is there."""

from __future__ import annotations


def needs_fashion_mnist() -> None:
    """Check that Fashion-MNIST can be found.

    Raises:
        ConfigError: it cannot; with the places that were looked at.
    """
    from fedopt.data.fashion_mnist import find_folder

    find_folder(None)
