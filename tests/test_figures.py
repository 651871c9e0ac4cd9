"""Figures on the data and its similarity."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import HOSTILE

from tasks.artifacts.records import Distance, GroupShift, KnownSet
from tasks.artifacts.tables import PlaneRow, ShiftRow
from tasks.reporting.figures import MOST_PLACES, class_bars, projection, ruler, shift_profile
from tasks.reporting.svg import Drawing


def nodes(drawing: Drawing, tag: str, kind: str = "") -> list[ET.Element]:
    root = ET.fromstring(drawing.svg)
    return [node for node in root.iter(tag) if kind in ["", *node.attrib.get("class", "").split()]]


def words(drawing: Drawing) -> list[str]:
    return [node.text or "" for node in nodes(drawing, "text")]


def counts(**totals: int) -> dict[str, dict[str, int]]:
    return {name: {"train": total, "val": 0, "test": 0} for name, total in totals.items()}


def test_bars_are_as_long_as_their_images_and_start_at_zero() -> None:
    drawing = class_bars({"cat": {"train": 30, "val": 10, "test": 20}, "dog": {"train": 60}})
    train, val, test = (
        [float(bar.attrib["width"]) for bar in nodes(drawing, "rect", f"split-{split}")]
        for split in ("train", "val", "test")
    )
    assert train[1] == pytest.approx(2 * train[0])
    assert val[0] == pytest.approx(train[0] / 3, abs=0.02)
    assert train[0] + val[0] + test[0] == pytest.approx(train[1], abs=0.03)
    starts = {bar.attrib["x"] for bar in nodes(drawing, "rect", "split-train")}
    assert len(starts) == 1


def test_bars_are_sorted_and_say_their_number() -> None:
    drawn = words(class_bars(counts(small=5, large=1500, middle=70)))
    assert [word for word in drawn if word in ("small", "large", "middle")] == [
        "large",
        "middle",
        "small",
    ]
    assert "1,500" in drawn


def test_of_many_classes_the_largest_and_the_smallest_are_shown() -> None:
    drawn = words(class_bars(counts(**{f"c{i:03d}": 1000 - i for i in range(150)})))
    assert "c000" in drawn
    assert "c149" in drawn
    assert "c075" not in drawn
    assert "130 classes between these not shown" in drawn


def mmd(value: float = 0.186) -> Distance:
    return Distance(value=value, low=value - 0.02, high=value + 0.02, n=500)


def known(name: str, value: float) -> KnownSet:
    return KnownSet(name=name, images=500, mmd=1, distance=value, domain=None)


def test_the_ruler_orders_data_sets_from_zero_and_marks_this_one() -> None:
    drawing = ruler([known("noise", 0.299), known("photos", 0.024)], "ELPV", mmd())
    names = [word for word in words(drawing) if word in ("noise", "photos", "ELPV")]
    assert names == ["photos", "ELPV", "noise"]
    left, ours, right = (float(dot.attrib["cx"]) for dot in nodes(drawing, "circle"))
    assert (ours - left) / (right - left) == pytest.approx((0.186 - 0.024) / (0.299 - 0.024), 0.01)
    assert len(nodes(drawing, "line", "interval")) == 3
    assert "0" in words(drawing)


def test_an_mmd_below_zero_stays_on_the_ruler() -> None:
    dots = nodes(ruler([known("photos", 0.024)], "near", mmd(-0.01)), "circle")
    assert float(dots[0].attrib["cx"]) < float(dots[1].attrib["cx"])


def test_shift_bars_grow_from_zero_with_the_shift() -> None:
    layers = [ShiftRow(f"bn{i}", f"g{i // 2}", i, shift) for i, shift in enumerate([0.1, 0.2, 0.4])]
    drawing = shift_profile("Moment shift", layers, [GroupShift(group="g0", value=0.15)])
    heights = [
        float(bar.attrib["height"])
        for bar in nodes(drawing, "rect")
        if bar.attrib["class"].startswith("bar-")
    ]
    assert heights == pytest.approx([heights[0], 2 * heights[0], 4 * heights[0]], rel=0.01)
    assert len(nodes(drawing, "line", "mean")) == 1


def test_the_projection_shows_every_class_in_its_color() -> None:
    places = [
        PlaneRow(0, 0, "source", ""),
        PlaneRow(1, 1, "target", "cat"),
        PlaneRow(2, 0, "target", "dog"),
    ]
    drawing = projection(places, ["cat", "dog"])
    assert [kind for kind, _ in drawing.keys] == ["source", "series-0", "series-1"]
    assert len(nodes(drawing, "path", "cloud")) == 3


def test_many_classes_share_one_color_and_many_images_are_thinned() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(30)]
    places = [
        PlaneRow(*rng.normal(size=2).tolist(), "target", names[i % 30])
        for i in range(MOST_PLACES * 3)
    ]
    drawing = projection(places, names)
    assert [name for _, name in drawing.keys] == ["this data"]
    assert drawing.svg.count("h0") == MOST_PLACES


def test_hostile_names_are_text() -> None:
    drawings = [
        class_bars(counts(**{HOSTILE: 3})),
        ruler([known(HOSTILE, 0.1)], HOSTILE, mmd()),
        shift_profile(HOSTILE, [ShiftRow(HOSTILE, HOSTILE, 0, 0.1)], []),
    ]
    assert not any("<script" in drawing.svg for drawing in drawings)
