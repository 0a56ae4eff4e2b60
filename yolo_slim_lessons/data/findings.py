"""What was found out of the ordinary while a folder was read, and how it is said.

Of what is done as a matter of course one line is printed; of what may change a result a warning is given.
Leaves out: finding it (``folder_reading.py``, ``pictures.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LISTED = 10  # of what is the same in many files


class ImageFolderWarning(UserWarning):
    """A folder of images was read otherwise than its owner may think: something was left out, or is missing."""


@dataclass(frozen=True)
class Finding:
    """A picture that is special.

    Attributes:
        kind: ``"broken"``; ``"unreachable"``, if the system could not read it just now; ``"repaired"``;
            ``"only here"``, if Ultralytics leaves it out.
        path: below the folder of the data set.
        cause: the same words for the same reason, so that equal ones can be counted.
        text: cause, details and way out.
    """

    kind: str
    path: str
    cause: str
    text: str

    @property
    def is_missing(self) -> bool:
        """Whether there are no pixels of it."""
        return self.kind in ("broken", "unreachable")


class UnreadablePicturesError(ValueError):
    """Pictures of a split that cannot be read, each a ``Finding``."""

    def __init__(self, findings: Sequence[Finding]):
        super().__init__(f"{len(findings)} pictures cannot be read")
        self.findings = findings


def refusal(findings: Sequence[Finding], source: str, count: int, broken: str) -> ValueError:
    """The error that names ``findings``, all pictures of ``count`` in ``source`` that cannot be read."""
    way_out = "Mend or delete them"
    if broken == "refuse" and len(findings) < count and all(finding.kind == "broken" for finding in findings):
        way_out += ", or leave them out by load_images(…, broken='skip')"
    return ValueError(f"{_unreadable(findings, source, count)}\n{way_out}.")


def left_out(findings: Sequence[Finding], source: str, count: int) -> str:
    """What is said when ``findings`` were skipped."""
    return f"{_unreadable(findings, source, count)}\nThey are left out, as broken='skip' asks for."


def _unreadable(findings: Sequence[Finding], source: str, count: int) -> str:
    lines = [f"{len(findings):,} of {count:,} pictures in {source} cannot be read:"]
    lines += [f"  {finding.path}: {finding.text}" for finding in findings[:LISTED]]
    if findings[LISTED:]:
        causes = Counter(finding.cause for finding in findings[LISTED:])
        each = "; ".join(f"{number:,} × {cause}" for cause, number in causes.most_common())
        lines.append(f"  and {len(findings) - LISTED:,} more: {each}")
    return "\n".join(lines)


def counted(counts: Mapping[str, int]) -> str:
    """Such as "10 .txt, 2 .json", most frequent first."""
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda item: (-item[1], item)))


def named(names: Iterable[str]) -> str:
    """Some ten of the names, in quotes, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def say_what_was_done(findings: Sequence[Finding]) -> None:
    """Print what was read in a way of its own: a line for each kind."""
    repaired = [finding for finding in findings if finding.kind == "repaired"]
    if repaired:
        print(
            f"Repaired in memory, as Ultralytics does it on the disk: {len(repaired):,} JPEG without the marker of "
            f"their end ({named(finding.path for finding in repaired)})."
        )
    only_here = Counter(finding.cause for finding in findings if finding.kind == "only here")
    if only_here:
        print(f"Read here, though Ultralytics leaves them out: {counted(only_here)}.")
