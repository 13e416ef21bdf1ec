#!/usr/bin/env python3
"""How fast rows become tokens, and in how much memory: the prepare step beside datasets.map and LLaMA-Factory.

    python bench/data/prepare.py --tokenizer DIR [--rows FILE] [--copies N] [--cases ours,bound,datasets,…]

``--tokenizer`` is a model's directory with a chat template; ``--rows`` an alpaca file, LLaMA-Factory's demo set unless
given (from the package index); ``--copies`` writes it so many times over. Each case is a process of its own, measured
from where its libraries and tokenizer are loaded; MB are 10^6 bytes of the rows' own text, without the template's. Wall
and processor time are the best of ``--repeats``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for part in ("crds", "trainer_image", "tests/support"):
    sys.path.insert(0, str(ROOT / part))
MAX_LENGTH = 4096
Row = dict[str, str]


def text_bytes(rows: list[Row]) -> int:
    """Bytes of the rows' own text."""
    return sum(len((row["instruction"] + row.get("input", "") + row["output"]).encode()) for row in rows)


def conversation(row: Row) -> list[Row]:
    """As transformers wants it, and as alpaca rows are read everywhere."""
    question = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def configuration(tokenizer: Path, file: Path, scratch: Path, template: str) -> Any:
    from finetune_api.trainer_config import (  # noqa: PLC0415
        JobIdentity,
        Paths,
        ResolvedModel,
        ResolvedSource,
        TrainerConfig,
    )
    from finetune_api.training import LoraMethod, MethodSpec, TemplateSpec  # noqa: PLC0415

    return TrainerConfig(
        job=JobIdentity(name="bench"),
        model=ResolvedModel(uri="file:///model", path=str(tokenizer)),
        sources=[ResolvedSource(uri=f"file://{file}", path=str(file))],
        max_length=MAX_LENGTH,
        packing=True,
        method=MethodSpec(lora=LoraMethod()),
        template=TemplateSpec(name=template),
        paths=Paths(cache=str(scratch / "cache"), output=str(scratch / "output")),
    )


def ours(options: argparse.Namespace, template: str = "chatml") -> Callable[[], dict[str, Any]]:
    """Reading, checking, templating, tokenizing, packing, writing: all that prepare does with rows."""
    from finetune_trainer.filling import fill  # noqa: PLC0415
    from finetune_trainer.prepared import StoreWriter  # noqa: PLC0415
    from finetune_trainer.sources import find_sources  # noqa: PLC0415
    from finetune_trainer.tokenizer import load_tokenizer, vocabulary_size  # noqa: PLC0415
    from finetune_trainer.wording import find_wording  # noqa: PLC0415

    tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=False)

    vocabulary = vocabulary_size(tokenizer)
    wording = find_wording(configuration(options.tokenizer, options.rows, Path("/"), template), tokenizer)

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            config = configuration(options.tokenizer, options.rows, Path(scratch), template)
            with StoreWriter(Path(scratch), vocabulary=vocabulary) as writer:
                status = fill(writer, config, find_sources(config), wording.encoder, tokenizer,
                              stops=wording.stop_token_ids,
                              tokenizer_directory=options.tokenizer, processes=options.processes)  # fmt: skip
            share = status.tokens / (status.sequences * MAX_LENGTH)
            return {"tokens": status.tokens, "filled %": round(100 * share, 2)}

    return run


def bound(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The tokenizer library alone on texts that are rendered already: nothing in Python can be faster."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    backend = tokenizer.backend_tokenizer
    texts = [
        "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation(row))
        for row in json.loads(options.rows.read_text())
    ]
    return lambda: {"tokens": sum(len(backend.encode(text, add_special_tokens=False)) for text in texts)}


def datasets_map(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """``datasets.map`` with ``apply_chat_template``: ids alone, with no word of what is trained."""
    import datasets  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)

    def encode(row: Row) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(conversation(row), return_dict=True)["input_ids"]}

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset("json", data_files=str(options.rows), split="train", cache_dir=cache)
            made = rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=False,
                            num_proc=options.processes if options.processes > 1 else None)  # fmt: skip
            return {"tokens": sum(len(ids) for ids in made["input_ids"])}

    return run


