"""The decision in words that a person in a lab understands."""

from collections.abc import Iterator, Sequence

from tasks.artifacts.records import (
    Arm,
    Decision,
    DecisionEvidence,
    Estimate,
    LayerGroup,
    LearningCurve,
    Look,
    Rule,
    Similarity,
)
from tasks.artifacts.words import ORDERS, plural
from tasks.transferability.arms import IN_WORDS
from tasks.transferability.doubts import PROVEN, Change
from tasks.transferability.rules import ONE_PHASE, RAISE_ABOVE, Evidence

MANY_TIMES = 10  # above, how many does not matter
QUANTITIES = {
    "mmd": "MMD^2 to the source images that fit best",
    "gain": "the transfer gain",
    "error": "the share of errors of frozen features by folds",
}


def describe_plan(
    arm: Arm, phases: Sequence[int], groups: Sequence[LayerGroup], *, raised: bool = False
) -> str:
    """Say in words what is trained: which groups, how many parameters, how many phases."""
    if arm != "fine_tune":
        return ORDERS[arm]
    lowest, steps = min(phases), plural(len(phases), "phase")
    steps += " at raised rates" if raised else ""
    if lowest == 0:
        return f"{ORDERS['fine_tune']} all {plural(len(groups), 'layer group')} in {steps}"
    part = (
        f"the top {len(groups) - lowest} of {len(groups)} layer groups (from {groups[lowest].name})"
    )
    trained = sum(group.parameters for group in groups[lowest:])
    share = trained / max(1, sum(group.parameters for group in groups))
    return f"{ORDERS['fine_tune']} {part}, {share:.0%} of the backbone's parameters, in {steps}"


def describe_change(change: Change, groups: Sequence[LayerGroup]) -> str:
    """Say at which value of a quantity the answer would be another one, and which."""
    then = change.choice
    plan = describe_plan(then.arm, then.phases, groups, raised=then.raised)
    if change.quantity == "images":
        bound = "or more" if change.rises else "or fewer"
        return f"With {change.at:,.0f} training images {bound}: {plan}."
    if change.quantity == "overfit":
        side = "more" if change.rises else "less"
        rates = "" if then.raised else " at the rates of params.yaml"
        return (
            f"If the loss of frozen features on val were {side} than {change.at:.3g} times that on "
            f"train: {plan}{rates}."
        )
    side = "above" if change.rises else "below"
    return f"If {QUANTITIES[change.quantity]} were {side} {change.at:.3g}: {plan}."


def explain(evidence: Evidence, similarity: Similarity, decision: Decision) -> list[str]:
    """Give the reasons of a decision in sentences, the most important one first."""
    return list(_reasons(evidence, similarity, decision))


def _reasons(evidence: Evidence, similarity: Similarity, decision: Decision) -> Iterator[str]:
    if decision.forced:
        yield (
            f"The user asked to {ORDERS[decision.arm]} (decide.arm in params.yaml); the rules say: "
            f"{ORDERS[decision.recommended]}."
        )
    deciding = next(rule for rule in decision.rules if rule.fired and rule.votes_for)
    yield f"The rule that says so: {deciding.statement}" if decision.forced else deciding.statement
    if deciding.name == "fine-tune" and not decision.forced:
        tried, right = PROVEN[decision.confidence]
        yield (
            f"Of {tried} choices of {decision.confidence} confidence, tried on seven sets at 96 "
            f"px, {right} were within a point of accuracy of the best arm."
        )
    yield _domain_in_words(similarity, decision)
    if similarity.moments is not None:
        yield similarity.moments.words
    yield (
        f"There are {evidence.images:,} training images of {evidence.classes} classes, "
        f"{evidence.images_per_class:,.0f} a class."
    )
    gain = similarity.transfer_gain
    verb = "gain" if gain.value >= 0 else "lose"
    yield (
        f"Pretrained features {verb} {abs(100 * gain.value):.1f} points of accuracy against random "
        f"ones{_interval(gain.low, gain.high, 100)}."
    )
    if decision.evidence is not None:
        yield from _of_frozen_features(decision.evidence)
        yield from _of_rates(evidence, decision)
        yield from _of_more_images(decision.evidence.curve)
        race = decision.evidence.race
        if race is not None:
            yield race.skipped or race.words


def _of_frozen_features(evidence: DecisionEvidence) -> Iterator[str]:
    """Say how good frozen features are, and whether anything could be shown to be better."""
    right, folds = evidence.frozen_accuracy, evidence.folds_accuracy
    by_folds = ""
    if folds is not None:
        by_folds = (
            f", by folds {folds.value:.1%}{_interval(folds.low, folds.high, 100)} of {folds.n:,}"
        )
    yield (
        f"Frozen features are right on {right.value:.1%}{_interval(right.low, right.high, 100)} of "
        f"{right.n:,} val images{by_folds}."
    )
    if evidence.at_ceiling:
        yield (
            "Frozen features are at their ceiling here: not even a flawless model could be shown "
            "to be better on val."
        )


