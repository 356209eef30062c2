"""The folder of a deployment: made once, never overwritten; certificates for its names."""

from __future__ import annotations

import ipaddress
import stat

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from fedopt.client.site import Site
from fedopt.deployment import pki
from fedopt.deployment.compose import compose_file
from fedopt.deployment.folder import (
    ClientTable,
    Deployment,
    DeploymentTable,
    add_client,
    checked_name,
    init,
    read_site_table,
)
from fedopt.deployment.services import check_site, supernode_words
from fedopt.errors import ConfigError, RunError

from .command import contents, fedopt

UP = ("deploy", "up", "--folder", "d", "--processes")


@pytest.fixture
def deployment(tmp_path):
    return init(tmp_path / "d", ["fl.example.org", "10.1.2.3"], 9092, ["a", "b"])


def test_the_servers_certificate_is_for_its_names_and_signed_by_the_authority(deployment):
    authority = x509.load_pem_x509_certificate(deployment.authority.read_bytes())
    server = x509.load_pem_x509_certificate((deployment.server / "server.pem").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = {"fl.example.org", "superlink", "gateway", "localhost"}
    assert set(names.get_values_for_type(x509.DNSName)) == hosts
    addresses = {ipaddress.ip_address("10.1.2.3"), ipaddress.ip_address("127.0.0.1")}
    assert set(names.get_values_for_type(x509.IPAddress)) == addresses
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_each_client_has_a_key_of_its_own_that_the_server_knows(deployment):
    publics = []
    for name in ("a", "b"):
        key = load_ssh_private_key((deployment.client(name) / "key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        known = load_ssh_public_key((deployment.server / "keys" / f"{name}.pub").read_bytes())
        assert known.public_numbers() == key.public_key().public_numbers()
        publics.append(known.public_numbers())
    assert publics[0] != publics[1]
    for path in deployment.root.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(deployment):
    (deployment.client("a") / "site.toml").write_text("# mine\n")
    before = contents(deployment.root)
    init(deployment.root, ["fl.example.org", "10.1.2.3"], 9092, ["a", "b"])
    assert contents(deployment.root) == before
    with pytest.raises(ConfigError, match="is a deployment already, of clients a, b"):
        init(deployment.root, ["localhost"], 9092, ["a"])
    assert contents(deployment.root) == before


def test_what_is_missing_is_made_again(deployment):
    lost = deployment.client("b") / "site.toml"
    text = lost.read_text()
    lost.unlink()
    init(deployment.root, ["fl.example.org", "10.1.2.3"], 9092, ["a", "b"])
    assert lost.read_text() == text


def test_a_client_is_added_with_a_key_made_here_or_there(deployment, tmp_path):
    grown = add_client(deployment, "c", None)
    assert [(c.name, c.id) for c in grown.table.clients] == [("a", 0), ("b", 1), ("c", 2)]
    pki.make_client_key(tmp_path / "theirs")
    grown = add_client(Deployment.open(deployment.root), "d", tmp_path / "theirs.pub")
    assert not (grown.client("d") / "key").exists()
    known = (grown.server / "keys" / "d.pub").read_bytes()
    assert known == (tmp_path / "theirs.pub").read_bytes()
    services = yaml.safe_load((deployment.root / "docker-compose.yml").read_text())["services"]
    assert {"a", "b", "c"} <= set(services)
    assert "d" not in services  # it runs elsewhere
    edited = (deployment.root / "docker-compose.yml").read_text() + "# mine\n"
    (deployment.root / "docker-compose.yml").write_text(edited)
    (tmp_path / "no.pub").write_text("ssh-ed25519 AAAA\n")
    with pytest.raises(ConfigError, match=r"not a public key|must be ECDSA"):
        add_client(grown, "e", tmp_path / "no.pub")
    with pytest.raises(ConfigError, match='there is a client "d" already'):
        add_client(grown, "d", None)
    add_client(grown, "e", None)
    assert (deployment.root / "docker-compose.yml").read_text() == edited


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "x" * 43, "../a", "a b"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ConfigError, match="is not a name"):
        checked_name(name)


@pytest.mark.parametrize("host", ["", "a b", "-x", "x..y", "ä.org", "http://x", "x" * 64])
def test_hosts_that_are_none_are_refused(host):
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        pki.alternative_name(host)


text = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(
    client=st.integers(0, 999),
    name=text,
    folder=text,
    least=st.integers(1, 50),
    clip=st.none() | st.floats(0.01, 100).map(lambda v: round(v, 3)),
    secure=st.booleans(),
    share=st.booleans(),
)
def test_a_site_survives_flowers_node_configuration(
    client, name, folder, least, clip, secure, share
):
    from pathlib import Path

    from flwr.common.config import parse_config_args

    site = Site(client, name, Path("/d") / folder, Path("/s"), least, clip, None, secure, share)
    try:
        parsed = parse_config_args([site.node_config()])
    except Exception:  # Flower's own splitting gives up on some texts; then the node does not start
        return
    assert Site.of(parsed) == site


def test_a_site_that_is_misspelt_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "min-examples"'):
        Site.of({"data-path": "/d", "client-id": 0, "min-exampels": 3})
    with pytest.raises(ConfigError, match="client-id: missing"):
        Site.of({"data-path": "/d"})
    assert Site.of({"partition-id": 0, "num-partitions": 2}) is None


def test_a_key_that_others_can_read_is_refused(deployment):
    site = deployment.client("a")
    (site / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="private key that others can read; chmod 600"):
        check_site(site)


def test_a_folder_without_data_is_refused_before_anything_starts(deployment):
    with pytest.raises(ConfigError, match="no data; wanted are"):
        check_site(deployment.client("a"))
    done = fedopt(deployment.root.parent, *UP, check=False)
    assert done.returncode == 2
    assert "client a: " in done.stderr
    assert not (deployment.root / "run").exists()


def test_a_node_is_told_its_key_its_server_and_its_data(deployment):
    folder = deployment.client("b")
    words = supernode_words(folder, "fl.example.org:9092", 9094)
    assert words[words.index("--superlink") + 1] == "fl.example.org:9092"
    assert words[words.index("--auth-supernode-private-key") + 1] == str(folder / "key")
    assert "--insecure" not in words
    assert read_site_table(folder).server == "fl.example.org:9092"


def test_the_compose_file_keeps_clients_from_the_superlink():
    clients = (ClientTable(name="a", id=0), ClientTable(name="b", id=1))
    table = DeploymentTable(hosts=("localhost",), port=9092, clients=clients)
    tree = yaml.safe_load(compose_file(table))
    services = tree["services"]
    assert tree["version"] == "3.8"
    assert services["a"]["networks"] == ["clients"]
    assert services["superlink"]["networks"] == ["control"]
    for name in ("control", "clients"):
        assert tree["networks"][name] == {"internal": True}
    server = [v for s in ("gateway", "register", "submit") for v in services[s]["volumes"]]
    assert not any(volume.startswith("./server:") for volume in server)
    assert "ports" not in services["superlink"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].startswith("${FEDOPT_UID"), name
        assert "mem_limit" in service, name
    mine = {volume.split(":")[1] for volume in services["a"]["volumes"]}
    assert mine == {*("/site/site.toml", "/site/ca.crt", "/site/key", "/site/data", "/site/state")}
    assert all("/clients/a/" in volume for volume in services["a"]["volumes"])


def test_commands_that_need_a_deployment_name_the_nearest(tmp_path):
    init(tmp_path / "deployment", ["localhost"], 9092, ["a"])
    done = fedopt(tmp_path, "deploy", "status", "--folder", "deploymnet", check=False)
    assert done.returncode == 2
    assert 'Did you mean "deployment"?' in done.stderr
    done = fedopt(tmp_path, "deploy", "logs", "b", check=False)
    assert done.returncode == 2
    assert "One of: a, gateway, superlink." in done.stderr
    done = fedopt(tmp_path, "deploy", "split", "partition.clients=3", check=False)
    assert done.returncode == 2
    assert "use partition.clients = 1" in done.stderr


def test_a_split_is_never_written_over_data(tmp_path):
    init(tmp_path / "deployment", ["localhost"], 9092, ["a", "b"])
    assert fedopt(tmp_path, "deploy", "split").returncode == 0
    before = contents(tmp_path)
    done = fedopt(tmp_path, "deploy", "split", "seed=1", check=False)
    assert done.returncode == 2
    assert "holds data, which is never overwritten" in done.stderr
    assert contents(tmp_path) == before


def test_without_an_answer_of_flowers_the_reason_is_told(tmp_path):
    from fedopt.deployment.flower import Flower

    deployment = init(tmp_path / "d", ["localhost"], 9092, ["a"])
    flwr = Flower(tmp_path / "home", "127.0.0.1:9", deployment.authority)
    with pytest.raises(RunError, match="flwr ls"):
        flwr.run(1)
