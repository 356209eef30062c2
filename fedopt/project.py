"""A new project from the templates in `fedopt/skeleton`, for `fedopt init`."""

from __future__ import annotations

import builtins
import importlib.machinery
import keyword
import os
import re
import string
import subprocess
import sys
import tempfile
from pathlib import Path

from fedopt.errors import ConfigError, unwritable

TEMPLATES = Path(__file__).parent / "skeleton"

FILES = {
    "README.md.template": "README.md",
    "experiment.toml.template": "experiment.toml",
    "pyproject.toml.template": "pyproject.toml",
    "gitignore.template": ".gitignore",
    "model.py.template": "$name/model.py",
    "data.py.template": "$name/data.py",
    "strategy.py.template": "$name/strategy.py",
    "test_project.py.template": "tests/test_$name.py",
}
"""Template -> the file that it becomes; $name stands for the project's name."""


def make_project(name: str, parent: Path) -> list[Path]:
    """Make a folder with a project that runs, all of it or nothing.

    Args:
        name: of the project, its folder and its package; a Python identifier.
        parent: the folder to make it in.

    Returns:
        The files, relative to `parent`, in order.

    Raises:
        ConfigError: the name is not one for a package, or something of that name is there.
        RunError: the folder cannot be written.
    """
    check_name(name)
    project = parent / name
    if os.path.lexists(project):
        raise ConfigError(
            f"{project} is there already, and nothing is overwritten; give another name, or remove "
            "it first",
            key="NAME",
        )
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}-") as made:
            draft = Path(made) / name
            _write(draft, name)
            draft.chmod(0o777 & ~_umask())
            os.rename(draft, project)
    except OSError as error:
        raise unwritable(project, error) from error
    return sorted(path.relative_to(parent) for path in project.rglob("*") if path.is_file())


def check_name(name: str) -> None:
    """Refuse a name that no package should have.

    Raises:
        ConfigError: it is not an identifier, or a module of that name exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        near = re.sub(r"\W+", "_", name).strip("_").lower()
        if keyword.iskeyword(near):
            near = f"my_{near}"
        if near and not near.isidentifier():
            near = f"project_{near}"
        hint = f' Did you mean "{near}"?' if near.isidentifier() else ""
        raise ConfigError(
            f'"{name}" is not a name for a Python package: letters, digits and underscores, no '
            f"digit first, no keyword.{hint}",
            key="NAME",
        )
    taken = name in sys.stdlib_module_names or hasattr(builtins, name) or _is_installed(name)
    if taken:
        raise ConfigError(
            f'"{name}" is the name of a module of Python or of an installed package, which it '
            f'would hide. Did you mean "my_{name}"?',
            key="NAME",
        )


def _is_installed(name: str) -> bool:
    """Return whether a module of that name would be imported from elsewhere than the folder."""
    if name == "fedopt":
        return True
    here = {"", os.getcwd()}
    path = [entry for entry in sys.path if entry not in here]
    try:
        return importlib.machinery.PathFinder.find_spec(name, path) is not None
    except (ImportError, ValueError):
        return False


def _write(folder: Path, name: str) -> None:
    """Write the files, and the data by the project's own script."""
    for template, target in FILES.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        path = folder / string.Template(target).substitute(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(string.Template(text).substitute(name=name), encoding="utf-8")
    (folder / name / "__init__.py").write_text(f'"""The parts of {name}."""\n', encoding="utf-8")
    command = [sys.executable, "-m", f"{name}.data"]
    quiet = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, cwd=folder, env=quiet, check=True, capture_output=True)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
