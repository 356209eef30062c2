"""The columns of `rounds.csv` and `clients.csv`, as data.

The writers, the readers, the summary and the documentation all take them from here. How the
files are written is in `store.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["integer", "real", "text", "digest", "words"]


@dataclass(frozen=True)
class Column:
    """One column of a run's table.

    Args:
        name: the column's name, the same in files, arguments and documentation.
        kind: `"integer"`, `"real"` (a float64 that round-trips exactly), `"text"` (a status),
            `"words"`, or `"digest"` (64 hexadecimal digits).
        unit: unit of the values, `""` for names and `"1"` for pure numbers.
        description: one sentence, for people.
        cumulative: whether the value is a total since round 1 began.
        better: which direction is better, where the column is something to compare runs by.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    cumulative: bool = False
    better: Literal["higher", "lower"] | None = None


_AVERAGED: tuple[tuple[str, Kind, str, Literal["higher", "lower"] | None], ...] = (
    ("test_loss", "real", "loss", "lower"),
    ("test_accuracy", "real", "fraction", "higher"),
    ("test_ece", "real", "fraction", None),
    ("test_mce", "real", "fraction", None),
    ("test_brier", "real", "1", None),
    ("test_balanced_accuracy", "real", "fraction", "higher"),
    ("test_auroc", "real", "fraction", "higher"),
)

TEST_METRICS: tuple[str, ...] = tuple(name for name, *_ in _AVERAGED)
"""What an evaluation on the test set measures, of the model and of the averaged one."""

