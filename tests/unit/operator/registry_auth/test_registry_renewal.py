"""Certificates of the registry: when they are renewed, who believes the new ones, and how a server takes them up."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from rm_local_cluster.pki import Authority
from rm_operator.registry_auth.renewal import NotRenewable, Secret, again, is_due, renew
from rm_operator.runtime.server_tls import keep_certificate

HOST = "rma-registry.system.svc"
LIFE = timedelta(days=365)
"""Of what Authority issues."""
NOW = datetime.now(UTC)
YOUNG, OLD, ENDED = LIFE / 4, LIFE * 3 / 4, LIFE * 5 / 4
"""Ages."""


def read(secret: Secret, certificate: str, key: str) -> tuple[x509.Certificate, object]:
    return x509.load_pem_x509_certificate(secret[certificate]), load_pem_private_key(secret[key], None)


def made(directory: Path, authority_age: timedelta, served_age: timedelta) -> tuple[Secret, Secret]:
    """Secrets as the chart makes them, so long ago."""
    directory.mkdir()
    authority = Authority(directory, "ca")
    leaf = authority.issue("leaf", "registry", hosts=[HOST])
    first: Secret = {"ca.crt": authority.pair.certificate.read_bytes(), "ca.key": authority.pair.key.read_bytes()}
    second: Secret = {"tls.crt": leaf.certificate.read_bytes(), "tls.key": leaf.key.read_bytes()}
    ca, ca_key = read(first, "ca.crt", "ca.key")
    served, key = read(second, "tls.crt", "tls.key")
    old = again(ca, ca_key, ca, ca_key, NOW - authority_age)  # type: ignore[arg-type]
    first["ca.crt"] = second["ca.crt"] = old.public_bytes(Encoding.PEM)
    second["tls.crt"] = again(served, key, old, ca_key, NOW - served_age).public_bytes(Encoding.PEM)  # type: ignore[arg-type]
    return first, second


def believed(served: Secret, trusted: bytes, directory: Path) -> bool:
    """True if a strict client that trusts ``trusted`` speaks to who serves with the Secret."""
    for name in ("tls.crt", "tls.key"):
        (directory / name).write_bytes(served[name])
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    trusting = ssl.create_default_context(cadata=trusted.decode())
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    here, there = socket.socketpair()

    def serve() -> None:
        with here, contextlib.suppress(OSError), serving.wrap_socket(here, server_side=True) as connection:
            connection.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with there, trusting.wrap_socket(there, server_hostname=HOST) as connection:
            return connection.recv(5) == b"hello"
    except ssl.SSLCertVerificationError:
        return False
    finally:
        thread.join()


@pytest.mark.parametrize(("age", "due"), [(timedelta(), False), (YOUNG, False), (OLD, True), (ENDED, True)])
def test_it_is_due_when_half_of_the_life_is_over(tmp_path: Path, age: timedelta, due: bool) -> None:
    authority, _ = made(tmp_path / "pki", age, age)
    assert is_due(read(authority, "ca.crt", "ca.key")[0], NOW) == due


@pytest.mark.parametrize(
    ("ages", "authority", "served"),
    [
        ((YOUNG, YOUNG), set(), set()),
        ((YOUNG, OLD), set(), {"tls.crt"}),
        ((YOUNG, ENDED), set(), {"tls.crt"}),
        ((OLD, YOUNG), {"ca.crt"}, {"ca.crt"}),
        ((OLD, OLD), {"ca.crt"}, {"ca.crt", "tls.crt"}),
    ],
)
def test_what_is_due_is_renewed_and_believed(
    tmp_path: Path, ages: tuple[timedelta, timedelta], authority: set[str], served: set[str]
) -> None:
    before = made(tmp_path / "pki", *ages)
    changes = renew(*before, NOW)
    assert (changes[0].keys(), changes[1].keys()) == (authority, served)
    after = {**before[0], **changes[0]}, {**before[1], **changes[1]}
    assert renew(*after, NOW) == ({}, {}), "once is enough"
    assert after[1]["ca.crt"] == after[0]["ca.crt"]
    # Serving pods remember the authority that they were started with, and a server has its certificate for a while.
    assert believed(after[1], after[0]["ca.crt"], tmp_path)
    assert believed(after[1], before[0]["ca.crt"], tmp_path)
    assert believed(before[1], after[0]["ca.crt"], tmp_path) == (ages[1] != ENDED)
    for new, old in ((after[0]["ca.crt"], before[0]["ca.crt"]), (after[1]["tls.crt"], before[1]["tls.crt"])):
        found, was = x509.load_pem_x509_certificate(new), x509.load_pem_x509_certificate(old)
        assert found.not_valid_after_utc - found.not_valid_before_utc == LIFE + timedelta(hours=1)
        assert (new == old) == (found.serial_number == was.serial_number)
        assert list(found.extensions) == list(was.extensions)


def test_nobody_else_is_believed(tmp_path: Path) -> None:
    mine, other = made(tmp_path / "mine", OLD, OLD), made(tmp_path / "other", OLD, OLD)
    assert not believed({**mine[1], **renew(*mine, NOW)[1]}, renew(*other, NOW)[0]["ca.crt"], tmp_path)


def test_what_was_left_in_the_middle_is_made_good(tmp_path: Path) -> None:
    authority, served = made(tmp_path / "pki", OLD, YOUNG)
    changed, _ = renew(authority, served, NOW)
    assert renew({**authority, **changed}, served, NOW) == ({}, changed)


def test_what_is_no_certificate_and_its_key_is_left_alone(tmp_path: Path) -> None:
    authority, served = made(tmp_path / "pki", OLD, OLD)
    other, _ = made(tmp_path / "other", OLD, OLD)
    for broken, said in (
        ({**authority, "ca.key": other["ca.key"]}, "is not that of"),
        ({**authority, "ca.crt": b"x"}, "cannot be read"),
        ({"ca.crt": authority["ca.crt"]}, "cannot be read"),
    ):
        with pytest.raises(NotRenewable, match=said):
            renew(broken, served, NOW)


async def test_a_server_takes_up_what_is_renewed(tmp_path: Path) -> None:
    before = made(tmp_path / "pki", YOUNG, OLD)
    after = {**before[1], **renew(*before, NOW)[1]}
    certificate, key = tmp_path / "served.crt", tmp_path / "served.key"
    certificate.write_bytes(before[1]["tls.crt"])
    key.write_bytes(before[1]["tls.key"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cadata=before[0]["ca.crt"].decode())
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def served() -> int:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=HOST)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number

    def serial(of: Secret) -> int:
        return x509.load_pem_x509_certificate(of["tls.crt"]).serial_number

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        kept = asyncio.create_task(keep_certificate(context, certificate, key, every=0.02))
        try:
            assert await served() == serial(before[1])
            # Half written, or gone: what was good is used on.
            certificate.write_bytes(b"no certificate")
            await asyncio.sleep(0.2)
            certificate.unlink()
            await asyncio.sleep(0.2)
            assert await served() == serial(before[1])
            certificate.write_bytes(after["tls.crt"])
            found, deadline = 0, time.monotonic() + 60
            while found != serial(after) and time.monotonic() < deadline:
                found = await served()
            assert found == serial(after)
        finally:
            kept.cancel()
