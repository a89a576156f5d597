"""Entry point: `python -m services.finetune [generate]`."""

import sys

from services.finetune.worker import main

main(*sys.argv[1:2])
