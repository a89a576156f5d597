"""Entry point: `python -m services.audio`."""

from services.audio.worker import main

main()
