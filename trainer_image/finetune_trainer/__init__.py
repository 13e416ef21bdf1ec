"""The trainer: ``finetune-train prepare`` and ``finetune-train train``. It knows nothing of Kubernetes."""
