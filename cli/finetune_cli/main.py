"""The command line: ``finetune``, and under the name ``kubectl-finetune`` a plug-in of kubectl.

A command does its work in a module of its own; here are only names, options and help. Modules are imported by the
command that needs them, so that ``finetune --help`` is quick.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from finetune_cli.console import fail, out
from finetune_cli.errors import CliError

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace; the context's own unless given.")
]
Context = Annotated[str | None, typer.Option(metavar="NAME", help="Context of the kubeconfig; the current one.")]
Files = Annotated[
    list[str], typer.Option("--filename", "-f", metavar="FILE", help="Manifest, directory of them, or -; repeatable.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the FineTuneJob.")]


def _show_help(show: Callable[[Any, Any], None], command: Any, ctx: Any, formatter: Any) -> None:
    """Help with the epilog as it is written, a line a line; rich would wrap and space it."""
    epilog, command.epilog = command.epilog, None
    try:
        show(ctx, formatter)
    finally:
        command.epilog = epilog
    out.print(epilog or "", markup=False, end="")


class _Command(TyperCommand):
    """One command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_help(super().format_help, self, ctx, formatter)


class _Commands(TyperGroup):
    """All of them. Turns the one error of ours into a sentence and an exit code, wherever it is raised."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_help(super().format_help, self, ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            fail(str(error))
            raise typer.Exit(error.exit_code) from error


def _examples(*lines: str) -> str:
    return "\n".join((" Examples:", *(f"   {line}" for line in lines)))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models from FineTuneJob manifests, on a Kubernetes cluster or on this machine.",
    epilog=_examples(
        "finetune validate -f job.yaml        what the API server would say of it, with lines",
        "finetune inspect -f job.yaml         its data as they will be trained on",
        "finetune run -f job.yaml             train here, without a cluster",
        "kubectl apply -f job.yaml            train on the cluster, then:",
        "finetune watch my-job                follow it to its end",
        "finetune fetch my-job -o result      bring the result here",
    ),
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"finetune {importlib.metadata.version('finetune-operator')}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Options of ``finetune`` itself."""


@app.command(
    cls=_Command,
    epilog=_examples("finetune validate -f job.yaml", "kustomize build . | finetune validate -f -"),
)
def validate(
    files: Files,
    *,
    local: Annotated[bool, typer.Option("--local", help="Judge for finetune run, which may read file://.")] = False,
) -> None:
    """Say what the API server would refuse, by file, line and field, without a server. Exit code 1 if anything."""
    from finetune_cli.validate import validate as command  # noqa: PLC0415

    if not command(files, local=local):
        raise typer.Exit(1)


@app.command(
    cls=_Command,
    epilog=_examples(
        "finetune estimate -f job.yaml",
        "finetune estimate -f job.yaml --gpu-memory 24Gi --gpu-memory 80Gi",
        "finetune estimate -f job.yaml --model-config ./Qwen3-8B/config.json --json",
    ),
)
def estimate(
    files: Files,
    *,
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which FineTuneJob, where files hold several.")
    ] = None,
    gpu_memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE", help="Memory of one GPU, such as 80Gi; repeatable. [dim]\\[default: 24Gi, 48Gi, 80Gi][/dim]"
        ),
    ] = None,
    model_config: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The model's config.json, or its directory, instead of model.source."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: sizes in bytes.")] = False,
) -> None:
    """Say how much memory a job takes, by part, and on how few GPUs of a size it fits.

    Needs the model's config.json alone: from --model-config, from a file:// source, or from the hub, where the token
    is that of HF_TOKEN.
    """
    from finetune_cli.estimate import estimate as command  # noqa: PLC0415

    command(files, job=job, gpu_memory=gpu_memory or [], model_config=model_config, as_json=as_json)


@app.command(
    cls=_Command,
    epilog=_examples(
        "finetune inspect -f job.yaml",
        "finetune inspect -f job.yaml --samples 10 --png lengths.png",
        "finetune inspect -f job.yaml --json | jq .dataset",
    ),
)
def inspect(
    files: Files,
    *,
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which FineTuneJob, where files hold several.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many samples to show, spread over the data.")
    ] = 3,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the histogram of lengths into a PNG, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="As of finetune run.")] = None,
) -> None:
    """Show a job's data as it will be trained on: figures, lengths, rows left out and why, and samples in colour.

    Reads and tokenizes all rows as the prepare step does. Of the model the tokenizer alone is fetched.
    """
    from finetune_cli.inspect import inspect as command  # noqa: PLC0415

    command(files, job=job, samples=samples, png=png, as_json=as_json, cache=cache)


