"""The probe's report page: whole, self-contained, and true to the numbers it was given."""

from __future__ import annotations

import re
import struct
import zlib

import pytest

from olmoearth_cli.errors import OutputError
from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.report_html import render, write_report
from tests.html_page import Page

EVIL = "<script>alert('1')</script>"


def classification(names: list[str], confusion: list[list[int]], **more):
    n = len(names)
    return {
        "probe": "knn",
        "kind": "classification",
        "metric": "accuracy",
        "value": 0.8125,
        "low": 0.75,
        "high": 0.875,
        "metrics": {"accuracy": 0.8125, "macro_f1": 0.7654, "auroc": None, "f1_class_0": 0.1111},
        "samples": 1234,
        "class_names": names,
        "class_counts": [10 * (k + 1) for k in range(n)],
        "per_class": [{"name": c, "support": 5, "precision": 0.5, "recall": 0.25, "f1": None} for c in names],
        "confusion": confusion,
        "baselines": [{"name": "raw bands", "value": 0.5, "low": 0.25, "high": 0.75}],
        **more,
    }


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


FULL = classification(
    ["a", EVIL],
    [[3, 1], [0, 12]],
    warnings=[f"beware {EVIL}"],
    notes=["a & b"],
    map="/maps/<i>",
    labels="l.gpkg",
    field='"field"',
    model="v1.2-tiny",
    weights_sha256="0123456789abcdef",
    demo=False,
    split={"how": "blocks", "folds": 5, "block_km": 2.5, "description": None},
    calibration={"temperature": 1.25, "ece_before": 0.08, "ece_after": 0.03},
    predict={"path": "m.tif", "km2_by_class": {"a": 1.5, EVIL: 4.5}, "mean_confidence": 0.7},
    settings={"k": 20, "grid": [1, 2], EVIL: None, "x<y": EVIL},
    command=f"olmoearth probe knn --labels '{EVIL}'",
    seconds=12.34,
    version="0.3.0",
)


