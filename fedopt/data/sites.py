"""The folder of one client with its own data: numpy archives, tables, or images by class.

A folder holds files of one kind:

    train.npz  validation.npz        arrays x and y in each
    train.csv  validation.csv        a table each, one column is the target; .parquet likewise
    train/CLASS/*.png  validation/CLASS/*.png        images of one size; or CLASS/*.png at once

Several files or folders without such names are training examples, in the order of their names;
without a validation part the configuration's `validation_fraction` is held out. The same reader
serves a real client and the simulation of several folders, so that both see the same examples.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedopt.atomic import write_atomically
from fedopt.data.catalogue import SitesOptions
from fedopt.data.dataset import check_arrays, check_labels, check_values
from fedopt.data.partitioners import AnyArray
from fedopt.errors import DataError, UndescribedDataError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

VALIDATION = "validation"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TABLES = (".csv", ".parquet")
LABEL_COLUMNS = ("label", "y", "target", "class")


@dataclass(frozen=True)
class SiteData:
    """The examples of one client, as they lie in its folder.

    Args:
        x: inputs, `[M, ...]`, numeric.
        y: labels `[M]` int64 >= 0, or regression targets `[M, ...]` of a floating type.
        validation: inputs and targets held out by the folder itself; None: it has no such part.
        classes: number of classes as far as the folder knows; None: regression.
        columns: names of the columns of a table in the order of `x`; None for other kinds.
        kind: `npz`, `csv`, `parquet` or `images`.
        scale: inputs are `x * scale + shift`.
        shift: see `scale`.
    """

    x: AnyArray
    y: AnyArray
    validation: tuple[AnyArray, AnyArray] | None
    classes: int | None
    columns: tuple[str, ...] | None
    kind: str
    scale: float
    shift: float

    @property
    def signature(self) -> str:
        """A digest of the columns' names, by which a server finds folders that do not agree."""
        text = "\n".join(self.columns or ())
        return hashlib.sha256(text.encode()).hexdigest()[:16] if self.columns else ""


class _Part(NamedTuple):
    """Inputs, targets, and what is known of both."""

    x: AnyArray
    y: AnyArray
    columns: tuple[str, ...] | None
    classes: int | None


def load_site(path: str | Path, options: SitesOptions | None = None) -> SiteData:
    """Read and check the folder of one client.

    Args:
        path: the folder.
        options: which column is the target, the names of the classes, scaling.

    Raises:
        DataError: the folder is missing or empty, holds several kinds of files, or has values that
            cannot be trained on; the message names file, column, row and what to do.
    """
    folder, options = Path(path).expanduser(), options or SitesOptions()
    if not folder.is_dir():
        raise DataError(f'"{folder}" is not a folder')
    kind, train, held = _sources(folder)
    read: Callable[[Sequence[Path], SitesOptions], _Part] = _READERS[kind]
    part = read(train, options)
    where = str(folder)
    _check(part, where, options)
    validation = None
    if held:
        other = read(held, options)
        _check_alike(part, other, f"{where}: {VALIDATION}")
        validation = (other.x, other.y)
    is_image = kind == "images"
    classes = None
    if part.y.dtype.kind != "f":
        seen = [part.y] if validation is None else [part.y, validation[1]]
        known = max((int(y.max()) + 1 for y in seen if len(y)), default=1)
        classes = max(known, options.classes or 0, len(options.labels), part.classes or 0)
    return SiteData(
        part.x,
        part.y,
        validation,
        classes,
        part.columns,
        kind,
        (1 / 255 if is_image else 1.0) if options.scale is None else options.scale,
        0.0 if options.shift is None else options.shift,
    )


def _sources(folder: Path) -> tuple[str, list[Path], list[Path]]:
    """Return the kind of a folder's files, those to train on and those held out."""
    found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    by_kind: dict[str, list[Path]] = {}
    for path in found:
        suffix = path.suffix.lower()
        if path.is_dir() and _has_images(path):
            by_kind.setdefault("images", []).append(path)
        elif suffix == ".npz":
            by_kind.setdefault("npz", []).append(path)
        elif suffix in TABLES:
            by_kind.setdefault(suffix[1:], []).append(path)
    if not by_kind:
        shown = ", ".join(p.name for p in found[:5]) or "nothing"
        raise DataError(
            f"{folder}: no data; wanted are .npz, .csv or .parquet files, or a folder of images "
            f"for each class. Found: {shown}."
        )
    if len(by_kind) > 1:
        shown = ", ".join(f"{kind} ({paths[0].name})" for kind, paths in sorted(by_kind.items()))
        raise DataError(f"{folder}: files of several kinds, {shown}; keep one")
    ((kind, paths),) = by_kind.items()
    held = [p for p in paths if (p.name if kind == "images" else p.stem) == VALIDATION]
    train = [p for p in paths if p not in held]
    if not train:
        raise DataError(f'{folder}: only "{held[0].name}", no examples to train on')
    if kind == "images":
        nested = [p for p in train if p.name == "train"]
        if nested:
            if len(train) > 1:
                names = ", ".join(p.name for p in train if p.name != "train")
                raise DataError(f'{folder}: beside "train" there must be no class folder ({names})')
            train = nested
        elif held:
            raise DataError(f'{folder}: beside "{VALIDATION}" the classes belong in "train"')
        else:
            train = [folder]
    return kind, train, held


