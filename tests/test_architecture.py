"""The architecture, read from the source: imports point one way, everything says what it is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fedopt
from fedopt.registry import KINDS, entries, get

ROOT = Path(fedopt.__file__).parent
MODULES = {
    ".".join(["fedopt", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

OUTER = (
    "client",
    "server",
    "simulation",
    "run",
    "recorder",
    "results",
    "cli",
    "commands",
    "dashboard",
    "demo",
    "doctor",
    "testing",
    "sweep",
)
"""What stands above the packages that need torch alone."""

FORBIDDEN: dict[str, set[str]] = {
    **{
        f"fedopt.{package}": {
            "flwr",
            "ray",
            "fedopt.analysis",
            "fedopt.experiment",
            *(f"fedopt.{name}" for name in OUTER),
        }
        for package in (
            "optim",
            "schedules",
            "curriculum",
            "search",
            "models",
            "data",
            "compression",
            "drift",
        )
    },
    "fedopt.client": {
        "ray",
        "fedopt.simulation",
        "fedopt.analysis",
        "fedopt.run",
        "fedopt.recorder",
        "fedopt.results",
        "fedopt.cli",
        "fedopt.commands",
        "fedopt.server",
    },
    "fedopt.server": {
        "ray",
        "fedopt.simulation",
        "fedopt.analysis",
        "fedopt.run",
        "fedopt.recorder",
        "fedopt.results",
        "fedopt.cli",
        "fedopt.commands",
    },
    "fedopt.simulation": {
        "fedopt.analysis",
        "fedopt.run",
        "fedopt.recorder",
        "fedopt.results",
        "fedopt.cli",
        "fedopt.commands",
    },
    "fedopt.analysis": {
        "flwr",
        "ray",
        "fedopt.client",
        "fedopt.server",
        "fedopt.simulation",
        "fedopt.run",
        "fedopt.recorder",
        "fedopt.results",
        "fedopt.cli",
        "fedopt.commands",
        "fedopt.sweep",
        "fedopt.dashboard",
    },
    # Runs of a sweep are processes: it reads what they leave, and needs nothing that trains.
    "fedopt.sweep": {
        "torch",
        "flwr",
        "ray",
        "fedopt.client",
        "fedopt.server",
        "fedopt.simulation",
        "fedopt.run",
        "fedopt.recorder",
        "fedopt.results",
        "fedopt.cli",
        "fedopt.commands",
    },
    "fedopt.secure": {"torch", "flwr", "ray", "pandas"},
    "fedopt.config": {"torch", "flwr", "ray", "fedopt.client", "fedopt.server"},
    "fedopt.registry": {"torch", "flwr", "ray", "fedopt.client", "fedopt.server"},
    "fedopt.errors": {"torch", "flwr", "ray", "fedopt.client", "fedopt.server"},
}

EXCEPTIONS = {
    # Evaluation is arithmetic on outputs, which metrics define once.
    ("fedopt.server.evaluation", "fedopt.analysis"),
    # A node evaluates its validation split with the server's evaluator.
    ("fedopt.client.app", "fedopt.server"),
}

PURE_CLIENT = ("algorithm", "plan", "loop", "stacked", "stacked_layers", "engines", "trainer")
"""Local training proper knows neither Flower nor Ray."""


@cache
def imports(module: str) -> set[str]:
    """The modules that a module imports, wherever it does, except for type checking."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for inner in block.body
        for node in ast.walk(inner)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    forbidden = {
        bad for package, names in FORBIDDEN.items() if within(module, package) for bad in names
    }
    crossed = {
        bad
        for bad in forbidden
        for name in imports(module)
        if within(name, bad) and (module, bad) not in EXCEPTIONS
    }
    assert not crossed, f"{module} imports {sorted(crossed)}"


def test_the_exceptions_are_still_needed() -> None:
    for module, package in EXCEPTIONS:
        assert any(within(name, package) for name in imports(module)), (module, package)


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "fedopt.secure")])
def test_secure_aggregation_stands_alone(module: str) -> None:
    allowed = ("fedopt.secure", "fedopt.errors", "fedopt.validation")
    assert not [
        name
        for name in imports(module)
        if within(name, "fedopt") and not any(within(name, package) for package in allowed)
    ]


@pytest.mark.parametrize("name", PURE_CLIENT)
def test_local_training_knows_no_flower(name: str) -> None:
    assert not any(within(i, "flwr") or within(i, "ray") for i in imports(f"fedopt.client.{name}"))


@pytest.mark.parametrize("module", [m for m in MODULES if m.endswith(".catalogue")])
def test_catalogues_are_light(module: str) -> None:
    heavy = ("torch", "numpy", "flwr", "ray", "pandas")
    assert not any(within(name, package) for name in imports(module) for package in heavy)


def words_of_code(module: str) -> Iterator[str]:
    """The identifiers, and the strings other than docstrings, of a module."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    texts = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in texts:
                yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


ENGINES_AND_GRIDS = [
    m
    for m in MODULES
    if within(m, "fedopt.simulation")
    or m.startswith(("fedopt.client.loop", "fedopt.client.stacked", "fedopt.client.engines"))
    or m in ("fedopt.client.trainer", "fedopt.client.app", "fedopt.server.strategy")
]


@pytest.mark.parametrize("module", ENGINES_AND_GRIDS)
def test_engines_and_grids_know_no_strategy_by_name(module: str) -> None:
    names = {entry.name for entry in entries("strategies")}
    known = {
        word
        for text in words_of_code(module)
        for word in re.findall(r"[a-z]+", text.lower())
        if word in names
    }
    assert not known


def public_definitions(module: str) -> Iterator[tuple[str, ast.AST]]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    yield module, tree

    def inside(scope: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
                if node.name.startswith("_") or overload:
                    continue
                yield f"{path}.{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from inside(node, f"{path}.{node.name}")

    yield from inside(tree, module)


@pytest.mark.parametrize("module", [m for m in MODULES if "._" not in m])
def test_everything_public_has_a_docstring(module: str) -> None:
    silent = [
        name
        for name, node in public_definitions(module)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert not silent


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, e.name) for kind in ("strategies", "optimizers", "models") for e in entries(kind)],
)
def test_implementations_name_their_source(kind: str, name: str) -> None:
    implementation = get(kind, name).load()
    assert "Source:" in (inspect.getdoc(implementation) or "")


def test_every_kind_names_a_key() -> None:
    for key in KINDS.values():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key)


@pytest.mark.parametrize("module", [m for m in MODULES if not within(m, "fedopt.testing")])
def test_nothing_rests_on_the_conformance_suite(module: str) -> None:
    assert not any(within(name, "fedopt.testing") for name in imports(module))


def test_the_conformance_suite_needs_pytest_for_parametrisation_alone() -> None:
    needing = {
        module
        for module in MODULES
        if within(module, "fedopt.testing") and any(within(i, "pytest") for i in imports(module))
    }
    assert needing == {"fedopt.testing.pytest_support"}
