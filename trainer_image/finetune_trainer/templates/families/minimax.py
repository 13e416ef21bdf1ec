"""MiniMax's models."""

from __future__ import annotations

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import NAME, RESULT, SAID, ToolFormat, each, each_call, fixed, person

_END = "[e~["
_TOOLS = ToolFormat(
    name="minimax2",
    tools=fixed(
        "# Tools\nYou may call one or more tools to assist with the user query.\n"
        "Here are the tools available in JSONSchema format:\n\n<tools>\n"
    )
    + each(
        "tools",
        "tool",
        fixed("<tool>") + person("tool.function | tojson(ensure_ascii=False)") + fixed("</tool>\n"),
    )
    + fixed(
        "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass "
        "parameters:\n\n<minimax:tool_call>\n"
        '<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
        '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>'
    ),
    calls=SAID
    + fixed("\n<minimax:tool_call>\n")
    + each_call(
        fixed('<invoke name="')
        + NAME
        + fixed('">\n')
        + each(
            "call.function.arguments.items()",
            "(key, value)",
            fixed('<parameter name="')
            + person("key")
            + fixed('">')
            + person("value if value is string else value | tojson(ensure_ascii=False)")
            + fixed("</parameter>\n"),
        )
        + fixed("</invoke>\n")
    )
    + fixed("</minimax:tool_call>"),
    result=RESULT,
)

FAMILIES = (
    # MiniMax-M2, which always thinks.
    SlotTemplate(
        name="minimax2",
        prefix="]~!b[",
        system="]~b]system\n{{content}}[e~[\n",
        default_system="You are a helpful assistant.",
        user="]~b]user\n{{content}}[e~[\n",
        assistant_header="]~b]ai\n",
        assistant="{{content}}[e~[\n",
        observation="]~b]tool{{content}}[e~[\n",
        result="\n<response>{{content}}</response>",
        tool_format=_TOOLS,
        thought_words=("<think>\n", "\n</think>\n\n"),
        thought_in_prompt=True,
        stop_words=(_END,),
        replace_eos=True,
    ),
)
