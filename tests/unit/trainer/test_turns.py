"""Tools, calls, their results and chains of thought, as rows write them, and what is wrong with them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from demo_sets import demo_set
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer.messages import Conversation, Message, ToolCall
from finetune_trainer.preference_rows import Pair
from finetune_trainer.row_errors import RowError
from finetune_trainer.samples import read_samples

WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
CALL = ToolCall("weather", {"city": "Rome"})


def read(directory: Path, row: Any, **source: Any) -> Any:
    file = directory / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (sample,) = read_samples(ResolvedSource(uri="file:///rows.jsonl", **source), file)
    return sample


def refused(directory: Path, row: Any, **source: Any) -> str:
    with pytest.raises(RowError) as failure:
        read(directory, row, **source)
    said = str(failure.value)
    assert said.startswith("rows.jsonl:1: ")
    return said


def user(text: str = "Rome?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None = "Sunny.", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def called(arguments: Any = '{"city": "Rome"}', **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}, **fields}


def result(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **fields}


@pytest.mark.parametrize(
    "turn",
    [
        assistant(None, tool_calls=[called()]),
        assistant("", tool_calls=[called({"city": "Rome"}, id="1")]),
        assistant(None, tool_calls=[{"name": "weather", "arguments": {"city": "Rome"}}]),
        assistant(None, function_call={"name": "weather", "arguments": '{"city": "Rome"}'}),
        assistant(None, tool_calls=[called()], function_call=None, reasoning_content=None),
    ],
)
def test_calls_of_openai_in_every_form(tmp_path: Path, turn: dict[str, Any]) -> None:
    read_row = read(tmp_path, {"messages": [user(), turn, result("21"), assistant()]}, format="openai")
    assert read_row.messages == (
        Message("user", "Rome?"),
        Message("assistant", "", calls=(CALL,)),
        Message("tool", "21"),
        Message("assistant", "Sunny."),
    )


def test_a_call_may_end_a_conversation_and_need_no_arguments(tmp_path: Path) -> None:
    turn = assistant("Let me see.", tool_calls=[{"function": {"name": "clock", "arguments": ""}}])
    conversation = read(tmp_path, {"messages": [user(), turn]}, format="openai")
    assert conversation.messages[-1] == Message("assistant", "Let me see.", calls=(ToolCall("clock", {}),))


def test_results_are_put_in_the_order_of_the_calls_that_they_name(tmp_path: Path) -> None:
    calls = [called(id="a"), called('{"city": "Oslo"}', id="b")]
    rows = [user(), assistant(None, tool_calls=calls), result("-3", tool_call_id="b"), result("21", tool_call_id="a")]
    conversation = read(tmp_path, {"messages": [*rows, assistant()]}, format="openai")
    assert [message.content for message in conversation.messages if message.role == "tool"] == ["21", "-3"]


@pytest.mark.parametrize("tools", [[WEATHER], [{"type": "function", "function": WEATHER}], json.dumps([WEATHER])])
@pytest.mark.parametrize("shape", ["openai", "sharegpt", "alpaca"])
def test_tools_in_every_form(tmp_path: Path, tools: Any, shape: Any) -> None:
    rows: dict[str, Any] = {
        "openai": {"messages": [user(), assistant()]},
        "sharegpt": {"conversations": [{"from": "human", "value": "Rome?"}, {"from": "gpt", "value": "Sunny."}]},
        "alpaca": {"instruction": "Rome?", "output": "Sunny."},
    }
    conversation = read(tmp_path, {**rows[shape], "tools": tools}, format=shape)
    assert conversation == Conversation(
        (Message("user", "Rome?"), Message("assistant", "Sunny.")), "rows.jsonl:1", (WEATHER,)
    )


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tmp_path: Path, tools: Any) -> None:
    assert read(tmp_path, {"messages": [user(), assistant()], "tools": tools}, format="openai").tools == ()


def test_calls_of_sharegpt(tmp_path: Path) -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    turns = [
        {"from": "human", "value": "Rome?"},
        {"from": "function_call", "value": f"<think>A city.</think>\n\n{call}"},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "Sunny."},
    ]  # fmt: skip
    conversation = read(tmp_path, {"conversations": turns}, format="sharegpt")
    assert conversation.messages[1] == Message("assistant", "", thought="A city.", calls=(CALL,))
    several = {"from": "function_call", "value": json.dumps([{"name": "weather", "arguments": {"city": "Rome"}}] * 2)}
    conversation = read(tmp_path, {"conversations": [turns[0], several, *turns[2:]]}, format="sharegpt")
    assert conversation.messages[1].calls == (CALL, CALL)


def test_every_row_of_a_published_set_of_calls_is_read() -> None:
    file = demo_set("glaive_toolcall_en_demo.json")
    rows = json.loads(file.read_text())
    source = ResolvedSource(uri="file:///glaive.json", format="sharegpt")
    samples = list(read_samples(source, file))
    assert len(samples) == len(rows) == 300
    calls = [call for sample in samples for message in sample.messages for call in message.calls]
    assert len(calls) == sum(turn["from"] == "function_call" for row in rows for turn in row["conversations"]) == 211
    assert all(isinstance(call.arguments, dict) for call in calls)
    assert [[tool["name"] for tool in sample.tools] for sample in samples] == [
        [tool["name"] for tool in json.loads(row["tools"])] for row in rows
    ]


def test_every_row_of_a_published_set_whose_texts_are_in_parts_is_read() -> None:
    file = demo_set("v1_sft_demo.jsonl")
    samples = list(read_samples(ResolvedSource(uri="file:///v1.jsonl", format="openai"), file))
    first = json.loads(file.read_text().splitlines()[0])["messages"]
    assert [message.content for message in samples[0].messages] == [turn["content"][0]["value"] for turn in first]
    assert len(samples) == len(file.read_text().splitlines())


@pytest.mark.parametrize(
    ("turn", "text", "thought"),
    [
        (assistant("<think>\nA city.\n</think>\n\nSunny."), "Sunny.", "A city."),
        (assistant("Sunny.", reasoning_content="A city."), "Sunny.", "A city."),
        (assistant("Sunny.", thinking="A city.", reasoning=None), "Sunny.", "A city."),
        (assistant([{"type": "reasoning", "value": "A city."}, {"type": "text", "text": "Sunny."}]), "Sunny.",
         "A city."),
        (assistant("<think>\n\n</think>\n\nSunny."), "Sunny.", None),
        (assistant("<think></think>Sunny.", reasoning_content="A city."), "Sunny.", "A city."),
        (assistant("Tags like <think> stay."), "Tags like <think> stay.", None),
    ],
)  # fmt: skip
def test_a_chain_of_thought_is_set_off_from_the_answer(
    tmp_path: Path, turn: dict[str, Any], text: str, thought: str | None
) -> None:
    conversation = read(tmp_path, {"messages": [user(), turn]}, format="openai")
    assert conversation.messages[-1] == Message("assistant", text, thought=thought)


def test_a_chain_of_thought_in_a_column_of_an_alpaca_row(tmp_path: Path) -> None:
    row = {"instruction": "Rome?", "output": "Sunny.", "cot": "A city."}
    conversation = read(tmp_path, row, columns={"thought": "cot"})
    assert conversation.messages[-1] == Message("assistant", "Sunny.", thought="A city.")


def test_a_pair_has_tools_and_thoughts_too(tmp_path: Path) -> None:
    row = {"prompt": "Rome?", "chosen": "<think>A city.</think>Sunny.", "rejected": "No.", "tools": [WEATHER]}
    pair = read(tmp_path, row, format="preference")
    assert isinstance(pair, Pair)
    assert pair.tools == (WEATHER,)
    assert pair.chosen[-1] == Message("assistant", "Sunny.", thought="A city.")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([user(), assistant(None, tool_calls=[called("{city")])],
         "messages[1].tool_calls[0].function.arguments is not JSON"),
        ([user(), assistant(None, tool_calls=[called("[1]")])], "arguments must be an object, not list"),
        ([user(), assistant(None, tool_calls=[called('{"a": 1, "a": 2}')])], "arguments has the key 'a' twice"),
        ([user(), assistant(None, tool_calls=[{"function": {"arguments": "{}"}}])],
         "tool_calls[0].function has no 'name'"),
        ([user(), assistant(None, tool_calls={"name": "weather"})], "messages[1].tool_calls must be a list, not dict"),
        ([user(), assistant(None, tool_calls=[called()], function_call={"name": "x"})], "has both 'tool_calls' and"),
        ([user(), assistant(None, tool_calls=[])], "messages[1].content must be text, not NoneType"),
        ([user(), assistant("<think>A city.</think>")], "messages[1]: turn 2, of assistant, is empty"),
        ([user(), assistant(None)], "messages[1].content must be text, not NoneType"),
        ([user(), assistant(), result("21"), assistant()], "messages[2]: turn 3 is of tool, where user's must be"),
        ([user(), result("21"), assistant()], "messages[1]: turn 2 is of tool, where assistant's must be"),
        ([user(), assistant(None, tool_calls=[called()]), user()], "turn 3 is of user, where tool's must be"),
        ([user(), assistant(None, tool_calls=[called()]), result("21")], "ends with a tool's result and no answer"),
        ([user(), assistant(None, tool_calls=[called()]), result("21"), user()], "where tool or assistant's must be"),
        ([user(), assistant(None, tool_calls=[called(id="a")]), result("1", tool_call_id="b"), assistant()],
         "messages[2].tool_call_id is 'b'; the calls before it are 'a'"),
        ([user(), assistant(None, tool_calls=[called(id="a")]), *[result("1", tool_call_id="a")] * 2, assistant()],
         "messages[2].tool_call_id is 'a', which another answer names too"),
        ([user(), assistant(None, tool_calls=[called(id="a"), called(id="b")]), result("1", tool_call_id="a"),
          assistant()], "messages[1] makes the call 'b', which has no answer"),
        ([user(), assistant("<think>A city. Sunny.")], "messages[1] begins with <think> and has no </think>"),
        ([user(), assistant("<think>a</think>b", reasoning_content="c")], "a chain of thought of its own and one in"),
        ([user(), assistant("b", reasoning_content="c", thinking="d")],
         "messages[1].reasoning_content and messages[1].thinking"),
        ([user(), assistant("b", thinking=["c"])], "messages[1].thinking must be text, not list"),
        ([{"role": "user", "content": [{"type": "table", "table": "x"}]}, assistant()],
         "messages[0].content[0] is of type 'table'; known: text, image, video and audio"),
        ([{"role": "user", "content": [{"type": "text"}]}, assistant()], "messages[0].content[0].text must be text"),
    ],
)  # fmt: skip
def test_malformed_calls_results_and_thoughts_are_named(tmp_path: Path, turns: Any, problem: str) -> None:
    assert problem in refused(tmp_path, {"messages": turns}, format="openai")


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ("[{", "tools is not JSON"),
        ({"name": "weather"}, "'tools' must be a list of functions, not dict"),
        (["weather"], "tools[0] must be an object with 'name', not str"),
        ([{"type": "function", "function": {"description": "?"}}], "tools[0].function has no 'name'"),
        ([{"name": "weather", "parameters": []}], "tools[0].parameters must be a JSON schema, not list"),
    ],
)
def test_malformed_tools_are_named(tmp_path: Path, tools: Any, problem: str) -> None:
    assert problem in refused(tmp_path, {"instruction": "a", "output": "b", "tools": tools})


@pytest.mark.parametrize("value", ["weather(Rome)", "", '{"arguments": {}}', "[]"])
def test_a_call_of_sharegpt_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    turns = [{"from": "human", "value": "Rome?"}, {"from": "function_call", "value": value}]
    assert "conversations[1].value" in refused(tmp_path, {"conversations": turns}, format="sharegpt")


def test_a_fault_outlives_its_way_between_processes(tmp_path: Path) -> None:
    with pytest.raises(RowError) as failure:
        read(tmp_path, {"instruction": "a"})
    copied = pickle.loads(pickle.dumps(failure.value))  # noqa: S301 - our own
    assert (str(copied), copied.where, copied.reason, copied.exit_code) == (
        str(failure.value), "rows.jsonl:1", "missing field", failure.value.exit_code
    )  # fmt: skip
