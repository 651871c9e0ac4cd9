"""One line of `regraft doctor`."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it.

    Attributes:
        level: ok; warning: it works, but not as well as it could; fault: something fails.
        what: The thing, in a word or two.
        found: How it is.
        fix: What to type or set; empty where nothing is to be done.
    """

    level: Level
    what: str
    found: str
    fix: str = ""

    def line(self) -> str:
        """Write it in one line."""
        found = " ".join(self.found.split())
        return f"{self.level:8} {self.what:12} {found}" + (f"; fix: {self.fix}" if self.fix else "")
