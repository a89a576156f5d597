"""Which release this is."""

from importlib.metadata import PackageNotFoundError, version


def trivium_version() -> str:
    """The version of the installed distribution; `0+source` when run from a checkout that is not installed."""
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "0+source"
