"""What a configuration can name under `[data]` and `[partition]`, with every option.

Only schemas, descriptions and sources live here: the module imports neither torch nor numpy,
so `fedopt list` and the validation of a configuration stay fast. An option appears only in the
table of the dataset or partition that uses it; nothing is accepted and then ignored.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedopt.registry import Entry, Options, register


class DatasetOptions(Options):
    """Options that every dataset takes."""

    validation_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each client's examples held out for validation, in [0, 1), "
        "rounded down; at least one training example is kept.",
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability, in [0, 1), that a label which clients train on is replaced by "
        "one that is uniform over the other classes; partition, validation and test set see the "
        "right labels. Classification only.",
    )


class EmbeddedOptions(DatasetOptions):
    """Options of the datasets inside the package."""

    test_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of all examples held out as the server's test set, in [0, 1), "
        "rounded down but at least one when above 0; 0: no test set.",
    )


class DigitsOptions(EmbeddedOptions):
    """Options of `digits`."""


class BreastCancerOptions(EmbeddedOptions):
    """Options of `breast_cancer`."""


class FashionMnistOptions(DatasetOptions):
    """Options of `fashion_mnist`; it has its own test set of 10,000 examples."""

    path: str | None = Field(
        None,
        description="Folder with the four IDX files (.gz or unpacked). Unset: the environment "
        "variable FEDOPT_FASHION_MNIST, else the Debian package's folder.",
    )


class FilesOptions(DatasetOptions):
    """Options of `files`."""

    path: str = Field(
        description="An .npz file or a folder of .npy files with x and y, and optionally test_x, "
        "test_y and client; or with MedMNIST's train_images, train_labels, test_images, "
        "test_labels.",
    )
    test_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of all examples held out as the server's test set, in [0, 1); unset: "
        "0.2. Refused when the files bring their own test set.",
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto",
        description="What y is. auto: classification when y has an integer type, else regression.",
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="Inputs become x * scale + shift. Unset: 1, or 2/255 for MedMNIST's keys.",
    )
    shift: float | None = Field(
        None,
        description="Added after scaling. Unset: 0, or -1 for MedMNIST's keys.",
    )


class SitesOptions(DatasetOptions):
    """Options of `sites`: folders of clients with their own data."""

    path: str | None = Field(
        None,
        description="Folder with a folder for each client, and optionally one called test, for a "
        "simulation; real clients read their own folder, and this is not used.",
    )
    target: str | None = Field(
        None,
        description="Column of a table that holds the label or regression target. Unset: the first "
        "of label, y, target, class that there is.",
    )
    columns: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Columns of a table that are inputs, in this order. Empty: all but the "
        "target, in the table's order.",
    )
    labels: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Names of the classes in the order of their numbers; needed where labels are "
        "names, as with images in a folder for each class.",
    )
    classes: int | None = Field(
        None,
        ge=2,
        description="Number of classes, >= 2. Unset: one more than the largest label of any "
        "client.",
    )
    scale: float | None = Field(
        None, gt=0, description="Inputs become x * scale + shift. Unset: 1, or 1/255 for images."
    )
    shift: float | None = Field(None, description="Added after scaling. Unset: 0.")


class SyntheticOptions(DatasetOptions):
    """Options of `synthetic`, Synthetic(alpha, beta)."""

    alpha: float = Field(
        1.0,
        ge=0,
        description="Spread between the devices' models (standard deviation of u), >= 0.",
    )
    beta: float = Field(
        1.0,
        ge=0,
        description="Spread between the devices' inputs (standard deviation of B), >= 0.",
    )
    variances: bool = Field(
        False,
        description="Read alpha and beta as variances, as the paper's text says, instead of "
        "standard deviations, as its published code does.",
    )
    iid: bool = Field(
        False,
        description="One model and one input law for all devices, as in the published code for iid "
        "data, which does not use alpha and beta.",
    )
    features: int = Field(60, ge=1, description="Input dimension, >= 1.")
    classes: int = Field(10, ge=2, description="Number of classes, >= 2.")
    size_log_mean: float = Field(
        4.0, ge=0, le=12, description="Mean of the log of a device's examples, in [0, 12]."
    )
    size_log_sigma: float = Field(
        2.0,
        ge=0,
        le=4,
        description="Standard deviation of the log of a device's examples, in [0, 4].",
    )
    size_min: int = Field(
        50, ge=1, description="Examples that every device has on top of the lognormal draw, >= 1."
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of each device's examples that belongs to the test set, in [0, 1).",
    )
    test_clients: int = Field(
        1000,
        ge=1,
        description="The test set is the union of the test parts of the first so many devices, "
        ">= 1.",
    )


class PartitionOptions(Options):
    """Base of the options of every partition."""


class ArrayPartitionOptions(PartitionOptions):
    """Options of the partitions that cut an array of examples into a chosen number of clients."""

    clients: int = Field(100, ge=1, description="Number of clients, >= 1.")
    min_examples: int = Field(
        1,
        ge=0,
        description="Clients with fewer examples are topped up to this many, one random example "
        "at a time from the client that is then the largest; 0: empty clients stay empty and "
        "are never sampled.",
    )


class IidOptions(ArrayPartitionOptions):
    """Options of `iid`."""


class DirichletOptions(ArrayPartitionOptions):
    """Options of `dirichlet`."""

    alpha: float = Field(
        0.1,
        gt=0,
        description="Concentration, > 0: small gives few classes a client, large gives iid labels.",
    )


class ShardsOptions(ArrayPartitionOptions):
    """Options of `shards`."""

    shards_per_client: int = Field(2, ge=1, description="Label-sorted shards per client, >= 1.")


class SimilarityOptions(ArrayPartitionOptions):
    """Options of `similarity`."""

    similarity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the examples dealt iid, in [0, 1]; the rest is dealt sorted by "
        "label.",
    )


class QuantityOptions(ArrayPartitionOptions):
    """Options of `quantity`."""

    exponent: float = Field(
        1.5,
        gt=0,
        description="Tail exponent a of the sizes, P(size > s) ~ s**-a, > 0: smaller is more "
        "unequal.",
    )


class NaturalOptions(PartitionOptions):
    """Options of `natural`: none, the data says who the clients are."""


class SyntheticPartitionOptions(PartitionOptions):
    """Options of the partition `synthetic`."""

    clients: int = Field(30, ge=1, description="Number of devices to generate, >= 1.")


def _dataset(
    name: str, target: str, options: type[DatasetOptions], description: str, source: str
) -> None:
    register(Entry("datasets", name, f"fedopt.data.{target}", options, description, source))


def _partition(
    name: str, target: str, options: type[PartitionOptions], description: str, source: str
) -> None:
    register(Entry("partitions", name, f"fedopt.data.{target}", options, description, source))


_dataset(
    "digits",
    "embedded:load_digits",
    DigitsOptions,
    "1,797 grey 8x8 images of hand-written digits, 10 classes; inside the package",
    "Alpaydin and Kaynak (1998), UCI Optical Recognition of Handwritten Digits, as in "
    "scikit-learn's load_digits",
)
_dataset(
    "breast_cancer",
    "embedded:load_breast_cancer",
    BreastCancerOptions,
    "569 tumours with 30 standardised features, 2 classes; inside the package",
    "Wolberg, Street and Mangasarian (1995), UCI Breast Cancer Wisconsin (Diagnostic), as in "
    "scikit-learn's load_breast_cancer",
)
_dataset(
    "fashion_mnist",
    "fashion_mnist:load_fashion_mnist",
    FashionMnistOptions,
    "60,000 + 10,000 grey 28x28 images of clothes, 10 classes; read from IDX files",
    "Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747; Debian package dataset-fashion-mnist",
)
_dataset(
    "synthetic",
    "synthetic:SyntheticPopulation",
    SyntheticOptions,
    "Synthetic(alpha, beta): devices with their own linear model and input law, made on demand",
    "Li et al. (2020), Federated Optimization in Heterogeneous Networks, section 5.1 and the "
    "published generate_synthetic.py",
)
_dataset(
    "files",
    "files:load_files",
    FilesOptions,
    "your own arrays: an .npz file, or a folder of .npy files read memory-mapped",
    "numpy's NPY format; MedMNIST's key names (Yang et al., 2023)",
)

_dataset(
    "sites",
    "site_population:load_sites",
    SitesOptions,
    "Clients with a folder each: .npz, CSV, Parquet, or images by class; simulated or real",
    "docs/deployment.md",
)

_partition(
    "iid",
    "partitioners:deal_iid",
    IidOptions,
    "shuffled and dealt evenly",
    "McMahan et al. (2017), section 3 (IID)",
)
_partition(
    "dirichlet",
    "partitioners:deal_dirichlet",
    DirichletOptions,
    "each class is spread over the clients by Dirichlet(alpha) shares",
    "Yurochkin et al. (2019), section 4",
)
_partition(
    "shards",
    "partitioners:deal_shards",
    ShardsOptions,
    "sorted by label and cut into shards; each client gets a few",
    "McMahan et al. (2017), section 3 (pathological non-IID)",
)
_partition(
    "similarity",
    "partitioners:deal_similarity",
    SimilarityOptions,
    "a share of the examples dealt iid, the rest dealt sorted by label",
    "Karimireddy et al. (2020), SCAFFOLD, section 7.1; Hsu et al. (2019)",
)
_partition(
    "quantity",
    "partitioners:deal_quantity",
    QuantityOptions,
    "power-law client sizes with iid labels",
    "Pareto law; the unbalanced setting of Li et al. (2020), FedProx, section 5.1",
)
_partition(
    "natural",
    "partitioners:deal_natural",
    NaturalOptions,
    "the data's own `client` column says whose each example is",
    "Caldas et al. (2018), LEAF",
)
_partition(
    "synthetic",
    "synthetic:SyntheticPopulation",
    SyntheticPartitionOptions,
    "the devices of the generator; only with data.name = synthetic",
    "Li et al. (2020), section 5.1",
)