def test_the_page_is_balanced_escaped_and_asks_nothing_of_the_network():
    text = render(FULL, class_map_png=png(4, 2), preview_png=png(4, 2), labels=[(0.5, 0.5, 0), (0.1, 0.2, 1)])
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<i>" not in text and "&lt;i&gt;" in text
    assert page.text.count("<script>alert('1')</script>") >= 8
    links = [v for _, a in page.tags for k, v in a.items() if k in {"href", "src", "xlink:href", "action"}]
    assert len(links) == 2 and all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?:|url\(|@import|//\w", text)
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_page_says_the_result_its_split_and_its_settings():
    words = Page(render(FULL)).text
    for part in (
        *("Accuracy 0.812", "95 % interval 0.750 to 0.875", "Samples 1 234", "F1 (mean over classes) 0.765"),
        *("by blocks, 5 folds, blocks of 2.5 km", "Temperature 1.250", "0.080 before, 0.030 after", "m.tif"),
        *("Weights (SHA-256) 0123456789ab…", "12.3 s", "k 20", "grid [1, 2]", "a & b", "olmoearth probe knn --labels"),
        *("25.0%", "75.0%", "raw bands", "0.250 to 0.750"),
    ):
        assert part in words, part
    assert "0.111" not in words and "AUROC" not in words
    assert "DEMO" not in words


def test_demo_weights_are_said_above_everything_else():
    words = Page(render({**FULL, "demo": True})).text
    assert 0 < words.index("DEMO WEIGHTS") < words.index("Accuracy 0.812")


def test_a_cell_of_the_matrix_has_its_count_and_is_shaded_by_its_share_of_the_row():
    text = render(classification(["a", "b"], [[3, 1], [0, 12]], baselines=[]))
    matrix = text[text.index("Confusion matrix") :]
    cells = re.findall(r'<rect class="own" x="(\d+)"[^>]*opacity="([\d.]+)"/><text[^>]*>(\d+)', matrix)
    assert cells == [("0", "0.75", "3"), ("46", "0.25", "1"), ("46", "1.00", "12")]
    assert "a taken for b: 1 of 4 (25.0%)" in matrix


def test_bars_and_whiskers_are_drawn_to_one_scale():
    page = Page(render(FULL))
    own, other = page.all("rect", "own")[0], page.all("rect", "other")[0]
    assert float(own["width"]) / float(other["width"]) == pytest.approx(0.8125 / 0.5, abs=0.01)
    whisker = page.all("path", "whisker")[1]["d"]
    start, end = map(float, re.match(r"M([\d.]+) \d+H([\d.]+)", whisker).groups())
    zero, unit = float(other["x"]), float(other["width"]) / 0.5
    assert (start - zero) / unit == pytest.approx(0.25, abs=0.001)
    assert (end - zero) / unit == pytest.approx(0.75, abs=0.001)


def test_class_bars_hold_support_and_an_undefined_score_has_no_bar():
    text = render(FULL)
    row = re.search(r"<tr><td class=\"name\">.*?>a</td>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td class=\"n(?: bar\" style=\"--v:([\d.]+)%)?\">([^<]*)</td>", row) == [
        ("50.0", "10"),
        ("", "5"),
        ("50.0", "0.500"),
        ("25.0", "0.250"),
        ("", "–"),
    ]


def test_a_negative_rmse_is_shown_as_the_error_it_is():
    report = {
        "probe": "linear",
        "kind": "regression",
        "metric": "neg_rmse",
        "value": -20.25,
        "low": -22.0,
        "high": -19.0,
        "metrics": {"neg_rmse": -20.25, "rmse": 20.25, "mae": 15.5, "r2": 0.875},
        "baselines": [{"name": "mean", "value": -40.0, "low": None, "high": None}],
        "scatter": {"true": [float(k) for k in range(900)], "predicted": [float(k) for k in range(900)]},
    }
    page = Page(render(report))
    assert "RMSE 20.2 95 % interval 19.0 to 22.0 MAE 15.5 R² 0.875" in page.text
    assert "smaller is better" in page.text and "−" not in page.text
    own, other = page.all("rect", "own")[0], page.all("rect", "other")[0]
    assert float(other["width"]) > float(own["width"]) > 0
    assert "500 of 900 samples" in page.text
    points = re.findall(r"M([\d.]+) ([\d.]+)h0", page.all("path", "dots")[0]["d"])
    assert len(points) == 500
    sums = {round(float(x) - 70 + float(y) - 10) for x, y in points}  # on the line of equality of a 400 px square
    assert sums == {400}


def test_labels_lie_where_their_shares_say_in_their_classes_colours():
    names = ["first", "second"]
    text = render(
        classification(names, [[1, 0], [0, 1]]), preview_png=png(200, 100), labels=[(0.25, 0.5, 1), (1.0, 0.0, 0)]
    )
    page = Page(text)
    dots = {a["stroke"]: a["d"] for a in page.all("path", "label") if a["stroke"] != "#fff"}
    first, second = ("#{:02x}{:02x}{:02x}".format(*ink) for ink in colours(names))
    assert dots == {second: "M50.0 50.0h0", first: "M200.0 0.0h0"}
    assert page.all("svg", "map")[0]["viewbox"] == "0 0 200 100"
    assert f'style="background:{first}"></span>first</span>' in text
    assert "2 labels drawn" in page.text
    many = classification(names, [[1, 0], [0, 1]], kind="multilabel")
    page = Page(render(many, preview_png=png(200, 100), labels=[(0.25, 0.5, 0)]))
    assert {a["stroke"] for a in page.all("path", "label")} == {"#fff", "#222"} and not page.all("div", "legend")
    with pytest.raises(ValueError, match="not a PNG"):
        render(FULL, preview_png=b"GIF89a")


def test_many_classes_stay_legible_and_small():
    n = 43
    names = [f"class with quite a long name, number {k}" for k in range(n)]
    confusion = [
        [9000 if i == j else 7 + (i, j).count(3) * 50 + (i == 5 and j == 6) * 4000 for j in range(n)] for i in range(n)
    ]
    text = render(classification(names, confusion))
    assert len(text.encode()) < 400_000
    page = Page(text)
    assert len(page.all("rect", "own")) == n * n + 1
    drawing = page.all("svg", "figure")[1]
    assert f"min-width:{drawing['width']}px" in drawing["style"]
    after = page.text[page.text.index("Most frequent confusions") :]
    assert after.index("number 5 ") < after.index("number 6 ") < after.index("4 007")
    huge = [f"c{k}" for k in range(300)]
    text = render(classification(huge, [[int(i == j) for j in range(300)] for i in range(300)]))
    assert "Not drawn for 300 classes" in text and len(text) < 400_000


def test_a_report_with_only_the_needed_keys_or_with_nulls_is_a_page():
    least = {"probe": "knn", "kind": "multilabel", "metric": "new_metric", "value": 0.5}
    words = Page(render(least)).text
    assert "multi-label classification" in words and "new_metric 0.500" in words
    nulls = {key: None for key in FULL} | least | {"value": None}
    assert "new_metric –" in Page(render(nulls)).text
    no_matrix = Page(render({**FULL, "kind": "multilabel", "confusion": None}))
    assert "Confusion" not in no_matrix.text and "Precision" in no_matrix.text


def test_the_file_appears_whole_or_the_error_names_it(tmp_path):
    write_report(tmp_path / "report.html", FULL)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(FULL)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="in the place of a folder"):
        write_report(tmp_path / "file" / "report.html", FULL)
