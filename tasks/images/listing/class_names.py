"""Names of classes that a person may have meant as one, or as none."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tasks.artifacts.words import listed, shortened
from tasks.images.listing.names import look_of

# What tables write where a value is missing. Nobody names a class by the first ones.
NO_LABEL = frozenset(("nan", "<na>", "#n/a", "null", "nat"))
_MAYBE_NO_LABEL = NO_LABEL | {"na", "n/a", "none", "nil", "-", "?", "unlabeled", "unlabelled"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
SHORTEST = 6  # letters of a name from which one other letter is taken for a typing error
EXAMPLES, LONGEST = 3, 60


def about_names(names: Sequence[str]) -> Iterator[str]:
    """Say which classes are probably one, and which look like missing labels.

    Args:
        names: All of them, each once, in any order.
    """
    alike = [_shown(several) for several in _alike(names)]
    if alike:
        yield (
            f"Classes that are probably one: {_some(alike)}; give them one name if they are, they "
            "were kept apart."
        )
    typed = [f"{one!r} and {other!r}" for one, other in _one_letter_apart(names)]
    if typed:
        yield (
            f"Classes whose names differ in one letter: {_some(typed)}; give them one name if that "
            "is a typing error."
        )
    missing = [name for name in sorted(names) if name.lower() in _MAYBE_NO_LABEL]
    if missing:
        yield (
            f"Is {listed(list(map(repr, missing)))} a class? Tables write that where a value is "
            "missing; take these images out if they have no label."
        )


def say_twins(names: Sequence[str]) -> dict[str, str]:
    """Say of classes that have one of a like name which it is; for messages about one class."""
    pairs = [
        *((several[0], other) for several in _alike(names) for other in several[1:]),
        *_one_letter_apart(names),
    ]
    words = {}
    for one, other in pairs:
        for name, like in ((one, other), (other, one)):
            words[name] = f"its name is like that of class {shortened(ascii(like), LONGEST)}"
    return words


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - EXAMPLES:,} more" if len(words) > EXAMPLES else ""
    return "; ".join(words[:EXAMPLES]) + more


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Classes that differ in case, accents, spaces, a lookalike letter or the form of a number."""
    by_key = defaultdict[str, list[str]](list)
    for name in sorted(names):
        by_key[_key(name)].append(name)
    return [several for several in by_key.values() if len(several) > 1]


def _shown(several: Sequence[str]) -> str:
    words = [shortened(ascii(name), LONGEST) for name in several[:EXAMPLES]]
    return " = ".join(words + ["..."] * (len(several) > EXAMPLES))


def _key(name: str) -> str:
    if _NUMBER.fullmatch(name):
        sign, digits = ("-", name[1:]) if name[0] == "-" else ("", name.lstrip("+"))
        whole, _, decimals = digits.partition(".")
        return f"{sign}{whole.lstrip('0') or '0'}.{decimals.rstrip('0')}"
    bare = unicodedata.normalize("NFKD", look_of(name))
    letters = "".join(letter for letter in bare if not unicodedata.combining(letter))
    return " ".join(re.split(r"[\s_-]+", letters.casefold()))


def _one_letter_apart(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of long names that one letter parts: another one, one more, or two changed places.

    The first letter counts as another word (typical, atypical), digits and single letters as
    numbers of things (class1, defect a).
    """
    by_rest = defaultdict[str, list[str]](list)
    for name in sorted(names):
        if len(name) >= SHORTEST - 1:
            lower = name.casefold()
            for rest in {lower, *(lower[:at] + lower[at + 1 :] for at in range(1, len(lower)))}:
                by_rest[rest].append(name)
    pairs = {
        (one, other)
        for several in by_rest.values()
        for place, one in enumerate(several)
        for other in several[place + 1 : place + 1 + EXAMPLES]
        if _is_slip(one, other)
    }
    yield from sorted(pairs)


def _is_slip(one: str, other: str) -> bool:
    """Tell whether two names, equal but for one letter or two, differ as by a typing error."""
    one, other = sorted((one.casefold(), other.casefold()), key=len)
    if len(other) < SHORTEST or _key(one) == _key(other):
        return False
    start = next((at for at, letter in enumerate(one) if letter != other[at]), len(one))
    tail = min(len(one), len(other)) - start
    end = next((at for at in range(tail) if one[-1 - at] != other[-1 - at]), tail)
    parts = one[start : len(one) - end], other[start : len(other) - end]
    if not start or not all(map(str.isalpha, "".join(parts))):
        return False
    if len(parts[0]) > 1 and parts[0] != parts[1][::-1]:
        return False
    words = re.split(r"[\W_\d]+", one[:start])[-1] + re.split(r"[\W_\d]+", one[start:])[0]
    return len(words) >= SHORTEST - 2
