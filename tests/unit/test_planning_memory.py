"""A manifest of a million lines never sits in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_million_lines_are_planned_in_bounded_memory(root: Path) -> None:
    script = root / "tests" / "benchmarks" / "planning.py"
    done = subprocess.run(
        [sys.executable, str(script), "1000000"], cwd=root, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    figures = json.loads(done.stdout)
    assert figures["items"] == 1_000_000
    assert figures["failures"] == 10_000
    assert figures["slices"] == 3907
    assert figures["growth_mb"] < 150, figures
