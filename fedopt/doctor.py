"""Checks of the machine and the installation, for `fedopt doctor`.

A check returns what it found and, where something is to be done, what. None changes anything: files
that are tried are nameless and gone at once, the Ray that is started is shut down.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30

LEAST_MEMORY = 2 * GIB
"""Free memory below which a run of two workers may fail, bytes."""

LEAST_SHARED = GIB // 2
"""Free shared memory below which Ray falls back to the disk or fails, bytes."""

LEAST_DISK = GIB
"""Free disk below which runs with checkpoints may fail, bytes."""

LEAST_FILES = 1024
"""Open files that a process may have, below which Ray may fail."""

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What keeps Flower from calling home and from installing packages."""

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: of the check.
        level: ok; warn, things work but not as well as they could; fail, runs will fail.
        detail: what was found.
        advice: what to do; never empty unless all is well.
    """

    name: str
    level: str
    detail: str
    advice: str = ""


Check = Callable[[], Finding]


def diagnose(with_ray: bool = True) -> list[Finding]:
    """Run all checks.

    Args:
        with_ray: start Ray too, which takes some seconds.
    """
    checks: list[tuple[str, Check]] = [
        ("python", python),
        ("packages", packages),
        ("flwr", lambda: package("flwr")),
        ("ray", lambda: package("ray")),
        ("torch", torch_build),
        ("threads", threads),
        ("cuda", cuda),
        ("cores", cores),
        ("memory", memory),
        ("shared_memory", shared_memory),
        ("disk", disk),
        ("files", open_files),
        ("write", write_access),
        ("clock", clock),
        ("switches", switches),
        ("data", data),
        ("extras", extras),
        ("training", training),
        *((("ray_start", ray_start),) if with_ray else ()),
    ]
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Check) -> Finding:
    """Run a check; one that fails itself is a finding too."""
    try:
        return check()
    except Exception as error:  # whatever is wrong with the machine, the others are checked
        said = f"{type(error).__name__}: {error}"
        return Finding(name, "fail", f"the check failed: {said}", "see the failures above first")


def python() -> Finding:
    """Check the interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", "ok", f"{version}, {sys.executable}")
    return Finding(
        "python",
        "fail",
        f"{version}; 3.11 and 3.12 are supported",
        "make an environment with one of them: make PYTHON=python3.12 ...",
    )


def packages() -> Finding:
    """Check every package that fedopt needs against the versions that it asks for."""
    problems = [problem for problem in map(_problem, _requirements()) if problem]
    if not problems:
        return Finding("packages", "ok", f"all {len(_requirements())} as needed")
    return Finding(
        "packages",
        "fail",
        "; ".join(problems),
        "install again: pip install --constraint constraints.txt --editable .",
    )


def package(name: str) -> Finding:
    """Say which version of a package is installed."""
    problem = next((p for r in _requirements() if r[0] == name and (p := _problem(r))), "")
    if problem:
        return Finding(name, "fail", problem, f'pip install "{name}{_wanted(name)}"')
    return Finding(name, "ok", importlib.metadata.version(name))


def _wanted(name: str) -> str:
    return next((specifier for found, specifier in _requirements() if found == name), "")


def _requirements(extra: str = "") -> list[tuple[str, str]]:
    """Return the packages that fedopt needs, and those of Flower's simulation, with versions.

    Args:
        extra: return what this extra adds instead.
    """
    from packaging.requirements import Requirement

    found: dict[str, str] = {}

    def collect(distribution: str, wanted: str, deep: bool) -> None:
        for line in importlib.metadata.requires(distribution) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": wanted}):
                continue
            if wanted and (marker is None or "extra" not in str(marker)):
                continue
            if requirement.name == "fedopt":
                for inner in requirement.extras:
                    collect("fedopt", inner, deep)
                continue
            found[requirement.name] = str(requirement.specifier)
            if deep and requirement.name == "flwr":
                for inner in requirement.extras:
                    collect("flwr", inner, False)

    collect("fedopt", extra, True)
    return list(found.items())


def _problem(requirement: tuple[str, str]) -> str:
    """Say what is wrong with an installed package, "" where nothing is."""
    from packaging.specifiers import SpecifierSet

    name, specifier = requirement
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return ""
    return f"{name} is {version}, needed is {specifier}"


def torch_build() -> Finding:
    """Say how torch was built."""
    try:
        import torch
    except ImportError as error:
        return Finding(
            "torch",
            "fail",
            f"cannot be imported: {error}",
            "pip install --constraint constraints.txt --editable .",
        )
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    kernels = torch.backends.cpu.get_cpu_capability()
    return Finding("torch", "ok", f"{torch.__version__}, {built}, {kernels} kernels")