def llamafactory(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """LLaMA-Factory's own converter and supervised processor by ``datasets.map`` in batches, as its loader calls them;
    packing included (``neat_packing``)."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    import datasets  # noqa: PLC0415
    import transformers.utils  # noqa: PLC0415, F401 - it looks for torchaudio itself, and must not find ours

    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # for sounds, of which there are none
    from llamafactory.data.converter import AlpacaDatasetConverter  # noqa: PLC0415
    from llamafactory.data.parser import DatasetAttr  # noqa: PLC0415
    from llamafactory.data.processor import PackedSupervisedDatasetProcessor  # noqa: PLC0415
    from llamafactory.data.template import get_template_and_fix_tokenizer  # noqa: PLC0415
    from llamafactory.hparams import DataArguments  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    arguments = DataArguments(template="chatml", cutoff_len=MAX_LENGTH, packing=True, neat_packing=True)
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    convert = AlpacaDatasetConverter(DatasetAttr("file", "rows"), arguments)
    processor = PackedSupervisedDatasetProcessor(
        template=template, tokenizer=tokenizer, processor=None, data_args=arguments
    )
    several = options.processes if options.processes > 1 else None

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset("json", data_files=str(options.rows), split="train", cache_dir=cache)
            rows = rows.map(convert, remove_columns=rows.column_names, load_from_cache_file=False, num_proc=several)
            made = rows.map(processor.preprocess_dataset, batched=True, batch_size=1000, num_proc=several,
                            remove_columns=rows.column_names, load_from_cache_file=False)  # fmt: skip
            tokens = sum(sum(part > 0 for part in mask) for mask in made["attention_mask"])
            return {"tokens": tokens, "filled %": round(100 * tokens / (len(made) * MAX_LENGTH), 2)}

    return run


CASES: dict[str, Callable[[argparse.Namespace], Callable[[], dict[str, Any]]]] = {
    "ours": ours,
    "ours-auto": lambda options: ours(options, "auto"),
    "bound": bound,
    "datasets": datasets_map,
    "llamafactory": llamafactory,
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one case and say what it took."""
    size = text_bytes(json.loads(options.rows.read_text())) / 1e6
    run = CASES[options.case](options)
    best: dict[str, Any] = {}
    for _ in range(options.repeats):
        wall, used = time.perf_counter(), os.times()
        told = run()
        wall, now = time.perf_counter() - wall, os.times()
        processor = (now.user + now.system + now.children_user + now.children_system) - (
            used.user + used.system + used.children_user + used.children_system
        )
        if not best or wall < best["wall s"]:
            best = {**told, "wall s": round(wall, 2), "processor s": round(processor, 2)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"case": options.case, "MB": round(size, 2), "MB/s": round(size / best["wall s"], 2),
            "MB/s a core": round(size / best["processor s"], 2), "peak MiB": round(peak), **best}  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default="ours,ours-auto,bound,datasets")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options)))
        return
    from demo_sets import demo_set  # noqa: PLC0415

    rows = json.loads((options.rows or demo_set("alpaca_en_demo.json")).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        # Each copy differs, or a tokenizer's memory of words would be all that is measured.
        copies = [[{**row, "instruction": f"{number}. {row['instruction']}"} for row in rows]
                  for number in range(options.copies)]  # fmt: skip
        file.write_text(json.dumps([row for copy in copies for row in copy], ensure_ascii=False))
        for case in options.cases.split(","):
            command = [sys.executable, __file__, "--case", case, "--tokenizer", str(options.tokenizer)]
            command += ["--rows", str(file), "--processes", str(options.processes), "--repeats", str(options.repeats)]
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
            print(done.stdout.splitlines()[-1] if done.returncode == 0 else f"{case}: exit code {done.returncode}")


if __name__ == "__main__":
    main()
