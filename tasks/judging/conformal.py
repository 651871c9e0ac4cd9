"""Conformal sets: the classes that a label is among, with a stated probability.

Every class of an image gets a score, higher the less it fits. The thresholds are quantiles of the
scores of true labels on val, so that the label of a further image of the same kind is in its set
with the stated probability, whatever the model is worth: where it knows little, sets are large.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tasks.artifacts.arrays import Bools, Floats, Ints

SetMethod = Literal["lac", "aps"]
ENOUGH = 3.0  # times the groups that a finite threshold needs at least, for one of a class alone


def score_classes(probabilities: Floats, method: SetMethod) -> Floats:
    """Score how little each class fits each image.

    lac: one minus the probability, which gives the smallest sets. aps: the probability of the class
    and all likelier ones together, which gives hard images larger sets and easy ones smaller.

    Args:
        probabilities: (N, C), rows that sum to 1.
        method: See above.

    Returns:
        (N, C), in [0, 1].

    Source: Sadinle, Lei and Wasserman 2019, Least ambiguous set-valued classifiers, 1609.00451;
    Romano, Sesia and Candes 2020, Classification with valid and adaptive coverage, 2006.02544
    (without its random part, so that sets do not change from run to run and are a little large).
    """
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    reached = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1).clip(max=1.0)
    scores = np.empty_like(reached)
    np.put_along_axis(scores, order, reached, axis=1)
    return scores


def fit_thresholds(
    scores: Floats, labels: Ints, groups: Sequence[str], *, coverage: float
) -> list[float]:
    """Find the largest score of each class with which it is in a set.

    A class with enough groups has a threshold of its own, so that its labels are covered as well as
    all others; the rest share one, fitted on their images. Where the rest has too few for that, all
    classes share one: labels are then covered as often as asked over all, not class by class. The
    images of a group are alike, so that groups are what is counted where a threshold is raised for
    being fitted on few.

    Args:
        scores: Of val images, (N, C).
        labels: Class indices, (N,).
        groups: The group of each image, (N,).
        coverage: Share of labels that sets are to hold, in (0, 1).

    Returns:
        One of each class; 1, with which it is in every set, where too few images say more.

    Source: Vovk 2012, Conditional validity of inductive conformal predictors, 1209.2673.
    """
    own, names = scores[np.arange(len(labels)), labels], np.array(groups, dtype=object)

    def fit(of: Bools) -> float | None:
        return conformal_quantile(own[of], len(set(names[of])), coverage)

    classes = range(scores.shape[1])
    counts = [len(set(names[labels == number])) for number in classes]
    enough = np.array(counts) >= ENOUGH * coverage / (1 - coverage)
    shared = fit(~enough[labels])
    if shared is None and not enough.all():
        everything = fit(np.ones(len(labels), dtype=np.bool_))
        return [1.0 if everything is None else everything] * len(classes)
    found = [fit(labels == number) if enough[number] else shared for number in classes]
    return [1.0 if threshold is None else threshold for threshold in found]


def conformal_quantile(values: Floats, groups: int, share: float) -> float | None:
    """Give the value that a further one exceeds with probability 1 - share at most.

    Args:
        values: (N,), of images that are like the further one.
        groups: How many of them are independent.
        share: In (0, 1).

    Returns:
        The k-th smallest, k = ceil((n + 1) share) where all are independent; None: there are too
        few for any.
    """
    rank = math.ceil(round((groups + 1) * share, 9))
    if rank > groups:
        return None
    return float(np.sort(values)[-(-len(values) * rank // groups) - 1])


def build_sets(
    probabilities: Floats, thresholds: Sequence[float], method: SetMethod = "lac"
) -> Bools:
    """Give the set of each image, bool (N, C); its likeliest class is always in it.

    Args:
        probabilities: (N, C).
        thresholds: Of each class.
        method: By which they were fitted.
    """
    sets = np.asarray(score_classes(probabilities, method) <= np.asarray(thresholds))
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets
