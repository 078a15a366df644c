"""The page over all cases: works offline, runs nothing, escapes everything, and puts problems first."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import unquote

from PIL import Image

from monai_attention.report.page import THUMBNAIL, write_report
from monai_attention.report.preview import write_preview

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {0} é"
VOLUME = {"label": 1, "voxels": 8, "ml": 1234.56}


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text outside of the style sheet."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.words += data


def page_of(folder, results, summary=None):
    write_report(folder / "report.html", results, summary or {})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_hostile_words_are_shown_and_never_run(tmp_path):
    record = {
        **{"case_id": HOSTILE, "verdict": "flagged", "code": HOSTILE, "message": HOSTILE, "remedy": HOSTILE},
        "path": HOSTILE,
        "notes": [{"kind": "flag", "code": HOSTILE, "message": HOSTILE + "!"}],
        "volumes": {HOSTILE: VOLUME},
        "geometry": {"shape": [1, 2, 3], "spacing_mm": [1.0, 1.0, 1.0], "orientation": HOSTILE},
        "seconds": {HOSTILE: 1.0},
        "outputs": {"labels": HOSTILE},
    }
    page = page_of(tmp_path, [record], {HOSTILE: {HOSTILE: [HOSTILE]}})
    parsed = Tags(page)
    assert parsed.words.count("<script>alert('x')</script>") == 14
    assert not {"script", "img", "iframe", "object", "form", "link", "base"} & {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    policy = dict(parsed.tags[3][1])
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'"


def test_pictures_are_inside_and_links_lead_to_the_files(tmp_path):
    case_id = "site 1/süb#2%"
    (tmp_path / case_id).mkdir(parents=True)
    write_preview(tmp_path / case_id / "preview.png", Image.new("RGB", (1200, 900)))
    page = page_of(tmp_path, [{"case_id": case_id, "verdict": "ok", "outputs": {"preview": "preview.png"}}])
    tags = Tags(page).tags
    (source,) = [attributes["src"] for tag, attributes in tags if tag == "img"]
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    assert max(Image.open(BytesIO(base64.b64decode(data))).size) == THUMBNAIL
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == 2
    assert all((tmp_path / unquote(link)).is_file() for link in links)
    assert not re.search(r"https?:|//|url\(|@import", page.replace(data, ""))


def test_a_missing_or_damaged_preview_does_not_stop_the_page(tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = ("damaged", "missing")
    page = page_of(tmp_path, [{"case_id": n, "verdict": "ok", "outputs": {"preview": "preview.png"}} for n in names])
    assert page.count("missing or damaged") == 2


def test_cases_that_need_attention_come_first_and_are_counted(tmp_path):
    verdicts = {"a": "ok", "b": "flagged", "c": "ok", "d": "refused", "\udce9": "ok"}
    page = page_of(tmp_path, [{"case_id": k, "verdict": v} for k, v in verdicts.items()])
    assert "5cases3ok1flagged1refused" in Tags(page).words
    assert re.findall(r'<div class="id">(.+?)</div><span class="verdict .+?">(.) ', page) == [
        *(("d", "✕"), ("b", "!"), ("a", "✓"), ("c", "✓"), ("\\udce9", "✓"))
    ]


def test_row_60_only_documented_keys_reach_the_page(tmp_path):
    record = {
        "case_id": "a",
        "verdict": "ok",
        "PatientName": "DOE^JANE",
        "volumes": {"liver": VOLUME | {"id": "DOE^JANE"}},
    }
    page = page_of(tmp_path, [record], {"device": "cpu"})
    assert "DOE" not in page
    assert "1,234.6 mL" in page
    assert "<dt>device</dt><dd>cpu</dd>" in page
