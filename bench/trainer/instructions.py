#!/usr/bin/env python3
"""A real set of instructions for the packed cases of speed.py: its samples as the prepare step makes them.

    python bench/trainer/instructions.py --model DIR --out FILE.npz [--rows FILE]

``--model`` is a directory with tokenizer and settings; ``--rows`` an alpaca file, LLaMA-Factory's demo set unless given
(from the package index). The file has ``ids`` and ``trained`` of all samples behind one another, and their ``lengths``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for part in ("crds", "trainer_image", "tests/support"):
    sys.path.insert(0, str(ROOT / part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    from demo_sets import demo_set  # noqa: PLC0415
    from finetune_api.trainer_config import TrainerConfig  # noqa: PLC0415
    from finetune_trainer.prepare import prepare  # noqa: PLC0415
    from finetune_trainer.prepared import IGNORED, load_prepared  # noqa: PLC0415

    rows = options.rows or demo_set("alpaca_en_demo.json")
    with tempfile.TemporaryDirectory() as scratch:
        body = {
            "job": {"name": "instructions"},
            "model": {"uri": "file:///model", "path": str(options.model)},
            "sources": [{"uri": f"file:///{rows.name}", "path": str(rows)}],
            "template": {"name": "chatml"},
            "method": {"lora": {}},
            "validation": {"fraction": 0.0},
            "paths": {"cache": f"{scratch}/cache", "output": f"{scratch}/output"},
        }
        config = TrainerConfig.model_validate(body)
        prepare(config)
        train = load_prepared(config).train
        samples = [train[index] for index in range(len(train))]
    trained = [sample.labels != IGNORED for sample in samples]
    np.savez_compressed(
        options.out,
        ids=np.concatenate([sample.input_ids for sample in samples]).astype(np.uint32),
        trained=np.concatenate(trained),
        lengths=np.array([len(sample.input_ids) for sample in samples]),
    )
    share = sum(part.sum() for part in trained) / sum(map(len, trained))
    print(f"{len(samples)} samples, {sum(map(len, trained)):,} tokens, {share:.2f} of them supervised")


if __name__ == "__main__":
    main()
