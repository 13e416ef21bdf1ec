"""Keys, certificates and kubeconfigs of one cluster: a CA of its own, one client certificate a component."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from embedded.layout import NODE_NAME, Layout

_LIFE = datetime.timedelta(days=365)
CLIENTS: dict[str, tuple[str, str]] = {
    "admin": ("embedded-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", "finetune"),
    "kube-scheduler": ("system:kube-scheduler", "finetune"),
    "kube-proxy": ("system:kube-proxy", "finetune"),
    "kubelet": (f"system:node:{NODE_NAME}", "system:nodes"),
    "apiserver-kubelet": ("apiserver-kubelet", "system:masters"),
    "apiserver-etcd": ("apiserver-etcd", "finetune"),
}


def make_pki(layout: Layout) -> None:
    """Write ca, servers, clients, the service accounts' key pair, and a kubeconfig a client."""
    layout.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("finetune-embedded-ca", "finetune", ca_key, None, ca_key)
    _write_pair(layout.pki / "ca", ca, ca_key)

    names = [
        "localhost",
        NODE_NAME,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    addresses = ["127.0.0.1", layout.address, layout.kubernetes_service_ip]
    for server in ("apiserver", "etcd", "kubelet-server"):
        key = ec.generate_private_key(ec.SECP256R1())
        _write_pair(layout.pki / server, _certificate(server, "finetune", key, ca, ca_key, names, addresses), key)
    for client, (name, organization) in CLIENTS.items():
        key = ec.generate_private_key(ec.SECP256R1())
        _write_pair(layout.pki / client, _certificate(name, organization, key, ca, ca_key), key)
        _write_kubeconfig(layout, client)

    service_accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(layout.pki / "sa.key", _private(service_accounts))
    _write(
        layout.pki / "sa.pub",
        service_accounts.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    _write(layout.kubeconfig, (layout.pki / "admin.kubeconfig").read_bytes())


def _certificate(  # noqa: PLR0917 - one private call site shape
    name: str,
    organization: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    dns: list[str] | None = None,
    addresses: list[str] | None = None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if issuer is not None:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    alternatives: list[x509.GeneralName] = [x509.DNSName(entry) for entry in dns or []]
    alternatives += [x509.IPAddress(ipaddress.ip_address(entry)) for entry in dict.fromkeys(addresses or [])]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _write_pair(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    _write(stem.with_name(stem.name + ".crt"), certificate.public_bytes(serialization.Encoding.PEM))
    _write(stem.with_name(stem.name + ".key"), _private(key))


def _write_kubeconfig(layout: Layout, client: str) -> None:
    def pem(name: str) -> str:
        return base64.b64encode((layout.pki / name).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "finetune-embedded",
        "clusters": [
            {
                "name": "finetune-embedded",
                "cluster": {"server": layout.api_url, "certificate-authority-data": pem("ca.crt")},
            }
        ],
        "users": [
            {
                "name": client,
                "user": {
                    "client-certificate-data": pem(f"{client}.crt"),
                    "client-key-data": pem(f"{client}.key"),
                },
            }
        ],
        "contexts": [{"name": "finetune-embedded", "context": {"cluster": "finetune-embedded", "user": client}}],
    }
    _write(layout.pki / f"{client}.kubeconfig", yaml.safe_dump(config).encode())
