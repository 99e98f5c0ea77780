"""The drawing of `curves_svg` as a test reads it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Stroke:
    """A line: its points from left to right, with y downwards, its colour and its dashes."""

    points: list[tuple[float, float]]
    colour: str
    dashes: str | None


def root(svg: str) -> ET.Element:
    return ET.fromstring(svg.encode())


def texts(svg: str) -> list[ET.Element]:
    return list(root(svg).iter(f"{SVG}text"))


def words(svg: str) -> list[str]:
    return [node.text or "" for node in texts(svg)]


def curves(svg: str) -> list[Stroke]:
    """The curves themselves."""
    return _strokes(_group(svg, "axes_1"))


def legend(svg: str) -> dict[str, Stroke]:
    """Name -> the stroke before it."""
    group = _group(svg, "legend_1")
    names = [node.text or "" for node in group.iter(f"{SVG}text")]
    return dict(zip(names, _strokes(group), strict=True))


def _group(svg: str, name: str) -> ET.Element:
    return next(node for node in root(svg).iter(f"{SVG}g") if node.get("id") == name)


def _strokes(group: ET.Element) -> list[Stroke]:
    lines = [child for child in group if (child.get("id") or "").startswith("line2d")]
    return [_stroke(line.find(f"{SVG}path")) for line in lines]


def _stroke(path: ET.Element | None) -> Stroke:
    assert path is not None
    style = dict(part.split(": ", 1) for part in path.attrib["style"].split("; "))
    points = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.attrib["d"])
    return Stroke([(float(x), float(y)) for x, y in points], style["stroke"], style.get("stroke-dasharray"))
