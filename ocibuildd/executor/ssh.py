"""An SSH agent for steps: keys of the client's, or a way through to its agent.  Pure protocol here.

Source: draft-miller-ssh-agent (the protocol), RFC 4251 (strings, mpints), RFC 8332 (rsa-sha2).  A step
can ask for the list of keys and for signatures; nothing else (adding, removing, locking) is passed on.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ..errors import InvalidArgument

FAILURE = 5
REQUEST_IDENTITIES = 11
IDENTITIES_ANSWER = 12
SIGN_REQUEST = 13
SIGN_RESPONSE = 14
ALLOWED = frozenset({REQUEST_IDENTITIES, SIGN_REQUEST})
MAX_MESSAGE = 256 << 10
"""Bytes of one message (OpenSSH's limit)."""
RSA_SHA2_256, RSA_SHA2_512 = 2, 4

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def string(data: bytes) -> bytes:
    """RFC 4251, "string"."""
    return struct.pack(">I", len(data)) + data


def take_string(data: bytes) -> tuple[bytes, bytes]:
    """(string, what follows).  Raises ValueError."""
    if len(data) < 4:
        raise ValueError("cut off")
    size = struct.unpack(">I", data[:4])[0]
    if len(data) < 4 + size:
        raise ValueError("cut off")
    return data[4 : 4 + size], data[4 + size :]


def mpint(number: int) -> bytes:
    """RFC 4251, "mpint", of a number that isn't negative."""
    return string(number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b"")


def frame(body: bytes) -> bytes:
    """A message as it goes over the socket."""
    return string(body)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key that the agent has.  ``blob``: the public key as SSH encodes it."""

    blob: bytes
    key: PrivateKey
    comment: bytes


def load_key(text: str, name: str) -> Identity:
    """A private key from PEM or OpenSSH text.  Raises InvalidArgument (a passphrase, another type)."""
    data = text.encode()
    try:
        if b"OPENSSH PRIVATE KEY" in data:
            key: Any = serialization.load_ssh_private_key(data, None)
        else:
            key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"ssh {name}: the key can't be read: {error}",
                              hint="keys with a passphrase are for an agent: --ssh default") from None
    if not isinstance(key, PrivateKey):
        raise InvalidArgument(f"ssh {name}: keys are RSA, ECDSA or Ed25519")
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return Identity(base64.b64decode(public.split()[1]), key, name.encode())


def answer(message: bytes, identities: Sequence[Identity]) -> bytes:
    """The reply to one message (without its length); anything that isn't understood is a failure."""
    if message[:1] == bytes([REQUEST_IDENTITIES]):
        body = struct.pack(">BI", IDENTITIES_ANSWER, len(identities))
        return body + b"".join(string(each.blob) + string(each.comment) for each in identities)
    if message[:1] == bytes([SIGN_REQUEST]):
        try:
            blob, rest = take_string(message[1:])
            data, rest = take_string(rest)
            flags = struct.unpack(">I", rest[:4])[0] if len(rest) >= 4 else 0
        except ValueError:
            return bytes([FAILURE])
        for each in identities:
            if each.blob == blob:
                return bytes([SIGN_RESPONSE]) + string(sign(each.key, data, flags))
    return bytes([FAILURE])


def sign(key: PrivateKey, data: bytes, flags: int) -> bytes:
    """A signature as SSH encodes it: the algorithm's name and the bytes."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return string(b"ssh-ed25519") + string(key.sign(data))
    if isinstance(key, rsa.RSAPrivateKey):
        name, algorithm = b"ssh-rsa", hashes.SHA1()  # noqa: S303 - what a client without flags asks for
        if flags & RSA_SHA2_512:
            name, algorithm = b"rsa-sha2-512", hashes.SHA512()  # type: ignore[assignment]
        elif flags & RSA_SHA2_256:
            name, algorithm = b"rsa-sha2-256", hashes.SHA256()  # type: ignore[assignment]
        return string(name) + string(key.sign(data, padding.PKCS1v15(), algorithm))
    size = key.curve.key_size
    digest = {256: hashes.SHA256(), 384: hashes.SHA384()}.get(size, hashes.SHA512())
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
    return string(b"ecdsa-sha2-nistp%d" % size) + string(mpint(r) + mpint(s))
