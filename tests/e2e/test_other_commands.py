"""`fedopt list`, `doctor` and `plot` from the shell."""

from __future__ import annotations

import pytest
from PIL import Image

from fedopt.registry import KINDS, entries

from .command import TINY, contents, fedopt


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two finished runs, `one` and `two`."""
    folder = tmp_path_factory.mktemp("plots")
    for name, strategy in (("one", "fedavg"), ("two", "scaffold")):
        result = fedopt(folder, "run", *TINY, f"strategy={strategy}", "--out", name, "--quiet")
        assert result.code == 0, result.err
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_list_shows_each_entry_with_its_options(tmp_path, kind):
    result = fedopt(tmp_path, "list", kind)
    assert result.code == 0
    assert entries(kind)
    for entry in entries(kind):
        assert f"  {entry.name} " in result.out
        assert entry.description in result.out
        assert entry.source == "-" or entry.source in result.out
        assert all(f"{option}: " in result.out for option in entry.options.model_fields)


def test_list_as_json_has_every_kind(tmp_path):
    found = fedopt(tmp_path, "list", "--json").json
    assert {kind: {item["name"] for item in items} for kind, items in found.items()} == {
        kind: {entry.name for entry in entries(kind)} for kind in KINDS
    }


def test_list_of_an_unknown_kind_names_the_nearest(tmp_path):
    result = fedopt(tmp_path, "list", "optimiser")
    assert result.code == 2
    assert 'Did you mean "optimizers"?' in result.err
    assert all(kind in result.err for kind in KINDS)


def test_doctor_trains_and_writes_nothing(tmp_path):
    result = fedopt(tmp_path, "doctor")
    assert result.code == 0, result.out
    assert "training" in result.out
    assert "fail" not in [line.split()[0] for line in result.out.splitlines()]
    assert not list(tmp_path.iterdir())


def test_doctor_as_json(tmp_path):
    findings = fedopt(tmp_path, "doctor", "--json").json
    assert {"python", "torch", "flwr", "ray", "training"} <= {item["name"] for item in findings}
    assert {item["level"] for item in findings} <= {"ok", "warn"}


@pytest.mark.parametrize("x", ["rounds", "bytes", "seconds", "wall", "steps"])
def test_plot_draws_two_runs_over_each_other(runs, x):
    name = f"{x}.png"
    result = fedopt(runs, "plot", "one", "two", "--x", x, "--out", name)
    if x == "seconds":  # without a system profile nothing is known of simulated time
        assert result.code == 2
        assert "seconds" in result.err
        assert not (runs / name).exists()
        return
    assert result.code == 0, result.err
    assert result.out.splitlines() == [name, f"{x}.csv"]
    with Image.open(runs / name) as picture:
        picture.load()
        assert picture.format == "PNG"


def test_plot_writes_vector_graphics(runs):
    assert fedopt(runs, "plot", "one", "--out", "one.svg").code == 0
    assert (runs / "one.svg").read_text().startswith("<?xml")
    assert fedopt(runs, "plot", "one", "--out", "one.pdf").code == 0
    assert (runs / "one.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "--out", "x.gif"], [".gif", ".png", ".svg", ".pdf"]),
        (["one", "--x", "byte", "--out", "x.png"], ["byte", 'Did you mean "bytes"?', "steps"]),
        (["onne", "--out", "x.png"], ["onne", "does not exist", 'Did you mean "one"?']),
    ],
)
def test_plot_refuses_bad_input(runs, arguments, says):
    before = set(contents(runs))
    result = fedopt(runs, "plot", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert all(word in result.err for word in says)
    assert set(contents(runs)) == before
