"""Keys of a federation over a network: a certificate for the server, and a key for each client.

The server proves itself by TLS, under an authority that is made here and for nothing else; a client proves itself by
an elliptic-curve key whose public half the server knows. Private files are for their owner's eyes (mode 0600).
"""

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DAYS = 365  # ours
LOOPBACK = ("127.0.0.1", "localhost")  # by which the server's own processes reach it


def make_keys(folder: Path, n_clients: int, hosts: Sequence[str] = ()) -> None:
    """Write ca.crt, server.crt, server.key, and for each client k its client_k and client_k.pub.

    The authority's own key is thrown away: nobody can sign another certificate.

    Parameters
    ----------
    folder : path
        Must not hold keys yet.
    n_clients : int
        K; ids are 0 to K - 1.
    hosts : sequence of str
        Names or addresses by which clients reach the server, beside loopback.

    Raises
    ------
    FileExistsError
        If there are keys already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if n_clients < 1:
        raise ValueError(f"n_clients must be >= 1; got {n_clients}")
    if (folder / "ca.crt").exists():
        raise FileExistsError(17, "it holds keys already; choose another folder", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    _write(folder / "server.key", server.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "server.crt").write_bytes(_certificate(server, authority, [*LOOPBACK, *hosts]))
    for k in range(n_clients):
        key = ec.generate_private_key(ec.SECP384R1())
        form = serialization.PublicFormat.OpenSSH
        (folder / f"client_{k}.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + b"\n"
        )
        _write(folder / f"client_{k}", key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, plain))
    (folder / "ca.crt").write_bytes(_certificate(authority, authority, []))


def public_keys(folder: Path, n_clients: int) -> list[Path]:
    """The public keys of clients 0 to K - 1; FileNotFoundError names the first that is missing."""
    paths = [folder / f"client_{k}.pub" for k in range(n_clients)]
    for path in [folder / name for name in ("ca.crt", "server.crt", "server.key")] + paths:
        if not path.is_file():
            raise FileNotFoundError(2, "no such key; make them with `fedmorl federate keys`", str(path))
    return paths


def _certificate(key: Any, authority: Any, hosts: Sequence[str]) -> bytes:
    """PEM of a certificate for `key`, signed by `authority`; of the authority itself where both are one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    own = key is authority
    subject, issuer = (
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, f"fedmorl federation, {what}")])
        for what in ("authority" if own else "server", "authority")
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(days=1),  # clocks differ
        not_valid_after=now + datetime.timedelta(days=DAYS),
    ).add_extension(x509.BasicConstraints(ca=own, path_length=0 if own else None), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        critical=False,
    ).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
        critical=False,
    )
    if own:
        usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment"), False)
        usage |= dict.fromkeys(("data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    signed = builder.sign(authority, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _name(host: str) -> Any:
    from cryptography import x509

    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _write(path: Path, content: bytes) -> None:
    """A file that nobody else may read, not even for an instant."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
