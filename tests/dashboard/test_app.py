"""What the dashboard answers, to whom, and with which headers."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from fedopt.dashboard.app import _changes, create_app, host_of, is_loopback
from fedopt.dashboard.index import RunIndex
from tests.analysis.growing import GrowingRun


@pytest.fixture
def index(tmp_path):
    GrowingRun(tmp_path / "runs" / "a run").grow(0.5)
    GrowingRun(tmp_path / "secret").grow(0.9)
    return RunIndex(tmp_path / "runs", interval=0)


@pytest.fixture
def client(index):
    return TestClient(create_app(index), base_url="http://127.0.0.1:8050")


def test_runs_curves_and_report(client):
    (run,) = client.get("/api/runs").json()["runs"]
    assert run["id"] == "a run"
    curves = client.get("/api/curves/a%20run").json()
    assert curves["metrics"]["test_accuracy"] == [0.5]
    report = client.get("/report/a%20run")
    assert report.status_code == 200
    assert "a run" in report.text
    assert report.headers["content-security-policy"].startswith("sandbox")


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/runs"])
def test_pages_keep_to_themselves(client, path):
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/curves/../secret",
        "/api/curves/%2e%2e/secret",
        "/api/curves/..%2fsecret",
        "/report/..%2fsecret",
        "/report/%2fetc",
        "/report/a%00b",
        "/static/..%2fapp.py",
        "/static/index.html.bak",
        "/docs",
        "/openapi.json",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_answered(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "secret/" not in answer.text


def test_it_only_reads(client):
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/api/runs").status_code == 405


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8050", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8050", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8050", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_not_expected_is_refused(client, index, host, code):
    assert client.get("/api/runs", headers={"Host": host}).status_code == code
    # Bound to an address that others reach, it cannot know by which names they do.
    others = TestClient(create_app(index, host="0.0.0.0"))
    assert others.get("/api/runs", headers={"Host": host}).status_code == 200


def test_hosts_and_addresses():
    assert host_of("[::1]:80") == "::1"
    assert host_of("Name:80") == "name"
    assert [is_loopback(h) for h in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "192.168.0.1", "host")] == [False] * 4


def test_events_tell_all_runs_first_and_then_what_changed(tmp_path):
    run = GrowingRun(tmp_path / "one")
    GrowingRun(tmp_path / "two").grow(0.5)
    index = RunIndex(tmp_path, interval=0)

    async def listen():
        async def never():
            return False

        events = _changes(index, 0.01, never)
        first = await anext(events)
        run.grow(0.25)
        second = await anext(events)
        await events.aclose()
        return first, second

    first, second = asyncio.run(listen())
    assert first.startswith("event: runs\ndata: ")
    assert first.endswith("\n\n")
    found = [json.loads(event.split("data: ", 1)[1]) for event in (first, second)]
    assert [r["id"] for r in found[0]["runs"]] == ["one", "two"]
    assert [(r["id"], r["round"]) for r in found[1]["runs"]] == [("one", 1)]
