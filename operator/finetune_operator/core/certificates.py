"""The operator's own certificate authority and server certificate, and when to make them anew.

Pods learn the authority from a ConfigMap, so nobody else has to vouch for it. EC keys (P-256): small and quick.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, SERVER_DAYS = 3650, 90
_AUTHORITY_MARGIN, _SERVER_MARGIN = timedelta(days=365), timedelta(days=30)
_SKEW = timedelta(minutes=10)
"""Certificates begin a little in the past, for clocks that are behind."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


@dataclass(frozen=True)
class ServerIdentity:
    """All that serving needs; ``authority.certificate`` is what pods are told."""

    authority: KeyPair
    server: KeyPair


def renewed(current: ServerIdentity | None, hosts: Sequence[str], now: datetime) -> ServerIdentity:
    """``current`` where it is still good for ``hosts``, else with what has to be made anew."""
    authority = current.authority if current and _is_good(current.authority, now, _AUTHORITY_MARGIN) else None
    if authority is None:
        authority = _make_authority(now)
    elif current and _is_good(current.server, now, _SERVER_MARGIN) and _serves(current.server, authority, hosts):
        return current
    return ServerIdentity(authority, _make_server(authority, hosts, now))


def _make_authority(now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("finetune-operator CA")
    builder = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def _make_server(authority: KeyPair, hosts: Sequence[str], now: datetime) -> KeyPair:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not one that this program made")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name("finetune-operator"), issuer.subject, key, now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), pem.decode())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_good(pair: KeyPair, now: datetime, margin: timedelta) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.key.encode(), None)
    except (ValueError, TypeError):
        return False
    encoding = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and key.public_key().public_bytes(*encoding) == certificate.public_key().public_bytes(*encoding)
        and certificate.not_valid_before_utc <= now
        and now + margin < certificate.not_valid_after_utc
    )


def _serves(server: KeyPair, authority: KeyPair, hosts: Sequence[str]) -> bool:
    certificate = x509.load_pem_x509_certificate(server.certificate.encode())
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    try:
        certificate.verify_directly_issued_by(issuer)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is the matter with it, a new one is the answer
        return False
    return {_general_name(host) for host in hosts} <= set(names)
