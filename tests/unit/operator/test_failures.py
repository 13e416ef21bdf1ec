"""Every way in which a pod ends badly has its one reason."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.failures import EXIT_REASONS, REASONS, ExitCode
from finetune_api.failures import FailureReason as R
from finetune_operator.core import failures
from finetune_operator.core.times import stamp
from operator_bodies import NOW, at, batch_job, pod_of, report, terminated

Body = dict[str, Any]


def dead(code: int = 1, log: str | None = None, *, attempt: int = 1, why: str = "Error", **status: Any) -> Body:
    job = batch_job("train" if attempt else "prepare", max(attempt, 1))
    return pod_of(job, phase="Failed", state=terminated(code, log, reason=why), **status)


def disrupted(why: str, code: int = 137) -> Body:
    pod = dead(code)
    pod["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": why, "message": f"by {why}"}
    )
    return pod


def deleted(pod: Body) -> Body:
    pod["metadata"]["deletionTimestamp"] = stamp(NOW)
    return pod


@pytest.mark.parametrize("code", sorted(EXIT_REASONS))
def test_every_exit_code_of_the_contract_has_its_reason(code: ExitCode) -> None:
    told = failures.of_pod(dead(int(code), report("train", int(code), message="what and where")), attempt=1)
    assert told.reason == EXIT_REASONS[code].value
    assert told.exit_code == code
    assert told.retryable is REASONS[EXIT_REASONS[code]].retryable
    assert "what and where" in told.message or code is ExitCode.INTERRUPTED
    mute = failures.of_pod(dead(int(code)), attempt=1)
    assert mute.reason == told.reason, "a lost report loses words, not the reason"
    assert REASONS[R(mute.reason)].advice in mute.message


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (dead(1, "Traceback: boom"), R.TRAINER_CRASH, "exited with 1"),
        (dead(77), R.TRAINER_CRASH, "exited with 77"),
        (dead(137), R.TRAINER_CRASH, "SIGKILL"),
        (dead(137, why="OOMKilled"), R.OOM_KILLED, "limit of 8Gi. Raise spec.resources.memory."),
        (dead(137, why="OOMKilled", attempt=0), R.OOM_KILLED, "Raise prepare.memory in the TrainingProfile."),
        (dead(128, "exec: finetune-train: not found", why="StartError"), R.CONTAINER_CANNOT_START, "not found"),
        (disrupted("PreemptionByScheduler"), R.PREEMPTED, "by PreemptionByScheduler"),
        (disrupted("PreemptionByKubeScheduler"), R.PREEMPTED, "by Preemption"),
        (disrupted("EvictionByEvictionAPI"), R.EVICTED, "by EvictionByEvictionAPI"),
        (disrupted("TerminationByKubelet"), R.EVICTED, "on node node-1"),
        (disrupted("DeletionByTaintManager"), R.NODE_LOST, "by DeletionByTaintManager"),
        (disrupted("DeletionByPodGC"), R.NODE_LOST, "by DeletionByPodGC"),
        (disrupted("SomethingNew"), R.EVICTED, "by SomethingNew"),
        (disrupted("PreemptionByScheduler", int(ExitCode.INTERRUPTED)), R.PREEMPTED, "by Preemption"),
        (dead(137, reason="Evicted"), R.EVICTED, ""),
        (dead(137, reason="NodeLost"), R.NODE_LOST, ""),
        (dead(137, reason="Terminated", message="Pod was terminated"), R.NODE_LOST, "was terminated"),
        (dead(137, reason="DeadlineExceeded"), R.DEADLINE_EXCEEDED, ""),
        (dead(137, reason="OutOfcpu"), R.EVICTED, ""),
        (deleted(dead(143)), R.POD_DELETED, ""),
        (deleted(dead(int(ExitCode.INTERRUPTED))), R.POD_DELETED, "was told to end"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_the_cluster_did_is_told_from_what_the_trainer_did(pod: Body, reason: R, words: str) -> None:
    told = failures.of_pod(pod, attempt=0 if "prepare" in pod["metadata"]["name"] else 1)
    assert told.reason == reason.value
    assert words in told.message
    assert told.message.endswith((".", "logTail."))


def test_a_pod_without_a_container_state_is_judged_by_its_status() -> None:
    pod = pod_of(batch_job(), phase="Failed", reason="UnexpectedAdmissionError", message="no GPU left")
    told = failures.of_pod(pod, attempt=1)
    assert (told.reason, told.exit_code) == ("Evicted", None)
    assert "no GPU left" in told.message


def test_an_interruption_says_where_the_checkpoint_is() -> None:
    saved = {"step": 40, "path": "checkpoints/step-40", "time": stamp(NOW)}
    text = report("train", 40, checkpoint=saved)
    told = failures.of_pod(dead(int(ExitCode.INTERRUPTED), text), attempt=2)
    assert (told.reason, told.retryable, told.attempt) == ("Interrupted", True, 2)
    assert "A checkpoint was saved at step 40." in told.message


def test_the_rank_that_failed_first_is_the_cause() -> None:
    job = batch_job(ended="Failed")
    pods = []
    for rank, code, second in ((0, 24, 30.0), (1, 22, 10.0), (2, 24, 20.0)):
        pod = pod_of(job, phase="Failed", state=terminated(code, at_second=second))
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(rank)
        pods.append(pod)
    told = failures.of_job(job, pods, attempt=1)
    assert (told.reason, told.rank) == ("CudaOutOfMemory", 1)


def test_the_cause_comes_before_what_followed_from_it_in_the_same_second() -> None:
    job = batch_job(ended="Failed")
    pods = []
    for rank, code in ((0, ExitCode.COLLECTIVE_TIMEOUT), (1, ExitCode.INTERRUPTED), (2, 137)):
        pod = pod_of(job, phase="Failed", state=terminated(code, at_second=3.0))
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(rank)
        pods.append(pod)
    assert failures.of_job(job, pods, attempt=1).rank == 2
    assert failures.of_job(job, pods[:2], attempt=1).reason == "NCCLTimeout"


def test_a_rank_that_lost_its_peer_to_the_cluster_is_not_the_cause() -> None:
    job = batch_job(ended="Failed")
    notices, lost = (pod_of(job, phase="Failed", state=terminated(24, at_second=10.0)) for _ in range(2))
    lost["status"]["containerStatuses"] = []
    lost["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"})
    lost["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = "1"
    assert failures.of_job(job, [notices], attempt=1).reason == "NCCLTimeout"
    told = failures.of_job(job, [notices, lost], attempt=1)
    assert (told.reason, told.rank) == ("NodeLost", 1)
    full = pod_of(job, phase="Failed", state=terminated(20, at_second=5.0))
    assert failures.of_job(job, [full, notices, lost], attempt=1).reason == "VolumeFull", "no retry would mend it"


def test_a_rank_whose_pod_somebody_deleted_is_the_cause_of_all_that_follows() -> None:
    """All are told to end with it, and end in any order; a Job's controller deletes pods too, but after one failed."""
    job = batch_job(ended="Failed")

    def rank(number: int, code: int, ended: float, told: float | None) -> Body:
        pod = pod_of(job, phase="Failed", state=terminated(code, at_second=ended))
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(number)
        if told is not None:
            grace = {"deletionTimestamp": stamp(at(told + 90)), "deletionGracePeriodSeconds": 90}
            pod["metadata"] |= grace
        return pod

    by_hand = [rank(0, 24, 12.0, told=12.0), rank(1, 40, 14.0, told=10.0)]
    told = failures.of_job(job, by_hand, attempt=1)
    assert (told.reason, told.rank) == ("PodDeleted", 1)
    by_itself = [rank(0, 40, 14.0, told=12.0), rank(1, 1, 12.0, told=None)]
    told = failures.of_job(job, by_itself, attempt=1)
    assert (told.reason, told.rank) == ("TrainerCrash", 1)
    hung = [rank(0, 24, 12.0, told=None), rank(1, 137, 42.0, told=12.0)]
    told = failures.of_job(job, hung, attempt=1)
    assert (told.reason, told.rank) == ("NCCLTimeout", 0), "killed when its grace was over, since another had given up"
    by_force = [rank(0, 24, 10.0, told=None), rank(1, 137, 10.0, told=10.0)]
    assert failures.of_job(job, by_force, attempt=1).reason == "PodDeleted"
    full = [rank(0, 20, 12.0, told=None), rank(1, 40, 14.0, told=10.0)]
    assert failures.of_job(job, full, attempt=1).reason == "VolumeFull", "no retry would mend it"


