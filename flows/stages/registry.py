"""Which versions of the model there are and which one is in use: annotated tags in GTO's form.

`classifier@v2.0.0` names a version, `classifier#prod#3` says that its commit came into use as the
third. Tags are added, never moved or deleted. Going back is a tag of its own, whose record says so.

Source: https://dvc.org/doc/gto (form of the tags; the counter grows over all stages).
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from flows.errors import GitError, PromotionError
from flows.stages.git import git, user_of
from tasks.artifacts.records import Estimate, Record

ARTIFACT, STAGE = "classifier", "prod"
VERSION = re.compile(rf"{ARTIFACT}@(v(\d+)\.\d+\.\d+)")
COUNTED = re.compile(rf"{ARTIFACT}[#@].*#(\d+)")
IN_USE = re.compile(rf"{ARTIFACT}#{STAGE}#(\d+)")
FIELDS = "%00".join(["%(refname:short)", "%(*objectname)", "%(taggerdate:unix)", "%(contents)"])

Decision = Literal["first", "better", "approved", "back"]


class Figures(Record):
    """A candidate beside the model in use, on the test images of both.

    Attributes:
        against: Version of the model in use; None where there was none.
        test_set: First digits of a sha256 over path, content and label of the candidate's images.
        test_images: How many those are.
        judged: How many candidates were judged on them so far, this one included.
        before: Accuracy of the model in use on the images that both judged; None where they share
            none, as the next ones.
        after: Of the candidate on the same.
        gain: The difference, with its interval paired by image.
        confidence: Of the interval.
    """

    against: str | None
    test_set: str
    test_images: int
    judged: int
    before: float | None
    after: float | None
    gain: Estimate | None
    confidence: float


class Promotion(Record):
    """Why a commit came into use, kept in the tag that says that it did."""

    decision: Decision
    candidate: str
    by: str
    why: str
    date: str
    figures: Figures | None


@dataclass(frozen=True, slots=True)
class Assigned:
    """A commit that came into use.

    Attributes:
        number: Of its tag.
        commit: Whole name.
        promotion: Why; None where another program made the tag.
    """

    number: int
    commit: str
    promotion: Promotion | None


@dataclass(frozen=True, slots=True)
class Registry:
    """What the tags say.

    Attributes:
        versions: Commit -> the version that it is.
        assignments: In their order.
        counter: Of the last tag that has one.
        seconds: When the last tag was made, Unix time.
    """

    versions: Mapping[str, str]
    assignments: Sequence[Assigned]
    counter: int
    seconds: int

    @property
    def line(self) -> list[Assigned]:
        """What came into use and was not taken back, the model in use last."""
        line: list[Assigned] = []
        for one in self.assignments:
            if one.promotion is not None and one.promotion.decision == "back":
                while line and line[-1].commit != one.commit:
                    line.pop()
            if not line or line[-1].commit != one.commit:
                line.append(one)
        return line

    @property
    def in_use(self) -> str | None:
        """The commit whose model is in use."""
        return self.line[-1].commit if self.line else None

    def name(self, commit: str) -> str:
        """Name a commit's version as a tag does; the next free one where it has none yet."""
        numbers = [int(version[1:].split(".")[0]) for version in self.versions.values()]
        version = self.versions.get(commit) or f"v{max(numbers, default=0) + 1}.0.0"
        return f"{ARTIFACT}@{version}"


def read_registry(root: Path) -> Registry:
    """Read the tags. Those that are not annotated do not count, as with GTO.

    Raises:
        GitError: Git refuses.
    """
    tags = list(_read_tags(root))
    versions = {commit: found[1] for name, commit, *_ in tags if (found := VERSION.fullmatch(name))}
    assignments = [
        Assigned(int(found[1]), commit, _read_promotion(message))
        for name, commit, _, message in tags
        if (found := IN_USE.fullmatch(name))
    ]
    counters = [int(found[1]) for name, *_ in tags if (found := COUNTED.fullmatch(name))]
    return Registry(
        versions,
        sorted(assignments, key=lambda one: one.number),
        max(counters, default=0),
        max((seconds for *_, seconds, _ in tags), default=0),
    )


def _read_tags(root: Path) -> Iterator[tuple[str, str, int, str]]:
    patterns = (f"refs/tags/{ARTIFACT}@*", f"refs/tags/{ARTIFACT}#*")
    end = "\x01"
    listed = git(root, "for-each-ref", f"--format={FIELDS}%01", *patterns)
    for entry in listed.split(end):
        name, *facts = entry.lstrip("\n").split("\0")
        if facts and facts[0]:
            yield name, facts[0], int(facts[1] or 0), facts[2]


def _read_promotion(message: str) -> Promotion | None:
    try:
        return Promotion.model_validate_json(message.partition("\n\n")[2])
    except ValidationError:
        return None


def fetch_tags(root: Path, remote: str) -> None:
    """Bring the tags that others made.

    Raises:
        PromotionError: The remote does not answer, or has another tag of the same name.
    """
    try:
        git(root, "fetch", "--quiet", "--no-tags", "--", remote, *_all_tags())
    except GitError as err:
        raise PromotionError(
            f"the tags of {remote} do not come here, nothing changed: {err}"
        ) from err


def write_tags(root: Path, commit: str, promotion: Promotion, remote: str | None) -> str:
    """Say by tags that a commit is in use; give the name of its version.

    The remote has them first, all or none: what it refuses is not here either.

    Raises:
        PromotionError: The remote refuses them, or a tag that does not count has their name.
    """
    known = read_registry(root)
    version = known.name(commit)
    names = [] if commit in known.versions else [version]
    names.append(f"{ARTIFACT}#{STAGE}#{known.counter + 1}")
    for name in names:
        if git(root, "tag", "--list", name).strip():  # not annotated, or it would have been read
            raise PromotionError(
                f"the tag {name} is there, but without annotation, so that it says nothing; "
                f"remove it: git tag --delete '{name}'"
            )
    # GTO goes by the time, in whole seconds.
    seconds = max(int(time.time()), known.seconds + 1)
    tags = {name: _make_tag(root, name, commit, promotion, seconds) for name in names}
    if remote:
        new = [f"{tag}:refs/tags/{name}" for name, tag in tags.items()]
        try:
            git(root, "push", "--quiet", "--atomic", "--", remote, *_all_tags(), *new)
        except GitError as err:
            raise PromotionError(
                f"{remote} does not take the tags, nothing changed here; someone may have promoted "
                f"another model meanwhile, so run it again: {err}"
            ) from err
    for name, tag in tags.items():  # the version first: without the other it changes nothing
        git(root, "update-ref", f"refs/tags/{name}", tag, "")
    return version


def _all_tags() -> list[str]:
    return [f"refs/tags/{ARTIFACT}{mark}*:refs/tags/{ARTIFACT}{mark}*" for mark in "@#"]


def _make_tag(root: Path, name: str, commit: str, promotion: Promotion, seconds: int) -> str:
    """Make a tag that no name leads to yet."""
    zone = datetime.now().astimezone().strftime("%z")
    head = f"object {commit}\ntype commit\ntag {name}\ntagger {user_of(root)} {seconds} {zone}\n"
    words = f"{promotion.candidate}: {promotion.decision}"
    content = f"{head}\n{words}\n\n{promotion.model_dump_json(indent=2)}\n"
    return git(root, "mktag", given=content).strip()


def now() -> str:
    """Give the time as records hold it, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
