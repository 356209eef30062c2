"""The bare loop as a process of its own, for peers whose environment holds no torch.

Reads one JSON request a line and answers on one line; run by `common.BareProcess`.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks.peers import common


def main() -> None:
    """Answer requests until the input ends."""
    common.one_thread()
    loop = common.BareLoop(common.WORKLOADS[sys.argv[1]])
    for line in sys.stdin:
        request = json.loads(line)
        if "stop" in request:
            break
        if "clients" in request:
            answer: object = loop.round(request["clients"])
        else:
            np.savez(request["save"], *loop.values())
            answer = len(loop.globals)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
