"""What a look found, in one line: fine, or what changed, how surely, and what to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.artifacts.words import listed, plural, printable
from tasks.watching.looks import FactShift, LookRecord, ShareShift, ShiftTest, Subject
from tasks.watching.repeated import ALARM_RATE

LEAST_IMAGES = 20  # fewer wait for the next look
SHOWN_CLASSES = 3
NAMES: Mapping[Subject, str] = {
    "features": "features (MMD)",
    "strangers": "out of the domain",
    "classes": "predicted classes",
    "kinds": "kinds of files",
    "brightness": "brightness",
    "border": "light at the border",
    "sharpness": "sharpness",
    "megapixels": "size in megapixels",
    "aspect": "width by height",
    "bytes_per_pixel": "bytes a pixel",
    "quantization": "JPEG quantization",
}


def say(look: LookRecord, *, waiting: int, sheet: Path) -> str:
    """Say in one line what a look found.

    Args:
        look: Its record, but for the words.
        waiting: Images that are not judged where the verdict is `waiting`.
        sheet: Where the pictures are.
    """
    bad = f"; {plural(look.bad, 'file')} could not be used" if look.bad else ""
    if look.verdict == "waiting":
        return (
            f"waiting: {plural(waiting, 'image')}, judged from {LEAST_IMAGES} on; they count with "
            f"those of the next look{bad}"
        )
    if look.verdict == "fine":
        return (
            f"fine: {plural(look.judged_images, 'new image')} as the held-out ones, "
            f"{_say_strangers(look)}; look {look.judged}{bad}"
        )
    return f"changed: {'; '.join(_findings(look))}. {_advise(look, sheet)}{bad}"


def _say_strangers(look: LookRecord) -> str:
    share = look.out_of_domain
    if share is None:
        return "val was too small to tell which are out of the domain"
    assert share.low is not None
    assert share.high is not None
    return (
        f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] out of the domain, "
        f"{look.expected:.1%} expected"
    )


def _findings(look: LookRecord) -> list[str]:
    """What alarms, with its p-value after correction, and what else tells about it."""
    found = [f"{_say_test(test, look)} (p {test.corrected:.1g})" for test in _alarms(look)]
    if "strangers" not in {test.of for test in _alarms(look)}:
        found.append(_say_strangers(look))
    return found


def _alarms(look: LookRecord) -> list[ShiftTest]:
    """Of each kind of test that alarms, the window that is surest."""
    surest: dict[str, ShiftTest] = {}
    for test in sorted(look.tests, key=lambda one: one.corrected):
        surest.setdefault(test.of, test)
    return [test for test in surest.values() if test.corrected <= ALARM_RATE]


def _say_test(test: ShiftTest, look: LookRecord) -> str:
    is_new = test.window == "new"
    images = f"the {test.images:,} new images" if is_new else f"the newest {test.images:,} images"
    if test.of == "strangers":
        return f"of {images} {_say_strangers(look) if is_new else 'more are out of the domain'}"
    if test.of == "features":
        return f"the features of {images} differ from the held-out ones"
    facts = {fact.name: fact for fact in look.appearance}
    if test.of in facts:
        return f"{NAMES[test.of]} of {images} differs, {_say_medians(facts[test.of])}"
    if test.of == "kinds":
        return f"{images} are other kinds of files, the new ones {_say_shares(look.kinds)}"
    return f"{images} fall into other classes, the new ones {_say_shares(look.classes)}"


def _say_shares(shares: Sequence[ShareShift]) -> str:
    return listed(
        [
            f"{printable(share.name)} {share.held_out:.0%} to {share.now:.0%}"
            for share in shares[:SHOWN_CLASSES]
        ]
    )


def _say_medians(fact: FactShift) -> str:
    now, held_out = (
        "unknown" if value is None else f"{value:.3g}" for value in (fact.now, fact.held_out)
    )
    return f"{now} of the new ones and {held_out} of the held-out ones (medians)"


def _advise(look: LookRecord, sheet: Path) -> str:
    """Say what to do, by what alarms."""
    if {test.of for test in _alarms(look)} == {"classes"}:
        return (
            "Where the classes really come more or less often, accuracy may be another one: label "
            "some images and measure it"
        )
    return (
        f"Look at {sheet}: where the model should know such images, label some, add them and "
        "train again; where something broke or was moved, repair it"
    )
