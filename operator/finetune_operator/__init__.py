"""The operator: turns FineTuneJobs into Kubernetes Jobs and tells what becomes of them.

Layers: :mod:`finetune_operator.core` decides and does no I/O; :mod:`finetune_operator.cluster` talks to the API
server; the modules beside this one join the two.
"""
