"""Reports in Chromium: one request, no error, readable at both widths, read-outs and switches."""

from __future__ import annotations

import pytest

from fedopt.analysis.report import comparison_report, find_runs, write_report

from .test_comparison_report import runs  # noqa: F401 (a fixture)
from .test_run_report import full  # noqa: F401 (a fixture)


@pytest.fixture
def opened(chromium):
    """Open a file in a tab; return the tab, its requests and what it complained of."""
    contexts = []

    def open_page(path, width=1280, mode="light", script=True):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=mode, java_script_enabled=script
        )
        contexts.append(context)
        tab = context.new_page()
        requests, complaints = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(path.resolve().as_uri())
        return tab, requests, complaints

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def pages(full, runs, tmp_path_factory):  # noqa: F811
    several = tmp_path_factory.mktemp("page") / "several.html"
    write_report(several, comparison_report(find_runs([runs]), "Several"))
    return {"run": full / "report.html", "several": several}


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["run", "several"])
def test_one_request_no_complaint_and_no_sideways_scrolling(opened, pages, kind, width, mode):
    tab, requests, complaints = opened(pages[kind], width, mode)
    assert requests == [pages[kind].resolve().as_uri()]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    smallest = tab.evaluate(
        """Math.min(...[...document.querySelectorAll(".chart text:not(.tiny)")]
        .filter(t => t.getBoundingClientRect().width)
        .map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a))"""
    )
    assert smallest >= 9  # pixels that can be read
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (mode == "light")


@pytest.mark.parametrize("script", [True, False])
def test_the_axis_is_switched_and_lines_are_hidden_without_a_script_too(opened, pages, script):
    tab, _, _ = opened(pages["run"], script=script)
    shown = tab.locator("#curves .by:visible")
    figures = tab.locator("#curves figure").count()
    assert shown.count() == figures
    assert tab.locator("#curves .by-rounds:visible").count() == figures
    tab.check("#x-bytes")
    assert tab.locator("#curves .by-bytes:visible").count() == figures
    assert shown.count() == figures
    first = tab.locator("#curves figure").first
    assert first.locator(".by-bytes .s0").is_visible()
    first.locator("input.t0").uncheck()
    assert not first.locator(".by-bytes .s0").is_visible()
    assert first.locator(".by-bytes .s1").is_visible()
    first.locator("summary").click()
    assert first.locator("table").is_visible()


def test_read_outs_by_pointer_and_by_keys(opened, pages):
    tab, _, complaints = opened(pages["run"])
    chart = tab.locator("#curves figure").first.locator("svg.chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    readout = tab.locator("#readout")
    assert readout.is_visible()
    rows = tab.locator("#curves figure").first.locator("tbody tr")
    last = rows.nth(rows.count() - 1).locator("td")
    assert "communication rounds 6" in readout.text_content()
    assert last.nth(last.count() - 1).text_content() in readout.text_content()
    tab.mouse.move(5, 5)
    assert not readout.is_visible()
    chart.focus()
    tab.keyboard.press("ArrowRight")
    assert "communication rounds 1" in readout.text_content()
    tab.keyboard.press("ArrowRight")
    assert "communication rounds 2" in readout.text_content()
    assert complaints == []