ROUND_COLUMNS: tuple[Column, ...] = (
    Column("round", "integer", "1", "Communication round, from 1 (0: before any training)."),
    Column(
        "train_loss",
        "real",
        "loss",
        "Example-weighted mean of the minibatch losses over all local steps of the cohort.",
    ),
    Column(
        "test_loss",
        "real",
        "loss",
        "Mean loss of the global model on the test set after the round.",
        better="lower",
    ),
    Column(
        "test_accuracy",
        "real",
        "fraction",
        "Fraction of the test set whose most probable class is the right one.",
        better="higher",
    ),
    Column(
        "test_ece",
        "real",
        "fraction",
        "Expected calibration error on the test set, 15 bins on the top probability.",
    ),
    Column(
        "test_mce",
        "real",
        "fraction",
        "Maximum calibration error on the test set, over the bins of `test_ece`.",
    ),
    Column(
        "test_brier",
        "real",
        "1",
        "Multi-class Brier score on the test set: mean squared distance to the one-hot target.",
    ),
    Column(
        "test_balanced_accuracy",
        "real",
        "fraction",
        "Mean over the classes of their accuracies on the test set: rare ones count the same.",
        better="higher",
    ),
    Column(
        "test_auroc",
        "real",
        "fraction",
        "Area under the receiver operating characteristic of class 1 on the test set; two classes "
        "only.",
        better="higher",
    ),
    Column(
        "test_sharpness",
        "real",
        "loss",
        "Largest eigenvalue of the Hessian of the test loss, on its first examples.",
    ),
    Column(
        "test_ball_increase",
        "real",
        "loss",
        "Rise of the test loss under SAM's ascent step, on the examples of `test_sharpness`.",
    ),
    Column(
        "validation_loss",
        "real",
        "loss",
        "Mean loss of the global model on the validation set after the round.",
        better="lower",
    ),
    Column(
        "validation_accuracy",
        "real",
        "fraction",
        "Fraction of the validation set whose most probable class is the right one.",
        better="higher",
    ),
    Column(
        "validation_accuracy_mean",
        "real",
        "fraction",
        "Mean over the evaluated clients of their validation accuracies, each counting the same.",
        better="higher",
    ),
    Column(
        "validation_accuracy_worst10",
        "real",
        "fraction",
        "Mean validation accuracy of the worst tenth of the evaluated clients, at least one.",
        better="higher",
    ),
    Column(
        "validation_accuracy_variance",
        "real",
        "1",
        "Population variance over the evaluated clients of their validation accuracies.",
    ),
    Column(
        "drift_test_loss",
        "real",
        "loss",
        "Mean loss on the test set as the clients see the world in the round; empty without drift.",
        better="lower",
    ),
    Column(
        "drift_test_accuracy",
        "real",
        "fraction",
        "Accuracy on the test set of `drift_test_loss`; `test_accuracy` is on the old concept.",
        better="higher",
    ),
    Column(
        "unseen_loss",
        "real",
        "loss",
        "Mean loss over the training data of the clients that never train.",
        better="lower",
    ),
    Column(
        "unseen_accuracy",
        "real",
        "fraction",
        "Accuracy over the training data of the clients that never train.",
        better="higher",
    ),
    Column(
        "unseen_accuracy_mean",
        "real",
        "fraction",
        "Mean of the accuracies of the clients that never train, each counting the same.",
        better="higher",
    ),
    Column(
        "unseen_accuracy_worst10",
        "real",
        "fraction",
        "Mean accuracy of the worst tenth of the clients that never train, at least one.",
        better="higher",
    ),
    Column(
        "unseen_accuracy_variance",
        "real",
        "1",
        "Population variance of the accuracies of the clients that never train.",
    ),
    Column(
        "objective",
        "real",
        "loss",
        "Mean loss of the global model over all training data of `evaluation.training_clients` "
        "after the round; `train_loss` is of minibatches during local training.",
        better="lower",
    ),
    Column(
        "gradient_variance",
        "real",
        "1",
        "Variance over these clients, weighted by examples, of the gradients of their mean losses "
        "at the global model.",
    ),
    Column(
        "gradient_dissimilarity",
        "real",
        "1",
        "Root of the weighted mean squared norm of these gradients, over the norm of their mean; "
        "at least 1, empty where the mean is 0.",
    ),
    *(
        Column(f"swa_{name}", kind, unit, f"`{name}` of the averaged model.", better=better)
        for name, kind, unit, better in _AVERAGED
    ),
    Column(
        "lr",
        "real",
        "1",
        "Mean learning rate of the round's steps, of a client with the nominal number of them.",
    ),
    Column("clients", "integer", "clients", "Clients whose update the server aggregated."),
    Column(
        "clients_seen",
        "integer",
        "clients",
        "Different clients whose updates the server has aggregated so far.",
    ),
    Column(
        "dropped_clients",
        "integer",
        "clients",
        "Clients of the cohort whose update was not used: gone, or over the deadline.",
    ),
    Column(
        "failed_clients",
        "integer",
        "clients",
        "Clients of the cohort whose local training ended in an error.",
    ),
    Column(
        "skipped_steps",
        "integer",
        "steps",
        "Local steps of the cohort that did not happen because of their gradient.",
    ),
    Column(
        "architecture_entropy",
        "real",
        "nats",
        "Mean entropy of the choices of a supernet's architecture; empty for other models.",
    ),
    Column(
        "skip_connections",
        "integer",
        "1",
        "Skip connections of the normal cell, or of the dense layers, that it stands for.",
    ),
    Column(
        "available_share",
        "real",
        "fraction",
        "Mean over the clients of the share of their examples that the curriculum has made "
        "available; empty without curriculum or self-paced learning.",
    ),
    Column(
        "selected_share",
        "real",
        "fraction",
        "Mean over the clients of the share of their steps' examples with a weight > 0; empty "
        "without self-paced learning.",
    ),
    Column(
        "drift",
        "real",
        "fraction",
        "How far the drifting clients are from the old concept (0) to the new (1), their mean; "
        "empty without drift.",
    ),
    Column(
        "joined_clients",
        "integer",
        "clients",
        "Clients that have joined by the round; empty where all are there from the beginning.",
    ),
    Column(
        "clip_norm",
        "real",
        "1",
        "Norm to which updates were clipped in the round; empty without clipping.",
    ),
    Column(
        "epsilon",
        "real",
        "1",
        "What the rounds so far cost in differential privacy; empty without noise.",
    ),
    Column("bytes_up", "integer", "bytes", "Sent from clients to the server.", cumulative=True),
    Column("bytes_down", "integer", "bytes", "Sent from the server to clients.", cumulative=True),
    Column(
        "sim_seconds",
        "real",
        "s",
        "Virtual time by the system profile; empty without one.",
        cumulative=True,
    ),
    Column(
        "joules",
        "real",
        "J",
        "Energy of clients for computing and transfers, by the system profile; empty without one.",
        cumulative=True,
    ),
    Column("wall_seconds", "real", "s", "Real time, resumed parts added up.", cumulative=True),
    Column(
        "client_steps",
        "integer",
        "steps",
        "Local steps done, summed over clients; those of dropped clients are counted too.",
        cumulative=True,
    ),
    Column(
        "client_gradients",
        "integer",
        "gradients",
        "Minibatch gradients computed in these steps: two a step with sharpness-aware "
        "minimisation, and twice as many with a gradient penalty.",
        cumulative=True,
    ),
    Column(
        "model_sha256",
        "digest",
        "",
        "SHA-256 of the model's arrays after the round: `fedopt verify` compares by it.",
    ),
)
"""Columns of `rounds.csv`, in order: one row a round."""

