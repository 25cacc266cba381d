"""What reading or checking a data set found, in one form: a named check, how often, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
        more = f", … ({self.count} in all)" if self.count > len(self.examples) else ""
        places = f" {', '.join(self.examples)}{more}." if self.examples else ""
        return f"{self.message}{places}"
