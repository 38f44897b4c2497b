"""The documents that the SDK keeps to: each of their headings leads to tests that exist, or to a reason."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "source-coverage").glob("*.md"))
DOCUMENTS = {"000", "001", "002", "003", "004"}
ROW = re.compile(r"^\| (?P<heading>[^|]+) \| (?P<covered>[^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`")


def rows() -> list[object]:
    return [
        pytest.param(match["covered"], id=f"{page.stem} {match['heading']}")
        for page in PAGES
        for match in ROW.finditer(page.read_text())
        if not match["heading"].startswith(("-", "heading", "Heading"))
    ]


def functions(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def test_every_document_has_its_page() -> None:
    assert {page.stem for page in PAGES} == DOCUMENTS
    index = (ROOT / "docs" / "source-coverage.md").read_text()
    assert all(f"source-coverage/{name}.md" in index for name in DOCUMENTS)


@pytest.mark.parametrize("covered", rows())
def test_a_heading_leads_to_tests_or_to_a_reason(covered: str) -> None:
    named = TEST.findall(covered)
    for path, function in named:
        file = ROOT / path
        assert file.is_file(), f"there is no {path}"
        assert not function or function in functions(file), f"{path} has no {function}"
    assert named or covered.startswith("omitted: "), "neither a test nor a reason"
