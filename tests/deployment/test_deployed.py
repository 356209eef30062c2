"""Runs on real clients, all in this process: the bits of the simulation, and what is lost."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import stat

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

import fedopt
from fedopt.analysis.store import read_clients, read_history
from fedopt.client.messages import TrainRequest
from fedopt.client.secure import SecureClient
from fedopt.client.site import Others, Site
from fedopt.client.state import RowFile
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import TrainingOutcome
from fedopt.config import load
from fedopt.data.site_population import SitePopulation
from fedopt.deployment.submit import prepared
from fedopt.errors import (
    ConfigError,
    FedoptError,
    RefusalError,
    RunError,
    SecureAggregationError,
)
from fedopt.secure import (
    Agreement,
    Layout,
    MaskedVector,
    PublicKeys,
    SealedShares,
    ServerSession,
    UnmaskShares,
)
from fedopt.server.checkpoint import load_all
from fedopt.server.objective import OBJECTIVE

from .nodes import TASK, Nodes, deploy, sites, split

CLOCKS = ("wall_seconds",)


def metrics(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns=[c for c in CLOCKS if c in history]).fillna(-1)


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=scaffold"],
        [
            "strategy=fedprox",
            "strategy.mu=0.1",
            "local.optimizer=adam",
            "local.optimizer_state=keep",
        ],
        [
            "strategy=scaffold",
            "clients_per_round=2",
            "local.schedule=one_cycle",
            "local.schedule.scope=across",
        ],
        ["strategy=fedper", "uplink.compression=top_k"],
    ],
    ids=" ".join,
)
def test_real_clients_give_the_bits_of_the_simulation(words, tmp_path, monkeypatch):
    words = [*TASK, *words]
    folders = split(load(None, words), tmp_path / "data")
    nodes = Nodes(sites(tmp_path, folders))
    real = deploy(monkeypatch, tmp_path, nodes, [*words, "deployment.min_clients=3"])
    simulated = fedopt.simulate(load(None, words), out=tmp_path / "simulated")
    summary = json.loads((real / "summary.json").read_text())
    assert summary["model_sha256"] == simulated.summary["model_sha256"]
    pd.testing.assert_frame_equal(
        metrics(read_history(real)), metrics(read_history(tmp_path / "simulated"))
    )


# Losses -------------------------------------------------------------------------------------------


def two_of(tmp_path, monkeypatch, before, words=(), **rules):
    config = [*TASK, "strategy=scaffold", *words]
    folders = split(load(None, config), tmp_path / "data")
    nodes = Nodes(sites(tmp_path, folders, **rules))
    nodes.before = lambda message, client: before(nodes, message, client)
    return nodes, deploy(monkeypatch, tmp_path, nodes, config)


def round_of(message):
    return message.metadata.group_id


def test_a_client_that_goes_away_is_lost_by_name_and_takes_part_again(tmp_path, monkeypatch):
    def before(nodes, message, client):
        if message.metadata.message_type == "train" and client == 1 and round_of(message) == "2":
            return "power cut"
        return None

    nodes, real = two_of(tmp_path, monkeypatch, before)
    table = read_clients(real)
    status = table.pivot(index="round", columns="client", values="status")
    assert status.loc[2, 1] == "failed"
    assert (status.drop(index=2) == "trained").all(axis=None)
    assert status.loc[2, 0] == status.loc[2, 2] == "trained"
    # The control variate of the lost round was never the client's: c = mean(c_i) still holds.
    assert control_error(tmp_path, real, nodes) < 1e-6


def control_error(root, real, nodes):
    """Return the distance of the server's c from the mean of the c_i on the clients' volumes."""
    checkpoint = load_all(real / "checkpoints")[-1]
    server = checkpoint.vectors["control_variate"]
    size = len(server)
    total = torch.zeros(size, dtype=torch.float64)
    for client, row in checkpoint.client_rows.items():
        (folder,) = (root / f"state-{client}" / "runs").iterdir()
        path = folder / "rows" / f"row-{row}.bin"
        rows = RowFile(str(path), ("control_variate",), (size,), torch.float32)
        total += rows.read([0])["control_variate"][0].double()
    return float((total / len(nodes.sites) - server).abs().max())


def test_a_volume_that_was_replaced_is_an_error_of_that_client_and_never_zeros(
    tmp_path, monkeypatch
):
    def before(nodes, message, client):
        if message.metadata.message_type == "train" and round_of(message) == "3" and client == 2:
            shutil.rmtree(tmp_path / "state-2")
        return

    _, real = two_of(tmp_path, monkeypatch, before)
    status = read_clients(real).pivot(index="round", columns="client", values="status")
    assert status[2].tolist() == ["trained", "trained", "failed", "failed"]


def test_what_the_server_will_not_ask_for_again_is_removed(tmp_path, monkeypatch):
    nodes, _ = two_of(tmp_path, monkeypatch, lambda *_: None, ["rounds=6"])
    for client in range(len(nodes.sites)):
        rows = list((tmp_path / f"state-{client}").rglob("row-*.bin"))
        assert 1 <= len(rows) <= 4  # of now, of two checkpoints, the last one written


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("fedavg", []), ("scaffold", []), ("scaffold", ["deployment.secure=true"])],
    ids=["fedavg", "scaffold", "secure"],
)
def test_a_run_whose_server_was_killed_goes_on_to_the_same_bits(
    strategy, more, tmp_path, monkeypatch
):
    words = [*TASK, f"strategy={strategy}", "rounds=5", *more]
    folders = split(load(None, words), tmp_path / "data")
    whole = deploy(monkeypatch, tmp_path, Nodes(sites(tmp_path / "a", folders)), words, out="whole")
    nodes = Nodes(sites(tmp_path / "b", folders))

    def killed(message, client):
        # With secure sums: after clients have helped to unmask the round.
        kind = "evaluate" if more else "train"
        if message.metadata.message_type == kind and round_of(message) == "4":
            raise KeyboardInterrupt
        return

    nodes.before = killed
    with pytest.raises(KeyboardInterrupt):
        deploy(monkeypatch, tmp_path, nodes, words, out="broken")
    again = Nodes(sites(tmp_path / "b", folders))  # its clients are other nodes now
    broken = deploy(monkeypatch, tmp_path, again, resume=True, out="broken")
    trained = [m for m in again.seen if m.metadata.message_type == "train"]
    assert {round_of(m) for m in trained} == {"4", "5"}
    assert digests(broken) == digests(whole)
    assert set(model_bytes(broken)) == set(model_bytes(whole))


def digests(directory):
    return read_history(directory).set_index("round")["model_sha256"].to_dict()


def model_bytes(directory):
    return (directory / "model.safetensors").read_bytes()


def test_a_client_that_is_off_is_lost_at_once_and_not_waited_for(tmp_path, monkeypatch):
    def before(nodes, message, client):
        if round_of(message) == "1" and client == 2:
            nodes.down.add(2)
            return "late"
        if round_of(message) == "3":
            nodes.down.clear()
        return None

    nodes, real = two_of(tmp_path, monkeypatch, before, ["deployment.round_seconds=0.2"])
    table = read_clients(real)
    assert table[table["status"] == "failed"]["client"].unique().tolist() == [2]
    status = table.pivot(index="round", columns="client", values="status")[2]
    assert status.tolist() == ["failed", "failed", "failed", "trained"]
    asked = {round_of(m) for m in nodes.seen if nodes.sites[m.metadata.dst_node_id].client == 2}
    assert "2" not in asked


def test_a_round_with_too_few_survivors_is_done_again(tmp_path, monkeypatch):
    failed = []

    def before(nodes, message, client):
        if message.metadata.message_type == "train" and round_of(message) == "2" and client < 2:
            failed.append(client)
            return "lost" if len(failed) <= 2 else None
        return None

    words = [*TASK, "strategy=scaffold", "deployment.min_survivors=2"]
    _, real = two_of(tmp_path, monkeypatch, before, ["deployment.min_survivors=2"])
    undisturbed = fedopt.simulate(load(None, words))
    assert failed == [0, 1, 0, 1]
    assert (
        json.loads((real / "summary.json").read_text())["model_sha256"]
        == (undisturbed.summary["model_sha256"])
    )


def test_a_round_that_fails_for_ever_ends_the_run_and_says_so(tmp_path, monkeypatch):
    def before(nodes, message, client):
        return "lost" if message.metadata.message_type == "train" and client < 2 else None

    with pytest.raises(RunError, match=r"1 of 3 updates arrived, deployment\.min_survivors is 2"):
        two_of(tmp_path, monkeypatch, before, ["deployment.min_survivors=2"])


# Who takes part ----------------------------------------------------------------------------------


def refused(tmp_path, monkeypatch, change, words=()):
    """Run with sites that `change` changed; return what the run ends with."""
    config = [*TASK, *words, "deployment.wait_seconds=0.1"]
    folders = split(load(None, config), tmp_path / "data")
    nodes = Nodes(change(sites(tmp_path, folders)))
    with pytest.raises(FedoptError) as error:
        deploy(monkeypatch, tmp_path, nodes, config)
    assert not (tmp_path / "runs" / "real").exists() or not any(
        (tmp_path / "runs" / "real").iterdir()
    )
    return str(error.value)


def changed(place, **values):
    return lambda found: [
        dataclasses.replace(site, **values) if i == place else site for i, site in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("values", "words", "says"),
    [
        ({"min_examples": 10_000}, [], "the client's log says why"),
        ({"require_clip_norm": 1.0}, [], "sends no update longer than 1; uplink.clip.norm is none"),
        (
            {"require_clip_norm": 1.0},
            ["uplink.clip.norm=2.0"],
            "sends no update longer than 1; uplink.clip.norm is 2",
        ),
        (
            {"require_clip_norm": 1.0},
            ["strategy=scaffold", "uplink.clip.norm=0.5"],
            "scaffold sends control_delta beside the clipped one",
        ),
        ({"require_noise": 0.5}, [], "wants uplink.privacy.noise_multiplier >= 0.5, got 0"),
        ({"require_secure": True}, [], "wants deployment.secure = true"),
        ({"client": 0}, [], "client 0 is there twice, as clinic-0 and as clinic-1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_site_refuses_what_its_rules_do_not_admit(values, words, says, tmp_path, monkeypatch):
    text = refused(tmp_path, monkeypatch, changed(1, **values), words)
    assert "2 of 3 clients are connected" in text
    assert says in text


def test_sites_whose_data_do_not_agree_are_told_apart(tmp_path, monkeypatch):
    def narrower(found):
        with np.load(found[2].data / "train.npz") as archive:
            arrays = dict(archive)
        np.savez(found[2].data / "train.npz", **{**arrays, "x": arrays["x"][:, :, :4]})
        (found[2].data / "validation.npz").unlink()
        return found

    text = refused(tmp_path, monkeypatch, narrower)
    assert "client 2 (clinic-2) has inputs of shape" in text


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["strategy=centralised"], "strategy.name"),
        (["attack=sign_flip"], "attack.name"),
        (["system.failures.before=0.1"], "system.failures"),
        (["evaluation.unseen_clients=1"], "evaluation.unseen_clients"),
        (["evaluation.training_clients=1.0"], "evaluation.training_clients"),
        (
            ["evaluation.training_clients=1.0", "evaluation.gradients=true"],
            "evaluation.gradients",
        ),
        (["engine.block_size=2"], "engine.block_size"),
        (["deployment.secure=true", "uplink.compression=top_k"], "deployment.secure"),
    ],
)
def test_what_describes_simulated_clients_is_refused(words, key):
    with pytest.raises(ConfigError) as error:
        prepared(load(None, words), 3)
    assert error.value.key == key


# What leaves a client -----------------------------------------------------------------------------


def test_nothing_but_updates_and_agreed_metrics_leaves_a_client(tmp_path, monkeypatch):
    """Every record of every reply, and no number of the data among them."""
    nodes, _ = two_of(tmp_path, monkeypatch, lambda *_: None, share_metrics=False)
    found = {}
    for reply in nodes.answers:
        if reply.has_error():
            assert reply.metadata.message_type == "evaluate"
            continue
        kind = reply.metadata.message_type
        for name, record in reply.content.items():
            found.setdefault((kind, name), set()).update(record)
    assert {key: value for key, value in found.items() if key[1] != "sums"} == {
        ("query.describe", "site"): {
            *("client", "name", "fedopt", "torch", "examples", "validation"),
            *("input-shape", "target-shape", "classes", "signature"),
        },
        ("train", "blocks"): {"firsts", "stops", "weights", "counts", "seconds"},
        ("train", "clients"): {
            *("client", "status", "examples", "steps", "planned_steps", "train_loss"),
            *("update_norm", "weight", "skipped_steps", "lr_sum", "available_share"),
            "selected_share",
        },
        ("train", "seen"): {"examples"},
    }
    assert any(r.has_error() for r in nodes.answers)  # the evaluation that was asked for
    names = {name.partition("/")[2] for name in found[("train", "sums")]}
    assert names == {"delta", "control_delta"}
    for reply in nodes.answers:
        if reply.has_error():
            continue
        metrics = reply.content.metric_records.get("clients", {})
        if reply.metadata.message_type == "train":
            assert all(math.isnan(v) for v in metrics["train_loss"] + metrics["update_norm"])


@pytest.mark.parametrize("gradients", [False, True])
def test_no_server_gets_gradients_of_a_clients_training_data(gradients, tmp_path):
    """A run that asks for them is refused before it starts; the client refuses them besides."""
    folders = split(load(None, TASK), tmp_path / "data")
    nodes = Nodes(sites(tmp_path, folders[:1]))
    (node,) = nodes.get_node_ids()
    config = ConfigRecord({"gradients": gradients})
    (reply,) = nodes.exchange([Message(RecordDict({"config": config}), node, OBJECTIVE)])
    assert reply.has_error()
    assert "tells no losses and gradients of its training examples" in reply.error.reason


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_message_makes_a_client_quote_its_data(kind, tmp_path):
    """A server that asks for another target column learns nothing of the columns there are."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text("patient,age,label\nAnn Lee,50,0\nBob Roe,61,1\n")
    nodes = Nodes([Site(0, "clinic-0", folder, tmp_path / "state")])
    config = load(None, ["data=sites", "partition=natural", "data.target=patient"])
    record = ConfigRecord(
        {
            "experiment": json.dumps(config.dump()),
            "others": Others("key", 1, 1, 2, 2).to_json(),
            "server-round": 1,
            "lr-scale": 1.0,
            "cohort": 1,
            "split": "validation",
            "clients": [0],
            "state-path": "",
        }
    )
    (node,) = nodes.get_node_ids()
    message = Message(RecordDict({"config": record}), node, kind)
    (reply,) = nodes.exchange([message])
    assert reply.has_error()
    assert "Ann" not in str(reply.error.reason)
    assert "patient" not in str(reply.error.reason)
    assert "the client's log says more" in reply.error.reason


