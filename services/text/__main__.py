"""Entry point: `python -m services.text`."""

from services.text.worker import main

main()
