"""Entry point: `python -m services.fusion`."""

from services.fusion.worker import main

main()
