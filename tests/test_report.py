"""plot_tradeoff and to_html: what is drawn where, labels that can be read, and a page that needs no other file."""

import html.parser
import re

import numpy as np
import pytest
from evaluations import evaluation_of, with_mean

from keras_kd.evaluation.label_places import distance, place_labels
from keras_kd.evaluation.tradeoff import frontier

NAMES = ["teacher", "distilled", "labels only", "int8", "pruned"]
LATENCIES = [40.0, 4.0, 4.1, 0.05, 9.0]
SIZES = [470_000_000, 24_000_000, 24_000_000, 6_100_000, 60_000_000]
OVERALL = [0.80, 0.74, 0.62, 0.73, 0.70]  # "labels only" and "pruned" are beaten by "distilled"


@pytest.fixture
def evaluation(tmp_path):
    scores = {
        name: with_mean(
            {
                row: {"macro_f1": value + shift, "accuracy": value, "agreement": 0.9, "kl": 1 - value}
                for row, shift in (("de", 0.05), ("sw", -0.1), ("overall", 0.0))
            }
        )
        for name, value in zip(NAMES, OVERALL, strict=True)
    }
    facts = {
        name: {"latency_ms": latency, "size_bytes": size, "parameters": size // 4}
        for name, latency, size in zip(NAMES, LATENCIES, SIZES, strict=True)
    }
    return evaluation_of(scores, tmp_path / "made.json", teacher="teacher", half_width=0.02, facts=facts)


def dots(figure):
    """{label: (x, y, area)} of what is scattered."""
    return {
        each.get_label(): (*each.get_offsets()[0], each.get_sizes()[0])
        for each in figure.axes[0].collections
        if not each.get_label().startswith("_")
    }


def boxes(figure):
    """{first line: extents in pixels} of the labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    return {label.get_text().split("\n")[0]: label.get_window_extent(renderer).extents for label in labels}


def overlap(one, other):
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


# --- The figure -------------------------------------------------------------------------------------------------------


def test_each_model_is_drawn_once_at_its_values(evaluation, tmp_path):
    figure = evaluation.plot_tradeoff(tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    drawn = dots(figure)
    assert list(sorted(drawn)) == sorted(NAMES)
    for name, latency, value in zip(NAMES, LATENCIES, OVERALL, strict=True):
        assert drawn[name][:2] == pytest.approx((latency, 100 * value))
    assert figure.axes[0].get_xscale() == "log"
    # The area is the size: 60 MB to 470 MB, 24 MB to 470 MB.
    assert drawn["pruned"][2] / drawn["teacher"][2] == pytest.approx(60 / 470)
    assert drawn["distilled"][2] / drawn["teacher"][2] == pytest.approx(24 / 470)
    assert drawn["int8"][2] > 20  # still seen


def test_the_frontier_goes_through_the_models_that_no_other_beats(evaluation):
    axes = evaluation.plot_tradeoff().axes[0]
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata()[:3], [0.05, 4.0, 40.0])
    np.testing.assert_allclose(line.get_ydata(), [73, 74, 80, 80])
    assert line.get_drawstyle() == "steps-post"
    faces = {each.get_label(): each.get_facecolor()[0] for each in axes.collections if each.get_label()[0] != "_"}
    assert {name for name, face in faces.items() if face.min() < 1} == {"teacher", "distilled", "int8"}  # not white


@pytest.mark.parametrize(
    ("costs", "qualities", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], [True, True, True]),
        ([1, 2, 3], [3, 2, 1], [True, False, False]),
        ([1, 1], [1, 2], [False, True]),  # as fast, better
        ([1, 2], [1, 1], [True, False]),  # as good, faster
        ([1, 1], [1, 1], [True, True]),  # twins
        ([5], [0], [True]),
    ],
)
def test_frontier(costs, qualities, expected):
    assert frontier(costs, qualities) == expected


def test_up_is_better_also_where_less_is(evaluation):
    axes = evaluation.plot_tradeoff(metric="kl").axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert "lower is better" in axes.get_ylabel()
    # The teacher's own divergence is fixed and left out; the frontier is that of the others.
    assert set(dots(axes.figure)) == set(NAMES) - {"teacher"}
    np.testing.assert_allclose(axes.lines[0].get_ydata()[:2], [1 - 0.73, 1 - 0.74])


def test_any_row_can_be_drawn(evaluation):
    figure = evaluation.plot_tradeoff(language="sw")
    assert dots(figure)["distilled"][1] == pytest.approx(64)
    assert "sw" in figure.axes[0].get_ylabel()


def test_labels_cover_neither_each_other_nor_dots_nor_the_edge(evaluation):
    figure = evaluation.plot_tradeoff()
    found = boxes(figure)
    assert sorted(found) == sorted(NAMES)
    axes = figure.axes[0]
    left, bottom, right, top = axes.bbox.extents
    for name, box in found.items():
        assert left <= box[0] and box[2] <= right and bottom <= box[1] and box[3] <= top, name
        assert not [other for other in found if other != name and overlap(box, found[other])], name
        for dot, (x, y, area) in dots(figure).items():
            center = axes.transData.transform((x, y))
            radius = np.sqrt(area / np.pi) * figure.dpi / 72
            assert distance((*center, radius), box) > 0, f"{name} covers the dot of {dot}"


def test_labels_of_ten_dots_in_one_place_are_all_apart():
    dots = [(200 + i, 150 - i, 6) for i in range(10)]
    sizes = [(70, 24)] * 10
    corners = place_labels(dots, sizes, (0, 0, 450, 300))
    placed = [(x, y, x + 70, y + 24) for x, y in corners]
    for i, box in enumerate(placed):
        assert min(box[:2]) >= 0 and box[2] <= 450 and box[3] <= 300
        assert not any(overlap(box, other) for other in placed[:i])
        assert all(distance(dot, box) > 0 for dot in dots)


def test_a_label_leaves_lines_free_where_it_can():
    beside, above = (205.0, 138.0), (165.0, 155.0)  # at the right of the dot; above it
    assert place_labels([(200, 150, 2)], [(70, 24)], (0, 0, 450, 300)) == [beside]
    level = [(0, 150, 450, 150)]
    assert place_labels([(200, 150, 2)], [(70, 24)], (0, 0, 450, 300), level) == [pytest.approx(above)]
    everywhere = [(0, y, 450, y) for y in range(0, 300, 5)]
    assert place_labels([(200, 150, 2)], [(70, 24)], (0, 0, 450, 300), everywhere)  # it is placed all the same


def test_distance_from_a_dot_to_a_label():
    assert distance((0, 0, 1), (3, -1, 5, 1)) == 2
    assert distance((0, 0, 1), (3, 4, 5, 6)) == 4
    assert distance((4, 0, 1), (3, -1, 5, 1)) == -1


def test_a_single_model_and_models_without_intervals(tmp_path):
    facts = {"m": {"latency_ms": 0.004}}
    alone = evaluation_of({"m": {"overall": {"macro_f1": 0.0}}}, tmp_path / "alone.json", facts=facts)
    assert dots(alone.plot_tradeoff())["m"][:2] == pytest.approx((0.004, 0))


def test_without_latency_there_is_no_such_figure(tmp_path):
    scores = {name: {"overall": {"macro_f1": 0.5}} for name in "ab"}
    evaluation = evaluation_of(scores, tmp_path / "made.json", facts={"b": {"latency_ms": None}})
    with pytest.raises(
        ValueError, match=r"needs the latency of every model, but \['b'\] were not timed; .*latency=True"
    ):
        evaluation.plot_tradeoff(tmp_path / "tradeoff.png")
    assert not (tmp_path / "tradeoff.png").exists()
    with pytest.raises(ValueError, match="metric must be one of"):
        evaluation.plot_tradeoff(metric="f1")
    evaluation.to_html(tmp_path / "report.html")
    assert "against latency" not in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- The page ---------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements of a page: what is open, every attribute, headings and the cells of the tables."""

    VOID = ("meta", "br", "link", "img", "use", "path", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.rows, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "small":
            self.rows[-1][-1] += f" {data}"
        elif data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def page(evaluation, tmp_path):
    evaluation.to_html(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file(page):
    parsed = Page(page)
    assert not parsed.open
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(parsed.tags)
    targets = [value for _, name, value in parsed.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert targets and all(value.startswith("#") for value in targets)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    # What a figure refers to is in the page.
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for value in targets} <= set(ids)
    assert set(re.findall(r"url\(#(.*?)\)", page)) <= set(ids)


def test_the_page_shows_every_model_and_language(page, evaluation):
    rows = {row[0]: row for row in Page(page).rows if row}
    assert rows["distilled"][1:] == [
        "74.0 [72.0, 76.0]",
        "74.0 [72.0, 76.0]",
        "90.0 [88.0, 92.0]",
        "0.260 [0.240, 0.280]",
        "6,000,000",
        "24.0 MB",
        "4 ms",
    ]
    assert rows["teacher"][3:5] == ["–", "–"]
    assert rows["sw"][1:3] == ["100", "70.0 [68.0, 72.0]"]
    assert rows["sw"][3] == "64.0 [62.0, 66.0]"
    assert set(evaluation.rows) <= set(rows)
    headings = [text for text in Page(page).texts if text.startswith("macro-F1")]
    assert headings == ["macro-F1, %, against latency", "macro-F1, %, by language"]


def test_the_page_suits_phones_and_the_dark(page):
    parsed = Page(page)
    assert ("meta", "content", "width=device-width, initial-scale=1") in parsed.attributes
    assert "prefers-color-scheme: dark" in page
    assert parsed.tags.count("svg") == 2
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for svg in svgs:
        assert "currentColor" in svg and "var(--line)" in svg
        assert not re.search(r"#24292f|#ffffff|#444444", svg, flags=re.IGNORECASE)
        assert re.match(r"<svg [^>]*viewBox=", svg) and not re.match(r"<svg [^>]*\bwidth=", svg)
    assert all("var(--teacher)" in svg for svg in svgs)


def test_names_are_text_and_no_markup(tmp_path):
    names = ["<b>&\"'", "a--b$c"]
    scores = {name: with_mean({row: {"macro_f1": 0.5} for row in ("<i>", "overall")}) for name in names}
    for rows in scores.values():
        rows["overall"]["f1:<u>"] = 0.5
    evaluation = evaluation_of(scores, tmp_path / "made.json", groups={})
    evaluation.to_html(tmp_path / "report.html")
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"b", "i", "u"} & set(parsed.tags)
    cells = {cell for row in parsed.rows for cell in row}
    assert {*names, "<i>", "<u>"} <= cells


def test_groups_and_classes_are_shown(tmp_path):
    rows = with_mean({row: {"macro_f1": 0.5} for row in ("de", "sw", "overall")})
    rows["mean of African"] = {"macro_f1": 0.5}
    rows["overall"]["f1:yes"] = 0.625
    evaluation = evaluation_of({"m": rows}, tmp_path / "made.json", groups={"African": ["sw"]})
    evaluation.to_html(tmp_path / "report.html")
    found = {row[0]: row for row in Page((tmp_path / "report.html").read_text(encoding="utf-8")).rows if row}
    assert found["sw"] == ["sw", "African", "100", "50.0"]
    assert found["yes"] == ["yes", "62.5"]


def test_the_page_is_the_same_each_time(evaluation, page, tmp_path):
    evaluation.to_html(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
