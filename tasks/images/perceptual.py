"""Perceptual hashes of pictures, and the pairs among many that differ in few bits.

The hash holds the signs of the 256 lowest frequencies of the gray picture. The usual 64 bits are
too few: within 8 of them 555 of 3,000 small gray clothes (Fashion-MNIST), 394 of 2,062 hand
signs and 644 of 2,624 solar cells (ELPV) are chained into one group. Within 16 of 256 bits no
two clothes, signs or drawn characters (Omniglot) meet; the solar cells that do are photographed
twice or cut from neighboring wafers (at most 13 a group), and all 18 pairs of 2,527 photos of
trash are of one object. Of 1,093 images of seven such sets it finds all mirrored and turned
copies, 98 % of the brightened (by 15 %), 99 and 95 % of the recompressed (JPEG quality 75 and
50), 86 % of the halved (all but those of 28 pixels), and 4 % of those cropped by 2 % a side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from tasks.artifacts.arrays import Ints, Pixels

SIDE_PX, FREQUENCIES = 64, 16
HASH_BITS = FREQUENCIES * FREQUENCIES
NOISE = 1.0  # size of a coefficient up to which its sign says nothing (8-bit rounding gives 0.3)
MIN_SIGNS = HASH_BITS // 2  # fewer coefficients above the noise: too flat to be told from others
CANDIDATES_AT_ONCE = 4_000_000  # bounds the memory of the search to about 300 MB
Words = NDArray[np.uint64]


def shrink_to_gray(image: Image.Image) -> Pixels:
    """Average an upright picture to the gray one that is hashed: uint8 (64, 64)."""
    return np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def hash_gray(gray: Pixels) -> bytes | None:
    """Hash what `shrink_to_gray` gives: 32 bytes, or None for a picture too flat to compare.

    Resizing, recompression and brightness change few of the 256 bits; mirroring and half turns flip
    fixed ones. Cropping by some percent changes too many to be found.

    Source: the DCT hash of Zauner, Implementation and benchmarking of perceptual image hash
    functions, 2010, section 3.2.1, with more frequencies and zero in place of the median.
    """
    waves = dctn(gray.astype(np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    waves[0, 0] = 0.0  # brightness
    if np.count_nonzero(np.abs(waves) > NOISE) < MIN_SIGNS:
        return None
    return np.packbits(waves > 0).tobytes()


def _flips() -> Words:
    """Masks (4, 4) that turn a hash into that of the picture plain, mirrored, upside down, both."""
    row, column = np.indices((FREQUENCIES, FREQUENCIES)) % 2
    signs = [np.zeros_like(row), column, row, row ^ column]
    return _words(np.stack([np.packbits(sign) for sign in signs]))


def _words(packed: NDArray[np.uint8]) -> Words:
    return np.ascontiguousarray(packed).view(np.uint64)


@dataclass(frozen=True, slots=True)
class Links:
    """A forest that joins like pictures: those joined by links of at most d bits, for every d.

    Attributes:
        pairs: int64 (m, 2), positions of two pictures.
        bits: int64 (m,), bits in which their hashes differ, best flip.
    """

    pairs: Ints
    bits: Ints

    def components(self, count: int, within: int) -> Ints:
        """Number the components of `count` pictures joined by links of at most `within` bits."""
        return join(self.pairs[self.bits <= within], count)


def join(pairs: Ints, count: int) -> Ints:
    """Number the connected components of `count` things joined by pairs: int64 (count,)."""
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (count, count))
    parts: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return parts


def find_links(hashes: list[bytes], bits: int) -> Links:
    """Find all pairs of hashes that differ in at most `bits` bits, plain or flipped, as a forest.

    Two hashes that differ in at most b bits agree in at least one of b + 1 parts. For each part the
    hashes are sorted by it and only those that agree are compared, so that the cost grows little
    faster than the number of pictures. Parts take every (b + 1)-th bit, because neighboring
    frequencies go together.
    """
    if not hashes:
        return Links(np.empty((0, 2), np.int64), np.empty(0, np.int64))
    packed = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), HASH_BITS // 8)
    unique, first, twin = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    forest = _Forest(len(unique))
    for part in range(bits + 1):
        for flip in _flips():
            _search(_words(unique), flip, part, bits, forest)
    links = forest.links()
    twins = np.flatnonzero(first[twin] != np.arange(len(hashes)))
    return Links(
        np.concatenate([first[links.pairs], np.stack([first[twin[twins]], twins], axis=1)]),
        np.concatenate([links.bits, np.zeros(len(twins), np.int64)]),
    )


def _part_of(words: Words, part: int, parts: int) -> Ints:
    """Every `parts`-th bit from bit `part` on as one number (62 bits at most): int64 (n,)."""
    columns = np.arange(part, HASH_BITS, parts)[:62]
    bits = np.unpackbits(words.view(np.uint8), axis=1)[:, columns].astype(np.int64)
    return bits @ (1 << np.arange(len(columns), dtype=np.int64))


def _search(words: Words, flip: Words, part: int, bits: int, forest: "_Forest") -> None:
    """Compare each hash with the flipped ones that agree in one part; add the near ones."""
    keys, other_keys = _part_of(words, part, bits + 1), _part_of(words ^ flip, part, bits + 1)
    order = np.argsort(keys, kind="stable")
    start = np.searchsorted(keys[order], other_keys, side="left")
    counts = np.searchsorted(keys[order], other_keys, side="right") - start
    ends = np.cumsum(counts)
    row = 0
    while row < len(words):
        done = ends[row - 1] if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, done + CANDIDATES_AT_ONCE, side="right")))
        right = np.repeat(np.arange(row, stop), counts[row:stop])
        offset = (
            np.arange(len(right))
            + done
            - np.repeat(ends[row:stop] - counts[row:stop], counts[row:stop])
        )
        left = order[start[right] + offset]
        left, right = left[left < right], right[left < right]
        differing = np.bitwise_count(words[left] ^ words[right] ^ flip).sum(axis=1, dtype=np.int64)
        near = differing <= bits
        forest.add(left[near], right[near], differing[near])
        row = stop


class _Forest:
    """Links kept as a minimum spanning forest: at most count - 1, yet the same components."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._links = Links(np.empty((0, 2), np.int64), np.empty(0, np.int64))

    def add(self, left: Ints, right: Ints, bits: Ints) -> None:
        if not len(left):
            return
        pairs = np.concatenate([self._links.pairs, np.stack([left, right], axis=1)])
        every = np.concatenate([self._links.bits, bits])
        order = np.lexsort([every, pairs[:, 1], pairs[:, 0]])  # of equal pairs the nearest first
        pairs, every = pairs[order], every[order]
        new = np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))
        pairs, every = pairs[new], every[new]
        graph = coo_array((every + 1.0, (pairs[:, 0], pairs[:, 1])), (self._count, self._count))
        tree = minimum_spanning_tree(graph.tocsr()).tocoo()
        self._links = Links(
            np.stack([tree.row, tree.col], axis=1).astype(np.int64), tree.data.astype(np.int64) - 1
        )

    def links(self) -> Links:
        return self._links
