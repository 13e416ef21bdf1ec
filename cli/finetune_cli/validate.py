"""``finetune validate``: the API server's verdict without an API server, with lines."""

from __future__ import annotations

from finetune_api.validation import validate_manifest
from rich.text import Text

from finetune_cli.console import err, out
from finetune_cli.documents import Document, read_documents
from finetune_cli.errors import CliError


def validate(paths: list[str], *, local: bool) -> bool:
    """Print every finding in ``paths``; whether all documents of ours are accepted.

    Args:
        paths: files, directories, or ``-``.
        local: judge for ``finetune run``, which may read ``file://``.

    Raises:
        CliError: a file cannot be read or parsed, or holds nothing of ours.
    """
    documents = read_documents(paths)
    ours = [document for document in documents if document.is_ours]
    for document in documents:
        if not document.is_ours:
            err.print(
                Text(f"{document.file}:{document.line}: {document.kind} {document.name} passed over", style="dim")
            )
    if not ours:
        raise CliError(f"{', '.join(paths)}: no FineTuneJob, ChatTemplate or TrainingProfile in it")
    wrong = [document for document in ours if report(document, local=local)]
    return not wrong


def report(document: Document, *, local: bool, quiet: bool = False) -> int:
    """Print what is wrong with ``document``, or unless ``quiet`` that nothing is; the number of findings."""
    findings = validate_manifest(document.body, local=local)
    for finding in findings:
        place = f"{document.file}:{document.line_of(finding.field)}: "
        out.print(Text.assemble((place, "bold"), (finding.field, "red"), f": {finding.message}"))
    if not findings and not quiet:
        place = f"{document.file}:{document.line}: "
        out.print(Text.assemble((place, "bold"), f"{document.kind} {document.name} ", ("is valid", "green")))
    return len(findings)