def test_a_cohort_that_cannot_be_takes_no_noise_away(tmp_path):
    site = Site(0, "clinic-0", tmp_path, tmp_path)
    request = TrainRequest(1, [], {}, {}, None, 1.0, None, [1], 10**12)
    with pytest.raises(RefusalError, match="of 3 that have examples"):
        site.check_cohort(request, Others("key", 3, 3, 10, 2))


def test_who_is_not_of_the_deployment_is_kept_out(tmp_path, monkeypatch):
    (tmp_path / "clients.json").write_text('{"0": "clinic-0", "1": "other", "2": "clinic-2"}')
    monkeypatch.setenv("FEDOPT_CLIENTS", str(tmp_path / "clients.json"))
    text = refused(tmp_path, monkeypatch, lambda found: found)
    assert "client 1 (clinic-1) is called other here" in text


def test_an_error_in_training_quotes_no_example_to_the_server(tmp_path, monkeypatch, capsys):
    def quoting(self, clients):
        raise ValueError("patient 4711 has value 12.5")

    config = [*TASK, "deployment.min_survivors=1"]
    folders = split(load(None, config), tmp_path / "data")
    nodes = Nodes(sites(tmp_path, folders))
    monkeypatch.setattr(SitePopulation, "train_many", quoting)
    with pytest.raises(RunError):
        deploy(monkeypatch, tmp_path, nodes, config)
    told = [str(r.content) for r in nodes.answers if r.metadata.message_type == "train"]
    assert told
    assert all("ValueError; the client's log says more" in text for text in told)
    assert all("4711" not in text for text in told)
    assert "4711" in capsys.readouterr().err  # here client and server share a log


