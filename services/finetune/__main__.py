"""Entry point: `python -m services.finetune`."""

from services.finetune.worker import main

main()
