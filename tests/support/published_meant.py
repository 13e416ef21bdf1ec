"""Where a family is meant to differ from what is published, and why."""

from __future__ import annotations

_UNENDED = dict.fromkeys(
    ("text of *", "prompt of *turns", "prompt of space around"),
    "The published format leaves the end of an answer to the model; it cannot be learnt but from data with it.",
)
_NEXT = {
    "text of *": "The word that opens the next turn ends an answer; the last one has it too, or it would not be learnt."
}
_LAST_SYSTEM = (
    "The published template writes the system message before the last user's text, but only in a prompt; the text that "
    "is trained has it where its prompt had it."
)
_MISTRAL_V3 = {
    "text of *system*": _LAST_SYSTEM,
    "text of space around": _LAST_SYSTEM,
    "text of call with text": _LAST_SYSTEM,
    "* of quotes in tools": "The published template puts a description's quotes into JSON as they are, which breaks "
    "it; mistral-common writes JSON.",
}
_NO_MISTRAL = dict.fromkeys(
    (
        *("* of one turn", "* of turns", "* of lines"),
        *(
            "* of tools unused",
            "* of quotes in tools",
            "* of call",
            "* of call last",
            "* of calls *",
            "* of rich tools",
        ),
    ),
    "The published default names Mistral Small 3 and a day; a tuned model has the job's system message or none.",
)
_R1 = (
    "The published template is for prompts: it leaves out the thought of the last answer too. Ours has it, and closes "
    "the thought that the prompt has opened where there is none."
)
_NO_LAST = "The published template is for prompts: it leaves out the thought of the turn that is being answered."
_ONE_CALL = {
    "* of calls at once": "The published template drops all calls but the first; ours refuses the answer.",
    "text of thought and call": "The published template drops a thought that led to a call where the last answer "
    "stands, whose prompt had it.",
}
_NO_CALLS = dict.fromkeys(
    ("* of call", "text of call last", "* of call with text", "* of calls *", "* of rich tools"),
    "The published template writes no calls but those in the text; ours writes them as the model card says.",
)
_BEGINS_NEXT = "fschat's text begins the next turn, which does not follow."
_STRIPS = "fschat leaves the white space around messages, which Meta's chat_completion strips."
_CLOSED = "Ours closes the thought that the prompt has opened where an answer has none."
_R1_CALLS = "The published template forgets to end the turn of a single call, and writes a header before a second one."
_NO_SYSTEM = "The published template refuses or loses a system message; ours puts it before the first user's text."
_SYSTEM = dict.fromkeys(("* of system", "* of system and turns", "* of space around"), _NO_SYSTEM)

