"""What checking found, in a form for programs; `text` makes it readable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundtune.data.check.kinds import CHECKING
from groundtune.data.findings import Finding, Severity
from groundtune.errors import DataError

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Located:
    """A finding and the split that it is in; "" where it concerns all of them."""

    split: str
    finding: Finding


@dataclass
class Report:
    """What checking found.

    Attributes:
        data: what was checked.
        pictures: pictures of each split.
        boxes: boxes of each split.
        classes: of each class its id, name as written, name in the prompt, tokens, and boxes in each split.
        findings: errors first, then warnings, then notes.
    """

    data: str
    pictures: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, int] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Located] = field(default_factory=list)

    def count(self, severity: Severity) -> int:
        """How many checks found something of a severity, in whatever number of splits."""
        return len({located.finding.check for located in self.findings if located.finding.severity == severity})

    def leave_out(self, checks: Sequence[str]) -> None:
        """Take the findings of some checks out."""
        self.findings = [located for located in self.findings if located.finding.check not in checks]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "data": self.data,
            "splits": {name: {"pictures": self.pictures[name], "boxes": self.boxes[name]} for name in self.pictures},
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            "findings": [
                {
                    "check": located.finding.check,
                    "severity": located.finding.severity,
                    "split": located.split or None,
                    "count": located.finding.count,
                    "message": located.finding.message,
                    "examples": located.finding.examples,
                    "fix": located.finding.fix,
                }
                for located in self.findings
            ],
            "classes": self.classes,
        }


def by_severity(findings: Sequence[Located]) -> list[Located]:
    """Put errors before warnings before notes; otherwise the order stays."""
    return sorted(findings, key=lambda located: SEVERITIES.index(located.finding.severity))


def unreadable(data: str, error: DataError) -> Report:
    """The report of a data set that could not be read."""
    kind = CHECKING["data-unreadable"]
    finding = Finding("data-unreadable", kind.severity, kind.message, kind.fix, 1, [str(error)])
    return Report(data, findings=[Located("", finding)])