@app.command(
    cls=_Command,
    epilog=_examples(
        "finetune run -f examples/quickstart.yaml",
        "finetune run -f job.yaml --output /data/run-7 --cache /data/cache",
    ),
)
def run(
    files: Files,
    *,
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which FineTuneJob, where files hold several.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Checkpoints and result. [dim]\\[default: runs/<name>][/dim]"
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Models (DIR/hub, a Hugging Face cache) and prepared data. [dim]\\[default: FINETUNE_CACHE/model, or "
            "~/.cache/finetune-operator/model, which hack/seed_model.py fills][/dim]",
        ),
    ] = None,
) -> None:
    """Train here what a cluster would train: the same manifest, trainer and result.

    Ctrl-C saves a checkpoint; the same command again goes on from the newest one. configmap:// sources are taken
    from the ConfigMaps in the same files; a secretRef from the variable HF_TOKEN.
    """
    from finetune_cli.run import run as command  # noqa: PLC0415

    raise typer.Exit(command(files, job=job, output=output, cache=cache))


@app.command(cls=_Command, epilog=_examples("finetune watch my-job", "finetune watch my-job -n research"))
def watch(name: Name, *, namespace: Namespace = None, context: Context = None) -> None:
    """Follow a job until it has ended: progress, checkpoints, conditions. Exit code 1 if it failed."""
    from finetune_cli.kubectl import Kubectl  # noqa: PLC0415
    from finetune_cli.watch import watch as command  # noqa: PLC0415

    if not command(Kubectl.find(namespace, context), name):
        raise typer.Exit(1)


@app.command(cls=_Command, epilog=_examples("finetune logs my-job --follow", "finetune logs my-job --step prepare"))
def logs(
    name: Name,
    *,
    step: Annotated[
        Literal["prepare", "train"] | None, typer.Option(help="Which step; the later one that has a pod.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which training attempt; the last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the container ends.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print the log of a job's newest pod, or of the one that is asked for."""
    from finetune_cli.kubectl import Kubectl  # noqa: PLC0415
    from finetune_cli.logs import logs as command  # noqa: PLC0415

    raise typer.Exit(command(Kubectl.find(namespace, context), name, step=step, attempt=attempt, follow=follow))


@app.command(cls=_Command, epilog=_examples("finetune get", "finetune get -A", "finetune get my-job"))
def get(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One job, in full; all, as a table.")] = None,
    *,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """List jobs, or tell all that is known of one."""
    from finetune_cli import get as command  # noqa: PLC0415
    from finetune_cli.kubectl import Kubectl  # noqa: PLC0415

    kubectl = Kubectl.find(namespace, context)
    if name is None:
        command.show_table(kubectl, all_namespaces=all_namespaces)
    elif all_namespaces:
        raise CliError("give a NAME or --all-namespaces, not both", exit_code=2)
    else:
        command.show_one(kubectl, name)


@app.command(
    cls=_Command,
    epilog=_examples("finetune fetch my-job -o result", "finetune fetch my-job -o result --checkpoints"),
)
def fetch(
    name: Name,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New or empty directory to fill.")],
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Bring checkpoints too.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Bring a job's result from its claim to this machine, through a pod that lives as long as that takes."""
    from finetune_cli.fetch import fetch as command  # noqa: PLC0415
    from finetune_cli.kubectl import Kubectl  # noqa: PLC0415

    _, directory = command(Kubectl.find(namespace, context), name, output, checkpoints=checkpoints)
    out.print(str(directory), markup=False)


@app.command(cls=_Command, epilog=_examples("finetune curve runs/quickstart", "finetune curve result/progress.jsonl"))
def curve(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Output of a run or fetch, or its progress.jsonl.")],
) -> None:
    """Draw the loss curve of a result."""
    from finetune_cli.curve import read_curve  # noqa: PLC0415

    out.print(read_curve(path).draw(out.width))


@app.command(cls=_Command, epilog=_examples("finetune templates", "finetune templates --json"))
def templates(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in chat templates: names for spec.template.name."""
    from finetune_cli.templates import templates as command  # noqa: PLC0415

    command(as_json=as_json)


@app.command(
    cls=_Command,
    epilog=_examples(
        "finetune render --template qwen --messages chat.json",
        "finetune render --template qwen --messages chat.json --tools tools.json --json",
        "finetune render --template auto --messages chat.json --tokenizer ./Qwen3-8B",
        "finetune render --template my-template.yaml --messages chat.json",
    ),
)
def render(
    *,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="NAME",
            help="Built-in, auto (with --tokenizer), or a ChatTemplate's file.",
        ),
    ],
    messages: Annotated[
        str,
        typer.Option(
            "--messages", metavar="FILE", help="JSON as the OpenAI API takes it: messages, or messages and tools; or -."
        ),
    ],
    tools: Annotated[str | None, typer.Option(metavar="FILE", help="JSON list of functions.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Model's directory: show its tokens and their ids too.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="As template.system.")] = None,
    thinking: Annotated[
        Literal["auto", "enabled", "disabled", "preserved"], typer.Option(help="As template.thinking.")
    ] = "auto",
    generation_prompt: Annotated[
        bool, typer.Option("--generation-prompt", help="The text that the model is asked with.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: text, segments, tokens.")] = False,
) -> None:
    """Print a conversation exactly as it is trained and served, what is trained in colour."""
    from finetune_cli.render import render as command  # noqa: PLC0415

    command(
        messages,
        template=template,
        tools=tools,
        tokenizer=tokenizer,
        system=system,
        thinking=thinking,
        generation_prompt=generation_prompt,
        as_json=as_json,
    )
