"""Clients' folders: what is read of each kind of file, and what is refused in which words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fedopt
from fedopt.data.catalogue import SitesOptions
from fedopt.data.site_population import RemotePopulation, SitePopulation, load_sites, natural
from fedopt.data.sites import load_site, write_site
from fedopt.errors import ConfigError, DataError, UndescribedDataError


def npz(folder, name="train", rows=6, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    given = {"x": np.arange(rows * 2.0).reshape(rows, 2), "y": np.arange(rows) % 3}
    np.savez(folder / f"{name}.npz", **{**given, **arrays})


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    shape=st.lists(st.integers(1, 3), max_size=3),
    classes=st.integers(2, 5),
    held=st.one_of(st.none(), st.integers(0, 4)),
)
def test_what_is_written_is_read_to_the_bit(rows, shape, classes, held, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    draw = np.random.default_rng(rows)

    def part(n):
        x = draw.standard_normal((n, *shape)).astype(np.float32)
        return x, draw.integers(0, classes, n)

    train, validation = part(rows), None if held is None else part(held)
    write_site(folder, train, validation, classes)
    found = load_site(folder)
    np.testing.assert_array_equal(found.x, train[0])
    np.testing.assert_array_equal(found.y, train[1])
    assert found.x.dtype == np.float32
    assert found.classes == classes
    assert (found.validation is None) == (held is None)
    if validation is not None:
        np.testing.assert_array_equal(found.validation[0], validation[0])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_of_any_kind_hold_the_same_examples(ending, tmp_path):
    frame = pd.DataFrame({"age": [50, 61, 47], "dose": [0.5, 1.25, 2.0], "label": [0, 1, 1]})
    getattr(frame, f"to_{ending}")(tmp_path / f"train.{ending}", index=False)
    getattr(frame[:1], f"to_{ending}")(tmp_path / f"validation.{ending}", index=False)
    found = load_site(tmp_path)
    assert found.columns == ("age", "dose")
    np.testing.assert_array_equal(found.x, frame[["age", "dose"]].to_numpy(float))
    assert found.y.tolist() == [0, 1, 1]
    assert found.validation is not None
    assert found.signature != load_site(tmp_path, SitesOptions(columns=("dose", "age"))).signature


def test_images_are_read_by_class_in_the_order_of_the_federations_list(tmp_path):
    for name, shade in (("benign", 10), ("malignant", 200)):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("L", (4, 3), shade + number).save(tmp_path / name / f"{number}.png")
    options = SitesOptions(labels=("malignant", "unsure", "benign"))
    found = load_site(tmp_path, options)
    assert found.x.shape == (4, 1, 3, 4)
    assert found.y.tolist() == [2, 2, 0, 0]
    assert found.classes == 3
    population = SitePopulation({0: found})
    np.testing.assert_allclose(population.train(0).x[2], 200 / 255, rtol=1e-6)
    with pytest.raises(UndescribedDataError, match=r'classes have names \("benign", "malignant"\)'):
        load_site(tmp_path)
    with pytest.raises(DataError, match=r'"malignant" is not in data\.labels\. Did you mean'):
        load_site(tmp_path, SitesOptions(labels=("benign", "malignat")))


def test_several_files_follow_each_other_by_name(tmp_path):
    npz(tmp_path, "b", rows=2, y=np.array([1, 1]))
    npz(tmp_path, "a", rows=3, y=np.array([0, 0, 0]))
    assert load_site(tmp_path).y.tolist() == [0, 0, 0, 1, 1]


def mixed(folder):
    npz(folder)
    (folder / "train.csv").write_text("x,label\n1,0\n")


def table(text):
    return lambda folder: (folder / "train.csv").write_text(text)


def different_sizes(folder):
    (folder / "a").mkdir()
    Image.new("L", (4, 4)).save(folder / "a" / "0.png")
    Image.new("L", (5, 4)).save(folder / "a" / "1.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no data; wanted are .npz"),
        (mixed, "files of several kinds, csv (train.csv), npz (train.npz)"),
        (lambda f: npz(f, "validation"), 'only "validation.npz", no examples to train on'),
        (lambda f: npz(f, X=np.zeros(3)) or (f / "train.npz").unlink(), "no data"),
        (lambda f: npz(f, y=np.arange(5)), "x has shape (6, 2), y (5,)"),
        (lambda f: npz(f, x=np.full((6, 2), np.nan)), "x has 12 values that are NaN"),
        (lambda f: npz(f, y=-np.ones(6, int)), "labels that are not whole numbers"),
        (lambda f: (f / "train.npz").write_bytes(b"PK nonsense"), "not a readable .npz file"),
        (table("age,label\n1,0\n,1\n"), 'column "age" lacks 1 values, the first in row 1'),
        (table("age,sex,label\n1,m,0\n"), 'column "sex" is'),
        (table("age,outcome\n1,0\n"), "say with data.target which one of age, outcome"),
        (table("label\n1\n"), 'no column is left beside "label"'),
        (different_sizes, "images must be of one size"),
    ],
    ids=range(13),
)
def test_a_folder_that_cannot_be_used_is_refused_in_words(make, says, tmp_path):
    make(tmp_path)
    with pytest.raises(DataError) as error:
        load_site(tmp_path, SitesOptions(labels=("a",)) if make is different_sizes else None)
    assert says in str(error.value)


def test_a_pickled_array_is_never_loaded(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.array([{}], dtype=object), y=np.array([0]))
    with pytest.raises(DataError, match="not a readable"):
        load_site(tmp_path)


def federation(folder, sizes=(5, 8, 3)):
    for client, rows in enumerate(sizes):
        npz(folder / f"clinic-{client}", rows=rows)
    npz(folder / "test", rows=4)


def test_a_simulation_reads_all_folders_in_the_order_of_their_numbers(tmp_path):
    for name in ("clinic-10", "clinic-2", "clinic-1"):
        npz(tmp_path / name, rows=int(name[7:]))
    population = load_sites(SitesOptions(path=str(tmp_path)), 0, "float32")
    assert population.sizes.tolist() == [1, 2, 10]
    assert sorted(["b10", "b9", "a"], key=natural) == ["a", "b9", "b10"]


def test_a_client_alone_sees_the_examples_that_it_has_among_all(tmp_path):
    federation(tmp_path)
    options = SitesOptions(path=str(tmp_path), validation_fraction=0.4)
    together = load_sites(options, 3, "float64")
    alone = SitePopulation(
        {1: load_site(tmp_path / "clinic-1")},
        clients=3,
        sizes=np.array([3, 0, 2]),
        validation_fraction=0.4,
        seed=3,
        dtype="float64",
    )
    for part in ("train", "validation"):
        for a, b in zip(getattr(together, part)(1), getattr(alone, part)(1), strict=True):
            np.testing.assert_array_equal(a, b)
    assert alone.sizes.tolist() == together.sizes.tolist()
    with pytest.raises(DataError, match="client 0 is not here"):
        alone.train(0)


def test_the_server_has_shapes_and_no_example(tmp_path):
    federation(tmp_path)
    remote = RemotePopulation(np.array([5, 8, 3]), (2,), 3, test=load_site(tmp_path / "test"))
    assert remote.stand_in(2).x.tolist() == [[0, 0], [0, 0]]
    assert remote.test().size == 4
    for ask in (remote.train, remote.validation, lambda c: remote.train_many([c])):
        with pytest.raises(DataError, match="stay with the client"):
            ask(0)
    with pytest.raises(DataError, match="label counts stay"):
        remote.label_counts(np.array([0]))


def test_sites_are_simulated_with_the_natural_partition_alone(tmp_path):
    federation(tmp_path)
    data = {"name": "sites", "path": str(tmp_path)}
    run = fedopt.simulate(
        data=data,
        partition="natural",
        rounds=2,
        clients_per_round="all",
        model="logistic",
        engine="inline",
    )
    assert run.summary["clients_in_population"] == 3
    with pytest.raises(ConfigError, match="does not go with"):
        fedopt.simulate(data=data, partition="iid", engine="inline")
    with pytest.raises(ConfigError, match=r"data\.path: missing"):
        fedopt.simulate(data="sites", partition="natural", engine="inline")
    with pytest.raises(ConfigError, match=r"data\.label_noise"):
        fedopt.simulate(data={**data, "label_noise": 0.1}, partition="natural", engine="inline")
