"""Where a model's files are on this machine: in a package, in a folder, or fetched from the Hugging Face hub."""

import importlib.util
from pathlib import Path

#: What is needed of a model on the hub: configuration, tokenizer, safetensors; no code, no pickles.
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]


class SourceMissingError(Exception):
    """The files cannot be had; the message says why, and what would help."""


def in_package(source: str) -> Path:
    """`package:NAME/PATH`, found without importing the package. Raises SourceMissingError."""
    package, _, inside = source.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, inside)
        if path.exists():
            return path
    what = f"{package} with {inside}" if inside else package
    raise SourceMissingError(f"the package {what} is not installed. Install it on this worker")


def is_local(source: str) -> bool:
    """Local paths start with `/`, `~` or `.`."""
    return source.startswith(("/", "~", "."))


def in_folder(source: str) -> Path:
    """A local path. Raises SourceMissingError."""
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceMissingError(f"{source} does not exist on this worker. Check the path in the file that names it")
    return path


def from_hub(source: str, revision: str | None) -> Path:
    """A folder with the files of a hub model; with HF_HUB_OFFLINE set, from the cache. Raises SourceMissingError."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise SourceMissingError(
            f"{source} is neither cached nor can it be fetched from the Hugging Face hub ({error}). Allow this worker "
            "to reach the hub, fill its cache (HF_HOME) beforehand, or give a local path in the file that names it"
        ) from error
