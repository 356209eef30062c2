"""`fedopt doctor`: what it finds on a machine that lacks something, and that it says what to do."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedopt import doctor
from fedopt.cli import app
from fedopt.doctor import Finding, diagnose

Usage = namedtuple("Usage", "total used free")


def healthy(name: str):
    return lambda: Finding(name, "ok", "fine")


def test_a_machine_that_runs_the_tests_has_no_failure() -> None:
    findings = diagnose(with_ray=False)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "cuda", "cores", "memory", "data", "extras", "write"} <= set(names)
    for finding in findings:
        assert finding.level in ("ok", "warn"), finding
        assert finding.advice or finding.level == "ok", finding


def low_memory(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(doctor, "_available_memory", lambda: 10**9)
    return doctor.memory()


def limited_memory(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(doctor, "memory_limit", lambda: 10**8)
    return doctor.memory()


def little_shared(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 64 * 2**20))
    return doctor.shared_memory()


def full_disk(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    return doctor.disk()


def few_files(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(resource, "getrlimit", lambda what: (256, 256))
    return doctor.open_files()


def small_quota(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(doctor, "cpu_quota", lambda: 0.5)
    return doctor.cores()


def busy(patch: pytest.MonkeyPatch) -> Finding:
    patch.setattr(doctor, "cpu_quota", lambda: None)
    patch.setattr(doctor.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    return doctor.cores()


def old_clock(patch: pytest.MonkeyPatch) -> Finding:
    return doctor.clock(now=lambda: 0.0)


def gpu_without_cuda(patch: pytest.MonkeyPatch) -> Finding:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.version, "cuda", None)
    patch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return doctor.cuda()


def bad_data_folder(patch: pytest.MonkeyPatch) -> Finding:
    patch.setenv("FEDOPT_FASHION_MNIST", "/nowhere")
    return doctor.data()


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (low_memory, "engine.workers=1"),
        (limited_memory, "engine.workers=1"),
        (little_shared, "--shm-size"),
        (full_disk, "--out"),
        (few_files, "ulimit -n"),
        (small_quota, "engine.workers=1"),
        (busy, "slower"),
        (old_clock, "set the clock"),
        (gpu_without_cuda, "pytorch.org"),
        (bad_data_folder, "FEDOPT_FASHION_MNIST"),
    ],
)
def test_what_is_short_is_a_warning_with_advice(machine, says, monkeypatch) -> None:
    finding = machine(monkeypatch)
    assert finding.level == "warn"
    assert says in finding.advice or says in finding.detail


def test_packages_of_other_versions_and_missing_ones_fail(monkeypatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "flwr" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.packages()
    assert finding.level == "fail"
    assert "ray is not installed" in finding.detail
    assert "flwr is 0.1, needed is ==1.42.0" in finding.detail
    assert "pip install" in finding.advice
    assert doctor.package("flwr").level == "fail"


def test_extras_say_how_to_get_them(monkeypatch) -> None:
    monkeypatch.setattr(
        doctor, "_problem", lambda requirement: f"{requirement[0]} is not installed"
    )
    finding = doctor.extras()
    assert finding.level == "ok"
    assert "privacy" in finding.detail.partition("not installed:")[2]
    assert "pip install" in finding.advice
    assert set(doctor.optional_extras()) >= {"privacy"}


def test_a_folder_that_cannot_be_written_fails(monkeypatch, tmp_path) -> None:
    def refuse(dir: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = doctor.write_access()
    assert finding.level == "fail"
    assert "--out" in finding.advice


def test_switches_are_those_of_the_shell() -> None:
    assert doctor.switches(dict(doctor.SWITCHES)).advice == ""
    assert "FLWR_TELEMETRY_ENABLED=0" in doctor.switches({}).advice


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "1000", "memory.current": "400"}, 1.5, 600),
        ({"cpu.max": "max 100000", "memory.max": "max", "memory.current": "400"}, None, None),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "1000",
            },
            2.0,
            0,
        ),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None, None),
        ({}, None, None),
    ],
)
def test_limits_of_control_groups(files, cores, memory, tmp_path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert doctor.cpu_quota(tmp_path) == cores
    assert doctor.memory_limit(tmp_path) == memory


def test_a_training_that_fails_and_a_check_that_breaks_are_findings(monkeypatch) -> None:
    import fedopt

    def fails(**tables: object) -> None:
        raise RuntimeError("no memory\nmore")

    monkeypatch.setattr(fedopt, "simulate", fails, raising=False)
    finding = doctor.training()
    assert (finding.level, finding.detail) == ("fail", "RuntimeError: no memory")
    monkeypatch.setattr(doctor, "python", fails)
    first = diagnose(with_ray=False)[0]
    assert (first.name, first.level) == ("python", "fail")
    result = CliRunner().invoke(app, ["doctor", "--no-ray", "--json"])
    assert result.exit_code == 1
    assert {item["level"] for item in json.loads(result.stdout)} >= {"ok", "fail"}