CLIENT_STATUSES: tuple[str, ...] = ("trained", "partial", "dropped", "failed")
"""What can become of a client in a round, the values of `status` in `clients.csv`."""

CLIENT_COLUMNS: tuple[Column, ...] = (
    Column("round", "integer", "1", "Communication round, from 1."),
    Column("client", "integer", "", "Client id, in 0..N-1."),
    Column(
        "status",
        "text",
        "",
        "`trained`: all planned steps; `partial`: fewer, yet used; `dropped`: not used; "
        "`failed`: local training ended in an error.",
    ),
    Column("examples", "integer", "examples", "Training examples that the client holds."),
    Column(
        "steps",
        "integer",
        "steps",
        "Local steps done in this round; a dropped client's are counted, not computed.",
    ),
    Column("planned_steps", "integer", "steps", "Local steps that the plan asked for."),
    Column("train_loss", "real", "loss", "Example-weighted mean of the client's minibatch losses."),
    Column("update_norm", "real", "1", "Euclidean norm of the client's update."),
    Column("weight", "real", "1", "Weight of the update in the aggregate, before normalising."),
    Column(
        "skipped_steps",
        "integer",
        "steps",
        "Those of `steps` that did not happen because of their gradient.",
    ),
    Column(
        "lr_sum",
        "real",
        "1",
        "Sum of the coefficients with which the applied gradients entered the update: of the "
        "learning rates for SGD; empty where the optimizer has none.",
    ),
    Column(
        "available_share",
        "real",
        "fraction",
        "Share of the client's examples that the curriculum has made available, mean over steps.",
    ),
    Column(
        "selected_share",
        "real",
        "fraction",
        "Share of the steps' examples with a weight > 0 in self-paced learning.",
    ),
    Column("bytes_up", "integer", "bytes", "Sent from the client to the server in the round."),
    Column("bytes_down", "integer", "bytes", "Sent from the server to the client in the round."),
    Column(
        "sim_start",
        "real",
        "s",
        "Virtual time at which the client's part began; empty without a system profile.",
    ),
    Column("download_seconds", "real", "s", "Virtual seconds of its download."),
    Column("compute_seconds", "real", "s", "Virtual seconds of its local steps."),
    Column("upload_seconds", "real", "s", "Virtual seconds of its upload."),
    Column("joules", "real", "J", "Energy of its computing and transfers."),
    Column(
        "staleness",
        "integer",
        "rounds",
        "Server steps between the client's beginning and its update's use: 0 in synchronous "
        "rounds, -1 where it was not used.",
    ),
    Column("reason", "words", "", "Why its part was not used: failed, left, late, cancelled, ..."),
    Column("hostile", "integer", "1", "1 where the client is one of an attack's, else 0."),
    Column(
        "drift_group",
        "integer",
        "",
        "The client's group of drifting clients, from 1; 0: its examples stay as they are.",
    ),
)
"""Columns of `clients.csv`, in order: one row per client and round."""

EVALUATION_COLUMNS: tuple[Column, ...] = (
    Column("round", "integer", "1", "Communication round after which the client was asked."),
    Column(
        "split",
        "words",
        "",
        "`validation`: its validation split; `unseen`: all data of a client that never trains.",
    ),
    Column("client", "integer", "", "Client id, in 0..N-1."),
    Column("examples", "integer", "examples", "Examples that were evaluated, at least one."),
    Column("loss", "real", "loss", "Mean loss of the client's model on them."),
    Column("accuracy", "real", "fraction", "Fraction of them whose most probable class is right."),
)
"""Columns of `evaluations.csv`, in order: one row per client that was evaluated and round."""


def names(columns: Iterable[Column]) -> tuple[str, ...]:
    """Return the columns' names, in order."""
    return tuple(column.name for column in columns)


def markdown_table(columns: Iterable[Column]) -> str:
    """Return a Markdown table that describes `columns`, one row each, ending in a newline."""
    lines = ["| column | unit | cumulative | description |", "| --- | --- | --- | --- |"]
    for column in columns:
        unit = column.unit or "-"
        cumulative = "yes" if column.cumulative else ""
        description = column.description.replace("|", "\\|")
        lines.append(f"| `{column.name}` | {unit} | {cumulative} | {description} |")
    return "\n".join(lines) + "\n"
