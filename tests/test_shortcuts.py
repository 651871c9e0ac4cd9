"""Labels that files give away: planted facts are named, shuffled labels give none."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.artifacts.records import ShortcutAudit
from tasks.artifacts.tables import FactRow
from tasks.auditing.shortcuts import (
    FILE_FACTS,
    FOLDER,
    LOOK_FACTS,
    _auc,
    collect_facts,
    measure_shortcuts,
)

CLASSES = ("covid", "healthy", "viral")


def draw_rows(count: int, change: Callable[[int, FactRow], FactRow] | None = None) -> list[FactRow]:
    """Facts that say nothing of the class, which is the number modulo three."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        row = FactRow(
            path=f"{CLASSES[number % 3]}/{number}.jpg",
            width=int(rng.integers(200, 400)),
            height=int(rng.integers(200, 400)),
            mode=str(rng.choice(["L", "RGB"])),
            format="JPEG",
            quantization=float(rng.choice([17.3, 6.5])),
            file_bytes=int(rng.integers(10_000, 30_000)),
            camera="",
            border_red=float(rng.uniform(0, 255)),
            border_green=float(rng.uniform(0, 255)),
            border_blue=float(rng.uniform(0, 255)),
            brightness=float(rng.uniform(0, 255)),
        )
        rows.append(change(number, row) if change else row)
    return rows


def audit(rows: list[FactRow], names: list[str], labels: np.ndarray | None = None) -> ShortcutAudit:  # type: ignore[type-arg]
    known = np.arange(len(rows)) % 3 if labels is None else labels
    table = collect_facts(rows, known, np.arange(len(rows)), CLASSES, seed=1)
    found = measure_shortcuts(table, names, confidence=0.95, seed=1)
    assert found is not None
    return found


def changed(row: FactRow, **values: object) -> FactRow:
    fields = {name: getattr(row, name) for name in FactRow.__slots__}
    return FactRow(**{**fields, **values})  # type: ignore[arg-type]


PLANTED: dict[str, tuple[str, Callable[[int, FactRow], FactRow]]] = {
    "mode": ("mode", lambda n, row: changed(row, mode="L" if n % 3 == 0 else "RGB")),
    "size": ("width", lambda n, row: changed(row, width=999) if n % 3 == 0 else row),
    "camera": ("camera", lambda n, row: changed(row, camera="D90") if n % 3 == 0 else row),
    "quality": (
        "JPEG quantization",
        lambda n, row: changed(row, quantization=2.0) if n % 3 == 0 else row,
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fact_is_named_for_its_class_first(kind: str) -> None:
    fact, change = PLANTED[kind]
    found = audit(draw_rows(300, change), list(FILE_FACTS))
    first, *others = found.told
    assert first.name == "covid"
    assert first.told_by[0].fact == fact
    assert first.auc.value > 0.95
    assert all(other.auc.value < 0.85 for other in others)  # as much as not being covid tells
    assert found.balanced_accuracy.low is not None
    assert found.balanced_accuracy.low > found.chance


def test_two_facts_that_tell_together_are_found_though_neither_does_alone() -> None:
    def crossed(number: int, row: FactRow) -> FactRow:
        tall = number // 3 % 2 == 0
        return changed(
            row, width=300 if tall else 200, mode="L" if tall == (number % 3 == 0) else "RGB"
        )

    found = audit(draw_rows(600, crossed), ["width", "mode"])
    assert "covid" in [one.name for one in found.told]
    assert found.told[0].told_by == []


def test_shuffled_labels_are_not_told() -> None:
    rows = draw_rows(300, PLANTED["mode"][1])
    for seed in range(5):
        labels = np.random.default_rng(seed).permutation(np.arange(300) % 3)
        found = audit(rows, [*FILE_FACTS, *LOOK_FACTS], labels)
        assert found.told == []


def test_a_group_counts_once_and_is_never_on_both_sides() -> None:
    # Every group has a width of its own: by image it tells the label, by group it does not.
    groups = np.arange(300) // 15
    labels = np.random.default_rng(0).permutation(np.arange(20) % 2)[groups]
    rows = [
        changed(row, width=200 + 7 * int(g)) for row, g in zip(draw_rows(300), groups, strict=True)
    ]
    names = ("a", "b")
    together = collect_facts(rows, labels, groups, names, seed=1)
    alone = collect_facts(rows, labels, np.arange(300), names, seed=1)
    by_group, by_image = (
        measure_shortcuts(table, ["width"], confidence=0.95, seed=1) for table in (together, alone)
    )
    assert by_image is not None
    assert by_group is not None
    assert by_image.balanced_accuracy.value > 0.95
    assert by_group.told == []


def test_class_folders_are_no_shortcut_and_other_folders_are() -> None:
    rows = draw_rows(300)
    table = collect_facts(rows, np.arange(300) % 3, np.arange(300), CLASSES, seed=1)
    assert FOLDER not in table.columns
    odd = [changed(row, path=row.path.replace("covid/", " covid /")) for row in rows]
    table = collect_facts(odd, np.arange(300) % 3, np.arange(300), CLASSES, seed=1)
    assert FOLDER not in table.columns
    coded = [changed(row, path=f"n{n % 3}/{n}.jpg") for n, row in enumerate(rows)]
    corrected = np.where(np.arange(300) < 12, 0, np.arange(300) % 3)
    assert FOLDER not in collect_facts(coded, corrected, np.arange(300), CLASSES, seed=1).columns
    hospitals = [
        changed(row, path=f"h{int(n % 3 == 0 or n < 30)}/{row.path}") for n, row in enumerate(rows)
    ]
    table = collect_facts(hospitals, np.arange(300) % 3, np.arange(300), CLASSES, seed=1)
    found = measure_shortcuts(table, [FOLDER], confidence=0.95, seed=1)
    assert found is not None
    assert found.told[0].name == "covid"


def test_too_few_groups_are_not_judged() -> None:
    rows = draw_rows(24)
    table = collect_facts(rows, np.arange(24) % 3, np.arange(24), CLASSES, seed=1)
    assert measure_shortcuts(table, list(FILE_FACTS), confidence=0.95, seed=1) is None


def test_the_auc_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(2)
    scores, positive = rng.integers(0, 5, 200).astype(np.float64), rng.random(200) < 0.3
    assert _auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
