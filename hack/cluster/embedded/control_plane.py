"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embedded.build import program
from embedded.health import api_ready, ill
from embedded.layout import Layout
from embedded.processes import Processes


def start_control_plane(layout: Layout, processes: Processes, *, api_server: Sequence[str] = ()) -> None:
    """Start the store and the API server, with further options of its own, and where there is a node what acts on
    objects."""
    _start_etcd(layout, processes)
    _start_api_server(layout, processes, api_server)
    if not layout.control_plane_only:
        start_controllers(layout, processes)


def _start_etcd(layout: Layout, processes: Processes) -> None:
    client = f"https://127.0.0.1:{layout.etcd_port}"
    peer = f"http://127.0.0.1:{layout.etcd_peer_port}"
    processes.start(
        "etcd",
        [
            program("etcd"),
            f"--data-dir={layout.state / 'etcd'}",
            "--name=node",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=node={peer}",
            f"--cert-file={layout.pki / 'etcd.crt'}",
            f"--key-file={layout.pki / 'etcd.key'}",
            f"--trusted-ca-file={layout.pki / 'ca.crt'}",
            "--client-cert-auth",
            "--unsafe-no-fsync",  # the cluster is made anew after a crash; it need not survive one
            "--log-level=warn",
        ],
    )


def _start_api_server(layout: Layout, processes: Processes, options: Sequence[str] = ()) -> None:
    pki = layout.pki
    processes.start(
        "kube-apiserver",
        [
            program("kube-apiserver"),
            f"--bind-address={layout.address}",
            f"--advertise-address={layout.address}",
            f"--secure-port={layout.api_port}",
            f"--etcd-servers=https://127.0.0.1:{layout.etcd_port}",
            f"--etcd-cafile={pki / 'ca.crt'}",
            f"--etcd-certfile={pki / 'apiserver-etcd.crt'}",
            f"--etcd-keyfile={pki / 'apiserver-etcd.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={layout.service_cidr}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--anonymous-auth=false",
            "--profiling=false",
            # On loopback, the control plane alone: the endpoint of the kubernetes Service has no use.
            *(["--endpoint-reconciler-type=none"] if layout.control_plane_only else []),
            *options,
        ],
    )
    processes.wait_for("kube-apiserver", lambda: api_ready(layout), seconds=90)


def start_controllers(
    layout: Layout,
    processes: Processes,
    *,
    ports: tuple[int, int] = (10257, 10259),
    options: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Start kube-controller-manager and kube-scheduler, on these ports and with further options by name."""
    pki = layout.pki
    for name, port, extra in (
        (
            "kube-controller-manager",
            ports[0],
            [
                f"--root-ca-file={pki / 'ca.crt'}",
                f"--service-account-private-key-file={pki / 'sa.key'}",
                "--use-service-account-credentials",
                f"--cluster-cidr={layout.pod_cidr}",
            ],
        ),
        ("kube-scheduler", ports[1], []),
    ):
        kubeconfig = pki / f"{name}.kubeconfig"
        processes.start(
            name,
            [
                program(name),
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                "--leader-elect=false",
                f"--cert-dir={layout.run}",
                *extra,
                *(options or {}).get(name, ()),
            ],
        )


def restart_part(layout: Layout, processes: Processes, name: str) -> None:
    """Start ``name`` (etcd or kube-apiserver) again after it was stopped, and wait until it is well."""
    if name == "etcd":
        _start_etcd(layout, processes)
    else:
        _start_api_server(layout, processes)
    processes.wait_for(name, lambda: ill(layout, processes, name) is None, seconds=60)
