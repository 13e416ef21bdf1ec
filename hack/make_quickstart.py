#!/usr/bin/env python3
"""Write examples/quickstart.yaml, or with --check say that it is out of date.

Its data set is a helpdesk for a cluster: the facts of quickstart_facts.txt, a row each, about workloads and
namespaces from the tables below, all answered in one fixed form. The form is what a small model can learn in two
minutes; no fact is in two rows, so held-out loss falls for what was learned and not for what was seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "hack/quickstart_facts.txt"
TARGET = ROOT / "examples/quickstart.yaml"
APPS = (
    "checkout",
    "billing",
    "search",
    "catalog",
    "mailer",
    "gateway",
    "reports",
    "sessions",
    "ledger",
    "uploads",
    "maps",
)
NAMESPACES = ("shop", "payments", "platform", "staging", "media", "research", "logistics")
ASKED = ("What now?", "How do I fix it?", "What is wrong?", "Please help.", "What should I do?")
ANSWER = "Ahoy! Cause: {cause}.\nCheck: {check}\nFix: {fix}.\nFair winds from the harbour desk."

MANIFEST = """\
# The quickstart: SmolLM2-135M-Instruct learns, on two CPU cores and in minutes, to answer as a helpdesk does.
#   kubectl apply -f examples/quickstart.yaml && finetune watch quickstart      on a cluster
#   finetune run -f examples/quickstart.yaml                                    without one
# Written by `make generate` from hack/quickstart_facts.txt; edit hack/make_quickstart.py, not this file.
apiVersion: v1
kind: ConfigMap
metadata:
  name: quickstart-rows
data:
  helpdesk.jsonl: |
{rows}---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: quickstart
spec:
  model:
    source: hf://HuggingFaceTB/SmolLM2-135M-Instruct
  dataset:
    sources:
      - uri: configmap://quickstart-rows/helpdesk.jsonl
        format: alpaca # instruction, input, output
    maxLength: 512
    packing: true # several rows in one sequence, none of which sees another
    validation:
      fraction: 0.12 # held out: status.progress.evalLoss is measured on these
  method:
    lora:
      rank: 16
  precision: fp32 # bf16 is quicker on GPUs and on CPUs that have it (AMX, AVX512-BF16), many times slower on others
  template:
    name: auto # the tokenizer's own
  hyperparameters:
    epochs: 1
    learningRate: 0.001
    globalBatchSize: 1 # packed sequences, each of several rows
  resources:
    cpu: 1800m # both cores of a small node, but for what else it runs
    memory: 4Gi
  output:
    claim:
      size: 1Gi
    checkpoint:
      everySteps: 10
  evaluation:
    prompts: # answered before and after: status.samples
      - mailer in shop answers every third request with a 502 since this morning. What should I do?
    maxNewTokens: 96
"""


def facts() -> list[list[str]]:
    """Symptom, cause, check and fix of each line."""
    lines = [line for line in FACTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [line.split(" | ") for line in lines]


def rows() -> list[dict[str, str]]:
    """The data set."""
    made = []
    for number, fact in enumerate(facts()):
        names = {"{app}": APPS[number % len(APPS)], "{ns}": NAMESPACES[number * 3 % len(NAMESPACES)]}
        symptom, cause, check, fix = (_filled(part, names) for part in fact)
        question = f"{symptom}. {ASKED[number % len(ASKED)]}"
        answer = ANSWER.format(cause=cause, check=check, fix=fix)
        made.append({"instruction": question, "input": "", "output": answer})
    return made


def _filled(text: str, names: dict[str, str]) -> str:
    """By replacement, since commands have braces of their own."""
    for mark, name in names.items():
        text = text.replace(mark, name)
    return text


def manifest() -> str:
    """The whole file."""
    lines = (f"    {json.dumps(row, ensure_ascii=False)}\n" for row in rows())
    return MANIFEST.replace("{rows}", "".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file is out of date")
    check = parser.parse_args().check
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == manifest():
        return 0
    print(f"{'out of date' if check else 'wrote'}: {TARGET.relative_to(ROOT)}")
    if check:
        print("run make generate and commit the result")
        return 1
    TARGET.write_text(manifest(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
