"""`python -m services.client`: the same as the command `trivium`."""

from services.client.cli import main

if __name__ == "__main__":
    main()
