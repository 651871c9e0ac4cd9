"""Names and lists as a person reads them: printable, and bounded however many there are.

What arms, heads and models are called stands here alone. Names of files and classes may hold
anything, and a data set may have thousands of them.
"""

from collections.abc import Collection, Iterable

from tasks.artifacts.records import Arm, DomainCheck, Estimate, HeadKind, PredictionSets

NBSP = "\N{NO-BREAK SPACE}"
SHOWN, SHOWN_LINES = 6, 10  # names in a sentence, lines below one
LIST_CHARACTERS, NAME_CHARACTERS = 300, 200  # of each, at most


def printable(name: str) -> str:
    r"""Give a name with everything that cannot be shown as an escape.

    Line ends, control characters and marks that turn the direction of writing become `\n` or
    `\u202e`; bytes of a file name that are no UTF-8 become `\xff`.
    """
    return "".join(
        character if character.isprintable() or character == NBSP else _escape(character)
        for character in name
    )


def shortened(name: str, limit: int) -> str:
    """Cut the middle out of a name longer than `limit` characters."""
    name = printable(name)
    if len(name) <= limit:
        return name
    head = (limit - 1) * 2 // 3
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[head + 1 - limit :]}"


def listed(names: Collection[str], shown: int = SHOWN, *, where: str = "") -> str:
    """Write names in a sentence: `a, b and c`, or `a, b and 398 more, all in health.json`.

    Args:
        names: Any number of them.
        shown: So many are named, fewer where they are long.
        where: The file that holds all of them.
    """
    words: list[str] = []
    for name in names:
        word = shortened(name, NAME_CHARACTERS)
        if len(words) == shown or sum(map(len, words)) + len(word) > LIST_CHARACTERS:
            break
        words.append(word)
    if len(words) < len(names):
        rest = f"{len(names) - len(words):,} more"
        return f"{', '.join(words)} and {rest}{f', all in {where}' if where else ''}"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write a number with its noun: `1 image`, `1,557 images`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def first_lines(lines: Iterable[str], shown: int = SHOWN_LINES) -> list[str]:
    """Give the first lines, and one that says how many more there are."""
    every = list(lines)
    more = [f"... and {len(every) - shown:,} more"] if len(every) > shown else []
    return [*every[:shown], *more]


def first_of(lines: Iterable[str], shown: int = SHOWN_LINES) -> str:
    """Join the first lines, one below the other and indented, and say how many more there are."""
    return "".join(f"\n  {line}" for line in first_lines(lines, shown))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


# what arms, heads and models are called ----------------------------------------------------------

FROZEN = "frozen baseline"
ARMS: dict[Arm, str] = {
    "scratch": "training from scratch",
    "feature_extraction": "frozen features",
    "fine_tune": "fine-tuning",
}
ORDERS: dict[Arm, str] = {
    "scratch": "train from scratch",
    "feature_extraction": "keep the backbone frozen and train only a new head",
    "fine_tune": "fine-tune",
}


def name_head(kind: HeadKind) -> str:
    """Name a kind of head in a sentence."""
    return "MLP" if kind == "mlp" else f"{kind} head"


def say_trained(arm: Arm) -> str:
    """Say how stage finetune made its model."""
    return "trained from scratch" if arm == "scratch" else "fine-tuned"


def name_trained(arm: Arm, model: str = "model") -> str:
    """Name the model that stage finetune made."""
    return f"{model} {say_trained(arm)}" if arm == "scratch" else f"{say_trained(arm)} {model}"


def say_sets(sets: PredictionSets) -> str:
    """Say what the sets of classes that `predict` gives hold on test."""
    found = sets.kinds[0]
    return (
        f"Sets of classes that are to hold the label of {100 * sets.asked:g} % of the images hold "
        f"it for {_percent(found.coverage)} of the test images, of the class with the least for "
        f"{100 * found.lowest_of_a_class:.1f} % (of {found.lowest_images:,}); {found.single:.0%} "
        f"of them name one class, on average {found.mean_size:.1f}."
    )


def say_domain(domain: DomainCheck) -> str:
    """Say how many test images would be called unlike those of training."""
    if domain.threshold is None:
        return "Val has too few images to tell which ones are unlike those of training."
    return (
        f"{_percent(domain.false_alarms)} of the test images would be called unlike those of "
        f"training; {100 * domain.asked:g} % are allowed."
    )


def _percent(share: Estimate) -> str:
    words = f"{100 * share.value:.1f} %"
    if share.low is None or share.high is None:
        return words
    return f"{words} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
