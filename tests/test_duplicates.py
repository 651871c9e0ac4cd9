"""Perceptual hashes, the search for near copies, and the groups made of them."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from conftest import tells
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from tasks.images.duplicates import KEY_DIGITS, Grouping, group_images, members_of, say_near_copies
from tasks.images.listing.folders import ListedImage
from tasks.images.perceptual import HASH_BITS, find_links, hash_gray, shrink_to_gray
from tasks.images.validate import CheckedImage


def picture(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of thirty overlapping shapes; no two numbers look alike."""
    rng = np.random.default_rng([5, number])
    image = Image.new("RGB", size, tuple(int(value) for value in rng.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, w, h = (int(value) for value in rng.integers(0, size[0], 4))
        color = tuple(int(value) for value in rng.integers(0, 255, 3))
        draw.ellipse((x - w // 3, y - h // 3, x + w // 3, y + h // 3), fill=color)
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def look(image: Image.Image) -> bytes:
    found = hash_gray(shrink_to_gray(image))
    assert found is not None
    return found


def bits_between(left: bytes, right: bytes) -> int:
    """Differing bits, best of the four flips: written out anew, as an oracle."""

    def signs(content: bytes) -> NDArray[np.int64]:
        return np.unpackbits(np.frombuffer(content, np.uint8)).reshape(16, 16).astype(np.int64)

    rows, columns = np.arange(16)[:, None] % 2, np.arange(16)[None] % 2
    flips = [0 * rows * columns, columns + 0 * rows, rows + 0 * columns, (rows + columns) % 2]
    return min(int(np.abs(signs(left) - (signs(right) ^ flip)).sum()) for flip in flips)


# the hash -----------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "same": lambda image: image.copy(),
    "jpeg 50": lambda image: jpeg(image, 50),
    "half size": lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
    "double size": lambda image: image.resize((320, 240), Image.Resampling.BICUBIC),
    "other aspect": lambda image: image.resize((120, 120), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda value: min(255, int(value * 1.1))),
    "darker": lambda image: image.point(lambda value: value // 2),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "half turn": lambda image: image.rotate(180),
    "mirrored jpeg": lambda image: jpeg(ImageOps.mirror(image), 75),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_differs_in_few_bits(change: Callable[[Image.Image], Image.Image]) -> None:
    for number in range(8):
        original = picture(number)
        assert bits_between(look(original), look(change(original))) <= 16


def test_different_pictures_differ_in_many_bits() -> None:
    looks = [look(picture(number)) for number in range(40)]
    distances = [bits_between(a, b) for n, a in enumerate(looks) for b in looks[:n]]
    assert min(distances) > 60
    assert 90 < np.mean(distances) < 128  # the best of four flips lies a little below one half


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_pictures_have_no_hash(value: int) -> None:
    plain = Image.new("RGB", (90, 70), (value, value, value))
    assert hash_gray(shrink_to_gray(plain)) is None
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    assert hash_gray(shrink_to_gray(Image.fromarray(ramp))) is None


def test_the_smallest_pictures_are_hashed() -> None:
    rng = np.random.default_rng(3)
    assert hash_gray(shrink_to_gray(Image.new("RGB", (1, 1)))) is None
    assert len(look(Image.fromarray(rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)))) == 32


# the search ---------------------------------------------------------------------------------------


def components_by_naive_loop(hashes: list[bytes], bits: int) -> list[int]:
    parts = list(range(len(hashes)))
    for i in range(len(hashes)):
        for j in range(i):
            if bits_between(hashes[i], hashes[j]) <= bits and parts[i] != parts[j]:
                old, new = max(parts[i], parts[j]), min(parts[i], parts[j])
                parts = [new if part == old else part for part in parts]
    return parts


def same_partition(left: list[int], right: list[int]) -> bool:
    pairs = set(zip(left, right, strict=True))
    return len(pairs) == len(set(left)) == len(set(right))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 30),
    bits=st.integers(0, 32),
    within=st.integers(0, 32),
)
def test_the_search_finds_what_a_naive_loop_finds(
    seed: int, count: int, bits: int, within: int
) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2, (4, HASH_BITS))
    noisy = [
        seeds[rng.integers(4)] ^ (rng.random(HASH_BITS) < rng.choice([0, 0.03, 0.06, 0.5]))
        for _ in range(count)
    ]
    hashes = [np.packbits(signs).tobytes() for signs in noisy]
    found = find_links(hashes, bits)
    smaller = min(bits, within)
    expected = components_by_naive_loop(hashes, smaller)
    assert same_partition(found.components(count, smaller).tolist(), expected)
    assert len(found.pairs) < max(count, 1)


def test_links_are_a_forest_even_among_many_alike() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, HASH_BITS)
    hashes = [np.packbits(base ^ (rng.random(HASH_BITS) < 0.02)).tobytes() for _ in range(400)]
    found = find_links([*hashes, *hashes], 32)
    assert len(found.pairs) == 799
    assert len(set(found.components(800, 32).tolist())) == 1


