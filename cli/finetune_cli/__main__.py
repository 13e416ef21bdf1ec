"""``python -m finetune_cli``."""

from finetune_cli.main import app

app(prog_name="finetune")
