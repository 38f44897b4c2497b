"""Results for people (a table), for CI (JUnit XML), and for programs (JSON)."""

import json
import re
import textwrap
from xml.etree import ElementTree as Xml

from rm_device_plugins.conformance.model import GOOD, Result, Verdict
from rm_device_plugins.conformance.runner import Report

JSON_VERSION = 1
_MARKS = {
    Verdict.PASSED: "pass",
    Verdict.FAILED: "FAIL",
    Verdict.ERROR: "ERROR",
    Verdict.BLOCKED: "blocked",
    Verdict.NOT_APPLICABLE: "n/a",
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(result: Result, width: int = 0) -> str:
    """One row of the table; IDs are filled up to ``width``."""
    text = f"{_MARKS[result.verdict]:<8}{result.case.id:<{width}}  {result.seconds:6.1f} s"
    return f"{text}  {result.message}" if result.message else text


def table(report: Report, width: int = 100) -> str:
    """All results, then what did not pass with the rule, the reason for the rule, and the plugin's last words."""
    longest = max((len(result.case.id) for result in report.results), default=0)
    rows: list[str] = []
    group = ""
    for result in report.results:
        if result.case.group != group:
            group = result.case.group
            rows += ["", group]
        row = line(result, longest)
        rows.append(row if len(row) <= width + longest else f"{row[: width + longest - 1]}…")  # all of it is below
    for result in report.results:
        if result.verdict not in GOOD and result.verdict is not Verdict.BLOCKED:
            rows += ["", *_explained(result, width)]
    rows += ["", summary(report)]
    return "\n".join(rows).lstrip("\n") + "\n"


def _explained(result: Result, width: int) -> list[str]:
    facts = (
        ("seen", result.message),
        ("rule", result.case.rule),
        ("why", result.case.why),
        ("see", result.case.reference),
    )
    rows = [f"{_MARKS[result.verdict]} {result.case.id}"]
    for name, text in facts:
        rows += textwrap.wrap(text, width, initial_indent=f"  {name:<5}", subsequent_indent=" " * 7) or []
    if result.output:
        rows += ["  it said:", *(f"    {each}" for each in result.output.splitlines()[-12:])]
    return rows


def summary(report: Report) -> str:
    """One line."""
    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict if report.count(verdict))
    return f"{'CONFORMS' if report.passed else 'DOES NOT CONFORM'}: {counts} in {report.seconds:.0f} s"


def as_json(report: Report) -> str:
    """``{"version","conforms","seconds","counts","cases":[{"id","group","verdict","message",…}]}``."""
    document = {
        "version": JSON_VERSION,
        "conforms": report.passed,
        "seconds": round(report.seconds, 3),
        "counts": {verdict.value: report.count(verdict) for verdict in Verdict},
        "cases": [
            {
                "id": result.case.id,
                "group": result.case.group,
                "verdict": result.verdict.value,
                "message": result.message,
                "seconds": round(result.seconds, 3),
                "rule": result.case.rule,
                "why": result.case.why,
                "reference": result.case.reference,
                "output": result.output,
            }
            for result in report.results
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_junit(report: Report) -> str:
    """A ``testsuite`` of one ``testcase`` each: failures and errors as such, blocked and not applicable as skipped.

    A blocked case is skipped because the failure that blocks it is counted already.
    """
    skipped = report.count(Verdict.BLOCKED) + report.count(Verdict.NOT_APPLICABLE)
    suite = Xml.Element(
        "testsuite",
        name="device-plugin-conformance",
        tests=str(len(report.results)),
        failures=str(report.count(Verdict.FAILED)),
        errors=str(report.count(Verdict.ERROR)),
        skipped=str(skipped),
        time=f"{report.seconds:.3f}",
    )
    for result in report.results:
        element = Xml.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{result.case.group}",
            name=result.case.id,
            time=f"{result.seconds:.3f}",
        )
        message = _printable(result.message)
        if result.verdict in (Verdict.FAILED, Verdict.ERROR):
            kind = "failure" if result.verdict is Verdict.FAILED else "error"
            detail = Xml.SubElement(element, kind, message=message)
            detail.text = _printable(f"rule: {result.case.rule}\nwhy: {result.case.why}\nsee: {result.case.reference}")
        elif result.verdict in (Verdict.BLOCKED, Verdict.NOT_APPLICABLE):
            Xml.SubElement(element, "skipped", message=f"{result.verdict.value}: {message}")
        if result.output:
            Xml.SubElement(element, "system-out").text = _printable(result.output)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    return _NOT_XML.sub("�", text)