MEANT: dict[tuple[str, str], dict[str, str]] = {
    ("deepseek3", "deepseek_v3"): {
        "* of calls in turn": "The published template writes a header before a call that follows results, but its "
        "prompt has none there: ours is as prompted."
    },
    ("deepseekr1", "deepseek_r1_distill"): {
        "text of *": _R1,
        "prompt of call": _R1_CALLS,
        "prompt of call with text": _R1_CALLS,
        "prompt of calls *": _R1_CALLS,
        "prompt of rich tools": _R1_CALLS,
        "prompt of thought and call": _R1_CALLS,
    },
    ("deepseekr1", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"): {
        "text of *": _R1,
        "prompt of call": _R1_CALLS,
        "prompt of call with text": _R1_CALLS,
        "prompt of calls *": _R1_CALLS,
        "prompt of rich tools": _R1_CALLS,
        "prompt of thought and call": _R1_CALLS,
    },
    ("deepseekr1", "deepseekv3"): {
        "text of [!cr]*": _R1,
        "text of call last": _R1,
        "text of call with text": _R1,
        "text of calls in turn": _R1,
        "prompt of calls in turn": _R1_CALLS,
        "prompt of thought and call": "The published template drops the thought before a call.",
    },
    ("deepseek3_1", "deepseek-ai-DeepSeek-V3.1"): {
        "text of thought": _NO_LAST,
        "text of thoughts": _NO_LAST,
        "text of thought and call": _NO_LAST,
        "prompt of thought and call": _NO_LAST,
        "thinking prompt of thought and call": _NO_LAST,
    },
    ("mistral", "mistral_v2v3"): _MISTRAL_V3,
    (
        "mistral",
        "Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)",
    ): _MISTRAL_V3,
    ("mistral_tekken", "mistralai-Mistral-Nemo-Instruct-2407"): _MISTRAL_V3,
    ("mistral_tekken", "mistral_v3_tekken"): _MISTRAL_V3,
    ("mistral_small", "Mistral-Small-3.2-24B-Instruct-2506"): _NO_MISTRAL,
    ("mistral_small", "mistral_v7_tekken"): {
        pattern: reason for pattern, reason in _NO_MISTRAL.items() if pattern[5:] in ("one turn", "turns", "lines")
    },
    ("pixtral", "pixtral"): {"text of *system*": _LAST_SYSTEM, "text of space around": _LAST_SYSTEM},
    ("gemma", "gemma"): _SYSTEM,
    ("gemma2", "google-gemma-2-2b-it"): _SYSTEM,
    ("gemma4", "gemma4_v5"): {
        "* of call with text": "The published template writes the text beside a call behind the call's result; ours "
        "writes it before the call, as it was said.",
        "thinking prompt of calls in turn": "The prompt behind a result opens the thought; ours closes it where an "
        "answer in the history had none.",
    },
    ("glm4_7", "GLM-4.7-Flash"): {
        **_NEXT,
        **dict.fromkeys(
            (
                *("prompt of call", "prompt of calls *", "prompt of rich tools"),
                *("thinking prompt of call", "thinking prompt of calls *", "thinking prompt of rich tools"),
            ),
            _CLOSED,
        ),
    },
    ("minimax2", "MiniMax-M2"): dict.fromkeys(
        ("text of [!t]*", "text of turns", "text of tools *", "text of thought in history"), _CLOSED
    ),
    ("orion", "OrionStarAI/Orion-14B-Chat"): _SYSTEM,
    ("chatglm2", "template_chatglm2"): {
        **_UNENDED,
        "prompt of system": "The published template loses a system message; ours puts it before the first round.",
    },
    ("chatglm3", "ChatGLM3"): _NEXT,
    ("glm4", "ChatGLM4"): {
        **_NEXT,
        "prompt of *": "This copy's prompt goes on behind the header with a line's end; the model's own code does not, "
        "as a call's name follows there.",
    },
    ("glm_edge", "GLMEdge"): {
        "text of *": "The published template ends every text with the header of an answer, asked for or not; ours ends "
        "the last answer as the others are ended."
    },
    ("glm4_moe", "glm4moe"): _NEXT,
    ("glm4_moe", "GLM-4.6"): _NEXT,
    ("baichuan", "baichuan-chat"): _UNENDED,
    ("baichuan2", "template_baichuan"): _UNENDED,
    ("baichuan2", "baichuan2-chat"): _UNENDED,
    ("falcon", "falcon-chat"): _UNENDED,
    ("falcon", "template_falcon_180b"): _UNENDED,
    ("ling", "inclusionAI/Ling-lite"): _UNENDED,
    ("llava", "llava"): {
        **dict.fromkeys(_UNENDED, "The published template puts a space where LLaVA's training put the end."),
    },
    ("metharme", "metharme"): dict.fromkeys(
        ("* of *turns", "* of space around"), "The published template ends the last answer alone; ours ends each."
    ),
    ("minicpm", "MiniCPM-3B-OpenHermes-2.5-v2-GGUF"): _UNENDED,
    ("teleflm", "template_teleflm"): _UNENDED,
    ("yi", "Yi-34b-chat"): dict.fromkeys(
        ("* of system", "* of system and turns", "* of space around"),
        "fschat has no slot for Yi's system message; it is ChatML's.",
    ),
    ("yuan", "yuan2"): {
        "prompt of space around": "As of several turns.",
        "text of *": "fschat's text is a prompt; it ends no answer.",
        "prompt of *turns": "fschat joins the turns of a history with <n> and has no end of an answer in it; ours ends "
        "it as it was trained.",
    },
    ("zephyr", "zephyr"): dict.fromkeys(
        ("* of one turn", "* of turns", "* of lines"),
        "fschat writes an empty system message; the model's own template writes none.",
    ),
    ("gpt_oss", "openai-gpt-oss-120b"): _ONE_CALL,
    ("gpt_oss", "gptoss"): _ONE_CALL,
    ("granite3_3", "ibm-granite-granite-3.3-2B-Instruct"): _NO_CALLS,
    ("lfm2", "LFM2-8B-A1B"): _NO_CALLS,
    ("lfm2", "lfm2"): _NO_CALLS,
    ("exaone4", "exaone4"): dict.fromkeys(
        ("text of thought and call", "prompt of thought and call", "thinking prompt of thought and call"),
        "The published template drops the thought before a call.",
    ),
    ("qwq", "Qwen-QwQ-32B"): {
        **dict.fromkeys(
            ("text of [!t]*", "text of turns", "text of tools *", "text of thought in history"),
            _CLOSED,
        ),
        "* of thought and call": "The published template drops the thought before a call that is answered.",
    },
    ("kimi_k2", "Kimi-K2-Instruct"): {
        **dict.fromkeys(
            (
                *("* of one turn", "* of turns", "* of lines", "* of tools unused", "* of quotes in tools"),
                "prompt of call last",
            ),
            "The published template has a line's end behind its default system message alone; "
            "Kimi-K2-Thinking's has none.",
        ),
        **dict.fromkeys(
            ("* of call", "text of call last", "* of call with text", "* of rich tools", "* of calls *"),
            "The published template appends to a list, which the sandbox of transformers refuses.",
        ),
    },
    ("llama2", "llama-2"): {
        "text of *": _BEGINS_NEXT,
        "prompt of space around": _STRIPS,
    },
    ("llama2_zh", "chinese-alpaca2"): {
        "text of *": _BEGINS_NEXT,
        "prompt of space around": _STRIPS,
        **dict.fromkeys(
            ("prompt of one turn", "prompt of turns", "prompt of lines"),
            "fschat appends a wish of its own to the default system message of Chinese-Alpaca-2.",
        ),
    },
    ("command_r", "CohereForAI-c4ai-command-r-plus-tool_use"): {
        "text of *": "The published template is for prompts: it puts what is to be written behind everything; ours "
        "stands before the last answer, as that was asked for.",
        "prompt of rich tools": "The published template knows no type of a list's items.",
    },
    ("alpaca", "alpaca"): {
        "text of *": "Ours has the blank line between turns behind the last answer too; it is not trained.",
        **dict.fromkeys(
            ("prompt of one turn", "prompt of turns", "prompt of lines"),
            "Stanford's own training has this default system message.",
        ),
    },
}
"""By family and name of the source: the reason by a pattern for the names of the cases, all of which must differ."""