def threads() -> Finding:
    """Say how many threads torch has; runs hold it to one a worker whatever it is."""
    import torch

    return Finding("threads", "ok", f"{torch.get_num_threads()}; runs use one a worker")


def cuda() -> Finding:
    """Look for a GPU, and for one that torch cannot use."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("cuda", "ok", ", ".join(names), "to train on it: engine.device=cuda")
    if not Path("/dev/nvidia0").exists() and shutil.which("nvidia-smi") is None:
        return Finding("cuda", "ok", "no GPU; engine.device=cpu")
    if torch.version.cuda is None:
        detail, advice = "a GPU is there, but torch was built without CUDA", "a CUDA build of torch"
        return Finding("cuda", "warn", detail, f"to train on it install {advice} (pytorch.org)")
    return Finding(
        "cuda",
        "warn",
        f"torch was built for CUDA {torch.version.cuda}, but cannot use a GPU",
        "run nvidia-smi; the driver may be older than that, or a container may lack --gpus all",
    )


def cores() -> Finding:
    """Count the cores that may be used, by affinity and by the control group's quota."""
    usable = len(os.sched_getaffinity(0))
    quota, load = cpu_quota(), os.getloadavg()[0]
    said = f"{usable} usable, load {load:.1f}"
    if quota is not None and quota < usable:
        least = max(1, int(quota))
        return Finding(
            "cores",
            "warn",
            f"{said}, but a control group allows {quota:g}",
            f"use engine.workers={least}: more workers would be stopped in turn",
        )
    if load > usable:
        advice = "other programs use the cores; runs are slower, their results the same"
        return Finding("cores", "warn", said, advice)
    return Finding("cores", "ok", said)


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """Return the cores that the control group allows, None where it sets no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def memory_limit(root: Path = CGROUPS) -> int | None:
    """Return what the control group leaves of its memory limit, bytes; None without a limit."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, used = (root / limit).read_text().strip(), (root / usage).read_text().strip()
        except OSError:
            continue
        if most != "max" and int(most) < 2**60:  # version 1 writes a huge number for none
            return max(0, int(most) - int(used))
    return None


def memory() -> Finding:
    """Measure the memory that is free, within the control group's limit."""
    free = _available_memory()
    limit = memory_limit()
    said = f"{free / GIB:.1f} GiB free"
    if limit is not None and limit < free:
        said, free = f"{limit / GIB:.1f} GiB free in a control group", limit
    if free >= LEAST_MEMORY:
        return Finding("memory", "ok", said)
    return Finding(
        "memory",
        "warn",
        said,
        "use engine.workers=1 or engine=inline, or a smaller clients_per_round or block_size",
    )


def _available_memory() -> int:
    """Return the memory that programs may still take, bytes."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Measure /dev/shm, where Ray's object store and the workers' slots lie."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    said = f"{free / GIB:.1f} GiB free in {folder}"
    if free >= LEAST_SHARED:
        return Finding("shared_memory", "ok", f"{said} for Ray's object store")
    return Finding(
        "shared_memory",
        "warn",
        f"{said}: little for Ray's object store",
        "in a container: docker run --shm-size=2g ...; or engine=inline, which needs none",
    )


def disk() -> Finding:
    """Measure the disk where runs and temporary files go."""
    free = {
        "here": shutil.disk_usage(Path.cwd()).free,
        "for temporary files": shutil.disk_usage(tempfile.gettempdir()).free,
    }
    said = ", ".join(f"{size / GIB:.1f} GiB free {where}" for where, size in free.items())
    if min(free.values()) >= LEAST_DISK:
        return Finding("disk", "ok", said)
    advice = "make room, give --out on another disk, set TMPDIR, or keep fewer checkpoints"
    return Finding("disk", "warn", said, advice)


def open_files() -> Finding:
    """Check how many files a process may open: Ray's processes open hundreds."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY or most >= LEAST_FILES:
        return Finding("files", "ok", f"a process may open {most if most > 0 else 'any number'}")
    advice = f"ulimit -n {4 * LEAST_FILES} before the run"
    return Finding("files", "warn", f"a process may open {most} files only", advice)


def write_access() -> Finding:
    """Check that runs and temporary files can be written."""
    for folder, advice in (
        (Path.cwd(), "start where you may write, or give --out"),
        (Path(tempfile.gettempdir()), "set TMPDIR to a folder that you may write to"),
    ):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            said = f"{folder} cannot be written: {error.strerror or error}"
            return Finding("write", "fail", said, advice)
    return Finding("write", "ok", f"{Path.cwd()} and {tempfile.gettempdir()} can be written")


