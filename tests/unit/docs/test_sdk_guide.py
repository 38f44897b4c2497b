"""Each example of the SDK's guide runs as it stands: in a process of its own, in an empty directory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "sdk.md"


def examples() -> list[object]:
    heading, found = "", []
    for part in re.split(r"^(#+ [^\n]*|```python\n.*?^```)$", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.startswith("```python"):
            found.append(
                pytest.param(part.removeprefix("```python\n").removesuffix("```"), id=f"{heading} {len(found)}")
            )
    return found


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    stated = [line.removeprefix("# prints: ") for line in code.splitlines() if line.startswith("# prints: ")]
    printed = done.stdout.splitlines()
    assert [line for line in stated if line not in printed] == [], done.stdout
