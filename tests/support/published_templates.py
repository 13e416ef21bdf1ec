"""The formats as the models' makers publish them, out of packages that carry them.

No hub is reached: the published Jinja lies in PyPI packages. trl (installed) has the originals that it compares with,
and transformers one that a processor falls back to;
the source of llama-cpp-python has llama.cpp's ``models/templates`` and the templates that its test holds as C strings;
axolotl and vLLM carry further ones. fschat has the formats of models that are older than templates, as Python. Each
archive is pinned by hash and read once; the few texts wanted of it are kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from package_archives import cache_directory, download
from published_sources import SOURCES, Source
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor
from transformers.utils.chat_template_utils import render_jinja_template


@dataclass(frozen=True)
class Package:
    """A pinned archive, and which files of it are wanted."""

    requirement: str
    archive: str
    """``sdist`` or ``wheels``, as a lock file names them."""
    sha256: str
    wanted: str


PACKAGES = {
    "llama.cpp": Package(
        "llama-cpp-python==0.3.20",
        "sdist",
        "70f01b7d915d31c617dc66610a332cb2d51cde84c8b152d09a352206323616f5",
        r"/vendor/llama\.cpp/(models/templates/.*\.jinja|tests/test-chat-template\.cpp)$",
    ),
    "vllm": Package(
        "vllm==0.10.2",
        "sdist",
        "57608f44cf61f5d80fb182c98e06e524cb2925bb528258a7b247c8e43a52d13e",
        r"template_[^/]*\.jinja$",
    ),
    "axolotl": Package(
        "axolotl==0.19.0",
        "wheels",
        "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
        r"chat_templates/templates/[^/]*\.jinja$",
    ),
    "fschat": Package(
        "fschat==0.2.36",
        "wheels",
        "a66ecf1e90f6db1d015096f6aa8a305d20d0a13e067951285aecdb56a33e9cb1",
        r"fastchat/conversation\.py$",
    ),
}


@dataclass(frozen=True)
class Published:
    """A published format. ``jinja`` is None for one of fschat's."""

    name: str
    jinja: str | None
    bos: str
    eos: str

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text that a server with this format sees of ``messages``, in transformers' own form of them."""
        if self.jinja is None:
            return _converse(self.name, messages, add_generation_prompt=add_generation_prompt)
        texts, _ = render_jinja_template(
            [deepcopy(list(messages))],
            tools=deepcopy(list(tools)) or None,
            chat_template=self.jinja,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": self.bos, "eos_token": self.eos, **variables},
        )
        return cast("str", texts[0])


def published(family: str) -> list[Published]:
    """The published formats that the family ``family`` is written from; empty where there is none to be had."""
    return [_find(source) for source in SOURCES.get(family, ())]


def _find(source: Source) -> Published:
    jinja = None if source.package == "fschat" else _texts(source.package)[source.name]
    return Published(source.name, jinja, source.bos, source.eos)


@cache
def _texts(package: str) -> dict[str, str]:
    """Each template of ``package`` by the name of its file, without the ending, or of its test."""
    if package == "trl":
        folder = importlib.resources.files("trl") / "chat_templates"
        return {
            file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8")
            for file in folder.iterdir()
            if file.name.endswith(".jinja")
        }
    if package == "transformers":
        return {"qwen2_audio": Qwen2AudioProcessor.default_chat_template.fget(None)}
    texts: dict[str, str] = {}
    for path, text in _files(package).items():
        if path.endswith(".cpp"):
            texts |= _c_strings(text)
        else:
            texts[Path(path).stem] = text
    return texts


@cache
def _files(package: str) -> dict[str, str]:
    """The wanted files of a downloaded package by path."""
    pinned = PACKAGES[package]
    key = hashlib.sha256(f"{pinned.sha256} {pinned.wanted}".encode()).hexdigest()[:16]
    kept = cache_directory("published-templates") / f"{pinned.requirement}-{key}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".download-") as directory:
            archive = download(pinned.requirement, pinned.archive, pinned.sha256, Path(directory))
            texts = dict(_unpack(archive, re.compile(pinned.wanted)))
            part = Path(directory) / "texts.json"
            part.write_text(json.dumps(texts), encoding="utf-8")
            part.replace(kept)
    return cast("dict[str, str]", json.loads(kept.read_text(encoding="utf-8")))


def _unpack(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as files:
            for name in files.namelist():
                if wanted.search(name):
                    yield name, files.read(name).decode()
        return
    with tarfile.open(archive) as members:
        for member in members:
            if wanted.search(member.name) and (stream := members.extractfile(member)):
                yield member.name, stream.read().decode()


_TEST = re.compile(
    r'/\* \.name= \*/ "(?P<name>(?:[^"\\]|\\.)*)"'
    r".*?/\* \.template_str=? \*/ (?:U8C\()?(?P<strings>(?:\"(?:[^\"\\]|\\.)*\"\s*)+)",
    re.DOTALL,
)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def _c_strings(code: str) -> dict[str, str]:
    """llama.cpp's test cases: the template of each by its name."""
    return {
        test["name"]: "".join(
            json.loads('"' + string.replace("\\'", "'") + '"') for string in _STRING.findall(test["strings"])
        )
        for test in _TEST.finditer(code)
    }


@cache
def _fastchat() -> types.ModuleType:
    (code,) = _files("fschat").values()
    module = types.ModuleType("fastchat_conversation")
    sys.modules[module.__name__] = module  # its dataclasses look for their module
    exec(compile(code, module.__name__, "exec"), module.__dict__)  # noqa: S102 - pinned by hash
    return module


def _converse(name: str, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    conversation = _fastchat().get_conv_template(name)
    for message in messages:
        if message["role"] == "system":
            conversation.set_system_message(message["content"])
        else:
            conversation.append_message(conversation.roles[message["role"] == "assistant"], message["content"])
    if add_generation_prompt:
        conversation.append_message(conversation.roles[1], None)
    return cast("str", conversation.get_prompt())
