"""What a race says, for a person."""

from tasks.artifacts.records import Race
from tasks.transferability.arms import IN_WORDS, say_gain, say_points


def say_race(race: Race) -> str:
    """Say in one to three sentences what a race came to."""
    last, more = race.rounds[-1], race.twice_the_images
    raced = ", ".join(racer.name for racer in race.rounds[0].racers)
    where = (
        f"In a race ({raced}) on {last.images:,} of the training images, judged by "
        f"{race.val_images:,} of val,"
    )
    if race.winner is not None:
        return (
            f"{where} {IN_WORDS[race.winner.name]} beat frozen features: {say_gain(race.winner)}."
        )
    best = min(last.racers, key=lambda racer: racer.val_loss)
    said = (
        f"{where} no arm beat frozen features beyond doubt; {IN_WORDS[best.name]} came nearest: "
        f"{say_gain(best)}. Fine-tuning gains with more images, so that this does not settle it."
    )
    if more is not None and more.low is not None and more.low > 0:
        said += f" Twice these images did more for frozen features: {say_points(more)} against it."
    return said
