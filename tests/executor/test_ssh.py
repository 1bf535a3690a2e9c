"""The agent: what it answers, checked with cryptography's own verification."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ocibuildd.errors import InvalidArgument
from ocibuildd.executor import ssh


def pem(key: object, form: serialization.PrivateFormat) -> str:
    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    ).decode()


def request(identity: ssh.Identity, data: bytes, flags: int = 0) -> bytes:
    return (bytes([ssh.SIGN_REQUEST]) + ssh.string(identity.blob) + ssh.string(data)
            + struct.pack(">I", flags))


def signature(answer: bytes) -> tuple[bytes, bytes]:
    assert answer[0] == ssh.SIGN_RESPONSE
    body, _ = ssh.take_string(answer[1:])
    name, rest = ssh.take_string(body)
    return name, ssh.take_string(rest)[0]


def test_an_ed25519_key_signs() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    identity = ssh.load_key(pem(key, serialization.PrivateFormat.OpenSSH), "k")
    name, made = signature(ssh.answer(request(identity, b"data"), [identity]))
    assert name == b"ssh-ed25519"
    key.public_key().verify(made, b"data")


def test_an_rsa_key_signs_with_the_hash_that_is_asked_for() -> None:
    key = rsa.generate_private_key(65537, 2048)
    identity = ssh.load_key(pem(key, serialization.PrivateFormat.TraditionalOpenSSL), "k")
    name, made = signature(ssh.answer(request(identity, b"data", ssh.RSA_SHA2_512), [identity]))
    assert name == b"rsa-sha2-512"
    key.public_key().verify(made, b"data", padding.PKCS1v15(), hashes.SHA512())


def test_an_ecdsa_key_signs() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    identity = ssh.load_key(pem(key, serialization.PrivateFormat.PKCS8), "k")
    name, _ = signature(ssh.answer(request(identity, b"data"), [identity]))
    assert name == b"ecdsa-sha2-nistp256"


def test_keys_are_listed_and_nothing_else_is_done() -> None:
    key = ssh.load_key(pem(ed25519.Ed25519PrivateKey.generate(), serialization.PrivateFormat.OpenSSH), "k")
    listed = ssh.answer(bytes([ssh.REQUEST_IDENTITIES]), [key])
    assert listed[:5] == struct.pack(">BI", ssh.IDENTITIES_ANSWER, 1)
    for message in (b"", b"\x11", b"\x0d", bytes([ssh.SIGN_REQUEST]) + b"\xff\xff\xff\xff", b"\x16"):
        assert ssh.answer(message, [key]) == bytes([ssh.FAILURE])


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="ssh default"):
        ssh.load_key(text, "default")
