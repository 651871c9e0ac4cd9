"""Flat, nearly dark, profiled and hashless pictures, counted by class."""

import numpy as np
import pytest
from conftest import draw_image, tells
from PIL import Image, ImageDraw

from tasks.images.facts import count_traits, find_traits, tell_traits
from tasks.images.perceptual import hash_gray, shrink_to_gray


def traits_of(image: Image.Image, *, profiled: bool = False) -> tuple[str, ...]:
    gray = shrink_to_gray(image)
    return find_traits(image, gray, profiled=profiled, hashless=hash_gray(gray) is None)


def night(brightness: float) -> Image.Image:
    noise = np.random.default_rng(4).normal(brightness, 1.0, (160, 160, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def lamp(color: tuple[int, int, int], side: int) -> Image.Image:
    image = night(3)
    ImageDraw.Draw(image).rectangle((40, 50, 39 + side, 49 + side), fill=color)
    return image


@pytest.mark.parametrize(
    ("image", "traits"),
    [
        (draw_image(0, 1), ()),
        (Image.new("RGB", (40, 30), (9, 200, 30)), ("flat", "hashless")),
        (Image.new("RGB", (40, 30)), ("flat", "dark", "hashless")),
        (night(3), ("dark", "hashless")),
        (lamp((60, 55, 30), 8), ("dark",)),
        (lamp((255, 255, 255), 40), ()),  # a drawing on black is none of these
    ],
)
def test_traits_of_pictures(image: Image.Image, traits: tuple[str, ...]) -> None:
    assert traits_of(image) == traits
    assert set(traits_of(image, profiled=True)) == {*traits, "profiled"}


def test_compression_leaves_one_color_flat() -> None:
    pixels = np.full((40, 40, 3), 100, np.uint8)
    pixels[::3] += 2
    assert "flat" in traits_of(Image.fromarray(pixels))
    pixels[5, 5] = 160  # one dot is a drawing
    assert "flat" not in traits_of(Image.fromarray(pixels))


def test_traits_are_counted_by_class() -> None:
    pictures = [("b", ("dark",)), ("a", ()), ("b", ("flat", "dark", "hashless")), ("a", ())]
    assert count_traits(pictures) == {"b": {"flat": 1, "dark": 2, "hashless": 1}}


def test_a_class_with_many_is_told_with_its_counts() -> None:
    looks = {"night": {"dark": 10, "hashless": 4}, "day": {"dark": 9}, "few": {"dark": 4}}
    (said,) = tell_traits(looks, {"night": 100, "day": 100, "few": 5})
    assert tells(said, "dark", "night (10 of 100)")
    assert "day" not in said
    assert "few" not in said
