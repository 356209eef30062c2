"""Run a study of curricula or of self-paced learning.

    python simulations/curriculum/run.py curriculum|self_paced [--seeds 5] [--out DIR] [--quick]

Prints the tables and writes results.csv (a line per arm and seed), intervals.csv, tuning.csv and
the figure; see ../study.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

if __name__ == "__main__":
    from studies import STUDIES
    from study import main

    sys.exit(main(STUDIES, HERE))
