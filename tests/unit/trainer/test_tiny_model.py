from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import CHAT_TEMPLATE, make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_it_loads_answers_and_gives_any_text_back(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "<|im_start|>user\nAny text: 你好 🌍\t\x7f<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.chat_template == CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = make_tiny_model(tmp_path / "a"), make_tiny_model(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(("chat_template", "end"), [(True, "<|im_end|>"), (False, "<|endoftext|>")])
def test_a_base_model_has_no_template(tmp_path: Path, *, chat_template: bool, end: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path, chat_template=chat_template))
    assert bool(tokenizer.chat_template) is chat_template
    assert tokenizer.eos_token == end
