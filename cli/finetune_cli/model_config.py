"""A model's config.json: from a path, from the manifest's file:// source, or from the hub.

The command line's own dependencies do not include huggingface_hub, and one small file does not need it: it is asked for
by the hub's download URL, with the endpoint of HF_ENDPOINT, or else the one that an installed huggingface_hub knows.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune_api.training import ModelSpec
from finetune_api.uris import parse_uri

from finetune_cli.errors import CliError
from finetune_cli.local_job import TOKEN_ENV

ENDPOINT_ENV = "HF_ENDPOINT"
_SECONDS = 20.0
_LARGEST = 4 * 2**20
"""Bytes; a config.json has some thousand."""


def read_model_config(
    model: ModelSpec, given: Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, dict[str, Any]]:
    """Where config.json was found, and what it says.

    Args:
        model: names the source.
        given: config.json or a directory that holds it, instead of the source.
        environment: this process's.

    Raises:
        CliError: it cannot be had; the message says how else to give it.
    """
    uri = parse_uri(model.source)
    if given is not None or uri.scheme == "file":
        path = given if given is not None else Path(uri.path)
        path = path / "config.json" if path.is_dir() else path
        try:
            return str(path), _parsed(path.read_bytes(), str(path))
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}") from error
    if uri.scheme != "hf":
        raise CliError(f"spec.model.source: {uri} is not readable from here; give its config.json with --model-config")
    name = "/".join(part for part in (uri.path, "config.json") if part)
    url = f"{_endpoint(environment)}/{quote(uri.name)}/resolve/{quote(model.revision, safe='')}/{quote(name)}"
    return url, _parsed(_fetch(url, environment.get(TOKEN_ENV)), url)


def _endpoint(environment: Mapping[str, str]) -> str:
    if said := environment.get(ENDPOINT_ENV):
        return said.rstrip("/")
    try:
        from huggingface_hub import constants  # noqa: PLC0415 - only where it is installed
    except ImportError as error:
        raise CliError(
            f"no hub is known: export {ENDPOINT_ENV} with its address, or install huggingface_hub, or give the model's "
            "config.json with --model-config"
        ) from error
    return str(constants.ENDPOINT).rstrip("/")


class _NoTokenElsewhere(urllib.request.HTTPRedirectHandler):
    """A redirect to another host does not get the token."""

    def redirect_request(self, req: Any, *answer: Any) -> Any:
        following = super().redirect_request(req, *answer)
        if following is not None and following.host != req.host:
            following.remove_header("Authorization")
        return following


def _fetch(url: str, token: str | None) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise CliError(f"{ENDPOINT_ENV}: {url} must start with http:// or https://")
    request = urllib.request.Request(url)  # noqa: S310 - the scheme is checked
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoTokenElsewhere).open(request, timeout=_SECONDS) as answer:
            return bytes(answer.read(_LARGEST))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise CliError(f"{url}: access denied; export {TOKEN_ENV} with a token that may read it") from error
        if error.code == 404:
            raise CliError(f"{url}: not found; check spec.model.source and revision") from error
        raise CliError(f"{url}: the hub answers {error.code}; give config.json with --model-config") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CliError(f"{url}: cannot be reached: {reason}; give config.json with --model-config") from error


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError as error:
        raise CliError(f"{where}: is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CliError(f"{where}: must be a JSON object")
    return body
