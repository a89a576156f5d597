"""The servers' programs, as they ship inside Python packages."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from deploy.local.process import StartError


def packaged_binary(distribution: str, path: str) -> Path:
    """The installed file of a distribution whose path ends in `path`.

    Read from the distribution's own list of files, so that nothing of the package is imported.
    Raises StartError when it is not installed.
    """
    try:
        installed = files(distribution) or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if f"/{file.as_posix()}".endswith(f"/{path}"):
            return Path(str(file.locate())).resolve()
    raise StartError(f"{path} of the package {distribution} is not installed: pip install 'trivium[local]'")
