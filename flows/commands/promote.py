"""Puts a model into use in place of another one, and back: judged on the same test images.

The tags are the truth (flows/stages/registry.py); the link `models/prod` follows them. Folder,
tags, link, in this order: whoever is killed leaves the old model in use, or tags that the next
call, of whatever candidate, lets the link follow.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.commands.compare import (
    MANIFEST,
    PREDICTIONS,
    Paired,
    Rightness,
    pair_by_image,
    read_sides,
    right_on_test,
    say_pair,
)
from flows.errors import PromotionError
from flows.stages.git import REMOTE, git, try_git, user_of
from flows.stages.graph import files_at, stale_at
from flows.stages.in_use import (
    LINK,
    bring_model,
    is_in_place,
    remove_other_models,
    share_model,
    use_model,
)
from flows.stages.locks import Say, hold
from flows.stages.registry import (
    Decision,
    Figures,
    Promotion,
    Registry,
    fetch_tags,
    now,
    read_registry,
    write_tags,
)
from tasks.artifacts.words import listed, plural, printable

LOCK = Path(".regraft/promote.lock")  # the working tree is neither read nor written: no WORKSPACE
ERROR_RATE = 0.05  # at which chance brings any candidate into use, of all on the same test images
RESAMPLES, SEED = 10_000, 17  # of the interval, whatever params.yaml says just now
JUDGED = LINK.with_name("judged.csv")  # candidates that never came into use were judged too
SET_DIGITS = 12
SHOWN_REASONS = 4

Finding = Literal["in use", "first", "better", "no better", "worse", "other images", "no results"]
REFUSED = "worse beyond doubt: nothing changed, and no approval brings it into use"
SAID: dict[Finding, str] = {
    "in use": "it is in use already",
    "first": "no model is in use yet",
    "better": "better beyond doubt",
    "no better": "not better beyond doubt",
    "worse": "worse beyond doubt",
    "other images": "not the same test images, so that nothing tells which one is better",
    "no results": "not compared, so that nothing tells which one is better",
}


@dataclass(frozen=True, slots=True)
class CandidateVerdict:
    """What the test images say of a candidate.

    Attributes:
        candidate: As it was named.
        commit: Whole name.
        in_use: The commit whose model is in use; None where there is none.
        finding: In a word.
        lines: In sentences, for people.
        figures: None where the candidate is in use, or its results are not here.
    """

    candidate: str
    commit: str
    in_use: str | None
    finding: Finding
    lines: tuple[str, ...]
    figures: Figures | None

    @property
    def by_itself(self) -> Decision | None:
        """How it comes into use where nobody is asked; None where a person has to say so."""
        return self.finding if self.finding in ("first", "better") else None


def promote_on_command(
    root: Path, candidate: str | None, approve: str | None, *, back: bool, say: Say
) -> Iterator[str]:
    """Do what `regraft promote` does, and say it, a line each.

    Args:
        root: The project.
        candidate: A commit or an experiment; None to go back.
        approve: Why it comes into use although it is not better beyond doubt.
        back: Whether the model before comes into use again.
        say: Told what holds it up.

    Raises:
        PromotionError: It does not come into use; nothing has changed.
    """
    if back == (candidate is not None) or (back and approve is not None):
        raise PromotionError("name a candidate (`regraft promote NAME`), or give --back alone")
    if approve and any("\ud800" <= letter <= "\udfff" for letter in approve):
        raise PromotionError("--approve: the reason is no UTF-8; git keeps it, so type it again")
    if candidate is None:
        yield go_back(root, user_of(root), say)
        return
    verdict = judge_candidate(root, candidate, say)
    yield from verdict.lines
    decision: Decision | None = verdict.by_itself or ("approved" if approve else None)
    if verdict.finding == "in use":
        return
    if verdict.finding == "worse":
        raise PromotionError(REFUSED)
    if decision is None:
        raise PromotionError(
            f"{SAID[verdict.finding]}: nothing changed. If it is to come into use nevertheless, "
            'say why: add --approve "REASON"'
        )
    yield put_into_use(root, verdict, decision, user_of(root), approve or "", say)


def judge_candidate(root: Path, candidate: str, say: Say) -> CandidateVerdict:
    """Compare a candidate with the model in use; its model is brought here, and nothing else.

    Raises:
        PromotionError: There is no such candidate, or it is not whole.
    """
    commit = find_commit(root, candidate)
    with _holding(root, say) as registry:
        if commit == registry.in_use:
            _bring(root, commit)
            line = f"{_name(candidate, commit)} is {registry.name(commit)}, which is in use"
            return CandidateVerdict(candidate, commit, commit, "in use", (line,), None)
        _check_whole(root, commit)
        remove_other_models(root, [commit, *(one.commit for one in registry.line[-2:])])
        return _judge(root, candidate, commit, registry)


def put_into_use(
    root: Path, verdict: CandidateVerdict, decision: Decision, by: str, why: str, say: Say
) -> str:
    """Put a candidate that was judged into use; say what is in use now.

    Raises:
        PromotionError: Another model came into use meanwhile, or the remote refuses.
    """
    with _holding(root, say) as registry:
        if registry.in_use != verdict.in_use:
            now_in_use = registry.name(registry.in_use) if registry.in_use else "no model"
            raise PromotionError(f"{now_in_use} came into use meanwhile; judge it against that one")
        promotion = Promotion(
            decision=decision,
            candidate=verdict.candidate,
            by=by,
            why=why,
            date=now(),
            figures=verdict.figures,
        )
        return _switch(root, verdict.commit, promotion)


def go_back(root: Path, by: str, say: Say) -> str:
    """Put the model before the one in use into use again; once more: the one before that.

    Raises:
        PromotionError: There is none, or the remote refuses.
    """
    with _holding(root, say) as registry:
        if len(registry.line) < 2:
            raise PromotionError("there is no model before the one in use; nothing changed")
        *_, before, last = registry.line
        names = registry.name(before.commit), registry.name(last.commit)
        promotion = Promotion(
            decision="back",
            candidate=names[0],
            by=by,
            why=f"back from {names[1]}",
            date=now(),
            figures=None,
        )
        return _switch(root, before.commit, promotion)


def find_commit(root: Path, name: str) -> str:
    """Find the commit of a candidate: a branch, tag, commit or experiment.

    Raises:
        PromotionError: There is none, or several experiments have the name.
    """
    if not (root / ".git").exists():
        raise PromotionError(f"models in use are git tags, and {root} is no git repository")
    shown = printable(name)
    if not name.isprintable() or not name.strip():
        raise PromotionError(f"{shown!r} is no name of a commit or experiment")
    question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    found = {commit.strip()} if (commit := try_git(root, *question)) else _experiments(root, name)
    if len(found) > 1:
        names = listed([commit[:7] for commit in sorted(found)])
        raise PromotionError(f"several experiments are called {shown}: name the commit, {names}")
    if not found:
        raise PromotionError(
            f"there is no commit or experiment {shown}; `git log --oneline` and `dvc exp list "
            "--all-commits` name them. What is not committed cannot come into use"
        )
    return found.pop()


def _experiments(root: Path, name: str) -> set[str]:
    listing = git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/")
    entries = (line.split(" ", 1) for line in listing.splitlines())
    return {commit for commit, reference in entries if reference.split("/", 4)[4:] == [name]}


@contextmanager
def _holding(root: Path, say: Say) -> Iterator[Registry]:
    """Hold the lock of promotions; finish what one that was killed left, give what the tags say."""
    with hold(root / LOCK, "promote", lambda holder: say(f"waiting: {holder} is promoting")):
        remote = os.environ.get(REMOTE)
        if remote:
            fetch_tags(root, remote)
        registry = read_registry(root)
        try:
            _follow(root, registry)
        except PromotionError as err:  # it is lost; another one may still come into use
            say(f"the model in use is not here: {err}")
        yield registry


def _follow(root: Path, registry: Registry) -> None:
    """Let the link follow the tags."""
    if registry.in_use and not is_in_place(root, registry.in_use):
        _bring(root, registry.in_use)
        use_model(root, registry.in_use)


def _bring(root: Path, commit: str) -> None:
    bring_model(root, commit, pull=REMOTE in os.environ)


def _switch(root: Path, commit: str, promotion: Promotion) -> str:
    remote = os.environ.get(REMOTE)
    _bring(root, commit)
    if remote:
        share_model(root, commit)
    version = write_tags(root, commit, promotion, remote)
    registry = read_registry(root)
    _follow(root, registry)
    *before, _ = (registry.name(one.commit) for one in registry.line)
    way_back = f", from where `regraft promote --back` returns to {before[-1]}" if before else ""
    return f"{version} is in use: {LINK}{way_back}; `dvc gc` keeps it with --all-tags"


# judging -----------------------------------------------------------------------------------------


def _check_whole(root: Path, commit: str) -> None:
    """See that results and model are those of the commit's own code and values."""
    stale = stale_at(root, commit)
    if stale:
        stage, why = next(iter(stale.items()))
        raise PromotionError(
            f"commit {commit[:7]} cannot come into use: {plural(len(stale), 'stage')} of it stale, "
            f"first {stage} ({listed(why, SHOWN_REASONS)}); `regraft run` there and commit"
        )
    _bring(root, commit)