def _has_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGES for p in folder.rglob("*"))


def _read_npz(paths: Sequence[Path], options: SitesOptions) -> _Part:
    parts, classes = [], 0
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as archive:
                raw = {name: archive[name] for name in archive.files}
        except Exception as error:  # zip, zlib, numpy and the system each have their own
            raise DataError(f"{path}: not a readable .npz file. {error}") from error
        for key in ("x", "y"):
            if key not in raw:
                hint = did_you_mean(key, raw)
                shown = ", ".join(sorted(raw)) or "nothing"
                raise DataError(f'{path}: there is no "{key}".{hint} Found: {shown}.')
        x, y = raw["x"], raw["y"]
        if y.dtype.kind in "US":
            y = _codes(y.astype(str), options, str(path))
        if "classes" in raw:
            classes = max(classes, int(raw["classes"]))
        _same_rows(x, y, str(path))
        parts.append((x, _targets(y)))
    x, y = _joined(parts, paths)
    return _Part(x, y, None, classes or None)


def _read_tables(paths: Sequence[Path], options: SitesOptions) -> _Part:
    parts: list[tuple[AnyArray, AnyArray]] = []
    columns: tuple[str, ...] | None = None
    for path in paths:
        frame = _table(path)
        target = _target_column(frame, options, path)
        names = _input_columns(frame, target, options, path)
        if columns is not None and names != columns:
            raise DataError(f"{path}: columns {list(names)} are not those of {paths[0].name}")
        columns = names
        y = frame[target].to_numpy()
        if y.dtype.kind not in "biuf":
            y = _codes(frame[target].astype(str).to_numpy(str), options, f'{path}: "{target}"')
        inputs = frame[list(names)]
        for name in names:
            if inputs[name].dtype.kind not in "biuf":
                raise DataError(
                    f'{path}: column "{name}" is {inputs[name].dtype}, not numeric; leave it out '
                    "with data.columns, or encode it"
                )
            missing = int(inputs[name].isna().sum())
            if missing:
                row = int(np.flatnonzero(inputs[name].isna())[0])
                says = f"lacks {missing} values, the first in row {row}"
                raise DataError(f'{path}: column "{name}" {says}')
        parts.append((inputs.to_numpy(np.float64), _targets(y)))
    x, y = _joined(parts, paths)
    return _Part(x, y, columns, None)


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            return pd.read_csv(path)
        return pd.read_parquet(path)
    except ImportError:
        raise DataError(f'{path}: Parquet needs pyarrow; pip install "fedopt[parquet]"') from None
    except Exception as error:  # pandas and pyarrow raise a dozen kinds
        raise DataError(f"{path}: not a readable table. {error}") from error


def _target_column(frame: pd.DataFrame, options: SitesOptions, path: Path) -> str:
    names = [str(name) for name in frame.columns]
    wanted = [options.target] if options.target else [n for n in LABEL_COLUMNS if n in names]
    if options.target and options.target not in names:
        hint = did_you_mean(options.target, names)
        raise DataError(
            f'{path}: there is no column "{options.target}" (data.target).{hint} '
            f"One of: {', '.join(names)}."
        )
    if not wanted:
        raise UndescribedDataError(
            f"{path}: no column is called {', '.join(LABEL_COLUMNS)}; say with data.target which "
            f"one of {', '.join(names)} is the target"
        )
    return wanted[0]


def _input_columns(
    frame: pd.DataFrame, target: str, options: SitesOptions, path: Path
) -> tuple[str, ...]:
    names = [str(name) for name in frame.columns]
    for name in options.columns:
        if name not in names or name == target:
            hint = did_you_mean(name, [n for n in names if n != target])
            raise DataError(f'{path}: there is no input column "{name}" (data.columns).{hint}')
    found = tuple(options.columns) or tuple(name for name in names if name != target)
    if not found:
        raise DataError(f'{path}: no column is left beside "{target}"')
    return found


