"""Whatever ends a run, no Ray process of ours is left: a notebook's kernel lives on for days."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedopt.interruption import InterruptedRunError, Interruption, is_interactive

PROGRAM = """
import json, os, signal, sys, threading
import psutil, ray, torch
import fedopt

ENDING = sys.argv[1]
DRIVER = os.getpid()
FOLDER = sys.argv[2]
shared = set(os.listdir("/dev/shm"))


def once():
    try:
        os.close(os.open(os.path.join(FOLDER, "sent"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores


def loss(output, target):
    if ENDING == "client" and os.getpid() != DRIVER and output.requires_grad:
        raise ValueError("the client's own")
    if ENDING == "interrupt" and os.getpid() != DRIVER and output.requires_grad and once():
        os.kill(DRIVER, signal.SIGINT)
    return torch.nn.functional.cross_entropy(output, target)


def refuse(*arguments, **options):
    raise KeyboardInterrupt


if ENDING == "workers":
    ray.put = refuse
if ENDING == "start":
    import ray._private.node
    ray._private.node.Node.start_raylet = refuse

raised = ""
try:
    fedopt.simulate(
        loss=loss, rounds=3, clients_per_round=4, local={"steps": 1, "optimizer": "sgd"},
        engine={"name": "ray", "workers": 2},
    )
except BaseException as error:
    raised = type(error).__name__
alive = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
_, left = psutil.wait_procs(alive, timeout=10)
left = [p for p in left if p.is_running() and p.status() != "zombie"]
print(json.dumps({
    "raised": raised,
    "left": [p.name() for p in left],
    "initialised": ray.is_initialized(),
    "shared": sorted(set(os.listdir("/dev/shm")) - shared),
}))
"""


@pytest.mark.parametrize(
    ("ending", "raised"),
    [
        pytest.param("client", "ClientError", marks=pytest.mark.exhaustive),
        ("interrupt", "InterruptedRunError"),
        pytest.param("workers", "KeyboardInterrupt", marks=pytest.mark.exhaustive),
        ("start", "KeyboardInterrupt"),
    ],
)
def test_nothing_is_left_after_an_exception(ending: str, raised: str, tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ending, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    ours = [name for name in found["shared"] if name.startswith("fedopt-")]
    assert (found["raised"], found["left"], found["initialised"], ours) == (raised, [], False, [])


def test_a_second_interrupt_spares_an_interactive_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert is_interactive()
    interruption = Interruption()
    interruption._handle(2, None)  # the first waits for the round
    with pytest.raises(InterruptedRunError):
        interruption._handle(2, None)
