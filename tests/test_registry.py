"""The registry: everything in it loads, describes itself and is found by name."""

from __future__ import annotations

import importlib.util

import pytest

from fedopt import registry
from fedopt.errors import ConfigError
from fedopt.registry import KINDS, Entry, Options, entries, get, import_object, register

ALL = [(kind, entry.name) for kind in KINDS for entry in entries(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_entries_load_and_describe_themselves(kind: str, name: str) -> None:
    if name == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray")
    entry = get(kind, name)
    assert (entry.kind, entry.name) == (kind, name)
    assert callable(entry.load())
    assert entry.description
    assert "\n" not in entry.description
    assert entry.source


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_options_describe_themselves(kind: str, name: str) -> None:
    options = get(kind, name).options
    assert options.model_config["extra"] == "forbid"
    assert options.model_config["frozen"]
    assert options.__doc__
    for key, field in options.model_fields.items():
        assert field.description, f"{kind} {name}: {key} has no description"


def test_every_kind_has_entries_with_distinct_names() -> None:
    for kind in KINDS:
        names = [entry.name for entry in entries(kind)]
        assert names
        assert len(names) == len(set(names))


def test_unknown_names_bring_the_key_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'^strategy\.name: "fedpro" .*Did you mean "fedprox"\?'):
        get("strategies", "fedpro")
    with pytest.raises(ConfigError, match=r'^kind: "strategy" .*Did you mean "strategies"\?'):
        entries("strategy")


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        entries(kind)
    monkeypatch.setattr(registry, "_entries", {kind: {} for kind in KINDS})
    entry = Entry("models", "mine", "collections:OrderedDict", Options, "a test", "nowhere")
    assert register(entry) is entry
    assert get("models", "mine").load().__name__ == "OrderedDict"
    with pytest.raises(ConfigError, match="registered twice"):
        register(entry)
    with pytest.raises(ConfigError, match='"things" is not known'):
        register(Entry("things", "mine", "a:b", Options, "a test", "nowhere"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("collections", "not of the form"),
        (":name", "not of the form"),
        ("module:", "not of the form"),
        ("no_such_module_anywhere:x", 'cannot import "no_such_module_anywhere"'),
        ("collections:OrderdDict", 'has no "OrderdDict".*Did you mean "OrderedDict"'),
        ("collections:OrderedDict.kyes", 'has no "kyes".*Did you mean "keys"'),
    ],
)
def test_bad_paths_of_objects_are_explained(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.name: .*{words}"):
        import_object(path, key="model.name")


def test_objects_are_found_by_path() -> None:
    assert (
        import_object("collections:OrderedDict.keys") is __import__("collections").OrderedDict.keys
    )