def _read_images(paths: Sequence[Path], options: SitesOptions) -> _Part:
    (root,) = paths
    folders = sorted(p for p in root.iterdir() if p.is_dir() and _has_images(p))
    names = np.array([p.name for p in folders])
    codes = _codes(names, options, str(root))
    images: list[AnyArray] = []
    labels: list[int] = []
    for folder, code in zip(folders, codes.tolist(), strict=True):
        for file in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES):
            image = _image(file)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{file}: shape {image.shape}, the first image has {images[0].shape}; images "
                    "must be of one size and colour"
                )
            images.append(image)
            labels.append(code)
    return _Part(np.stack(images), np.array(labels, dtype=np.int64), None, None)


def _image(path: Path) -> AnyArray:
    """Return an image as `[channels, height, width]` uint8: one channel, or three."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except Exception as error:  # Pillow raises whatever its decoders do
        raise DataError(f"{path}: not a readable image. {error}") from error
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


_READERS: dict[str, Callable[[Sequence[Path], SitesOptions], _Part]] = {
    "npz": _read_npz,
    "csv": _read_tables,
    "parquet": _read_tables,
    "images": _read_images,
}


def _codes(names: AnyArray, options: SitesOptions, where: str) -> AnyArray:
    """Return the number of each class name in the federation's list of names.

    Every client must number the classes alike, and none sees the names of the others: only a list
    in the configuration can say.
    """
    known = {name: code for code, name in enumerate(options.labels)}
    found = sorted(set(names.tolist()))
    if not known:
        shown = ", ".join(f'"{name}"' for name in found[:10])
        raise UndescribedDataError(
            f"{where}: classes have names ({shown}); list all names of the federation in "
            "data.labels, so that every client numbers them alike"
        )
    for name in found:
        if name not in known:
            hint = did_you_mean(name, options.labels)
            raise DataError(
                f'{where}: class "{name}" is not in data.labels.{hint} '
                f"One of: {', '.join(options.labels)}."
            )
    return np.array([known[name] for name in names.tolist()], dtype=np.int64)


def _targets(y: AnyArray) -> AnyArray:
    """Return labels as int64, regression targets as they are."""
    if y.dtype.kind in "biu":
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        return y.astype(np.int64)
    return y


def _same_rows(x: AnyArray, y: AnyArray, where: str) -> None:
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        shapes = f"x has shape {x.shape}, y {y.shape}"
        raise DataError(f"{where}: {shapes}; both need one row an example")


def _joined(
    parts: Sequence[tuple[AnyArray, AnyArray]], paths: Sequence[Path]
) -> tuple[AnyArray, AnyArray]:
    first_x, first_y = parts[0]
    for (x, y), path in zip(parts, paths, strict=True):
        if x.shape[1:] != first_x.shape[1:] or y.shape[1:] != first_y.shape[1:]:
            raise DataError(f"{path}: rows of another shape than those of {paths[0].name}")
        if (y.dtype.kind == "f") != (first_y.dtype.kind == "f"):
            raise DataError(f"{path}: y is {y.dtype}, that of {paths[0].name} {first_y.dtype}")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _check(part: _Part, where: str, options: SitesOptions) -> None:
    check_arrays(part.x, part.y, where=where)
    if part.y.dtype.kind != "f":
        classes = len(options.labels) or options.classes
        check_labels(part.y, where=where, classes=classes)


def _check_alike(part: _Part, other: _Part, where: str) -> None:
    """Check a validation part, which may be empty, against the training part."""
    same = (
        other.x.shape[1:] == part.x.shape[1:]
        and (other.y.dtype.kind == "f") == (part.y.dtype.kind == "f")
        and other.columns == part.columns
    )
    if not same:
        raise DataError(f"{where}: examples of another shape or kind than those to train on")
    check_values(other.x, where=where, name="x")
    check_values(other.y, where=where, name="y")
    if other.y.dtype.kind != "f" and len(other.y):
        check_labels(other.y, where=where)


def write_site(
    folder: Path,
    train: Sequence[AnyArray],
    validation: Sequence[AnyArray] | None,
    classes: int | None,
) -> None:
    """Write a client's folder of `.npz` files, which `load_site` reads back to the bit.

    Args:
        folder: of the client, made where there is none.
        train: inputs and targets.
        validation: those held out; None writes no such file, arrays of no rows an empty one.
        classes: number of classes of the whole federation; None: regression.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extra: dict[str, Any] = {} if classes is None else {"classes": np.int64(classes)}
    for name, part in (("train", train), (VALIDATION, validation)):
        if part is not None:
            _save(folder / f"{name}.npz", x=part[0], y=part[1], **extra)


def _save(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
