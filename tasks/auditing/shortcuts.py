"""Shortcuts: how well the label can be told from facts of the files that are no content.

A network learns whatever tells the classes apart. Where one class comes from another camera, size
or format, a test set of the same source rewards that, and the model fails elsewhere. Facts are
taken apart: those of the file alone, and those that may be honest content (how bright a picture is,
what stands at its border, how many bytes its detail takes).
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from tasks.artifacts.arrays import Bools, Floats, Ints
from tasks.artifacts.records import ClassShortcut, Estimate, ShortcutAudit, Telltale
from tasks.artifacts.tables import FactRow
from tasks.artifacts.words import shortened

MOST_ROWS = 3_000  # images looked at
FOLDS = 5
TREES, LEAF = 40, 3
CLASS_FOLDERS = (
    0.9  # share of images in the folder of their label from which on folders are classes
)
MOST_LEVELS = 12  # of a fact in words; rarer ones are one
SMALLEST_CLASS = 10  # groups of a class below which nothing is said about it
GIVEN_AWAY = 0.65  # lower bound of the AUC from which on a class is given away
TELLING = 0.6  # AUC from which on a single fact is named
SHOWN_CLASSES, SHOWN_FACTS = 10, 3

Column = Callable[[FactRow], float | str]
FILE_FACTS: Mapping[str, Column] = {
    "width": lambda row: row.width,
    "height": lambda row: row.height,
    "aspect": lambda row: row.width / row.height,
    "mode": lambda row: row.mode,
    "format": lambda row: row.format,
    "JPEG quantization": lambda row: row.quantization,
    "camera": lambda row: row.camera or "none named",
}
LOOK_FACTS: Mapping[str, Column] = {
    "bytes a pixel": lambda row: row.file_bytes / (row.width * row.height),
    "brightness": lambda row: row.brightness,
    "border red": lambda row: row.border_red,
    "border green": lambda row: row.border_green,
    "border blue": lambda row: row.border_blue,
}
FOLDER = "folder"


@dataclass(frozen=True)
class FactTable:
    """Facts of some images, one column a fact.

    Attributes:
        columns: Name -> what the fact is of every image; words or numbers, (N,) each.
        labels: int64 (N,).
        groups: int64 (N,).
        class_names: By label.
    """

    columns: Mapping[str, list[float] | list[str]]
    labels: Ints
    groups: Ints
    class_names: Sequence[str]

    def matrix(self, names: Sequence[str]) -> Floats:
        """Give facts as numbers, float64 (N, F); words are numbered by how frequent they are."""
        return np.stack([_numbers(self.columns[name]) for name in names], axis=1)


def _numbers(values: list[float] | list[str]) -> Floats:
    if not isinstance(values[0], str):
        return np.array(values, dtype=np.float64)
    words, places, counts = np.unique(
        np.array(values, dtype=object), return_inverse=True, return_counts=True
    )
    order = np.empty(len(words), np.float64)
    order[np.argsort(-counts, kind="stable")] = np.arange(len(words))
    return np.minimum(order, MOST_LEVELS)[places]


def collect_facts(
    rows: Sequence[FactRow], labels: Ints, groups: Ints, class_names: Sequence[str], *, seed: int
) -> FactTable:
    """Take the facts of at most MOST_ROWS images, and the folder where it is not just the label."""
    some = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_ROWS])
    chosen = [rows[row] for row in some]
    columns: dict[str, list[float] | list[str]] = {
        name: [column(row) for row in chosen]  # type: ignore[misc]
        for name, column in {**FILE_FACTS, **LOOK_FACTS}.items()
    }
    folders = list(
        _folders([row.path for row in chosen], [class_names[labels[row]] for row in some])
    )
    own = labels[some].tolist()
    several = len(set(zip(folders, own, strict=True))) > len(set(folders)) > 1
    if several and not _are_of_classes(folders, own):
        columns[FOLDER] = folders
    return FactTable(columns, labels[some], groups[some], class_names)


def _folders(paths: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    """Folder of each image, without the parts that name its class."""
    for path, label in zip(paths, labels, strict=True):
        parts = [unicodedata.normalize("NFC", part).strip() for part in path.split("/")[:-1]]
        yield "/".join(part for part in parts if part != label)


def _are_of_classes(folders: Sequence[str], labels: Sequence[int]) -> bool:
    """Whether folders are those of the classes by other names, but for some corrected labels."""
    pairs = Counter(zip(labels, folders, strict=True))
    own = dict(reversed([pair for pair, _ in pairs.most_common()]))  # the most frequent comes last
    inside = sum(count for (label, folder), count in pairs.items() if own[label] == folder)
    return len(set(own.values())) == len(own) and inside >= CLASS_FOLDERS * len(labels)


def measure_shortcuts(
    table: FactTable, names: Sequence[str], *, confidence: float, seed: int
) -> ShortcutAudit | None:
    """Measure how well the label can be told from some facts, on images of other groups.

    Args:
        table: The facts.
        names: Which of them.
        confidence: Of the intervals; those of classes hold for all classes together.
        seed: Of folds and trees.

    Returns:
        None where fewer than two classes have SMALLEST_CLASS groups.
    """
    sizes = _groups_by_class(table)
    judged = np.flatnonzero(sizes >= SMALLEST_CLASS)
    if len(judged) < 2:
        return None
    inside = np.isin(table.labels, judged)
    labels, groups = table.labels[inside], table.groups[inside]
    facts = table.matrix(names)[inside]
    folds = list(_split(labels, groups, seed))
    forest = ExtraTreesClassifier(
        TREES, min_samples_leaf=LEAF, class_weight="balanced", random_state=seed
    )
    scores = _predict(forest, facts, labels, folds, judged)
    z = float(norm.ppf(0.5 + confidence / 2))
    sharp = float(norm.ppf(1 - (1 - confidence) / 2 / len(judged)))
    aucs = {
        int(label): _auc_interval(scores[:, at], labels == label, groups, sharp)
        for at, label in enumerate(judged)
    }
    told = sorted(
        (label for label in aucs if (aucs[label].low or 0.0) >= GIVEN_AWAY),
        key=lambda label: (-aucs[label].value, label),
    )
    return ShortcutAudit(
        facts=list(names),
        images=len(labels),
        chance=1 / len(judged),
        balanced_accuracy=_balanced_accuracy(judged[scores.argmax(1)], labels, groups, judged, z),
        told=[
            ClassShortcut(
                name=table.class_names[label],
                auc=aucs[label],
                told_by=_find_telltales(table, names, inside, label, folds, seed),
            )
            for label in told[:SHOWN_CLASSES]
        ],
        told_classes=len(told),
    )


def _groups_by_class(table: FactTable) -> Ints:
    pairs = np.unique(np.stack([table.labels, table.groups], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(table.class_names)).astype(np.int64)


def _split(labels: Ints, groups: Ints, seed: int) -> Iterator[tuple[Ints, Ints]]:
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    yield from folds.split(np.zeros(len(labels)), labels, groups)


def _predict(
    model: ExtraTreesClassifier | DecisionTreeClassifier,
    facts: Floats,
    labels: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    classes: Ints,
) -> Floats:
    """Probabilities of classes for images of groups that the model did not see, (N, C)."""
    scores = np.zeros((len(labels), len(classes)))
    for train, held in folds:
        fitted = model.fit(facts[train], labels[train])
        places = np.searchsorted(classes, fitted.classes_)
        scores[held[:, None], places[None, :]] = fitted.predict_proba(facts[held])
    return scores


def _auc(scores: Floats, positive: Bools) -> float:
    """Area under the ROC curve: share of pairs in order, ties by half."""
    few = int(positive.sum())
    many = len(positive) - few
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - few * (few + 1) / 2) / max(few * many, 1))


def _auc_interval(scores: Floats, positive: Bools, groups: Ints, z: float) -> Estimate:
    """Give the AUC with the interval of Hanley and McNeil 1982, on groups in place of images."""
    auc = _auc(scores, positive)
    one, other = len(np.unique(groups[positive])), len(np.unique(groups[~positive]))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (one - 1) * (q1 - auc**2) + (other - 1) * (q2 - auc**2)
    # Where nothing is out of order the formula gives 0; one pair in the other order is allowed for.
    deviation = math.sqrt(max(variance, auc * (1 - auc), 1 / 4 / one) / (one * other))
    half = z * deviation
    return Estimate(value=auc, low=max(0.0, auc - half), high=min(1.0, auc + half), n=len(scores))


def _balanced_accuracy(
    predicted: Ints, labels: Ints, groups: Ints, classes: Ints, z: float
) -> Estimate:
    """Mean recall with a normal interval; a group counts as one image."""
    recalls, variance = [], 0.0
    for label in classes:
        right = predicted[labels == label] == label
        recall = float(right.mean())
        worth = len(np.unique(groups[labels == label]))
        recalls.append(recall)
        variance += max(recall * (1 - recall), 0.25 / worth) / worth
    value, half = float(np.mean(recalls)), z * math.sqrt(variance) / len(classes)
    return Estimate(
        value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=len(labels)
    )


def _find_telltales(
    table: FactTable,
    names: Sequence[str],
    inside: Bools,
    label: int,
    folds: Sequence[tuple[Ints, Ints]],
    seed: int,
) -> list[Telltale]:
    """Find the facts that alone tell a class from the others, best first, and say how."""
    positive = (table.labels[inside] == label).astype(np.int64)
    tree = DecisionTreeClassifier(
        max_leaf_nodes=16, min_samples_leaf=5, class_weight="balanced", random_state=seed
    )
    found = []
    for name in names:
        facts = table.matrix([name])[inside]
        scores = _predict(tree, facts, positive, folds, np.arange(2))
        auc = _auc(scores[:, 1], positive == 1)
        if auc >= TELLING:
            column: Sequence[float | str] = table.columns[name]
            values = [column[row] for row in np.flatnonzero(inside).tolist()]
            found.append(Telltale(fact=name, auc=auc, words=_say(name, values, positive == 1)))
    found.sort(key=lambda tell: (-tell.auc, names.index(tell.fact)))
    first_of = {tell.fact.partition(" ")[0]: tell for tell in reversed(found)}  # of border colors
    return [tell for tell in found if tell in first_of.values()][:SHOWN_FACTS]


def _say(name: str, values: Sequence[float | str], positive: Bools) -> str:
    """Say how a fact differs: its typical value in the class, and how often others have it."""
    mine = [value for value, kept in zip(values, positive, strict=True) if kept]
    rest = [value for value, kept in zip(values, positive, strict=True) if not kept]
    counts = Counter(mine)
    common = max(sorted(counts, key=str), key=counts.__getitem__)
    share = counts[common] / len(mine)
    if isinstance(common, str) or share >= 0.5:
        shown = shortened(common, 40) if isinstance(common, str) else f"{common:,.4g}"
        elsewhere = rest.count(common) / max(len(rest), 1)
        return f"{name} is {shown} in {share:.0%} of the class, in {elsewhere:.0%} of the others"
    numbers = [np.median(np.array(some, dtype=np.float64)) for some in (mine, rest)]
    return f"{name} has the median {numbers[0]:,.4g} in the class, {numbers[1]:,.4g} in the others"
