"""What lives in the benchmark's cluster: nodes with GPUs, how their pods fare, and the FineTuneJobs.

kwok plays the kubelets. Its stages give each pod the states that a kubelet reports, and at its end the termination
message that the trainer would have left, built and encoded by the same class that the trainer uses.
"""

from __future__ import annotations

from typing import Any

from finetune_api.reports import ExportReport, TerminationReport
from finetune_api.status import DatasetStatus, ModelStatus, Progress

Body = dict[str, Any]
NAMESPACE, CLAIM = "research", "finetune-cache"
LONG = "long-"
"""Jobs whose names begin so train until the benchmark ends."""
SAMPLES, STEPS = 51_760, 3_235
GPUS_PER_NODE = 8
_COMPONENT = '.metadata.labels["finetune.dev/component"]'
_NAME = '.metadata.labels["finetune.dev/job"]'

PREPARED = TerminationReport(
    step="prepare",
    dataset=DatasetStatus(samples=SAMPLES, tokens=11_532_114, supervised_tokens=7_810_990, sequences=SAMPLES // 16),
    model=ModelStatus(parameters=8_190_735_360, digest="sha256:" + "1f" * 32),
)
TRAINED = TerminationReport(
    step="train",
    model=ModelStatus(parameters=8_190_735_360, trainable_parameters=43_646_976),
    progress=Progress(step=STEPS, total_steps=STEPS, epoch=1.0, loss=1.0718, tokens_per_second=14019.0),
    output=ExportReport(path="adapter", digest="sha256:" + "2e" * 32),
)


def nodes(count: int) -> list[Body]:
    """Nodes that kwok makes ready."""
    names = (f"gpu-{index:04}" for index in range(count))
    return [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}
        for name in names
    ]


def volumes() -> list[Body]:
    """A shared volume and its claim, bound to each other: the cache, and the results of every job."""
    size, modes = "100Ti", ["ReadWriteMany"]
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": CLAIM},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": modes,
                "storageClassName": "shared",
                "hostPath": {"path": "/none"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": NAMESPACE,
                    "name": CLAIM,
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": NAMESPACE},
            "spec": {
                "accessModes": modes,
                "resources": {"requests": {"storage": size}},
                "storageClassName": "shared",
                "volumeName": CLAIM,
            },
        },
    ]


def finetunejob(name: str) -> Body:
    """One job: LoRA on one GPU, its result on the shared volume."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen3-8B"},
            "dataset": {"sources": [{"uri": "hf://yahma/alpaca-cleaned/alpaca_data_cleaned.json"}], "packing": True},
            "method": {"lora": {"rank": 16}},
            "output": {"claim": {"name": CLAIM}},
        },
    }


def stages(*, prepare_seconds: float, train_seconds: float) -> list[Body]:
    """kwok's stages: how nodes become ready, how pods start, end and go."""
    here = _matches(".metadata.deletionTimestamp", "DoesNotExist")
    return [
        _stage("node-ready", "Node", [_matches(".status.nodeInfo.kubeletVersion", "In", "")], _NODE),
        _stage("pod-starts", "Pod", [here, _matches(".status.podIP", "DoesNotExist")], _STARTS),
        *(
            _stage(
                f"pod-of-{component}-ends",
                "Pod",
                [
                    here,
                    _matches(".status.phase", "In", "Running"),
                    _matches(_COMPONENT, "In", component),
                    _matches(f'{_NAME} | startswith("{LONG}")', "In", *(["false"] if component == "train" else _BOTH)),
                ],
                _ends(report),
                seconds,
            )
            for component, report, seconds in (
                ("prepare", PREPARED, prepare_seconds),
                ("train", TRAINED, train_seconds),
            )
        ),
        _stage("pod-goes", "Pod", [_matches(".metadata.deletionTimestamp", "Exists")], None),
    ]


def _matches(key: str, operator: str, *values: str) -> Body:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _stage(name: str, kind: str, selector: list[Body], status: str | None, seconds: float = 0) -> Body:
    then: Body = {"finalizers": {"empty": True}, "delete": True} if status is None else {"statusTemplate": status}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": selector},
            "next": then,
            **({"delay": {"durationMilliseconds": int(1000 * seconds)}} if seconds else {}),
        },
    }


def _ends(report: TerminationReport) -> str:
    return _ENDS.replace("MESSAGE", report.encode().decode().replace("'", "''"))


_BOTH = ("true", "false")
_NODE = f"""
{{{{ $now := Now | Quote }}}}
conditions:
- type: Ready
  status: "True"
  reason: KubeletReady
  lastHeartbeatTime: {{{{ $now }}}}
  lastTransitionTime: {{{{ $now }}}}
nodeInfo:
  {{architecture: amd64, bootID: "", containerRuntimeVersion: kwok, kernelVersion: kwok, kubeletVersion: kwok,
   machineID: "", operatingSystem: linux, osImage: "", systemUUID: "", kubeProxyVersion: kwok}}
allocatable: &size {{cpu: "192", memory: 2Ti, pods: "250", nvidia.com/gpu: "{GPUS_PER_NODE}"}}
capacity: *size
"""
_STARTS = """
{{ $now := Now }}
phase: Running
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name }}
  image: {{ .image }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
"""
_ENDS = """
{{ $now := Now }}
{{ $begun := .status.startTime }}
phase: Succeeded
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name }}
  image: {{ .image }}
  ready: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $begun | Quote }}
      finishedAt: {{ $now | Quote }}
      message: 'MESSAGE'
{{ end }}
"""
