"""The study's page: one file that needs nothing else, true to its records, at ease on a phone."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from study_records import synthetic_sweep

from minires.commands import cli
from minires.study import figures, report
from minires.study.grid import PROFILES
from minires.study.store import save_rows

SECTIONS = (
    "claims", "sweep", "figure-1", "figure-2", "baselines", "ensemble", "updates", "noise",
    "reliability", "sigma", "landscape", "cells",
)  # fmt: skip
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """What a browser would make of the file: elements in order, and whether they are closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text):
        if text.strip():
            self.texts.append((self.open[-1] if self.open else "", text.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def sweep():
    return synthetic_sweep(seeds=4, l1=(0.15, 0.2, 0.3), l2=(0.05, 0.15, 0.25))


@pytest.fixture(scope="module")
def panels(sweep):
    return figures.draw_all(sweep)


@pytest.fixture(scope="module")
def html(sweep, panels):
    return report.write_page(sweep, panels)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def data_of(html):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    )


# --- one file -----------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(html, page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or re.match(r"#|data:", value), (tag, name, value)
    assert not re.search(r"@import|@font-face", html)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|import)\s*\(", html)
    policy = next(m for m in page.all("meta") if m.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_names_are_unique_and_references_hold(html, page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in page.elements:
        for name in ("href", "for", "aria-labelledby"):
            value = attributes.get(name, "")
            if value.startswith("#") or name != "href":
                assert not value or value.lstrip("#") in names, value
    assert set(re.findall(r"url\(#(.*?)\)", html)) <= set(names)


def test_the_page_is_small(html):
    assert len(html.encode()) < 3e6


def test_it_can_be_used_without_eyes(page):
    assert page.elements[0][1] == {"lang": "en"}
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label"), attributes
    labels = {attributes["for"] for attributes in page.all("label")}
    assert {attributes["id"] for attributes in page.all("input")} == labels
    assert all("scope" in attributes for attributes in page.all("th"))
    assert len(page.all("h1")) == 1


def luminance(colour):
    def linear(part):
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_suffices_in_both_themes(html):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light = html[html.index(":root {") : html.index("@media screen and (prefers-color-scheme")]
    # What is printed is dark on white: on a screen only is the dark theme asked for.
    on_screen = re.findall(r"@media screen[^{]*\{[^{]*\{ (.*?) \} \}", html)
    assert on_screen == [report.DARK] * html.count(report.DARK)
    for theme in (light, report.DARK):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for ground in ("page", "sheet"):
            for text in ("ink", "muted", "accent"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            for line in ("warm", "sky", "green"):
                assert contrast(colours[line], colours[ground]) >= 3, (line, ground)
    # What a PNG shows is what the light page shows.
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    for colour, name in figures.VARIABLES.items():
        assert colours[name] == colour


# --- what it says -------------------------------------------------------------------------


def unglued(html):
    return html.replace("\u00a0", " ")


def test_numbers_stay_with_what_they_count():
    glued = report.glue("p = 0.2; +0.1 points <b> at ℓ₁ 0.3, 5 % ± 1; 9 of 10 seeds")
    assert glued == (
        "p\u00a0=\u00a00.2; +0.1\u00a0points <b> at ℓ₁\u00a00.3, 5\u00a0% ±\u00a01; 9 of "
        "10\u00a0seeds"
    )


def test_captions_say_how_many_seeds(sweep, html):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    assert len(captions) == 12
    portraits = [caption for caption in captions if "One network, seed 0" in caption]
    assert len(portraits) == 2
    for caption in set(captions) - set(portraits):
        assert "4 seeds" in caption, caption
        assert "deviation" in caption or "interval" in caption or "All test images of" in caption
    assert figures.say_seeds([[1, 2], [1]]) == "1 to 2 seeds"
    assert figures.say_seeds([[1]]) == "1 seed"


def test_claims_come_first_with_icon_word_and_reason(sweep, html, page):
    from minires.study.claims import verdicts

    expected = verdicts(sweep)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == list(SECTIONS)
    table = html[html.index('<table class="claims"') : html.index("</table>")]
    assert html.index('<table class="claims"') < html.index("<figure")
    rows = re.findall(r"<tr role=\"row\"><td.*?</tr>", table, re.DOTALL)
    assert len(rows) == len(expected) == 14
    for row, verdict in zip(rows, expected, strict=True):
        assert f">{verdict.claim}<" in row
        assert escape(verdict.statement) in row
        said = re.findall(r'<li class="(\w+)">.*?<span>(.*?)</span></li>', row)
        assert [unglued(sentence) for _, sentence in said] == [
            escape(sentence) for _, sentence in verdict.parts
        ]
        assert [kind for kind, _ in said] == [
            {"shown": "yes", "contradicted": "no", "open": "open"}[state]
            for state, _ in verdict.parts
        ]
        assert re.search(rf'<svg viewBox="0 0 16 16".*?</svg>{verdict.outcome}<', row)
        for label, text in verdict.numbers:
            assert escape(label.strip()) in unglued(row)
            assert escape(text) in unglued(row)


def test_every_outcome_has_its_own_icon(html):
    tally = re.search(r'<ul class="tally">.*?</ul>', html)[0]
    icons = dict(re.findall(r'<span class="verdict (\w+)">(<svg.*?</svg>)', tally))
    assert set(icons) == set(report.OUTCOMES.values())
    assert len(set(icons.values())) == 3


def test_every_section_shows_its_panels(panels, html):
    labels = [panel.label for group in panels.values() for panel in group]
    for label in labels:
        assert f'role="img" aria-label="{escape(label)}"' in html
    assert html.count('role="img"') == len(labels)
    assert 'class="missing"' not in html


def test_sliders_hold_the_curves(sweep, html):
    data = data_of(html)
    assert list(data) == ["ensemble", "updates", "noise"]
    for key, dial in data.items():
        positions, table = figures.curve_table(sweep, key)
        assert dial["positions"] == [f"{p:g}" for p in positions]
        row = next(iter(table.values()))
        assert dial["cells"]["0-0"] == [f"{value:.2f} %" for value in row["accuracy"]]
        assert dial["cells"]["0-2"] == [f"{value:.4f}" for value in row["nll"]]
        assert {len(cells) for cells in dial["cells"].values()} == {len(positions)}


def test_the_lead_counts_settings(sweep, html):
    tuned = [r for s, r in figures.shown(sweep).items() if s.l2 is not None]
    ahead = sum(figures.differences_of(r, "mean", "accuracy").mean() > 0 for r in tuned)
    assert 0 < ahead < len(tuned)
    assert f"the higher accuracy in {ahead} of {len(tuned)} settings" in html


def test_a_profile_that_only_tests_has_no_verdicts(sweep, panels):
    smoke = replace(sweep, settings=sweep.settings | {"profile": "smoke"})
    html = unglued(report.write_page(smoke, panels))
    assert html.count("too small to judge: this profile only shows that everything works") == 2
    assert '<table class="claims"' not in html
    assert "verdicts c" not in " ".join(report.lost_of(collapsed(smoke)))
    assert "the higher accuracy" not in html


def test_captions_follow_from_the_data(sweep, html):
    """The share of images in the last bin; and what bars there are with so few seeds."""
    counts = [
        bins["count"] for record in sweep.records for bins in record.get("reliability", {}).values()
    ]
    share = sum(count[-1] for count in counts) / sum(map(sum, counts))
    assert f"{100 * share:.0f} % of them lie in the last bin" in unglued(html)
    assert "No bars: fewer than 5 seeds are too few for an interval." in unglued(html)
    assert "Bars: 95 %" not in unglued(html)


def test_tables_hold_the_numbers(sweep, page):
    cells = [text for tag, text in page.texts if tag == "td"]
    for setting, records in figures.baseline_settings(sweep).items():
        for method in records[0]["methods"]:
            mean, low, _ = figures.with_deviation(figures.values_of(records, method, "accuracy"))
            assert f"{mean:.2f} ± {mean - low:.2f}" in cells, (setting, method)


# --- sweeps with holes, and with strange content ------------------------------------------


def test_what_a_sweep_lacks_a_sentence_says(sweep):
    plain = synthetic_sweep(
        seeds=2, l1=(0.2,), l2=(0.05,), adam=False, baselines=False, curves=False
    )
    for part, missing in ((plain, 8), (replace(sweep, records=[], deep_ensembles=[]), 10)):
        html = report.write_page(part)
        page = Page(html)
        assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
        assert html.count('class="missing"') == missing
        assert html.count("The sweep holds no") == missing


def test_an_unfinished_sweep_says_how_many_cells_are_missing():
    cells = PROFILES["smoke"].cells()
    small = synthetic_sweep(seeds=1, l1=(0.2,), l2=(0.05,), outer=(), adam=False)
    names = ("optimizer", "l1", "dropout", "seed", "finetune_optimizer", "l2")

    def sweep_of(cells, diverged=()):
        records = [{"cell": {n: getattr(c, n) for n in names}, "methods": {}} for c in cells]
        settings = {**PROFILES["smoke"].settings(), "data_sha256": ""}
        return replace(small, settings=settings, records=records, diverged=list(diverged))

    assert report.missing_cells(sweep_of(cells)) == 0
    assert report.missing_cells(sweep_of(cells[3:])) == 3
    lost = [{"cell": {n: getattr(c, n) for n in names}, "diverged": True} for c in cells[:2]]
    assert report.missing_cells(sweep_of(cells[3:], lost)) == 1
    (notice,) = report.unfinished(sweep_of(cells[3:], lost))
    assert f"of the {len(cells)} cells of the profile smoke 1 is missing" in notice
    assert "infinite in 2 cells" in report.lost_of(sweep_of(cells[3:], lost))[0]
    assert report.unfinished(sweep_of(cells)) == report.lost_of(sweep_of(cells)) == []
    assert report.missing_cells(small) is None  # a profile that is not known here


def collapsed(sweep):
    """The same sweep with one network as good as guessing, and one that diverged."""
    cell = next(r for r in sweep.records if r["cell"]["l2"] == 0.15)
    scores = cell["methods"] | {"finetuned": cell["methods"]["finetuned"] | {"accuracy": 0.1}}
    records = [r | {"methods": scores} if r is cell else r for r in sweep.records]
    return replace(sweep, records=records, diverged=[{"cell": cell["cell"], "diverged": "inf"}])


def test_collapsed_networks_are_named(sweep):
    assert report.lost_of(sweep) == []
    fallen = collapsed(sweep)
    notice = report.lost_of(fallen)[1]
    assert "In 1 cell the network collapsed" in notice
    assert "Figures and tables leave it out. The verdicts count it as it is." in notice
    assert "ℓ₂ 0.15" in notice
    runs = dict(report.facts_of(fallen, None))["runs"]
    assert runs == f"{len(fallen.records)} finished, 1 of them collapsed; 1 diverged"
    assert list(figures.count_lost(fallen).values()) == [2]


def test_content_of_records_is_escaped():
    small = synthetic_sweep(seeds=1, l1=(0.2,), l2=(0.15,), adam=False)
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"
    settings = small.settings | {
        "data": nasty, "data_sha256": nasty, "profile": nasty,
        "network": {"name": nasty, nasty: nasty},
    }  # fmt: skip
    for record in small.records:
        for layer in record.get("portrait", {}).get("sigma", []):
            layer["name"] = nasty
    html = report.write_page(replace(small, settings=settings), folder=f"{nasty}\x1b\u202e\n")
    page = Page(html)
    assert not {"\x1b", "\u202e"} & set(html)
    assert any("\\x1b\\u202e\\n" in text for _, text in page.texts)
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert "alert(1)</script>" not in html.replace(escape(nasty), "")
    data_of(html)
    assert any(nasty in text for _, text in page.texts)


# --- the command --------------------------------------------------------------------------


def save_sweep(folder, sweep):
    save_rows(sweep, folder)


@pytest.fixture
def few_panels(monkeypatch):
    """Only some panels, which is faster."""
    for draw in (
        "differences_over_rates", "pretraining_over_rates", "baselines", "reliability", "portrait"
    ):  # fmt: skip
        monkeypatch.setattr(figures, draw, lambda *arguments: [])
    rates, curves = figures.accuracy_over_rates, figures.curves
    monkeypatch.setattr(
        figures, "accuracy_over_rates", lambda s, o: rates(s, o) if o == "adam" else []
    )
    monkeypatch.setattr(figures, "curves", lambda s, k: curves(s, k) if k == "updates" else [])


@pytest.mark.usefixtures("few_panels")
def test_the_command_writes_the_page_and_the_pictures(tmp_path, capsys):
    folder = tmp_path / "sweep"
    save_sweep(folder, synthetic_sweep(seeds=1, l1=(0.2,), l2=(0.15,), outer=()))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(["report", str(folder), "--png", str(tmp_path / "png")]) == 0
    assert "report.html" in capsys.readouterr().err
    html = (folder / "report.html").read_text("utf-8")
    assert ("span", str(folder)) in Page(html).texts
    names = [path.name for path in sorted((tmp_path / "png").iterdir())]
    assert names == [
        "figure-2-dropout-0.5.png", "figure-2-dropout-0.png", "updates-accuracy.png",
        "updates-nll.png",
    ]  # fmt: skip
    assert {p: p.read_bytes() for p in folder.iterdir() if p.name != "report.html"} == before
    other = tmp_path / "other.html"
    assert cli.main(["report", str(folder), "--out", str(other)]) == 0
    assert other.read_text("utf-8") == html  # the same sweep, the same page


def test_the_page_says_what_to_type_for_the_same_sweep():
    """On another device its numbers are others: the folder of a GPU's sweep refuses a CPU."""
    command = report._command({"profile": "lite", "updates": 7}, "runs/a")
    assert command == "minires sweep --profile lite --updates 7 --out runs/a"
    settings = {"profile": "lite", "device": "gpu"}
    assert report._command(settings, None) == "minires sweep --profile lite --device gpu"
    fewer = {"profile": "full", "data": "mnist", "train": 500, "test": 10_000}
    assert report._command(fewer, None) == "minires sweep --profile full --train 500"
    sweep = replace(synthetic_sweep(seeds=1), settings=settings)
    facts = dict(report.facts_of(sweep, None))
    assert facts["command"] == "minires sweep --profile lite --device gpu"
    shown = str(report.template("macros.html.j2").module.fact_list(facts.items()))
    words = [text for tag, text in Page(shown).texts if tag == "span"]
    assert " ".join(words) == facts["command"]


@pytest.mark.usefixtures("few_panels")
def test_an_old_page_stays_whole_when_the_new_one_fails(tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    save_sweep(folder, synthetic_sweep(seeds=1, l1=(0.2,), l2=(0.15,), outer=(), adam=False))
    (folder / "report.html").write_text("old", "utf-8")

    def fail(*arguments):
        raise ValueError("no page today")

    monkeypatch.setattr(report, "write_page", fail)
    assert cli.main(["report", str(folder)]) == 2
    assert (folder / "report.html").read_text("utf-8") == "old"
    assert not list(folder.glob("*.part"))


def test_a_folder_without_a_sweep_is_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- in a browser -------------------------------------------------------------------------

# The page in frames of a phone's and a laptop's width. What it finds goes into the title.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const html = PAGE, found = {};
const listen = '<script>parent.problems ??= []; const tell = (what) => ' +
  'parent.problems.push(String(what)); addEventListener("error", (e) => tell(e.message)); ' +
  'addEventListener("securitypolicyviolation", (e) => tell(e.blockedURI)); ' +
  'console.error = console.warn = tell;</' + 'script>';
const visit = (width) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = "border:0;height:800px;width:" + width + "px";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    const name = "at " + width, seen = (found[name] = {});
    const shown = (element) => element.getClientRects().length > 0;
    const measure = () => [root.scrollWidth, root.clientWidth];
    seen.closed = measure();
    page.querySelectorAll("details").forEach((details) => { details.open = true; });
    seen.open = measure();
    seen.outside = [...page.querySelectorAll("main *, header *, footer *")].filter((element) =>
      shown(element) && !element.closest(".scroll, code, svg, .claims thead")
      && element.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML);
    seen.letters = Math.min(...[...page.querySelectorAll("svg text")].filter(shown).map((text) => {
      const { a, b } = text.getScreenCTM();
      return parseFloat(view.getComputedStyle(text).fontSize) * Math.hypot(a, b);
    }));
    seen.dials = [...page.querySelectorAll("section[data-dial]")].map((section) => {
      const read = () => [section.querySelector("output").textContent,
        section.querySelector("[data-cell]").textContent,
        section.querySelector(".cursor").getBoundingClientRect().x];
      const input = section.querySelector("input");
      return ["0", "2"].map((value) => {
        input.value = value;
        input.dispatchEvent(new Event("input"));
        return read();
      });
    });
    const ground = () => view.getComputedStyle(page.body).backgroundColor;
    const before = ground();
    page.getElementById("theme").click();
    seen.themes = [before, ground()];
    seen.resources = view.performance.getEntriesByType("resource").map((entry) => entry.name);
    done();
  };
  frame.srcdoc = html.replace("<head>", "<head>" + listen);
  document.body.append(frame);
});
(async () => {
  for (const width of [360, 768, 1280]) await visit(width);
  found.problems = window.problems;
  document.body.textContent = "";
  document.title = JSON.stringify(found);
})();
</script>"""


@pytest.fixture(scope="module")
def visit(html, tmp_path_factory):
    """What a headless Chromium finds on the page: (findings, its own log)."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("browser")
    probe = folder / "probe.html"
    # "<" as an escape: the page's own </script> would end the probe's.
    text = json.dumps(html).replace("<", "\\u003c")
    probe.write_text(PROBE.replace("PAGE", text, 1), "utf-8")
    done = subprocess.run(
        [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900",
            "--virtual-time-budget=20000", "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    unescaped = title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(unescaped), done.stderr


def test_browser_no_errors_and_no_requests(visit):
    found, log = visit
    assert found["problems"] == []
    assert not re.findall(r".*CONSOLE.*", log)
    for width in (360, 768, 1280):
        assert found[f"at {width}"]["resources"] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_browser_nothing_is_wider_than_the_screen(visit, width):
    seen = visit[0][f"at {width}"]
    for shown, held in (seen["closed"], seen["open"]):
        assert held == width
        assert shown <= held
    assert seen["outside"] == []


def test_browser_letters_in_figures_can_be_read(visit):
    for width in (360, 768, 1280):
        assert visit[0][f"at {width}"]["letters"] >= 8


def test_browser_sliders_change_numbers_and_move_the_line(visit, html):
    data = data_of(html)
    for width in (360, 1280):
        dials = visit[0][f"at {width}"]["dials"]
        assert len(dials) == len(data) == 3
        for dial, (first, third) in zip(data.values(), dials, strict=True):
            for at, (position, value, _) in ((0, first), (2, third)):
                assert position == dial["positions"][at]
                assert value == dial["cells"]["0-0"][at]
            assert third[2] > first[2] + 3


def test_browser_the_button_changes_the_theme(visit):
    for width in (360, 1280):
        before, after = visit[0][f"at {width}"]["themes"]
        assert before != after


def test_the_command_of_a_candidate_is_that_of_all(tmp_path):
    sweep = synthetic_sweep(seeds=1)
    settings = {**sweep.settings, "profile": "slim-512"}
    command = dict(report.facts_of(replace(sweep, settings=settings), Path("my runs/slim-512")))
    words = shlex.split(command["command"])
    given = cli.parser().parse_args(words[1:])
    assert (given.profile, given.only, given.out) == ("which-lenet", ["slim-512"], Path("my runs"))
