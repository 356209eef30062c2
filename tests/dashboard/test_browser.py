"""The dashboard in Chromium: live curves, filter, several runs over each other."""

from __future__ import annotations

import re
import threading
import time

import pytest
import uvicorn

from fedopt.commands.dashboard import _bind
from fedopt.dashboard.app import create_app
from fedopt.dashboard.index import RunIndex
from tests.analysis.growing import GrowingRun

expect = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed (extra test)"
).expect


@pytest.fixture
def served(tmp_path):
    """A dashboard over three runs, of which the last goes on: its address and that run."""
    for name, strategy in (("first", "fedavg"), ("second", "scaffold")):
        run = GrowingRun(tmp_path / name, rounds=3, strategy=strategy)
        for round in range(1, 4):
            run.grow(0.2 * round)
        run.end()
    growing = GrowingRun(tmp_path / "<b>live", rounds=9, strategy="fedprox")
    growing.grow(0.1)
    bound = _bind("127.0.0.1", 0)
    index = RunIndex(tmp_path, interval=0)
    app = create_app(index, interval=0.05, is_stopping=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}", growing
    server.should_exit = True
    thread.join()
    bound.close()


@pytest.fixture
def page(chromium, served):
    """A tab with the dashboard; nothing may be asked of others, or complained of."""
    address, _ = served
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    requests, complaints = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(address)
    tab.wait_for_selector("#runs tr")
    yield tab
    context.close()
    assert all(url.startswith(address) for url in requests)
    assert complaints == []


def names(page) -> list[str]:
    return page.locator("#runs td.name a").all_text_contents()


def test_the_running_run_is_shown_and_its_curve_grows(page, served):
    _, run = served
    assert page.locator("#link").text_content() == "live"
    assert page.locator("#legend li").all_text_contents() == ["<b>live: 0.1000"]
    row = page.locator("#runs tr", has_text="<b>live")
    assert "running" in row.text_content()
    assert "1/9" in row.text_content()
    for accuracy in (0.5, 0.75):
        run.grow(accuracy)
        expect(page.locator("#legend")).to_contain_text(f"{accuracy:.4f}")
    assert "3/9" in page.locator("#runs tr", has_text="<b>live").text_content()
    path = page.locator("#chart path.line").get_attribute("d")
    assert len(re.findall(r"[ML]", path)) == 3
    run.end()
    page.wait_for_selector("#runs tr:has-text('<b>live') .completed")


def test_filter_sort_and_several_over_each_other(page):
    assert sorted(names(page)) == ["<b>live", "first", "second"]
    page.fill("#filter", "scaffold completed")
    assert names(page) == ["second"]
    assert page.locator("#count").text_content() == "1 of 3 runs"
    page.fill("#filter", "")
    page.click("#none")
    assert page.locator("#chart path.line").count() == 0
    page.check('[aria-label="show first"]')
    page.check('[aria-label="show second"]')
    expect(page.locator("#chart path.line")).to_have_count(2)
    looks = page.locator("#chart path.line").evaluate_all("p => p.map(e => e.className.baseVal)")
    assert len(set(looks)) == 2
    page.select_option("#metric", "train_loss")
    page.select_option("#axis", "MB")
    assert "train loss by MB of first, second" in page.locator("#chart svg").get_attribute(
        "aria-label"
    )
    page.check("#log")
    box = page.locator("#chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] / 2)
    assert "first: 0.3333" in page.locator(".readout").text_content()
    page.click("#heads button:has-text('accuracy')")
    assert names(page)[-1] == "<b>live"
    page.click("#heads button:has-text('accuracy')")
    assert names(page)[0] == "<b>live"
    page.reload()  # the address keeps what was chosen
    expect(page.locator("#chart path.line")).to_have_count(2)
    assert page.locator("#metric").input_value() == "train_loss"
    assert page.locator("#axis").input_value() == "MB"


def test_a_run_that_begins_appears_by_itself(page, served, tmp_path):
    GrowingRun(tmp_path / "newcomer", strategy="feddyn").grow(0.3)
    page.wait_for_selector("#runs tr:has-text('newcomer')")
    assert page.locator("#count").text_content() == "4 of 4 runs"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_phone_scrolls_only_the_table(chromium, served, mode):
    address, _ = served
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=mode)
    tab = context.new_page()
    tab.goto(address)
    tab.wait_for_selector("#chart svg")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    context.close()


def test_the_report_of_a_run_opens_from_the_table(page, chromium):
    with page.context.expect_page() as opening:
        page.locator("#runs td.name a", has_text="second").click()
    report = opening.value
    report.wait_for_load_state()
    assert "second" in report.locator("h1").text_content()
    report.close()
