"""What all tests share: one torch thread, and property tests that draw the same cases each time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from fedopt.recorder import Recorder

if "PYTEST_XDIST_WORKER" in os.environ:
    # Ray finds a running cluster by a file in its folder; tests must not join each other's.
    _own = Path(tempfile.gettempdir()) / f"ray-{os.environ['PYTEST_XDIST_WORKER']}"
    _own.mkdir(exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(_own)

# Ray starts its workers with a niceness of 15: beside anything else they starve.
os.environ.setdefault("RAY_worker_niceness", "0")

FIRST = (
    "tests/deployment/test_processes.py",
    "tests/e2e/test_ray.py",
    "tests/docs/test_code.py",
    "tests/e2e/test_resume.py",
    "tests/e2e/test_reliability.py",
    "tests/e2e/test_every_command.py",
    "tests/deployment/test_deployed.py",
    "tests/test_kills_and_soak.py",
    "tests/e2e/test_flower.py",
    "tests/reproduce",
    "tests/e2e",
    "tests/server/test_second_order.py",
    "tests/search",
    "tests/system",
    "tests/testing",
    "tests/test_second_studies.py",
    "tests/curriculum",
)
"""Files and folders that take longest: begun first, so that no core waits for them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    root = Path(__file__).parents[1]

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(root).as_posix()
        return next((i for i, first in enumerate(FIRST) if name.startswith(first)), len(FIRST))

    items.sort(key=place)


WITHOUT_FIGURES = (
    *("client", "compression", "curriculum", "drift", "search", "secure", "server", "simulation"),
    *("sweep", "system", "testing", "deployment/test_deployed.py", "test_techniques.py"),
    *("test_malformed_input.py", "docs/test_code.py", "test_explanation.py", "test_lr_range.py"),
)
"""Files and folders whose runs draw no figures, as far as they are in the tests' own process:
drawing takes longer than most of these runs. Those of tests/analysis and tests/e2e are seen."""


@pytest.fixture(scope="module", autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out the figures of runs where nobody looks at them."""
    name = request.path.relative_to(Path(__file__).parent).as_posix()
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith(WITHOUT_FIGURES):
            for method in ("_draw_figures", "_draw_population"):
                patch.setattr(Recorder, method, lambda *_: None)
        yield


settings.register_profile("fedopt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fedopt")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are promised for one thread; more only compete for the cores."""
    torch.set_num_threads(1)


CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return headless Chromium, driven by Playwright; skip where either is missing.

    Of a module: while it is open an event loop runs, and other tests have one of their own.
    """
    driver = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (extra test)"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()
