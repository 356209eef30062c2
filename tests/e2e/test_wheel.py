"""What an install of the wheel brings, and that it is enough to run."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from .command import TINY, execute

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, so that nothing is written beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("fedopt", "server", "clients", "simulations", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=IGNORED)
    built = execute(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"], source
    )
    assert built.code == 0, built.out + built.err
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's contents, as an installer puts them."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_only_the_package_is_installed(installed):
    names = sorted(path.name for path in installed.iterdir())
    assert [name for name in names if not name.endswith(".dist-info")] == ["fedopt"]
    assert len(names) == 2


def test_data_and_types_are_in_it(installed):
    assert (installed / "fedopt" / "py.typed").exists()
    assets = {path.name for path in (ROOT / "fedopt" / "data" / "assets").iterdir()}
    packed = {path.name for path in (installed / "fedopt" / "data" / "assets").iterdir()}
    assert packed == assets - {"__pycache__"}
    assert packed
    templates = {path.name for path in (ROOT / "fedopt" / "skeleton").glob("*.template")}
    assert {p.name for p in (installed / "fedopt" / "skeleton").glob("*.template")} == templates
    assert templates
    sources = {p.relative_to(ROOT) for p in (ROOT / "fedopt").rglob("*.py")}
    assert {p.relative_to(installed) for p in (installed / "fedopt").rglob("*.py")} == sources


def test_the_command_is_declared(installed):
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "fedopt = fedopt.cli:main" in points.read_text()
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()


def test_the_install_runs_and_brings_no_generic_names(installed, tmp_path):
    program = f"""
import importlib.util, json, pathlib, sys
import fedopt
from fedopt.cli import app
origins = []
for name in ("server", "clients", "simulations", "benchmarks", "tests"):
    spec = importlib.util.find_spec(name)
    places = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
    origins += [p for p in places if p.startswith({str(installed)!r})]
print(json.dumps([str(pathlib.Path(fedopt.__file__).parent), origins]))
try:
    app(["run", *{TINY!r}, "--out", "run", "--quiet"])
except SystemExit as end:
    sys.exit(end.code)
"""
    result = execute([sys.executable, "-c", program], tmp_path, PYTHONPATH=str(installed))
    assert result.code == 0, result.err
    assert json.loads(result.out) == [str(installed / "fedopt"), []]
    assert (tmp_path / "run" / "summary.json").exists()
