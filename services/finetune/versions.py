"""The versions that a result depends on."""

import platform
from importlib.metadata import version

from shared.version import trivium_version

_PACKAGES = ("torch", "numpy", "scikit-learn", "optuna")


def versions() -> dict[str, str]:
    """Of Trivium, Python and the libraries that compute."""
    return {
        "trivium": trivium_version(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
