"""What is wrong with a scenario: where, which field, which value, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

MOST_PROBLEMS_SHOWN = 20
VARIANTS_NAMED = 3
"""Of more variants with one problem two are named, and the others counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line of a file, or an option such as `--set a.b` (line None)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `field` is dotted, list items by name, "" for the file as a whole.

    more_variants    how many others have it that `variant` does not name
    """

    place: Place
    field: str
    sentence: str
    variant: str | None = None
    more_variants: int = 0

    def __str__(self) -> str:
        parts = [str(self.place)]
        if self.variant is not None:
            more = f" and {self.more_variants} more" if self.more_variants else ""
            parts.append(f"variant '{self.variant}'{more}")
        if self.field and str(self.place) not in (f"--set {self.field}", f"--{self.field}"):
            parts.append(self.field)
        return ": ".join([*parts, self.sentence])


class Refused(Exception):
    """A request that is refused before anything runs; the text says why and what to do instead."""


class ScenarioError(Refused):
    """A scenario that is refused before anything runs; `problems` holds everything found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    @classmethod
    def at(cls, place: Place, sentence: str, field: str = "") -> ScenarioError:
        """A single problem."""
        return cls([Problem(place, field, sentence)])

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:MOST_PROBLEMS_SHOWN]]
        more = len(self.problems) - len(lines)
        if more:
            lines.append(f"… and {more} more problems")
        return "\n".join(lines)


def merged_problems(by_variant: Sequence[tuple[str, Sequence[Problem]]]) -> list[Problem]:
    """The problems of all variants, each said once: without a variant's name when every variant has it."""
    found: dict[Problem, list[str]] = {}
    for variant, problems in by_variant:
        for problem in problems:
            variants = found.setdefault(problem, [])
            if variant not in variants:
                variants.append(variant)
    return [
        problem if len(variants) == len(by_variant) else _in_variants(problem, variants)
        for problem, variants in found.items()
    ]


def _in_variants(problem: Problem, variants: Sequence[str]) -> Problem:
    named = variants if len(variants) <= VARIANTS_NAMED else variants[: VARIANTS_NAMED - 1]
    return replace(problem, variant="', '".join(named), more_variants=len(variants) - len(named))


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'spray'?" where a known name is close, else the list of them."""
    names = [str(name) for name in known]
    folded = {name.lower().replace("-", "_"): name for name in names}
    close = get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    return f"choose one of {', '.join(names)}" if names else "there is none to choose from"


def quoted(value: object) -> str:
    """A value for a message: in quotes, cut where it is long."""
    if value is None:
        return "an empty value"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return f"'{shown}'" if len(shown) <= 80 else f"'{shown[:80]}…'"
