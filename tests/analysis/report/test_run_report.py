"""The report of one run says what its folder says, of whatever run, and lets nothing through."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import fedopt
from fedopt.analysis import read_evaluations, read_history
from fedopt.analysis.report import read_run, run_report
from fedopt.analysis.report.page import asset
from fedopt.analysis.style import COLOURS
from fedopt.analysis.targets import Target
from fedopt.errors import ConfigError, RunError

from .pages import Element, by_id, parse, tables

HOSTILE = (
    "</script></style><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'&"
)


def clients(count: int = 12, size: int = 12) -> dict[str, object]:
    """Separable clients in memory, with a test set."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count + 1, size, 4)).astype("float32")
    y = (x.sum(axis=2) > 0).astype("int64")
    return {
        "clients": list(zip(x[1:], y[1:], strict=True)),
        "test": (x[0], y[0]),
        "model": lambda: torch.nn.Linear(4, 2),
        "engine": {"name": "inline"},
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with everything that a report can show."""
    folder = tmp_path_factory.mktemp("report") / "full"
    fedopt.simulate(
        out=folder,
        rounds=6,
        clients_per_round=8,
        data={"validation_fraction": 0.25},
        system={"devices": {"name": "log_normal"}, "failures": {"during": 0.2}},
        policy={"name": "deadline", "seconds": 0.4},
        evaluation={"validation_clients": 10, "unseen_clients": 2},
        server={"swa": {"start": 0.5}},
        **clients(),
    )
    return folder


@pytest.fixture(scope="module")
def page(full):
    return parse((full / "report.html").read_text(encoding="utf-8"))


def test_a_run_writes_the_report_that_the_command_writes_again(full):
    def undated(text):
        return re.sub(r"Made by fedopt, [^.]*\.", "", text)

    written = (full / "report.html").read_text(encoding="utf-8")
    assert undated(run_report(read_run(full))) == undated(written)


def test_the_summary_has_the_values_of_the_run(full, page):
    summary = json.loads((full / "summary.json").read_text())
    metrics = {row[0]: row for row in tables(by_id(page, "summary"))["Metrics"]}
    assert float(metrics["test_accuracy"][2]) == pytest.approx(
        summary["final"]["test_accuracy"], abs=5e-5
    )
    best = summary["best"]["test_loss"]
    assert metrics["test_loss"][4] == str(best["round"])
    assert "completed" in next(page.all("h1")).text


def test_curves_have_a_chart_for_each_axis_and_the_table_behind_them(full, page):
    history = read_history(full)
    curves = by_id(page, "curves")
    loss = next(f for f in curves.all("figure") if next(f.all("figcaption")).text == "Loss")
    axes = [svg.attributes["data-axis"] for svg in loss.all("svg") if "data-axis" in svg.attributes]
    assert axes == ["rounds", "bytes", "seconds", "steps", "wall"]
    table = tables(loss)["Loss"]
    assert len(table) == 1 + len(history)
    column = table[0].index("test")
    shown = [float(row[column]) for row in table[1:]]
    assert shown == pytest.approx(history["test_loss"].tolist(), rel=1e-3)
    sent = table[0].index("MB sent up and down")
    total = (history["bytes_up"] + history["bytes_down"]) * 1e-6
    assert [float(r[sent]) for r in table[1:]] == pytest.approx(total.tolist(), rel=1e-3)


def test_clients_are_told_apart_at_the_end_and_by_rounds(full, page):
    answers = read_evaluations(full)
    rows = answers[answers["split"] == "validation"]
    history = read_history(full)
    means = rows.groupby("round")["accuracy"].mean()
    assert np.allclose(means, history["validation_accuracy_mean"])
    unseen = answers[answers["split"] == "unseen"]
    assert np.allclose(unseen.groupby("round")["accuracy"].mean(), history["unseen_accuracy_mean"])
    titles = [caption.text for caption in by_id(page, "clients").all("figcaption")]
    assert titles == [
        "Accuracy of clients after round 6",
        "Accuracy of clients by rounds",
        "Accuracy of clients never trained on after round 6",
        "Accuracy of clients never trained on by rounds",
        "Training loss of the cohort by rounds",
    ]
    table = tables(by_id(page, "clients"))["Accuracy of clients by rounds"]
    middle = rows.groupby("round")["accuracy"].median()
    assert [float(row[1]) for row in table[1:]] == pytest.approx(middle.tolist(), rel=1e-3)


def test_the_population_is_that_of_the_run(full, page):
    population = json.loads((full / "population.json").read_text())
    counts = np.array(population["labels"]["counts"])
    assert counts.shape == (population["clients"], 2)
    assert counts.sum() == population["examples"]
    assert sum(population["size_histogram"]["clients"]) == population["clients"]
    table = tables(by_id(page, "population"))["Labels of the clients"]
    assert [list(map(int, row[1:])) for row in table[1:]] == counts.tolist()


def test_who_failed_when_and_why(full, page):
    gone = fedopt.analysis.read_clients(full)
    gone = gone[gone["status"].isin(("dropped", "failed"))]
    assert len(gone)
    table = tables(by_id(page, "failures"))["Who, when, why"]
    assert [(int(r[0]), int(r[1]), r[2], r[3]) for r in table[1:]] == [
        (row.round, row.client, row.status, row.reason) for row in gone.itertuples()
    ]


def test_reliability_and_timeline_are_there(full, page):
    bins = json.loads((full / "reliability.json").read_text())
    assert sum(bins["counts"]) == 12
    table = tables(by_id(page, "reliability"))["Reliability of the final model"]
    assert sum(int(row[1]) for row in table[1:] if row[1]) == 12
    assert "virtual" in next(by_id(page, "timeline").all("svg")).attributes["aria-label"]


def test_what_differs_from_the_defaults_is_told(full, page):
    section = tables(by_id(page, "config"))
    changed = {row[0]: row[1:] for row in section["What differs from the defaults"]}
    assert changed["rounds"] == ["6", "200"]
    assert changed["policy.seconds"] == ["0.4", "60.0"]
    assert "local.optimizer.lr" not in changed
    assert "strategy.name" not in changed


def elements_are_safe(page: Element) -> None:
    scripts = list(page.all("script"))
    assert [s.text for s in scripts] == [asset("report.js")]
    assert not [e for e in page.all() if any(k.startswith("on") for k in e.attributes)]
    assert not list(page.all("iframe", "object", "embed", "base", "form"))
    addresses = [e.attributes.get("src", "") + e.attributes.get("href", "") for e in page.all()]
    assert all(a.startswith(("#", "data:")) for a in addresses if a)


def test_the_page_asks_for_nothing_and_runs_one_script(full, page):
    elements_are_safe(page)
    style = next(page.all("style")).text
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes)
    digest = base64.b64encode(hashlib.sha256(asset("report.js").encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_picture_has_words_and_every_table_headings(page):
    charts = [svg for svg in page.all("svg") if svg.has("chart")]
    assert len(charts) > 10
    assert all(len(svg.attributes["aria-label"]) > 20 for svg in charts)
    assert all(svg.attributes["role"] == "img" for svg in charts)
    hidden = [svg for svg in page.all("svg") if not svg.has("chart")]
    assert all(svg.attributes["aria-hidden"] == "true" for svg in hidden)
    assert all(h.attributes["scope"] for h in page.all("th"))
    for figure in page.all("figure"):
        assert list(figure.all("table")), next(figure.all("figcaption")).text
    names = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(names) == len(set(names))


def test_hostile_words_are_only_words(full, tmp_path):
    folder = tmp_path / "<b>run & 'co'"
    shutil.copytree(full, folder)
    config = (folder / "config.toml").read_text()
    literal = json.dumps(HOSTILE)
    config = config.replace('name = "fedavg"', f"name = {literal}")
    (folder / "config.toml").write_text(f"{config}\n[{json.dumps('<i>')}]\n{literal} = {literal}\n")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"status": "failed", "error": HOSTILE, "environment": {HOSTILE: HOSTILE}}
    (folder / "summary.json").write_text(json.dumps(summary))
    line = json.dumps({"time": HOSTILE, "message": HOSTILE})
    (folder / "warnings.jsonl").write_text(line + "\n{cut sh")
    text = run_report(read_run(folder))
    page = parse(text)
    elements_are_safe(page)
    assert "<img src=x" not in text
    assert next(page.all("h1")).text.startswith("<b>run & 'co'")
    assert HOSTILE in next(page.all("pre")).text
    assert [HOSTILE, HOSTILE] in tables(by_id(page, "warnings"))[""]


def test_a_run_that_fails_has_a_report_that_says_why(tmp_path):
    def loss(output, target):
        return torch.nn.functional.cross_entropy(output, target) * float("nan")

    with pytest.raises(fedopt.FedoptError):
        fedopt.simulate(
            out=tmp_path / "run", rounds=3, clients_per_round=None, loss=loss, **clients()
        )
    page = parse((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "failed" in next(page.all("h1")).text
    error = json.loads((tmp_path / "run" / "summary.json").read_text())["error"]
    assert error in next(page.all("pre")).text


def test_a_run_without_a_round_and_one_of_regression(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 8, 2)).astype("float32")
    fedopt.simulate(
        out=tmp_path / "regression",
        rounds=1,
        clients_per_round=None,
        clients=list(zip(x, x.sum(axis=2, keepdims=True), strict=True)),
        model=lambda: torch.nn.Linear(2, 1),
        loss=torch.nn.functional.mse_loss,
        engine={"name": "inline"},
    )
    page = parse((tmp_path / "regression" / "report.html").read_text(encoding="utf-8"))
    assert "Not measured" in by_id(page, "reliability").text
    shutil.copytree(tmp_path / "regression", tmp_path / "young")
    header = (tmp_path / "young" / "rounds.csv").read_text().splitlines()[0]
    (tmp_path / "young" / "rounds.csv").write_text(header + "\n")
    for name in ("summary.json", "clients.csv", "population.json", "reliability.json"):
        (tmp_path / "young" / name).unlink()
    record = read_run(tmp_path / "young")
    assert record.status == "stopped"
    assert "No round is finished yet" in parse(run_report(record)).text


def test_an_old_run_shows_the_picture_it_drew(full, tmp_path):
    shutil.copytree(full, tmp_path / "old")
    population = json.loads((full / "population.json").read_text())
    for name in ("labels", "size_histogram"):
        population.pop(name)
    (tmp_path / "old" / "population.json").write_text(json.dumps(population))
    for name in ("evaluations.csv", "reliability.json", "config.toml"):
        (tmp_path / "old" / name).unlink()
    page = parse(run_report(read_run(tmp_path / "old")))
    (image,) = by_id(page, "population").all("img")
    payload = base64.b64decode(image.attributes["src"].partition(",")[2])
    assert payload == (full / "population.png").read_bytes()
    assert image.attributes["alt"]


def test_targets_cost_what_interpolation_says(full):
    record = read_run(full)
    history = pd.DataFrame(
        {
            **{name: np.full(3, np.nan) for name in record.history.columns},
            "round": [1, 2, 3],
            "test_accuracy": [0.1, 0.3, 0.5],
            "bytes_up": [1e6, 2e6, 3e6],
            "bytes_down": [1e6, 2e6, 3e6],
        }
    )
    record = read_run(full, history=history)
    page = parse(run_report(record, [Target("test_accuracy", 0.4), Target("test_accuracy", 0.9)]))
    table = tables(by_id(page, "summary"))["Cost to reach a target"]
    assert table[0][:3] == ["target", "rounds", "MB"]
    assert table[1][:3] == ["test_accuracy=0.4", "2.5", "5"]
    assert table[2][1] == "not reached"


def test_warnings_are_kept_with_those_of_before_the_run(tmp_path):
    fedopt.simulate(
        out=tmp_path / "run",
        rounds=1,
        clients_per_round=None,
        strategy={"name": "fedper"},
        engine={"name": "inline"},
        partition={"clients": 4},
    )
    lines = (tmp_path / "run" / "warnings.jsonl").read_text().splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert any("evaluation.validation_clients" in message for message in messages)
    page = parse((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert [row[1] for row in tables(by_id(page, "warnings"))[""][1:]] == messages


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * d for d in digits)
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def modes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet in light and dark mode, by name."""
    light, dark, *_ = re.findall(r":root\{(.*?)\}", asset("report.css"), re.DOTALL)
    return {
        name: dict(re.findall(r"--(\w+):(#\w+)", block))
        for name, block in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_is_that_of_wcag(mode):
    colours = modes()[mode]
    for text in ("fg", "muted", "link", "good", "bad", "warn"):
        for ground in ("bg", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for index in range(8):
        assert contrast(colours[f"c{index}"], colours["bg"]) >= 3, index


def test_colours_are_those_of_the_other_figures_where_these_are_dark_enough_for_white():
    colours = modes()["light"]
    shown = [colours[f"c{index}"].upper() for index in range(8)]
    full = [c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for c in shown]
    enough = [c for c in COLOURS if contrast(c, "#FFFFFF") >= 3]
    assert [c for c in full if c in COLOURS] == enough
    assert len(enough) == 6


def test_a_damaged_summary_is_refused(full, tmp_path):
    shutil.copytree(full, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary.json is damaged"):
        read_run(tmp_path / "run")


def test_an_unwritable_report_is_an_error_of_the_run(tmp_path):
    from fedopt.analysis.report import write_report

    with pytest.raises(RunError, match="missing"):
        write_report(tmp_path / "missing" / "report.html", "x")
