"""``finetune templates`` and ``finetune render``: the trainer's own templates, on a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_cli import console
from finetune_cli.main import app
from finetune_trainer.templates import FAMILIES
from finetune_trainer.tokenizer import load_tokenizer
from formats import THINKS
from tiny_model import make_tiny_model
from typer.testing import CliRunner

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "帮我写一首关于春天的诗"},
    {"role": "assistant", "content": "春眠不觉晓\t<|im_end|>"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "One and "}, {"type": "text", "text": "one?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Sum.",
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}],
    },
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two.", "reasoning_content": "Done."},
]
EXAMPLES = Path(__file__).parents[3] / "examples"
FIRST_TURNS = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n帮我写一首关于春天的诗<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return written(tmp_path, CHAT)


def written(directory: Path, value: Any, name: str = "chat.json") -> Path:
    file = directory / name
    file.write_text(json.dumps(value))
    return file


def thinking_model(directory: Path) -> Path:
    model = make_tiny_model(directory / "model")
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    tokenizer.chat_template = THINKS.jinja()
    tokenizer.save_pretrained(model)
    return model


def render(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["render", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_all_templates_are_listed_by_name() -> None:
    result = CliRunner().invoke(app, ["templates"])
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert names == ["auto", *sorted(FAMILIES)]


def test_the_list_as_json_has_what_each_can_hold() -> None:
    listed = {one["name"]: one for one in json.loads(CliRunner().invoke(app, ["templates", "--json"]).stdout)}
    assert set(listed) == set(FAMILIES)
    assert listed["qwen"]["stopWords"] == ["<|im_end|>"]
    assert listed["qwen"]["defaultSystem"].startswith("You are Qwen")
    assert listed["chatml"]["thinksByDefault"] is None


def test_the_guides_example_is_rendered_as_its_model_does(chat: Path) -> None:
    result = render("--template", "qwen", "--messages", chat)
    assert result.stdout == FIRST_TURNS + "春眠不觉晓\t<|im_end|><|im_end|>\n"
    asked = render("--template", "qwen", "--messages", written(chat.parent, CHAT[:1]), "--generation-prompt")
    assert asked.stdout == FIRST_TURNS


def test_json_has_the_text_and_what_is_trained(chat: Path) -> None:
    told = json.loads(render("--template", "qwen", "--messages", chat, "--json").stdout)
    assert told == {
        "text": FIRST_TURNS + "春眠不觉晓\t<|im_end|><|im_end|>\n",
        "segments": [
            {"text": FIRST_TURNS, "trained": False},
            {"text": "春眠不觉晓\t<|im_end|><|im_end|>", "trained": True},
            {"text": "\n", "trained": False},
        ],
    }


def test_the_trained_part_is_coloured_on_a_terminal(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_color_system", 1)
    shown = render("--template", "chatml", "--messages", chat).stdout
    assert "\x1b[1;32m春眠不觉晓" in shown
    assert "\x1b[1;32m<|im_start|>" not in shown


def test_an_image_is_shown_by_the_templates_placeholder(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is "}, {"type": "image_url", "image_url": {"url": "new.png"}}, {"type": "image"}]
    chat = written(tmp_path, [{"role": "user", "content": parts}, CHAT[1]])
    shown = render("--template", "qwen2_vl", "--messages", chat, "--system", "").stdout
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert shown.startswith(f"<|im_start|>user\nIs {image}{image}<|im_end|>\n")
    refused = render("--template", "qwen", "--messages", chat, code=1)
    assert "qwen has no placeholder for what is of type 'image'" in refused.output


def test_system_and_thinking_are_as_in_a_job(chat: Path) -> None:
    assert render("--template", "qwen", "--messages", chat, "--system", "").stdout.startswith("<|im_start|>user")
    refused = render("--template", "chatml", "--messages", chat, "--thinking", "enabled", code=1)
    assert "template chatml has no chains of thought" in refused.stderr


def test_tools_calls_and_thoughts_reach_the_tokenizers_own_template(tmp_path: Path) -> None:
    model = thinking_model(tmp_path)
    auto = ("--template", "auto", "--tokenizer", model)
    file = written(tmp_path, {"messages": CALLS, "tools": TOOLS})
    told = json.loads(render(*auto, "--messages", file, "--json").stdout)
    assert "# Tools" in told["text"]
    assert "<think>\nSum.\n</think>" in told["text"]
    assert '{"name": "add", "arguments": {"a": 1, "b": 1}}' in told["text"]
    assert "".join(token["text"] for token in told["tokens"]) == told["text"]
    trained = "".join(token["text"] for token in told["tokens"] if token["trained"])
    assert trained == "".join(segment["text"] for segment in told["segments"] if segment["trained"])
    asked = render(*auto, "--messages", written(tmp_path, CALLS[:4]), "--tools", written(tmp_path, TOOLS, "t.json"))
    assert "One and one?" in asked.stdout
    assert "tokens, " in asked.stderr


def test_answers_that_are_trained_apart_are_shown_apart(tmp_path: Path) -> None:
    model = thinking_model(tmp_path)
    turns = [CHAT[0], {**CHAT[1], "reasoning_content": "one"}, CHAT[0], {**CHAT[1], "reasoning_content": "two"}]
    options = ("--template", "auto", "--tokenizer", model, "--messages", written(tmp_path, turns))
    assert "trained by itself" in render(*options).stderr
    told = json.loads(render(*options, "--json").stdout)
    assert "two" in told["text"]
    assert "one" in told["further"][0]["text"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a list of messages"),
        ('[{"role": "critic"}]', "messages[0].role is 'critic'; known: system"),
        ('[{"role": "user", "content": 3}]', "messages[0].content must be text"),
        ('[{"role": "user", "content": "a", "reasoning": "b"}]', "messages[0] is of user, and calls and thoughts"),
        (
            '[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]',
            "[0]: arguments are not JSON",
        ),
        ('[{"role": "assistant", "tool_calls": [{"arguments": {}}]}]', "tool_calls[0] must have a name"),
        ('{"messages": [], "tools": {}}', "must hold a list of messages"),
        ('{"messages": [], "tools": [{}]}', "tools[0] must be a function with a name"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_by_place(tmp_path: Path, value: str, told: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(value)
    assert told in render("--template", "qwen", "--messages", file, code=1).stderr


def test_a_chat_template_of_ones_own_is_rendered_from_its_file(tmp_path: Path, chat: Path) -> None:
    file = EXAMPLES / "chat-template.yaml"
    assert render("--template", file, "--messages", chat).stdout == (
        "<|user|>\n帮我写一首关于春天的诗<|end|>\n<|assistant|>\n春眠不觉晓\t<|im_end|><|end|>\n"
    )
    own = tmp_path / "own.yaml"
    own.write_text(file.read_text().replace("<|end|>", "{{eos_token}}"))
    assert "say where its tokenizer is" in render("--template", own, "--messages", chat, code=1).stderr
    model = make_tiny_model(tmp_path / "model")
    assert "<|im_end|>\n<|assistant|>" in render("--template", own, "--messages", chat, "--tokenizer", model).stdout
    own.write_text(file.read_text().replace('["{{content}}<|end|>\\n"]', '["{{content}}"]'))
    assert "spec.formatAssistant: must hold a stop word" in render("--template", own, "--messages", chat, code=1).output
    assert "one ChatTemplate, not 0" in render(
        "--template", EXAMPLES / "full.yaml", "--messages", chat, code=1
    ).stderr  # fmt: skip


def test_what_is_missing_is_said(tmp_path: Path, chat: Path) -> None:
    assert "--tokenizer" in render("--template", "auto", "--messages", chat, code=1).stderr
    assert "did you mean qwen" in render("--template", "qwne", "--messages", chat, code=1).stderr
    assert "cannot be read" in render("--template", "qwen", "--messages", tmp_path / "none", code=1).stderr
    assert "cannot be loaded" in render(
        "--template", "qwen", "--messages", chat, "--tokenizer", tmp_path / "none", code=1
    ).stderr  # fmt: skip


def test_text_is_rendered_without_the_trainers_libraries(chat: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from finetune_cli.main import app\n"
        f"app(['render', '--template', 'qwen', '--messages', {str(chat)!r}], standalone_mode=False)\n"
        "app(['templates'], standalone_mode=False)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(FIRST_TURNS)