def _judge(root: Path, candidate: str, commit: str, registry: Registry) -> CandidateVerdict:
    states = [*filter(None, [registry.in_use]), commit]
    names = [registry.name(one) for one in states[:-1]] + [_name(candidate, commit)]
    files = [files_at(root, state, (MANIFEST, PREDICTIONS)) for state in states]
    sides, lacking = read_sides(right_on_test, names, files)
    if lacking:
        finding: Finding = "no results" if registry.in_use else "first"
        line = f"{names[-1]}: {SAID[finding]}; {lacking}"
        return CandidateVerdict(candidate, commit, registry.in_use, finding, (line,), None)
    test_set = hashlib.sha256(repr(sorted(sides[-1].right)).encode()).hexdigest()[:SET_DIGITS]
    judged = _count(root, commit, registry, test_set)
    confidence = interval_confidence(max(1, judged - 1))  # the first one was compared with none
    pair = (
        pair_by_image(*sides, confidence=confidence, resamples=RESAMPLES, seed=SEED)
        if len(sides) > 1
        else None
    )
    finding = _find(sides, pair)
    figures = Figures(
        against=registry.name(registry.in_use) if registry.in_use else None,
        test_set=test_set,
        test_images=len(sides[-1].right),
        judged=judged,
        before=float(pair.before.mean()) if pair else None,
        after=float(pair.after.mean()) if pair else None,
        gain=pair.gain if pair else None,
        confidence=confidence,
    )
    lines = tuple(_say(names, figures, pair, finding))
    return CandidateVerdict(candidate, commit, registry.in_use, finding, lines, figures)


