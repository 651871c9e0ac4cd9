"""What stages before the decision measured, as the rules look at it."""

from tasks.artifacts.records import BackboneInfo, Baseline, Estimate, Marks, Race, Similarity
from tasks.artifacts.tables import Manifest
from tasks.params import DecideParams
from tasks.transferability.rules import Evidence, RaceWinner


def set_marks(params: DecideParams, marks: Marks | None) -> DecideParams:
    """Put the ruler's marks where the parameters say auto; without a ruler it stays."""
    if params.similar_mmd != "auto" or marks is None:
        return params
    return params.model_copy(update={"similar_mmd": marks.similar, "far_mmd": marks.far})


def gather_evidence(
    similarity: Similarity,
    info: BackboneInfo,
    manifest: Manifest,
    baseline: Baseline,
    race: Race | None = None,
) -> Evidence:
    """Take from the measurements what the rules look at.

    Args:
        similarity: Measured on the training images.
        info: Its layer groups are what can be unfrozen.
        manifest: Tells the numbers of training images and classes.
        baseline: What frozen features make of the images.
        race: What became of it; None before there was one.
    """
    mmd, shift, folds, room = (
        similarity.mmd,
        similarity.shift,
        baseline.folds_accuracy,
        baseline.room,
    )
    return Evidence(
        images=len(manifest.of("train")),
        classes=len(manifest.class_names),
        groups=len(info.groups),
        mmd=mmd.matched.value if mmd else None,
        p_value=mmd.p_value if mmd else None,
        shift=shift.value if shift else None,
        gain=similarity.transfer_gain.value,
        error=1 - folds.value if folds else None,
        room=room.low if room else None,
        winner=_winner_of(race) if race else None,
    )


def _winner_of(race: Race) -> RaceWinner | None:
    if race.winner is None:
        return None
    tuned = [racer.cut for racer in race.rounds[0].racers if racer.arm == "fine_tune"]
    return RaceWinner(race.winner.arm, race.winner.cut, deepest=0 in tuned)


def errors_by_folds(baseline: Baseline) -> Estimate | None:
    """Share of images that frozen features have wrong, by folds; None where it was not measured."""
    right = baseline.folds_accuracy
    if right is None:
        return None
    return Estimate(
        value=1 - right.value,
        low=None if right.high is None else 1 - right.high,
        high=None if right.low is None else 1 - right.low,
        n=right.n,
    )