def clock(now: Callable[[], float] = time.time) -> Finding:
    """Check that the clock is not before the day that this program was written on."""
    written = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now()))
    if now() >= written - 86_400:
        return Finding("clock", "ok", said)
    return Finding(
        "clock",
        "warn",
        f"{said} is before the date of fedopt's own files",
        "set the clock: certificates are judged by it, and runs are named and listed by it",
    )


def switches(environment: dict[str, str] | None = None) -> Finding:
    """Check Flower's switches as the shell has them; `fedopt` sets what its own runs need."""
    had = _first_environment() if environment is None else environment
    missing = [f"{name}={value}" for name, value in SWITCHES.items() if had.get(name) != value]
    if not missing:
        return Finding("switches", "ok", "Flower calls nobody and installs nothing")
    said = "off in fedopt's own runs; Flower's own commands read the environment"
    return Finding("switches", "ok", said, f"before `flwr run`: export {' '.join(missing)}")


def _first_environment() -> dict[str, str]:
    """Return the environment that this process was started with."""
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (line.decode(errors="replace").partition("=") for line in lines if line)
    return {name: value for name, _, value in pairs}


def data() -> Finding:
    """Say which data sets are at hand without a network."""
    from fedopt.data.fashion_mnist import DEBIAN, ENVIRONMENT, find_folder
    from fedopt.errors import DataError

    here = "digits, breast_cancer (inside the package), synthetic (generated), files (your own)"
    try:
        return Finding("data", "ok", f"{here}, fashion_mnist ({find_folder(None)})")
    except DataError as error:
        if os.environ.get(ENVIRONMENT):
            return Finding("data", "warn", str(error).splitlines()[0], f"mend {ENVIRONMENT}")
        return Finding(
            "data",
            "ok",
            f"{here}; fashion_mnist is not there",
            f"apt-get install dataset-fashion-mnist (to {DEBIAN}), or set {ENVIRONMENT}",
        )


def extras() -> Finding:
    """Say which optional parts are installed, and how to get the others."""
    found, missing, broken = [], [], []
    for extra in optional_extras():
        problems = [problem for r in _requirements(extra) if (problem := _problem(r))]
        if not problems:
            found.append(extra)
        elif any("is not installed" not in problem for problem in problems):
            broken.append(f"{extra}: {', '.join(problems)}")
        else:
            missing.append(extra)
    said = f"installed: {', '.join(found) or 'none'}"
    if missing:
        said += f"; not installed: {', '.join(missing)}"
    wanted = ",".join([*missing, *(text.partition(":")[0] for text in broken)])
    advice = f'pip install --editable ".[{wanted}]" for what you want of them' if wanted else ""
    if broken:
        return Finding("extras", "warn", f"{said}; {'; '.join(broken)}", advice)
    return Finding("extras", "ok", said, advice)


def optional_extras() -> Iterable[str]:
    """Return the names of the extras that are for users."""
    named = importlib.metadata.metadata("fedopt").get_all("Provides-Extra") or []
    return [name for name in named if name not in ("dev", "test")]


def training() -> Finding:
    """Train for two rounds in this process."""
    return _trained("training", {"name": "inline"})


def ray_start() -> Finding:
    """Train for two rounds in a Ray that is started for it, and shut down."""
    import ray

    if ray.is_initialized():
        return Finding("ray_start", "ok", "Ray runs in this process already; it is left alone")
    return _trained("ray_start", {"name": "ray", "workers": 1})


def _trained(name: str, engine: dict[str, object]) -> Finding:
    import fedopt

    began = time.perf_counter()
    try:
        run = fedopt.simulate(
            rounds=2, clients_per_round=5, local={"epochs": 1}, engine=engine, seed=0
        )
    except Exception as error:  # whatever is wrong with the installation, say it
        advice = "the findings above may say why"
        if engine["name"] == "ray":
            advice += "; engine=inline needs no Ray; a long TMPDIR needs a short RAY_TMPDIR"
        text = str(error).strip() or "no message"
        return Finding(name, "fail", f"{type(error).__name__}: {text.splitlines()[0]}", advice)
    seconds = time.perf_counter() - began
    model = run.summary["model_sha256"][:12]
    where = "in this process" if engine["name"] == "inline" else "in a Ray worker"
    return Finding(name, "ok", f"2 rounds {where} in {seconds:.1f} s, model {model}")
