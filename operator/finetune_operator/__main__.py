"""``python -m finetune_operator``."""

from finetune_operator.main import main

main()
