"""Write the embedded datasets from scikit-learn's copies: `python tests/data/make_assets.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

ASSETS = Path(__file__).parents[2] / "fedopt" / "data" / "assets"


def main() -> None:
    digits = load_digits()
    np.savez_compressed(
        ASSETS / "digits.npz",
        x=digits.data.reshape(-1, 1, 8, 8).astype(np.uint8),
        y=digits.target.astype(np.uint8),
    )
    cancer = load_breast_cancer()
    np.savez_compressed(
        ASSETS / "breast_cancer.npz",
        x=cancer.data.astype(np.float32),
        y=cancer.target.astype(np.uint8),
    )


if __name__ == "__main__":
    main()
