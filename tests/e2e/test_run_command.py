"""`fedopt run` from the shell: what it writes, prints and leaves alone."""

from __future__ import annotations

import csv
import json
import tomllib

import flwr
import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fedopt as package

from .command import TINY, contents, fedopt, summary

CONTRACT_COLUMNS = [
    "round",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "test_ece",
    "bytes_up",
    "bytes_down",
    "sim_seconds",
    "wall_seconds",
    "client_steps",
]
COMMANDS = ["run", "resume", "plot", "list", "doctor"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def tiny(folder):
    """A finished run in `folder / "tiny"`."""
    result = fedopt(folder, "run", *TINY, "checkpoint.every=1", "--out", "tiny")
    assert result.code == 0, result.err
    return result


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_help_lists_the_commands_with_an_example(tmp_path):
    result = fedopt(tmp_path, "--help")
    assert result.code == 0
    assert "Example: fedopt run" in result.out
    assert all(f"  {command} " in result.out for command in COMMANDS)


def test_no_arguments_show_the_help(tmp_path):
    result = fedopt(tmp_path)
    assert "Usage: " in result.out + result.err
    assert "Traceback" not in result.err


def test_version(tmp_path):
    result = fedopt(tmp_path, "--version")
    assert (result.code, result.out) == (0, f"fedopt {package.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(tmp_path, command):
    result = fedopt(tmp_path, command, "--help")
    assert result.code == 0
    assert f"Example: fedopt {command}" in result.out


def test_help_imports_no_torch(tmp_path):
    from .command import python

    program = (
        "import sys; from fedopt import cli; sys.argv = ['fedopt', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'flwr', 'ray', 'pandas'} & set(sys.modules)))"
    )
    assert python(tmp_path, program).out.endswith("heavy: []\n")


def test_run_writes_the_whole_folder(tiny, folder):
    names = set(contents(folder / "tiny"))
    assert names >= {
        "config.toml",
        "rounds.csv",
        "clients.csv",
        "model.safetensors",
        "summary.json",
        "convergence.png",
        "population.png",
        "checkpoints/round_000002.safetensors",
        "checkpoints/round_000003.safetensors",
    }
    assert not [name for name in names if name.endswith(".tmp")]


def test_config_holds_everything_and_the_versions(tiny, folder):
    text = (folder / "tiny" / "config.toml").read_text()
    tree = tomllib.loads(text)
    assert tree["rounds"] == 3
    assert tree["partition"] == {
        "name": "dirichlet",
        "clients": 10,
        "alpha": 0.1,
        "min_examples": tree["partition"]["min_examples"],
    }
    assert tree["local"]["optimizer"]["name"] == "sgd"
    for name, version in (
        ("fedopt", package.__version__),
        ("torch", torch.__version__),
        ("numpy", numpy.__version__),
        ("flwr", flwr.__version__),
    ):
        assert f"# {name} {version}\n" in text


def test_rounds_have_the_columns_of_the_contract(tiny, folder):
    found = rows(folder / "tiny" / "rounds.csv")
    assert [row["round"] for row in found] == ["1", "2", "3"]
    assert set(CONTRACT_COLUMNS) <= set(found[0])
    for column in ("bytes_up", "bytes_down", "client_steps", "wall_seconds"):
        values = [float(row[column]) for row in found]
        assert values == sorted(values)
        assert values[0] > 0
    logistic_nbytes = (64 * 10 + 10) * 4
    assert [int(row["bytes_up"]) for row in found] == [5 * logistic_nbytes * k for k in (1, 2, 3)]


def test_clients_have_a_row_per_client_and_round(tiny, folder):
    found = rows(folder / "tiny" / "clients.csv")
    pairs = [(row["round"], row["client"]) for row in found]
    assert len(pairs) == len(set(pairs)) == 15
    assert {row["status"] for row in found} == {"trained"}
    last = rows(folder / "tiny" / "rounds.csv")[-1]
    assert sum(int(row["steps"]) for row in found) == int(last["client_steps"])


def test_model_can_be_loaded(tiny, folder):
    arrays = load_file(folder / "tiny" / "model.safetensors")
    assert sorted(tuple(array.shape) for array in arrays.values()) == [(10,), (10, 64)]
    assert all(torch.isfinite(array).all() for array in arrays.values())


def test_summary_has_what_the_contract_says(tiny, folder):
    found = summary(folder / "tiny")
    last = rows(folder / "tiny" / "rounds.csv")[-1]
    assert found["status"] == "completed"
    assert found["run_dir"] == "tiny"
    assert found["final"]["test_accuracy"] == float(last["test_accuracy"])
    accuracies = [float(row["test_accuracy"]) for row in rows(folder / "tiny" / "rounds.csv")]
    assert found["best"]["test_accuracy"]["value"] == max(accuracies)
    assert len(bytes.fromhex(found["model_sha256"])) == 32


@pytest.mark.parametrize("name", ["convergence.png", "population.png"])
def test_pictures_are_pictures(tiny, folder, name):
    with Image.open(folder / "tiny" / name) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert picture.convert("L").getextrema()[0] < 128, "nothing is drawn on it"


def test_piped_output_has_no_control_codes(tiny):
    for text in (tiny.out, tiny.err):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "round 3/3" in tiny.err
    assert "test_accuracy" in tiny.out


def test_json_is_all_that_is_printed(folder, tiny):
    result = fedopt(folder, "run", *TINY, "--out", "json", "--json")
    assert result.code == 0
    assert result.json == summary(folder / "json")
    assert result.json["model_sha256"] == summary(folder / "tiny")["model_sha256"]


def test_quiet_prints_nothing(folder):
    result = fedopt(folder, "run", *TINY, "--out", "quiet", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_default_folder_is_new_and_named_after_the_run(tmp_path):
    result = fedopt(tmp_path, "run", *TINY, "--json")
    assert result.code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.endswith("_fedavg_digits_s0")
    assert result.json["run_dir"] == str(made.relative_to(tmp_path))


def test_dry_run_writes_nothing_and_says_so(tmp_path):
    result = fedopt(tmp_path, "run", *TINY, "--out", "dry", "--dry-run")
    assert result.code == 0
    assert "nothing was trained or written" in result.out
    assert "parameters: 650" in result.out
    assert not list(tmp_path.iterdir())


def test_dry_run_as_json(tmp_path):
    result = fedopt(tmp_path, "run", *TINY, "--dry-run", "--json")
    assert result.code == 0
    assert result.json["clients"] == 10
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tiny, folder):
    before = contents(folder / "tiny")
    result = fedopt(folder, "run", *TINY, "--out", "tiny")
    assert result.code == 2
    assert "out:" in result.err
    assert "fedopt resume tiny" in result.err
    assert contents(folder / "tiny") == before


def test_a_file_as_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "taken").write_text("precious")
    result = fedopt(tmp_path, "run", *TINY, "--out", "taken")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert contents(tmp_path) == {"taken": b"precious"}


def test_config_of_a_run_gives_the_same_model(tiny, folder):
    result = fedopt(folder, "run", "tiny/config.toml", "--out", "again", "--json")
    assert result.code == 0
    assert result.json["model_sha256"] == summary(folder / "tiny")["model_sha256"]
    again, first = (
        tomllib.loads((folder / name / "config.toml").read_text()) for name in ("again", "tiny")
    )
    assert again == first


def test_overrides_win_over_the_file(tiny, folder):
    arguments = ["tiny/config.toml", "seed=5", "strategy=fedprox", "strategy.mu=0.5"]
    result = fedopt(folder, "run", *arguments, "--out", "changed", "--json")
    assert result.code == 0
    tree = tomllib.loads((folder / "changed" / "config.toml").read_text())
    assert (tree["seed"], tree["rounds"]) == (5, 3)
    assert (tree["strategy"]["name"], tree["strategy"]["mu"]) == ("fedprox", 0.5)
    assert result.json["model_sha256"] != summary(folder / "tiny")["model_sha256"]


def test_own_data_and_own_model(tmp_path):
    draws = numpy.random.default_rng(0)
    x = draws.normal(size=(120, 4)).astype("float32")
    numpy.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] > 0).astype("int64"))
    (tmp_path / "mymodel.py").write_text(
        "import torch\n"
        "def build(input_shape, classes, width=3):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], width),\n"
        "                               torch.nn.Tanh(), torch.nn.Linear(width, classes))\n"
    )
    own = ["data=files", "data.path=mine.npz", "model=mymodel:build", "model.width=7"]
    settings = [text for text in TINY if not text.startswith("model")]
    result = fedopt(tmp_path, "run", *settings, *own, "--out", "mine", "--json")
    assert result.code == 0, result.err
    shapes = {
        tuple(array.shape) for array in load_file(tmp_path / "mine" / "model.safetensors").values()
    }
    assert shapes == {(7, 4), (7,), (2, 7), (2,)}
    assert json.loads(json.dumps(result.json)) == summary(tmp_path / "mine")
