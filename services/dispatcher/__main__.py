"""Entry point: `python -m services.dispatcher`."""

from services.dispatcher.worker import main

main()
