"""Curves as SVG: where the points are, and any name in the legend."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.visualization.curves import (
    LEFT,
    MAX_POINTS,
    PLOT_HEIGHT,
    RIGHT,
    SERIES,
    TOP,
    WIDTH,
    curves_svg,
    finite,
    points_of,
)  # fmt: skip
from tests.helpers.svg_curves import SVG, curves, legend, root, texts, words

CURVES = {"DINO": [(0.0, 6.0), (100.0, 4.0)], "SelfPatch <k=4> & wrap": [(0.0, 6.5), (100.0, 3.5)], "none yet": []}


def test_points_of_leaves_out_what_is_missing() -> None:
    rows = [
        {"step": 0, "loss": 2},
        {"step": 10, "loss": None},
        {"step": 20, "knn": 0.5},
        {"step": 30, "loss": math.nan},
        {"step": 40, "loss": 1.5},
        {"loss": 1.0},
    ]
    assert points_of(rows, "loss") == [(0.0, 2.0), (40.0, 1.5)]


def test_points_that_are_not_finite_are_not_drawn() -> None:
    points = [(0.0, math.nan), (1.0, math.inf), (2.0, 1.0)]
    assert finite(points) == points[2:]
    assert "nan" not in curves_svg({"a": points})
    with pytest.raises(ValueError, match="no point"):
        curves_svg({"a": points[:2]})


def test_curve_runs_from_side_to_side_of_the_plot() -> None:
    (curve,) = curves(curves_svg({"loss": [(100, 4.0), (0, 8.0), (50, 7.0)]}))
    (left, top), (x, y), (right, bottom) = curve.points
    assert (left, right) == (LEFT, WIDTH - RIGHT)
    assert TOP < top < bottom < TOP + PLOT_HEIGHT
    assert bottom - top > 0.9 * PLOT_HEIGHT
    assert (x, y) == pytest.approx(((left + right) / 2, top + (bottom - top) / 4), abs=0.1)


def test_ticks_are_round_numbers() -> None:
    shown = words(curves_svg({"loss": [(0, 0.13), (1e5, 0.52)]}))
    assert shown == ["0", "20000", "40000", "60000", "80000", "100000", "step", "0.2", "0.3", "0.4", "0.5", "loss"]


def test_several_curves_share_axes_and_have_a_legend() -> None:
    svg = curves_svg({"a": [(0, 0.0), (1, 1.0)], "b": [(0, 0.5), (1, 0.5)], "empty": []})
    rising, flat = curves(svg)
    assert flat.points[0][1] == pytest.approx((rising.points[0][1] + rising.points[1][1]) / 2, abs=0.1)
    assert {name: stroke.colour for name, stroke in legend(svg).items()} == {"a": SERIES[0], "b": SERIES[1]}


def test_a_curve_keeps_its_colour_where_others_have_no_point() -> None:
    assert legend(curves_svg({"a": [], "b": [], "c": [(0, 1.0)]}))["c"].colour == SERIES[2]


def test_long_curves_are_thinned_without_moving() -> None:
    (curve,) = curves(curves_svg({"loss": [(i, 2.0 * i + 300 * (i % 2)) for i in range(10_000)]}))
    assert 100 < len(set(curve.points)) <= MAX_POINTS
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(curve.points[::40], curve.points[40::40], strict=False)]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-9, 1e12])
def test_a_flat_curve_and_a_single_point_can_be_drawn(value: float) -> None:
    (flat,) = curves(curves_svg({"loss": [(0, value), (9, value)]}))
    assert flat.points[0][1] == flat.points[1][1]
    single = curves_svg({"loss": [(3, value)]})
    dot, _in_the_legend = root(single).iter(f"{SVG}use")
    assert [(float(dot.attrib["x"]), float(dot.attrib["y"]))] == curves(single)[0].points
    assert "nan" not in single


def test_a_figure_is_a_whole_file_on_paper_with_everything_inside() -> None:
    svg = curves_svg(CURVES, title="loss")
    page = root(svg)
    assert page.tag == f"{SVG}svg"
    left, top, width, height = map(float, page.attrib["viewBox"].split())
    paper = next(page.iter(f"{SVG}path")).attrib
    assert paper["style"] == "fill: #ffffff"
    assert {"loss", "DINO", "SelfPatch <k=4> & wrap", "step"} <= set(words(svg))
    assert page.findtext(f"{SVG}title") == "loss"
    for node in texts(svg):
        assert left < float(node.attrib["x"]) < left + width
        assert top < float(node.attrib["y"]) < top + height


def test_words_paper_and_grid_have_a_colour_in_dark_themes() -> None:
    svg = curves_svg(CURVES, title="loss")
    dark = svg.split("prefers-color-scheme: dark")[1].split("</style>")[0]
    drawn = svg.split("</style>")[1]
    for rule in ("fill: #ffffff", "fill: #1b1f24", "fill: #656d76", "stroke: #d8dee4"):
        assert f'[style*="{rule}"]' in dark
        assert rule in drawn


def test_a_figure_is_the_same_every_time() -> None:
    assert curves_svg(CURVES, title="loss") == curves_svg(CURVES, title="loss")


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.text(max_size=120), min_size=1, max_size=20, unique=True), st.text(max_size=120))
def test_any_names_make_a_file_whose_legend_overlaps_nowhere(names: list[str], title: str) -> None:
    svg = curves_svg({name: [(0, 1.0), (1, 2.0)] for name in names}, title=title, x_label=title)
    height = float(root(svg).attrib["viewBox"].split()[3])
    (group,) = (node for node in root(svg).iter(f"{SVG}g") if node.get("id") == "legend_1")
    strokes = curves(svg.replace("axes_1", "_").replace("legend_1", "axes_1"))
    starts = {(round(x), round(y)) for stroke in strokes for x, y in stroke.points[:1]}
    assert len(starts) == len(names)
    shown = [(float(n.attrib["x"]), float(n.attrib["y"]), n.text or "") for n in group.iter(f"{SVG}text")]
    for x, y, text in shown:
        assert x > LEFT
        assert y < height
        following = [left for left, line in starts if abs(line - y) < 8 and left > x]
        assert x + 3 * len(text) < min(following, default=WIDTH)


@pytest.mark.slow
def test_a_long_name_is_cut_to_its_room() -> None:
    name = "WIDE NAMES " * 30
    cut = [text for text in words(curves_svg({name: [(0, 1.0)]}, title=name)) if text.startswith("WIDE")]
    assert len(cut) == 2
    assert all(text.endswith("…") and 20 < len(text) < 80 for text in cut)


def test_more_curves_than_colours_differ_by_their_strokes() -> None:
    count = 3 * len(SERIES)
    svg = curves_svg({f"arm {i}": [(0.0, float(i)), (1.0, 2.0)] for i in range(count)})
    assert len({(stroke.colour, stroke.dashes) for stroke in curves(svg)}) == count
    assert len({(stroke.colour, stroke.dashes) for stroke in legend(svg).values()}) == count


@pytest.mark.parametrize("name", ["_hidden", "$x$", "a\nb", "\x07"])
def test_a_name_is_shown_as_it_stands(name: str) -> None:
    (shown,) = legend(curves_svg({name: [(0, 1.0)]}))
    assert shown == {"a\nb": "a b", "\x07": "\\x07"}.get(name, name)


def test_baselines_are_level_lines_with_a_name_inside_the_range() -> None:
    svg = curves_svg({"score": [(0, 0.4), (10, 0.5)]}, y_label="fraction <of 1>", baselines={"mean colour": 0.1})
    assert {"fraction <of 1>", "mean colour"} <= {*words(svg)}
    (curve,) = (stroke for stroke in curves(svg) if stroke.dashes is None)
    (level,) = (stroke for stroke in curves(svg) if stroke.dashes is not None)
    (left, y), (right, same) = level.points
    assert (left, right, y) == (LEFT, WIDTH - RIGHT, pytest.approx(same))
    below = [point[1] for point in curve.points]
    assert (y - below[0]) / (below[0] - below[1]) == pytest.approx(3, abs=0.05)
