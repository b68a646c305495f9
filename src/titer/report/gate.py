"""A gate's decision on the screen, in Markdown, and as JUnit XML for a CI's test report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rich import box
from rich.table import Table

from titer import paths
from titer.findings.gate_record import Finding, GateRecord
from titer.printable import printable

HEADER = (
    "measure",
    "bad, base",
    "bad, candidate",
    "worse by",
    "margin",
    "prompts",
    "power",
    "verdict",
)
TITLE = {"pass": "PASS", "fail": "FAIL", "undecided": "UNDECIDED"}


def write(record: GateRecord, folder: Path) -> None:
    """Write a gate into its folder: the record, the page, and what a CI reads."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        paths.GATE: json.dumps(record.fields, indent=1) + "\n",
        paths.GATE_PAGE: to_markdown(record),
        paths.JUNIT: to_junit(record),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def to_screen(record: GateRecord) -> Table:
    """Make the table of a gate, its slices below the measures."""
    table = Table(box=box.SIMPLE_HEAD, caption=explain(record), caption_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i in (0, 7) else "right")
    for i, found in enumerate((*record.findings, *record.slices)):
        if i == len(record.findings):
            table.add_section()
        table.add_row(*_cells(found))
    return table


def explain(record: GateRecord) -> str:
    """Say how the table is read, and which error rates hold."""
    told = (
        f"Worse by: points, with a lower limit at the level {record.fail_alpha:.3g} and an upper one "
        f"at {record.alpha:g}. A measure passes where the upper limit is below the margin. At most "
        f"{100 * record.alpha:g} % of candidates beyond a margin pass, and at most as many within all "
        "margins fail. Power: percent of candidates as good as the base that so many prompts let pass "
        "the measure."
    )
    controls = [
        f"{each.name} {'caught' if each.caught else 'NOT CAUGHT'}" for each in record.controls
    ]
    how = dict.fromkeys(each.how for each in record.controls)
    return told + (f" Controls ({', '.join(how)}): {', '.join(controls)}." if controls else "")


def sentences(record: GateRecord) -> list[str]:
    """Return the verdict and its reasons."""
    return [f"{TITLE[record.verdict]}: {record.reasons[0]}", *record.reasons[1:]]


def to_markdown(record: GateRecord) -> str:
    """Make a page of a gate, as for the summary of a CI job."""
    rows = [HEADER, ("---",) * len(HEADER), *(_cells(found) for found in record.findings)]
    rows += [_cells(found) for found in record.slices]
    first, *others = sentences(record)
    head, _, reason = first.partition(": ")
    lines = [
        f"# titer gate: {head}",
        "",
        *(f"* {_plain(reason)}" for reason in (reason, *others)),
        "",
        *(f"| {' | '.join(map(_plain, row))} |" for row in rows),
        "",
        explain(record),
        "",
        f"Base: {_model(record.base)}. Candidate: {_model(record.candidate)}.",
    ]
    lines += [f"Left out: {', '.join(record.left_out)}."] if record.left_out else []
    lines += ["", *(f"* {_plain(note)}" for note in record.notes)] if record.notes else []
    return "\n".join(lines) + "\n"


def to_junit(record: GateRecord) -> str:
    """Make JUnit XML: a test case for each measure, slice and control, and one for the verdict."""
    suite = ElementTree.Element("testsuite", name="titer gate")
    for found in (*record.findings, *record.slices):
        name = f"{found.measure}: {found.topic}" if found.topic else found.measure
        word = "pass" if found.topic and found.word != "fail" else found.word
        _add_case(suite, "titer.gate.measures", name, word, _interval(found))
    for control in record.controls:
        word = "pass" if control.caught else "undecided"
        _add_case(suite, "titer.gate.controls", control.name, word, f"not caught ({control.how})")
    _add_case(suite, "titer.gate", "verdict", record.verdict, " ".join(record.reasons))
    for attribute, kind in (("failures", "failure"), ("errors", "error")):
        suite.set(attribute, str(len(suite.findall(f"*/{kind}"))))
    suite.set("tests", str(len(suite)))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, group: str, name: str, word: str, message: str) -> None:
    """Add a test case: a failure where it fails, an error where it is undecided."""
    case = ElementTree.SubElement(suite, "testcase", classname=group, name=printable(name))
    if word != "pass":
        kind = "failure" if word == "fail" else "error"
        ElementTree.SubElement(case, kind, message=printable(message), type=word)


def _cells(found: Finding) -> Sequence[str]:
    return (
        f"{found.name}: {found.topic}" if found.topic else found.name,
        f"{found.base:.1f} %",
        f"{found.candidate:.1f} %",
        _interval(found),
        f"{found.margin:g}",
        str(found.prompts),
        f"{found.power:.0f} %",
        "" if found.topic and found.word != "fail" else _word(found),
    )


def _word(found: Finding) -> str:
    if found.word != "undecided":
        return found.word
    return f"undecided, needs {found.needed}" if found.needed else "undecided"


def _interval(found: Finding) -> str:
    return f"{found.worse:+z.1f} [{found.low:+z.1f}, {found.high:+z.1f}]"


def _model(told: dict[str, object]) -> str:
    weights = str(told.get("weights") or "")
    return f"`{_plain(str(told['place']))}`" + (f" (weights {weights[:12]})" if weights else "")


def _plain(text: str) -> str:
    """Return a text that neither ends a cell of a table nor a line."""
    return " ".join(printable(text).replace("|", "/").replace("`", "'").split())
