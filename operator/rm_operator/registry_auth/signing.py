"""The tokens that the registry believes: JWT, signed with ES256, the certificate of the key with them."""

import base64
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from rm_operator.registry_auth.access import Access

ISSUER: Final = "rm-abstract-registry-auth"
"""Name of the service, in each token and in the registry's configuration."""
LIFETIME_SECONDS: Final = 300
_COORDINATE_BYTES: Final = 32


class UnusableKey(Exception):
    """The signing key or its certificate cannot be used; the message says why."""


class Signer:
    """Signs tokens for one registry."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, *, audience: str) -> None:
        self._key = key
        self._audience = audience
        chain = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        self._header = _encoded({"typ": "JWT", "alg": "ES256", "x5c": [chain]})

    @classmethod
    def load(cls, key: Path, certificate: Path, *, audience: str) -> "Signer":
        """A signer with the key and the certificate of these PEM files. Raises UnusableKey."""
        try:
            private = load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise UnusableKey(f"the signing key {key} cannot be read: {error}") from None
        try:
            public = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise UnusableKey(f"the signing certificate {certificate} cannot be read: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UnusableKey(f"the signing key {key} is not on the curve P-256, which ES256 signs with")
        if public.public_key() != private.public_key():
            raise UnusableKey(f"the signing certificate {certificate} is not that of the key {key}")
        return cls(private, public, audience=audience)

    def sign(self, subject: str, access: Iterable[Access], *, now: int) -> str:
        """A token for ``subject``, valid for LIFETIME_SECONDS from ``now`` (seconds since 1970)."""
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "aud": self._audience,
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME_SECONDS,
            "jti": secrets.token_hex(16),
            "access": [each.to_claim() for each in access],
        }
        signed = self._header + b"." + _encoded(claims)
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return (signed + b"." + _base64(signature)).decode()


def _encoded(part: dict[str, Any]) -> bytes:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