def interval_confidence(comparison: int) -> float:
    """Give the confidence of the interval of a comparison; `comparison` counts from 1.

    One that is no better has an interval above zero at the rate ERROR_RATE / (k (k + 1)), half of
    what lies outside; the sum over all k is ERROR_RATE.
    """
    return 1 - 2 * ERROR_RATE / (comparison * (comparison + 1))


def _find(sides: list[Rightness], pair: Paired | None) -> Finding:
    if len(sides) == 1:
        return "first"
    if pair is None or sides[0].right.keys() != sides[1].right.keys():
        return "other images"
    assert pair.gain.low is not None
    assert pair.gain.high is not None
    if pair.gain.low > 0:
        return "better"
    return "worse" if pair.gain.high < 0 else "no better"


def _count(root: Path, commit: str, registry: Registry, test_set: str) -> int:
    """Count the candidates that were judged on some test images, and remember this one."""
    path = root / JUDGED
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    line = f"{test_set},{commit}"
    if line not in lines:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    here = {entry.partition(",")[2] for entry in [*lines, line] if entry.startswith(test_set)}
    records = [(one.commit, one.promotion.figures) for one in registry.assignments if one.promotion]
    of_set = [(known, figures) for known, figures in records if _is_of(figures, test_set)]
    told = max((figures.judged for _, figures in of_set if figures), default=0)
    here |= {known for known, _ in of_set}
    return max(len(here), told + (commit not in {known for known, _ in of_set}))


def _is_of(figures: Figures | None, test_set: str) -> bool:
    return figures is not None and figures.test_set == test_set


# in words ----------------------------------------------------------------------------------------


def _name(candidate: str, commit: str) -> str:
    shown = printable(candidate)
    return shown if commit.startswith(shown) else f"{shown} ({commit[:7]})"


def _say(
    names: list[str], figures: Figures, pair: Paired | None, finding: Finding
) -> Iterator[str]:
    if len(names) == 1:
        yield f"{names[0]}: {SAID[finding]}"
    else:
        yield f"accuracy on test: {say_pair((names[0], names[1]), pair)}"
        yield f"{names[1]} against {names[0]}: {SAID[finding]}"
    if figures.judged > 1:
        yield (
            f"{figures.judged} candidates were judged on these "
            f"{plural(figures.test_images, 'test image')} so far: the more there are, the more the "
            "best of them flatters, and the wider is the interval; new test images would tell"
        )
