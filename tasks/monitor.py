"""Looks at incoming images: are they still of the world that the exported model knows?

python -m tasks.monitor SOURCE OUT. Each look takes the images of SOURCE that no look in the folder
OUT has seen, by where they lie, and compares them with images that were held out from training.
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np

from tasks.artifacts.arrays import Floats
from tasks.artifacts.files import write_bytes
from tasks.artifacts.words import printable
from tasks.delivery.appearance import FACTS
from tasks.delivery.folder import DeliveredModel, read_delivered
from tasks.delivery.inputs import InputFiles, list_inputs
from tasks.predict import MODEL, open_engine, read_as_trained, read_batches
from tasks.runtime.entry import run_stage
from tasks.runtime.machine import read_machine
from tasks.runtime.progress import progress
from tasks.watching.intake import Incoming, Intake, draw_strangest
from tasks.watching.looks import (
    LOOKS,
    FactShift,
    LookFolder,
    LookRecord,
    ShareShift,
    ShiftTest,
    Subject,
    Verdict,
    Window,
)
from tasks.watching.repeated import ALARM_RATE, correct, smallest_needed
from tasks.watching.shifts import (
    MOST_ROWS,
    Seen,
    appearance_p_values,
    draw_known,
    features_p_value,
    kinds_p_value,
    shares_p_value,
    strangers_p_value,
    strangers_share,
)
from tasks.watching.words import LEAST_IMAGES, say

log = logging.getLogger(__name__)

RECENT_IMAGES = 500  # of the newest looks together, in which a slow change adds up
KEEPING = 0x4D4F  # purpose of the random numbers drawn here


def judge_windows(
    known: Seen, windows: dict[Window, Seen], threshold: float, look: int
) -> list[ShiftTest]:
    """Test every window of incoming images against the held-out ones.

    Args:
        known: The held-out images.
        windows: The new images and, where there are more, the newest of all looks.
        threshold: Score above which an image is out of the domain.
        look: Counts from 1; its tests together have the rate of `repeated.level_of`.
    """
    needed = smallest_needed(len(get_args(Subject)) * len(windows), look)
    tests = [
        ShiftTest(of=of, window=window, images=len(seen.scores), p_value=p_value, corrected=1.0)
        for window, seen in windows.items()
        for of, p_value in (
            ("features", features_p_value(known, seen, needed=needed, seed=look)),
            ("strangers", strangers_p_value(known, seen, threshold)),
            ("classes", shares_p_value(known.predicted, seen.predicted, needed=needed, seed=look)),
            ("kinds", kinds_p_value(known, seen, needed=needed, seed=look)),
            *appearance_p_values(known, seen).items(),
        )
    ]
    corrected = correct([test.p_value for test in tests], look).tolist()
    return [
        test.model_copy(update={"corrected": found})
        for test, found in zip(tests, corrected, strict=True)
    ]


def windows_of(new: Seen, before: Sequence[Seen]) -> dict[Window, Seen]:
    """Give the windows of a look.

    Args:
        new: Images that no look judged.
        before: Those of the looks before and of this one, the oldest first.
    """
    recent = Seen.join(before).newest(RECENT_IMAGES)
    longer = len(recent.scores) > len(new.scores)
    return {"new": new, "recent": recent} if longer else {"new": new}


def compare_shares(known: Sequence[str], new: Sequence[str]) -> list[ShareShift]:
    """Compare how often each word comes, but empty ones; whose share changed most is first."""
    held_out, now = Counter(filter(None, known)), Counter(filter(None, new))
    shares = [
        ShareShift(
            name=name,
            now=now[name] / max(now.total(), 1),
            held_out=held_out[name] / max(held_out.total(), 1),
        )
        for name in sorted({*held_out, *now})
    ]
    return sorted(shares, key=lambda share: -abs(share.now - share.held_out))


def compare_appearance(known: Seen, new: Seen) -> list[FactShift]:
    """Compare the medians of every fact of appearance."""
    columns = zip(FACTS, new.appearance.numbers.T, known.appearance.numbers.T, strict=True)
    return [
        FactShift(name=name, now=_middle(now), held_out=_middle(held_out))
        for name, now, held_out in columns
    ]


def take_look(incoming: Incoming, model: DeliveredModel, folder: LookFolder) -> LookRecord:
    """Judge what came in, together with what waited; write the pictures and keep the look."""
    new, known = Seen.join([*folder.waiting(), incoming.seen]), draw_known(model.known)
    enough = len(new.scores) >= LEAST_IMAGES
    judged = folder.judged + int(enough)
    before = [*folder.before(RECENT_IMAGES), incoming.seen]
    limit = model.known.threshold
    tests = judge_windows(known, windows_of(new, before), limit, judged) if enough else []
    look = LookRecord(
        number=folder.number,
        judged=judged,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model.name,
        verdict=_verdict(tests),
        images=len(incoming.names),
        bad=folder.count_new_bad(incoming.bad),
        judged_images=len(new.scores) if enough else 0,
        out_of_domain=strangers_share(new, limit) if enough and np.isfinite(limit) else None,
        expected=model.known.false_alarm,
        classes=compare_shares(*_predicted(model, known, new)) if enough else [],
        kinds=compare_shares(known.appearance.kinds, new.appearance.kinds) if enough else [],
        appearance=compare_appearance(known, new),
        tests=tests,
        sheet=f"{LOOKS}/{folder.number:05d}.jpg" if incoming.strangest else None,
        words="",
    )
    sheet = folder.path / (look.sheet or "")
    words = say(look, waiting=len(new.scores), sheet=sheet)
    if look.sheet:
        write_bytes(sheet, draw_strangest(incoming.strangest))
    look = look.model_copy(update={"words": words})
    folder.append(look, incoming.seen, incoming.names, incoming.bad)
    return look


def _predicted(model: DeliveredModel, *some: Seen) -> list[list[str]]:
    """Give the names of the predicted classes."""
    return [[model.classes[row] for row in seen.predicted.tolist()] for seen in some]


def _verdict(tests: Sequence[ShiftTest]) -> Verdict:
    if not tests:
        return "waiting"
    return "changed" if any(test.corrected <= ALARM_RATE for test in tests) else "fine"


def _middle(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def name_by_place(inputs: InputFiles, folder: Path) -> InputFiles:
    """Name files by where they lie as seen from a folder, and give it as their root.

    A source may then be spelled otherwise the next time, or be named from another folder, and a
    project may be moved with its images.
    """
    root = Path(os.path.realpath(folder))

    @cache
    def place_of(parent: Path) -> Path:
        return Path(os.path.relpath(os.path.realpath(parent), root))

    files = map(inputs.path, inputs.names)
    return InputFiles(root, [str(place_of(file.parent) / file.name) for file in files])


# command line ------------------------------------------------------------------------------------


def _read_command(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: source, out and model."""
    parser = argparse.ArgumentParser(prog="python -m tasks.monitor", description=__doc__)
    parser.add_argument(
        "source", help="folder of images, csv with a column path, image, or - for paths on stdin"
    )
    parser.add_argument("out", type=Path, help="folder of the looks")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"exported model ({MODEL})")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None) -> None:
    """Read the model and the source, take a look."""
    asked, machine = _read_command(argv), read_machine()
    listed = list_inputs(asked.source, without=[asked.out], may_be_empty=True)
    inputs = name_by_place(listed, asked.out.parent)
    model = read_delivered(asked.model)
    with LookFolder(asked.out, model.name) as folder:
        names = folder.unseen(inputs.names)
        nothing_new = f"nothing new in {printable(asked.source)}"
        nothing_new += f" since look {folder.number - 1}" if folder.number > 1 else ""
        if not names:
            log.info("%s", nothing_new)
            return
        engine = open_engine(model, machine, rows=len(names))
        rng = np.random.default_rng([folder.number, KEEPING])
        intake = Intake(engine, model.known, MOST_ROWS, rng)
        with progress("look", len(names)) as meter:
            read_file = partial(read_as_trained, model=model)
            for batch in read_batches(names, inputs, read_file, workers=machine.decode_workers):
                intake.take(batch)
                meter.advance(len(batch))
        incoming = intake.give()
        if not incoming.names and not folder.count_new_bad(incoming.bad):  # still bad
            log.info("%s", nothing_new)
            return
        log.info("%s", take_look(incoming, model, folder).words)


if __name__ == "__main__":
    sys.exit(run_stage("monitor", main, timed=False))
