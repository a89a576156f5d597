"""Takes out of an image's virtual environment what only developers and compilers need: about a third of torch.

Run with the environment's own Python, while the image is built.
"""

import shutil
import sysconfig
from pathlib import Path

#: Below site-packages. What is not there is passed over: each image has other packages.
_FOLDERS = ("*/tests", "*/*/tests", "torch/include", "torch/test", "gensim/test", "pyarrow/include")
_FILES = ("**/*.a", "**/*.pxd", "**/*.pyx", "torch/bin/test_*", "torch/bin/protoc*", "pyarrow/*flight*.so*")


def main() -> None:
    """Deletes, and says how much."""
    packages = Path(sysconfig.get_path("purelib"))
    before = size_of(packages)
    for pattern in _FOLDERS:
        for folder in packages.glob(pattern):
            shutil.rmtree(folder)
    for pattern in _FILES:
        for file in packages.glob(pattern):
            file.unlink()
    print(f"{before / 1e6:.0f} MB became {size_of(packages) / 1e6:.0f} MB")


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
