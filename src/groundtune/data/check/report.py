"""What checking found, in a form for programs; `text` makes it readable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from groundtune.data.check.kinds import CHECKING
from groundtune.data.findings import Finding, Severity
from groundtune.errors import DataError

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Located(NamedTuple):
    """A finding and the split that it is in; "" where it concerns all of them."""

    split: str
    finding: Finding


@dataclass
class Report:
    """What checking found."""

    data: str  # what was checked
    pictures: dict[str, int] = field(default_factory=dict)  # of each split
    boxes: dict[str, int] = field(default_factory=dict)  # of each split
    classes: list[dict[str, Any]] = field(default_factory=list)  # as in `run.describe_classes`
    findings: list[Located] = field(default_factory=list)  # errors first, then warnings, then notes

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
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [{"split": located.split or None, **asdict(located.finding)} for located in self.findings],
            "classes": self.classes,
        }


def by_severity(findings: Sequence[Located]) -> list[Located]:
    """Put errors before warnings before notes; otherwise the order stays."""
    return sorted(findings, key=lambda located: SEVERITIES.index(located.finding.severity))


def unreadable(data: str, error: DataError) -> Report:
    """The report of a data set that could not be read."""
    finding = Finding("data-unreadable", *CHECKING["data-unreadable"], count=1, examples=[str(error)])
    return Report(data, findings=[Located("", finding)])
