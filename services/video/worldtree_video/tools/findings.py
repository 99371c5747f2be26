"""What a check of a package found."""

from dataclasses import dataclass
from enum import StrEnum

from worldtree_runtime.model_package import PackageError


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `found`: what is so; where it is not well, what was expected."""

    verdict: Verdict
    file: str
    field: str
    found: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that was looked at; `digest` is empty where the package cannot be read."""

    package: str
    digest: str
    findings: tuple[Finding, ...]

    @property
    def valid(self) -> bool:
        """Whether nothing is bad; notes are fine."""
        return all(finding.verdict is not Verdict.BAD for finding in self.findings)


def bad(error: PackageError) -> Finding:
    """A package error as a finding."""
    return Finding(Verdict.BAD, error.file.name, error.field, error.expected)