def test_of_several_prepare_runs_the_last_one_counts() -> None:
    job = batch_job("prepare", ended="Failed")
    pods = [pod_of(job, phase="Failed", state=terminated(c, at_second=s)) for c, s in ((25, 1.0), (20, 2.0))]
    assert failures.of_job(job, pods, attempt=0).reason == "VolumeFull"


def test_a_deadline_is_the_jobs_own_reason() -> None:
    job = batch_job(ended="Failed", reason="DeadlineExceeded")
    assert failures.of_job(job, [dead(143)], attempt=1).reason == "DeadlineExceeded"


def test_a_job_without_a_pod_says_what_its_condition_says() -> None:
    job = batch_job(ended="Failed")
    job["status"]["conditions"][0]["message"] = "Pod was deleted"
    told = failures.of_job(job, [], attempt=3)
    assert (told.reason, told.attempt, told.retryable) == ("PodDeleted", 3, True)
    assert "Pod was deleted" in told.message


def test_long_words_fit_the_status() -> None:
    text = report("train", 1, message="x" * 9000, logTail="y" * 9000)
    told = failures.of_pod(dead(1, text), attempt=1)
    assert len(told.message) <= 4096
    assert told.log_tail == "y" * 2048


def test_the_end_of_the_log_stands_in_for_a_report() -> None:
    assert failures.of_pod(dead(1, "Traceback\nKeyError: 'x'"), attempt=1).log_tail == "Traceback\nKeyError: 'x'"


def test_times_that_are_missing_do_not_upset_the_order() -> None:
    job = batch_job(ended="Failed")
    unknown = pod_of(job, phase="Failed")
    known = pod_of(job, phase="Failed", state=terminated(22, at_second=(at(5) - NOW).total_seconds()))
    assert failures.of_job(job, [unknown, known], attempt=1).reason == "CudaOutOfMemory"