def test_noise_is_drawn_from_a_secret_of_the_client(tmp_path, monkeypatch):
    words = [
        *TASK,
        *(
            "strategy.weighting=uniform",
            "uplink.clip.norm=0.5",
            "uplink.privacy.noise_multiplier=1.0",
        ),
        *("uplink.privacy.sampling=fixed", "uplink.privacy.delta=0.01", "rounds=1"),
    ]
    folders = split(load(None, words), tmp_path / "data")
    sums = {}
    for name, state in (("a", "a"), ("again", "a"), ("b", "b")):
        nodes = Nodes(sites(tmp_path / state, folders, require_noise=1.0, require_clip_norm=0.5))
        deploy(monkeypatch, tmp_path, nodes, words, out=name)
        sums[name] = next(
            reply.content.array_records["sums"]["0/delta"].numpy()
            for reply in nodes.answers
            if reply.metadata.message_type == "train"
            and "0/delta" in reply.content.array_records["sums"]
        )
        secret = tmp_path / state / "state-0" / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert not np.array_equal(sums["a"], sums["again"])  # another run, another noise
    assert not np.array_equal(sums["a"], sums["b"])
    site = sites(tmp_path / "a", folders)[0]
    assert site.noise_seed("run-1", "x") == site.noise_seed("run-1", "x")
    assert site.noise_seed("run-1", "x") != site.noise_seed("run-2", "x")
    assert site.noise_seed("run-1", "x") != site.noise_seed("run-1", "another model")