def _of_rates(evidence: Evidence, decision: Decision) -> Iterator[str]:
    """Say whether the rates are raised, and by what that was told."""
    if decision.arm != "fine_tune" or evidence.overfit is None:
        return
    times = f"{evidence.overfit:.2f}" if evidence.overfit < MANY_TIMES else f"over {MANY_TIMES}"
    told = f"Their loss on val is {times} times that on train"
    if decision.raised:
        yield f"{told}, more than {RAISE_ABOVE:g}: rates are raised (by finetune.raise_lr)."
    elif evidence.overfit <= RAISE_ABOVE:
        yield f"{told}, not more than {RAISE_ABOVE:g}: rates are not raised."
    else:
        yield f"With at most {ONE_PHASE} images a class rates are not raised."


def _how_sure(step: Estimate, *, pays: bool) -> str:
    if not pays:
        return ", which may be chance"
    sure = step.low is not None and step.low > 0
    return "" if sure else ", and their calibrated loss fell beyond doubt"


def _of_more_images(curve: LearningCurve | None) -> Iterator[str]:
    """Say what the last images brought to frozen features, and what twice as many would bring."""
    if curve is None or curve.last_step is None or curve.doubling is None:
        return
    before, last = curve.points[-2:]
    step, doubling = curve.last_step, curve.doubling
    yield (
        f"From {before.images:,} to {last.images:,} images frozen features gained "
        f"{100 * step.value:+.1f} points{_interval(step.low, step.high, 100)}"
        f"{_how_sure(step, pays=curve.pays)}; twice the images would bring about "
        f"{100 * doubling.value:.1f} points{_interval(doubling.low, doubling.high, 100)} more."
    )


def _domain_in_words(similarity: Similarity, decision: Decision) -> str:
    mmd, shift = similarity.mmd, similarity.shift
    if mmd is None:
        told = f"; the mean batch-norm shift is {shift.value:.2f}" if shift else ""
        return f"No source card tells how far the domain is{told}."
    best, ruled = mmd.matched, " for want of a ruler" * (decision.domain == "unknown")
    return (
        f"The domain is {decision.domain}{ruled}: MMD^2 to the images of {mmd.source} that fit "
        f"best is {best.value:.3f}{_interval(best.low, best.high)}, to all of them {mmd.value:.3f} "
        f"(p = {mmd.p_value:.3g} by permutation)."
    )


def _interval(low: float | None, high: float | None, scale: float = 1) -> str:
    if low is None or high is None:
        return ""
    digits = 3 if scale == 1 else 1
    return f" ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def write_page(decision: Decision, groups: Sequence[LayerGroup], look: Look | None = None) -> str:
    """Write decision.md; `look` is what the images look like, for the reader alone."""
    plan = describe_plan(decision.arm, decision.phases, groups, raised=decision.raised)
    return "\n".join(
        [
            "# How to transfer",
            "",
            f"**{plan[0].upper()}{plan[1:]}.** Confidence: {decision.confidence}.",
            "",
            *(f"- {reason}" for reason in decision.reasons),
            "",
            *_phases_table(decision, groups),
            *_arms_table(decision),
            *(["## What the images look like", "", look.words, ""] if look else []),
            "## What each rule saw",
            "",
            "The first rule that fires and votes decides.",
            "",
            "| rule | asks | saw | fired | votes for |",
            "|---|---|---|---|---|",
            *(_rule_row(rule) for rule in decision.rules),
            "",
            "## What would have changed the answer",
            "",
            *(f"- {sentence}" for sentence in decision.would_change or ["Nothing that was tried."]),
            "",
        ]
    )


def _phases_table(decision: Decision, groups: Sequence[LayerGroup]) -> list[str]:
    if not decision.phases:
        return []
    rows = [
        f"| {number} | {_span(groups[lowest:])}head |"
        for number, lowest in enumerate(decision.phases, start=1)
    ]
    return ["| phase | trains |", "|---|---|", *rows, ""]


def _arms_table(decision: Decision) -> list[str]:
    rows = [
        f"| {one.name} | {IN_WORDS[one.name]} | {one.said} | {'yes' if one.chosen else ''} |"
        for one in decision.arms
    ]
    return ["| arm | means | race | chosen |", "|---|---|---|---|", *rows, ""]


def _span(groups: Sequence[LayerGroup]) -> str:
    names = [group.name for group in groups]
    ends = names if len(names) < 2 else [f"{names[0]} to {names[-1]}"]
    return "".join(f"{name}, " for name in ends)


def _rule_row(rule: Rule) -> str:
    saw = ", ".join(f"{name} {_plain(value)}" for name, value in rule.inputs.items())
    fired = "yes" if rule.fired else "no"
    return f"| {rule.name} | {rule.statement} | {saw} | {fired} | {rule.votes_for or ''} |"


def _plain(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
