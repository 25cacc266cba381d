"""What reading or checking a data set found, in one form: a named check, how often, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from groundtune.errors import harmless

Severity = Literal["error", "warning", "note"]

_EXAMPLES = 5


@dataclass
class Finding:
    """One kind of problem in one split.

    Attributes:
        check: name of the check, such as "box-outside".
        severity: "error" spoils training, "warning" deserves a look, "note" is only good to know.
        message: one sentence: what is wrong, and what was done about it.
        fix: one sentence: what the user can do.
        count: how often.
        examples: the first few places, such as "cat_12.jpg: box 3 at (10, 20, 5, 0)".
    """

    check: str
    severity: Severity
    message: str
    fix: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more; the first few are kept as examples."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)

    def __str__(self) -> str:
        more = f", … ({self.count} in all)" if self.count > len(self.examples) and self.examples else ""
        places = f" {', '.join(self.examples)}{more}." if self.examples else ""
        return f"{self.message}{places}"


class Kind(NamedTuple):
    """What is known about a check before it finds anything; `{n}` in the message becomes the count."""

    severity: Severity
    message: str
    fix: str


class Collector:
    """Collects the places of problems by check, in the order in which the checks first found something.

    Args:
        kinds: the checks that there are.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._found: dict[str, Finding] = {}

    def add(self, check: str, example: str = "", count: int = 1) -> None:
        """Count one more, or `count` more, of a kind; without an example only the number is told."""
        finding = self._found.get(check)
        if finding is None:
            kind = self._kinds[check]
            finding = self._found[check] = Finding(check, kind.severity, kind.message, kind.fix)
        finding.count += count
        if example and len(finding.examples) < _EXAMPLES:
            finding.examples.append(harmless(example))

    def count(self, check: str) -> int:
        """How often a check has found something so far."""
        return self._found[check].count if check in self._found else 0

    def findings(self) -> list[Finding]:
        """Everything so far, the numbers filled into the messages."""
        return [
            Finding(f.check, f.severity, f.message.replace("{n}", str(f.count)), f.fix, f.count, list(f.examples))
            for f in self._found.values()
        ]
