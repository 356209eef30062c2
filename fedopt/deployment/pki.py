"""Certificates and keys of a deployment: an authority of its own, a server certificate, SSH keys.

The server proves itself by a certificate that the authority signed; a client proves itself by an
ECDSA key whose public part the server knows (Flower's SuperNode authentication). Private keys are
written readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedopt.errors import ConfigError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
"""Validity; longer server certificates are refused by some clients."""


def write_private(path: Path, payload: bytes) -> None:
    """Write a file that its owner alone can read; it must not exist.

    Raises:
        ConfigError: it exists.
        OSError: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists; keys are never overwritten") from None
    with open(fd, "wb") as file:
        file.write(payload)


def make_authority(key_path: Path, certificate_path: Path, name: str = "fedopt") -> None:
    """Write the key and the self-signed certificate of a new certificate authority.

    Raises:
        ConfigError: the key exists.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_path, _pem(key))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(
    authority_key: Path,
    authority: Path,
    key_path: Path,
    certificate_path: Path,
    names: Sequence[str],
) -> None:
    """Write a server's key and its certificate.

    Args:
        authority_key: the authority's key.
        authority: the authority's certificate.
        key_path: the server's key; must not exist.
        certificate_path: the server's certificate.
        names: host names and IP addresses under which clients reach the server.

    Raises:
        ConfigError: a name is not one, or the key exists.
    """
    signer = load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(
            min(now + datetime.timedelta(days=SERVER_DAYS), issuer.not_valid_after_utc)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([alternative_name(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    write_private(key_path, _pem(key))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_client_key(path: Path) -> None:
    """Write a client's private key, and its public part beside it with the ending `.pub`.

    Raises:
        ConfigError: the key exists.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_private(path, private)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def check_public_key(path: Path) -> None:
    """Check that a file is a public key that Flower takes: ECDSA in OpenSSH's format.

    Raises:
        ConfigError: it is not.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a public key in OpenSSH's format: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} must be ECDSA: ssh-keygen -t ecdsa -b 384 -N '' -f key")


def alternative_name(name: str) -> x509.GeneralName:
    """Return a certificate's name for a host name or an IP address.

    Raises:
        ConfigError: it is neither.
    """
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
        for label in labels
    ):
        raise ConfigError(f'"{name}" is neither a host name nor an IP address', key="host")
    return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
