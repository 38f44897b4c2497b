"""New certificates in time, in place of those that the chart made. Pure."""

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

Secret = dict[str, bytes]
"""``data`` of a Secret, decoded."""

_BACKDATED: Final = timedelta(hours=1)
"""Clocks of other machines may be late."""


class NotRenewable(Exception):
    """What is there is no certificate and its key; the message says which."""


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """True if more than half of its life is over: the other half is for failures of whoever renews."""
    end = certificate.not_valid_after_utc
    return now >= end - (end - certificate.not_valid_before_utc) / 2


def renew(authority: Secret, served: Secret, now: datetime) -> tuple[Secret, Secret]:
    """What is to change in two Secrets: that of the authority, and the one that servers have.

    They have ``ca.crt`` and ``ca.key``, and ``ca.crt``, ``tls.crt`` and ``tls.key``. Keys and names stay, so whoever
    believes the authority's certificate believes what it signs after its renewal, too.
    Raises NotRenewable.
    """
    ca, ca_key = _pair(authority, "ca.crt", "ca.key")
    leaf, leaf_key = _pair(served, "tls.crt", "tls.key")
    changed: Secret = {}
    if is_due(ca, now):
        ca = again(ca, ca_key, ca, ca_key, now)
        changed["ca.crt"] = ca.public_bytes(Encoding.PEM)
    present: Secret = {}
    if changed or served.get("ca.crt") != authority["ca.crt"]:
        present["ca.crt"] = changed.get("ca.crt", authority["ca.crt"])
    if is_due(leaf, now):
        present["tls.crt"] = again(leaf, leaf_key, ca, ca_key, now).public_bytes(Encoding.PEM)
    return changed, present


_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _pair(secret: Secret, certificate: str, key: str) -> tuple[x509.Certificate, _Key]:
    try:
        found = x509.load_pem_x509_certificate(secret[certificate])
        private = load_pem_private_key(secret[key], None)
    except (KeyError, ValueError, TypeError) as error:
        raise NotRenewable(f"{certificate} and {key} cannot be read: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise NotRenewable(f"{key} is neither an elliptic curve's nor RSA's")
    if private.public_key() != found.public_key():
        raise NotRenewable(f"{certificate} is not that of {key}")
    return found, private


def again(
    old: x509.Certificate, key: _Key, issuer: x509.Certificate, issuer_key: _Key, now: datetime
) -> x509.Certificate:
    """The same certificate for another such life that begins now."""
    begin = now - _BACKDATED
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + (old.not_valid_after_utc - old.not_valid_before_utc))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(issuer_key, hashes.SHA256())
