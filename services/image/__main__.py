"""Entry point: `python -m services.image`."""

from services.image.worker import main

main()