def test_the_result_does_not_depend_on_the_size_of_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 2, (5, HASH_BITS))
    hashes = [
        np.packbits(base[n % 5] ^ (rng.random(HASH_BITS) < 0.04)).tobytes() for n in range(60)
    ]
    whole = find_links(hashes, 16).components(60, 16)
    monkeypatch.setattr("tasks.images.perceptual.CANDIDATES_AT_ONCE", 7)
    np.testing.assert_array_equal(find_links(hashes, 16).components(60, 16), whole)


# groups -------------------------------------------------------------------------------------------


def checked(
    path: str,
    content: str,
    number: int | None = None,
    *,
    label: str = "a",
    group: str | None = None,
) -> CheckedImage:
    """An image whose sha256 starts with `content` and that looks like picture `number`."""
    sha256 = content.ljust(64, "0")
    seen = None if number is None else look(picture(number))
    return CheckedImage(ListedImage(path, label, None, group), sha256, 160, 120, "RGB", seen)


def grouped(*images: CheckedImage, named: tuple[tuple[str, str], ...] = ()) -> Grouping:
    return group_images(images, named, near_bits=16)


def test_an_image_on_its_own_is_named_after_its_content() -> None:
    found = grouped(checked("1", "abc", 1), checked("2", "def", 2))
    assert found.groups == ("abc".ljust(KEY_DIGITS, "0"), "def".ljust(KEY_DIGITS, "0"))
    assert (found.exact_duplicates, found.near_duplicates) == (0, 0)


def test_copies_and_near_copies_share_a_group_named_after_the_smallest_sha256() -> None:
    found = grouped(
        checked("1", "c", 1), checked("2", "b", 1), checked("3", "c", 1), checked("4", "a", 2)
    )
    assert found.groups == ("b" + "0" * 15,) * 3 + ("a" + "0" * 15,)
    assert found.exact_duplicates == 1
    assert found.near_duplicates == 2  # one of each sha256


def test_flat_images_are_copies_only_by_their_bytes() -> None:
    found = grouped(checked("1", "a"), checked("2", "b"), checked("3", "a"))
    assert found.groups[0] == found.groups[2] != found.groups[1]


def test_the_users_groups_join_and_name() -> None:
    images = [checked("1", "a", 1), checked("2", "b", 2), checked("3", "c", 3)]
    found = grouped(*images, named=(("1", "zoe"), ("3", "zoe")))
    assert found.groups == ("zoe", "b" + "0" * 15, "zoe")


def test_groups_of_the_table_and_of_the_source_and_copies_chain() -> None:
    found = grouped(
        checked("1", "a", 1, group="ann"),
        checked("2", "b", 2),
        checked("3", "c", 2),
        checked("4", "d", 4),
        named=(("2", "ann"), ("3", "bob"), ("4", "bob")),
    )
    assert found.groups == ("ann",) * 4
    assert len(set(found.copies.tolist())) == 3  # what the user joins is no copy


def test_the_same_picture_under_two_labels_is_a_conflict() -> None:
    found = grouped(
        checked("cat/1", "a", 1, label="cat"),
        checked("cat/2", "b", 2, label="cat"),
        checked("dog/1", "a", 1, label="dog"),
        checked("dog/2", "c", 2, label="dog"),
        checked("dog/3", "d", 3, label="dog"),
    )
    assert found.label_conflicts == [["cat/1", "dog/1"], ["cat/2", "dog/2"]]
    assert found.mixed_copies == []


def test_pictures_that_only_look_alike_under_two_labels_are_listed_apart() -> None:
    signs = np.unpackbits(np.frombuffer(look(picture(1)), np.uint8))
    signs[10:22] ^= 1
    alike = CheckedImage(
        ListedImage("dog/1", "dog"), "b" * 64, 160, 120, "RGB", np.packbits(signs).tobytes()
    )
    found = grouped(checked("cat/1", "a", 1, label="cat"), alike)
    assert found.label_conflicts == []
    assert found.mixed_copies == [["cat/1", "dog/1"]]


def test_near_copies_are_told_by_class_with_two_of_them() -> None:
    images = [
        *(checked(f"belt/{n}", f"{n}", 1, label="belt") for n in range(5)),
        checked("belt/5", "x", 2, label="belt"),
        checked("cat/1", "y", 3, label="cat"),
        checked("dog/1", "z", 1, label="dog"),
    ]
    (label, words) = next(iter(say_near_copies(images, grouped(*images), near_bits=16).items()))
    assert label == "belt"
    assert tells(words, "5 of its 6 images", "belt/0 and belt/1", "near_duplicate_bits (16)")
    assert set(say_near_copies(images, grouped(*images), near_bits=16)) == {"belt"}


def test_members_are_listed_in_the_order_of_their_first() -> None:
    parts = members_of(np.array([3, 1, 0, 1, 3, 2]))
    assert [part.tolist() for part in parts] == [[0, 4], [1, 3]]
