"""The certificates do what TLS peers ask of them; the peers here are OpenSSL's, by way of Python's ssl."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from rm_local_cluster import pki


@pytest.fixture
def authority(tmp_path: Path) -> pki.Authority:
    return pki.Authority(tmp_path, "cluster-ca")


def handshake(authority: pki.Authority, server: pki.KeyPair, client: pki.KeyPair, host: str) -> dict[str, object]:
    """Connect `client` to `server` as `host`; returns the client's certificate as the server sees it."""
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pair.certificate))
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.load_cert_chain(server.certificate, server.key)
    connecting = ssl.create_default_context(cafile=str(authority.pair.certificate))
    connecting.load_cert_chain(client.certificate, client.key)
    seen: list[dict[str, object]] = []
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with accepting.wrap_socket(theirs, server_side=True) as connection:
                seen.append(dict(connection.getpeercert() or {}))
                connection.sendall(b"x")
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with connecting.wrap_socket(ours, server_hostname=host) as connection:
            assert connection.recv(1) == b"x"
    finally:
        ours.close()
        thread.join(10)
    return seen[0]


@pytest.mark.parametrize("host", ["kubernetes.default.svc", "127.0.0.1", "10.244.255.2"])
def test_a_server_is_accepted_under_each_of_its_names_and_learns_who_its_client_is(
    authority: pki.Authority, host: str
) -> None:
    server = authority.issue("server", "kube-apiserver", hosts=["kubernetes.default.svc", "127.0.0.1", "10.244.255.2"])
    client = authority.issue("client", "system:node:rma", groups=["system:nodes"])
    subject = handshake(authority, server, client, host)["subject"]
    assert subject == ((("organizationName", "system:nodes"),), (("commonName", "system:node:rma"),))


def test_a_server_is_refused_under_another_name(authority: pki.Authority) -> None:
    server = authority.issue("server", "kube-apiserver", hosts=["localhost"])
    client = authority.issue("client", "admin", groups=["system:masters"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(authority, server, client, "kubernetes.default.svc")


def test_a_client_certificate_does_not_serve(authority: pki.Authority) -> None:
    client = authority.issue("client", "localhost", groups=["system:masters"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, client, client, "localhost")


def test_what_another_authority_signed_is_refused(authority: pki.Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = pki.Authority(tmp_path / "other", "cluster-ca")
    stranger = other.issue("server", "kube-apiserver", hosts=["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, stranger, authority.issue("client", "admin"), "localhost")


def test_private_keys_are_the_owners_alone(authority: pki.Authority, tmp_path: Path) -> None:
    authority.issue("client", "admin")
    pki.write_signing_key(tmp_path, "tokens")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.key")}
    assert modes == {"cluster-ca.key": 0o600, "client.key": 0o600, "tokens.key": 0o600}


def test_the_signing_key_and_its_public_half_belong_together(tmp_path: Path) -> None:
    private, public = pki.write_signing_key(tmp_path, "tokens")
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    half = serialization.load_pem_public_key(public.read_bytes())
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*form) == half.public_bytes(*form)


def test_the_authority_signs_no_further_authorities(authority: pki.Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.pair.certificate.read_bytes())
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "cluster-ca"
