"""`fedopt explain`: everything that a configuration has is explained, from the schema."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from fedopt.compression.catalogue import DOWN
from fedopt.config import CHOICES, Config, load
from fedopt.effects import EFFECTS
from fedopt.errors import ConfigError
from fedopt.examples import SPECIAL, example_of
from fedopt.explanation import explain
from fedopt.keys import NAMES, WORDS, choices, keys, tables, words_of
from fedopt.schema import RunTable
from fedopt.schema_text import literals

ROOT = Path(__file__).parents[1]
ALL = keys()
PATHS = list(dict.fromkeys(key.path for key in ALL))


@pytest.mark.parametrize("path", [*PATHS, *NAMES, *tables()])
def test_everything_has_type_default_effect_example_and_page(path: str) -> None:
    found = explain(path)
    assert found.where or path in ("uplink", "downlink", "server")
    page, _, anchor = found.page.partition("#")
    assert page.endswith(".md")
    assert anchor == anchor.lower()
    program = "deploy submit" if path.startswith("deployment") else "run"
    assert found.example.startswith(f"fedopt {program} ")
    assert found.description or found.variants
    if found.what == "key":
        assert all(variant["type"] and variant["default"] for variant in found.variants)
        assert all(variant["description"] for variant in found.variants)
        assert set(found.related) <= {*PATHS, *NAMES, *WORDS}
    assert all(
        len(line) <= 110 or " fedopt run" in line or "[" in line
        for line in found.text().splitlines()
    )


@pytest.mark.parametrize(
    "key", ALL, ids=lambda key: f"{key.path}-{key.entry.name}" if key.entry else key.path
)
def test_examples_are_accepted_and_set_their_key(key) -> None:
    words = example_of(key)
    config = load(None, words)
    plain = config.dump()
    for part in key.path.split("."):
        plain = plain[part]
    bare = f"{key.path.removesuffix('.name')}="
    given = next(w.partition("=")[2] for w in words if w.startswith((f"{key.path}=", bare)))
    try:
        wanted = tomllib.loads(f"value = {given}")["value"]
    except tomllib.TOMLDecodeError:
        wanted = given
    assert plain == wanted
    if key.entry is not None:
        assert _name(config, key.table) == key.entry.name


def _name(config: Config, table: str) -> str:
    plain = config.dump()
    for part in table.split("."):
        plain = plain[part]
    return str(plain["name"])


def test_examples_begin_a_run_where_they_need_no_file(tmp_path, monkeypatch) -> None:
    from fedopt.experiment import Experiment
    from fedopt.recorder import make_strategy

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("my_data.npz", x=rng.normal(size=(400, 4)), y=np.arange(400) % 4)
    for site in ("one", "two"):
        for folder, target in (
            ("deployment/clients", "label\n50,0.5,0\n61,1.5,9\n"),
            ("hospitals", "diagnosis\n50,0.5,benign\n61,1.5,malignant\n"),
        ):
            (tmp_path / folder / site).mkdir(parents=True)
            (tmp_path / folder / site / "train.csv").write_text(f"age,dose,{target}")
    elsewhere = (
        "teacher.model",
        "genotype.json",
        "=trace",
        "devices=file",
        "my_model",
        "cuda",
        "/data/",
    )
    seen = set()
    for key in ALL:
        words = example_of(key)
        if words in seen or any(text in word for word in words for text in elsewhere):
            continue
        if "teacher/model.safetensors" in " ".join(words):
            continue
        seen.add(words)
        make_strategy(Experiment.from_config(load(None, words)), None)
    assert len(seen) > 250


def test_effects_and_examples_name_what_there_is() -> None:
    known = {*PATHS, *NAMES, *tables()}
    assert set(EFFECTS) <= known
    assert set(SPECIAL) <= known
    for table in (*CHOICES, *Config.TABLES):
        assert table in EFFECTS, f"{table} has no effect of its own"
    for name in RunTable.model_fields:
        assert name in EFFECTS


@pytest.mark.parametrize("key", sorted(EFFECTS))
def test_pages_and_anchors_exist(key: str) -> None:
    page, _, anchor = EFFECTS[key].page.partition("#")
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    assert not anchor or anchor in anchors


@pytest.mark.parametrize("key", sorted(WORDS))
def test_words_of_the_schema_are_registered(key: str) -> None:
    (found,) = (k for k in ALL if k.path == key)
    allowed = literals(found.field.annotation)
    if allowed:
        assert [name for name, _ in words_of(key)] == allowed
    else:
        assert key == "local.loss"


def test_what_goes_down_is_what_is_accepted() -> None:
    assert [entry.name for entry in choices("downlink.compression")] == list(DOWN)


def test_option_of_a_named_choice() -> None:
    every = explain("strategy.mu")
    assert {name for variant in every.variants for name in variant["of"]} >= {"fedprox", "fedpm"}
    one = explain("strategy.mu", ["strategy=fedprox"])
    (variant,) = one.variants
    assert variant["of"] == ["fedprox"]
    assert variant["default"] == "0.1"
    assert one.source == "Li et al. 2020, algorithm 2"
    assert "strategy=fedprox" in one.example


def test_names_tables_and_short_keys() -> None:
    assert explain("fedprox").subject == "strategy=fedprox"
    assert explain("strategy=scaffold").what == "name"
    assert explain("local.sam").keys[0]["key"] == "rho"
    assert explain("clip_norm").subject == "local.gradient.clip_norm"
    assert explain("server.curriculum.pacing").variants[0]["default"] == '"linear"'
    for table in CHOICES:
        for entry in choices(table):
            assert explain(f"{table}={entry.name}").what == "name"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["local.sam.roh"], ['Did you mean "local.sam.rho"?', "rho, adaptive"]),
        (["strateg.mu"], ['Did you mean "strategy.mu"?']),
        (["scafold"], ['Did you mean "scaffold"?']),
        (["batchsize"], ['Did you mean "local.batch_size"?']),
        (["lr"], ["several keys", "local.optimizer.lr", "server.optimizer.lr"]),
        (["classes"], ["data.classes", "system.devices=classes"]),
        (["strategy.mu", "strategy=scaffold"], ['"scaffold" has no option "mu"', "fedprox"]),
        (["strategy.mu", "strategy=fedprx"], ['Did you mean "fedprox"?']),
    ],
)
def test_typos_bring_the_nearest_word(words: list[str], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        explain(words[0], words[1:])
    assert all(text in str(caught.value) for text in says)
    assert CliRunner().invoke(app, ["explain", *words]).exit_code == 2


def test_example_is_a_command_of_a_shell() -> None:
    words = shlex.split(explain("model.hidden").example)
    assert words[:2] == ["fedopt", "run"]
    assert load(None, words[2:]).model.name == "mlp"


def test_explaining_imports_no_torch() -> None:
    program = (
        "import sys; from fedopt.explanation import explain; explain('strategy.mu');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'flwr', 'ray', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
