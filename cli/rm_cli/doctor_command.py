"""``doctor``: what this machine lacks to run a local Kubernetes; in a container of ours, what is wrong with it."""

import json
from dataclasses import asdict

import click

_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array of what was found.")
def doctor(as_json: bool) -> None:
    """Say in plain words what this machine lacks; in one of the project's images, whether that is whole.

    Ends with 1 when something stands in the way.
    """
    from rm_abstract.packaged import examination

    if examination.inside():
        findings = [asdict(finding) for finding in examination.examine()]
    else:
        import rm_local_cluster

        findings = [asdict(finding) for finding in rm_local_cluster.doctor()]
    problems = sum(finding["severity"] == "problem" for finding in findings)
    if as_json:
        click.echo(json.dumps(findings, indent=1))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding['severity']]} {finding['check']}: {finding['message']}")
            if finding["severity"] == "problem" and finding["fix"]:
                click.echo(f"        → {finding['fix']}")
    if problems:
        raise click.ClickException(f"{problems} of these stand in the way")
