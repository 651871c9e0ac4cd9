"""Figures as files of their own, which a page that knows nothing of the report can show."""

import xml.etree.ElementTree as ET

import pytest

from tasks.reporting import svg
from tasks.reporting.pages import picture
from tasks.reporting.svg import WIDTH, Drawing

SVG = "{http://www.w3.org/2000/svg}"


def drawing(height: float, *keys: str) -> Drawing:
    shape = svg.element("circle", cx=5, cy=5, r=2, class_="series1")
    return Drawing(
        svg.figure(height, "a figure", [shape]),
        [(f"line series{n}", key) for n, key in enumerate(keys, 1)],
    )


def test_figures_stand_below_each_other_and_inside() -> None:
    root = ET.fromstring(picture([("Loss", drawing(100, "train", "val")), ("Rate", drawing(50))]))
    inner = root.findall(f"{SVG}svg")
    tops = [float(one.attrib["y"]) for one in inner]
    heights = [float(one.attrib["height"]) for one in inner]
    assert heights == [100, 50]
    assert tops[0] + heights[0] < tops[1]
    assert tops[1] + heights[1] < float(root.attrib["height"])
    assert all(float(one.attrib["x"]) + WIDTH < float(root.attrib["width"]) for one in inner)
    texts = ["".join(one.itertext()) for one in root.findall(f"{SVG}text")]
    assert texts == ["Loss", "train", "val", "Rate"]


def test_a_picture_needs_nothing_from_elsewhere() -> None:
    drawn = picture([("Loss", drawing(100, "train"))])
    style = ET.fromstring(drawn).find(f"{SVG}style")
    assert style is not None
    assert "--ink" in (style.text or "")
    assert "url(" not in drawn
    assert "<script" not in drawn
    assert drawn.count("http") == drawn.count("http://www.w3.org/2000/svg")


def test_a_long_legend_goes_on_in_the_next_row() -> None:
    names = [f"a name that takes its room {number}" for number in range(12)]
    root = ET.fromstring(picture([("Loss", drawing(100, *names))]))
    places = {"".join(one.itertext()): one.attrib for one in root.findall(f"{SVG}text")}
    rows = {places[name]["y"] for name in names}
    assert len(rows) > 1
    assert all(float(places[name]["x"]) < WIDTH for name in names)
    (inner,) = root.findall(f"{SVG}svg")
    assert float(inner.attrib["y"]) > max(map(float, rows))


@pytest.mark.parametrize("title", ['<script>alert("1")</script>', "a & b"])
def test_titles_are_escaped(title: str) -> None:
    root = ET.fromstring(picture([(title, drawing(10))]))
    assert "".join(root.findall(f"{SVG}text")[0].itertext()) == title