# Secure aggregation -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_secure_run_is_the_plain_one_to_the_precision_of_its_fixed_point(
    strategy, tmp_path, monkeypatch
):
    words = [*TASK, f"strategy={strategy}"]
    folders = split(load(None, words), tmp_path / "data")
    plain = deploy(monkeypatch, tmp_path, Nodes(sites(tmp_path / "p", folders)), words, out="plain")
    nodes = Nodes(sites(tmp_path / "s", folders, require_secure=True))
    secure = deploy(monkeypatch, tmp_path, nodes, [*words, "deployment.secure=true"], out="secure")
    ours, theirs = (load_file(run / "model.safetensors") for run in (secure, plain))
    for name, value in theirs.items():
        # A step of the fixed point is 2^-48 here; four rounds of SGD in single precision follow.
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-6)
    trained = [r for r in nodes.answers if r.metadata.message_type == "train"]
    assert all(not r.content.array_records["sums"] for r in trained)
    # Masked, an update looks like noise: all bits are set as often as not.
    masked = [
        r.content.array_records["secure"]["secure"].numpy()
        for r in nodes.answers
        if r.metadata.message_type == "query.secure_mask"
    ]
    bits = np.unpackbits(np.concatenate([m[200:] for m in masked]))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)


def test_who_leaves_in_the_midst_of_a_secure_sum_is_left_out_of_it(tmp_path, monkeypatch):
    words = [*TASK, "strategy=scaffold", "partition.clients=5", "clients_per_round=5"]
    words += ["evaluation.validation_clients=5"]
    folders = split(load(None, words), tmp_path / "data")

    def lost(kind):
        def before(message, client):
            if message.metadata.message_type == kind and round_of(message) == "2" and client == 3:
                return "gone"
            return None

        return before

    plain = Nodes(sites(tmp_path / "p", folders))
    plain.before = lost("train")
    expected = load_file(
        deploy(monkeypatch, tmp_path, plain, words, out="plain") / "model.safetensors"
    )
    for stage in ("train", "query.secure_shares", "query.secure_mask"):
        nodes = Nodes(sites(tmp_path / stage, folders))
        nodes.before = lost(stage)
        real = deploy(monkeypatch, tmp_path, nodes, [*words, "deployment.secure=true"], out=stage)
        status = read_clients(real).pivot(index="round", columns="client", values="status")[3]
        assert status.tolist() == ["trained", "failed", "trained", "trained"], stage
        for name, value in load_file(real / "model.safetensors").items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-6)


def test_a_secure_sum_that_too_few_complete_is_begun_anew(tmp_path, monkeypatch):
    lost = []

    def before(nodes, message, client):
        if message.metadata.message_type == "query.secure_mask" and client < 2:
            lost.append(client)
            return "gone" if len(lost) <= 2 else None
        return None

    _, real = two_of(tmp_path, monkeypatch, before, ["deployment.secure=true"])
    assert (read_clients(real)["status"] == "trained").all()


def masked(server, parts, outcome):
    """Bring clients from round 7 of one model to their masked vectors; return who is left."""
    told = server.agreement.to_bytes()
    for part in parts:
        server.add_keys(PublicKeys.from_bytes(part.begin(told, 7, "model", outcome)))
    for client, ring in server.close_keys().items():
        server.add_shares(SealedShares.from_bytes(parts[client].shares(ring.to_bytes())))
    for client, inbox in server.close_shares().items():
        server.add_masked(MaskedVector.from_bytes(parts[client].mask(inbox.to_bytes())))
    return server.close_masked()


def test_a_client_helps_to_unmask_a_round_once(tmp_path):
    outcome = TrainingOutcome(
        [BlockSums(0, 1, {"delta": torch.ones(4).double()}, torch.zeros(0), 2.0, 1)]
    )
    layout = Layout.finest({"delta": 10.0}, {"delta": 4}, 2)
    agreement = Agreement("run", 0, 7, (0, 1), layout, threshold=2)
    server, parts = ServerSession(agreement), [SecureClient(tmp_path / str(c), c) for c in (0, 1)]
    for client, survivors in masked(server, parts, outcome).items():
        server.add_unmask(UnmaskShares.from_bytes(parts[client].unmask(survivors.to_bytes())))
    assert server.close_unmask().values["delta"].tolist() == [2.0] * 4
    told = agreement.to_bytes()
    with pytest.raises(SecureAggregationError, match="helped to unmask round 7, of another model"):
        parts[0].begin(told, 7, "another model", outcome)
    with pytest.raises(SecureAggregationError, match="a later round than 6"):
        parts[0].begin(told, 6, "model", outcome)
    parts[0].begin(told, 8, "next model", outcome)
    # The same again, as a server that was killed asks: over the same clients, and no others.
    agreement = Agreement("again", 0, 7, (0, 1, 2), layout, threshold=2)
    server = ServerSession(agreement)
    parts.append(SecureClient(tmp_path / "2", 2))
    survivors = masked(server, parts, outcome)
    with pytest.raises(SecureAggregationError, match="round 7, over other clients"):
        parts[0].unmask(survivors[0].to_bytes())
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in files)
