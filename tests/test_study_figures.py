"""The study's figures: what is drawn is what the records say, and SVGs can share a page."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from study_records import synthetic_sweep

from minires.study import figures
from minires.study.grid import Setting
from minires.study.scores import by_setting

SMALL = {"seeds": 3, "l1": (0.15, 0.2, 0.3), "l2": (0.05, 0.15, 0.25), "outer": (0.05,)}


@pytest.fixture(scope="module")
def sweep():
    return synthetic_sweep(**SMALL)


@pytest.fixture(scope="module")
def panels(sweep):
    return figures.draw_all(sweep)


@pytest.fixture(scope="module")
def drawings(panels):
    return {p.name: p.to_svg() for group in panels.values() for p in group}


def scores_of(sweep, method, metric, **cell):
    """By hand: the scores of all records whose cell has these values."""
    return np.array(
        [
            record["methods"][method][metric]
            for record in sorted(sweep.records, key=lambda r: r["cell"]["seed"])
            if cell.items() <= record["cell"].items()
        ]
    )


def lines_of(axes, colour, style):
    """What was drawn in a colour and style with marks: a list of y-values for each line."""
    return [
        line.get_ydata()
        for line in axes.lines
        if line.get_color() == colour
        and line.get_linestyle() == style
        and len(line.get_ydata()) > 2
    ]


# --- numbers ------------------------------------------------------------------------------


def test_figure_1_draws_the_means_over_seeds(sweep, panels):
    for method in ("finetuned", "mean", "ensemble_3", "ensemble_10"):
        for panel, dropout, style in zip(panels["figure-1"], (0.5, 0.0), ("-", "--"), strict=True):
            drawn = [
                line
                for axes in panel.figure.axes
                for line in lines_of(axes, figures.COLOURS[method], style)
            ]
            expected = [
                [
                    100 * scores_of(sweep, method, "accuracy", optimizer="sgd", l1=l1, l2=l2,
                                    dropout=dropout, finetune_optimizer="sgd").mean()
                    for l2 in SMALL["l2"]
                ]
                for l1 in SMALL["l1"]
            ]  # fmt: skip
            np.testing.assert_allclose(drawn, expected)


def test_figure_1_has_standard_deviations_as_bars(sweep, panels):
    drawn = sorted(
        float(np.diff(segment[:, 1])[0])
        for panel in panels["figure-1"]
        for axes in panel.figure.axes
        for bars in axes.collections
        for segment in bars.get_segments()
    )
    records = [r for r in sweep.records if r["cell"]["l2"] and r["cell"]["optimizer"] == "sgd"]
    cells = {tuple(sorted({**r["cell"], "seed": 0}.items())) for r in records}
    expected = sorted(
        200
        * scores_of(sweep, method, "accuracy", **{k: v for k, v in c if k != "seed"}).std(ddof=1)
        for c in cells
        for method in ("finetuned", "mean", "ensemble_3", "ensemble_10")
    )
    np.testing.assert_allclose(drawn, expected, atol=1e-9)


def test_differences_are_paired_by_seed(sweep, panels):
    accuracy = next(p for p in panels["figure-1-differences"] if p.name == "figure-1-accuracy")
    cell = {"optimizer": "sgd", "l1": 0.2, "dropout": 0.5}
    expected = [
        100
        * (
            scores_of(sweep, "mean", "accuracy", **cell, l2=l2)
            - scores_of(sweep, "finetuned", "accuracy", **cell, l2=l2)
        ).mean()
        for l2 in SMALL["l2"]
    ]
    drawn = lines_of(accuracy.figure.axes[0], figures.ACCENT, "-")
    np.testing.assert_allclose(drawn[1], expected)


def test_differences_leave_out_seeds_that_lack_a_method():
    def record(seed, **scores):
        methods = {name: {"accuracy": value} for name, value in scores.items()}
        return {"cell": {"seed": seed}, "methods": methods}

    records = [record(0, finetuned=0.9, mean=0.95), record(1, mean=0.5), record(2, finetuned=0.8)]
    np.testing.assert_allclose(figures.differences_of(records, "mean", "accuracy"), [5])


def test_adam_is_a_straight_line_in_figure_2(sweep, panels):
    heights = {
        line.get_ydata()[0]
        for panel in panels["figure-2"]
        for line in panel.figure.axes[0].lines
        if line.get_color() == figures.INK
    }
    adam = {"optimizer": "adam", "finetune_optimizer": "adam"}
    expected = {
        100 * scores_of(sweep, "mean", "accuracy", **adam, dropout=dropout).mean()
        for dropout in (0.5, 0.0)
    }
    np.testing.assert_allclose(sorted(heights), sorted(expected))


def test_points_lie_on_their_ticks_and_no_panel_has_more_than_four_series(panels):
    for panel in panels["figure-1"] + panels["figure-2"] + panels["figure-1-differences"]:
        for axes in panel.figure.axes:
            ticks = axes.get_xticks()
            series = [line for line in axes.lines if line.get_marker() in ("o", "^", "s")]
            drawn = {(line.get_color(), line.get_linestyle()) for line in series}
            assert 1 <= len(drawn) <= 4
            for line in series:
                away = min(np.diff(ticks)) if len(ticks) > 1 else 0.84
                gaps = [min(abs(ticks - x)) for x in line.get_xdata()]
                assert max(gaps) < 0.1 * away + 1e-9


def test_the_calibration_error_has_a_panel(sweep, panels):
    names = [panel.name for panel in panels["figure-1-differences"]]
    assert names == ["figure-1-accuracy", "figure-1-nll", "figure-1-ece"]
    assert [p.name for p in panels["baselines"]][2] == "baselines-1-ece"
    cell = {"optimizer": "sgd", "l1": 0.2, "dropout": 0.5, "l2": 0.15}
    gap = scores_of(sweep, "mean", "ece", **cell) - scores_of(sweep, "finetuned", "ece", **cell)
    drawn = lines_of(panels["figure-1-differences"][2].figure.axes[0], figures.ACCENT, "-")
    assert drawn[1][1] == pytest.approx(100 * gap.mean())


def test_below_five_seeds_the_caption_says_too_few():
    assert "too few for an interval" in figures.say_bars([[1] * 4, [1]])
    assert "95 % intervals" in figures.say_bars([[1] * 5, [1]])


def test_curves_are_differences_to_fine_tuned_of_the_same_seed(sweep):
    positions, table = figures.curve_table(sweep, "updates")
    setting, row = next(iter(table.items()))
    cell = {k: getattr(setting, k) for k in setting._fields}
    records = [r for r in sweep.records if cell.items() <= r["cell"].items()]
    assert records
    scores = np.array([r["curves"]["updates"]["nll"] for r in records])
    base = np.array([r["methods"]["finetuned"]["nll"] for r in records])
    assert positions == records[0]["curves"]["updates"]["updates"]
    np.testing.assert_allclose(row["nll"], scores.mean(axis=0))
    drawn = [middle for middle, _, _ in row["nll_difference"]]
    np.testing.assert_allclose(drawn, (scores - base[:, None]).mean(axis=0), atol=1e-12)
    assert np.isnan([ends for _, *ends in row["nll_difference"]]).all(), "three seeds: no interval"
    five = synthetic_sweep(**SMALL | {"seeds": 5})
    _, table = figures.curve_table(five, "updates")
    row = next(iter(table.values()))
    assert all(low <= middle <= high for middle, low, high in row["nll_difference"])


def test_curves_keep_what_records_have_in_common():
    sweep = synthetic_sweep(seeds=2, l1=(0.2,), l2=(0.15,), adam=False)
    held = [r for r in sweep.records if "curves" in r]
    for part in held[0]["curves"]["updates"].values():
        del part[3]  # 10 updates
    positions, _ = figures.curve_table(sweep, "updates")
    assert positions == [1, 2, 5, 20, 50, 100, 200, 300, 400, 500]


def test_bins_of_several_seeds_become_one():
    confidence, accuracy, count = figures.pool_bins(
        [
            {"confidence": [None, 0.9], "accuracy": [None, 1.0], "count": [0, 30]},
            {"confidence": [None, 0.8], "accuracy": [None, 0.6], "count": [0, 10]},
        ]
    )
    assert np.isnan(confidence[0])
    assert np.isnan(accuracy[0])
    np.testing.assert_allclose([confidence[1], accuracy[1]], [0.875, 0.9])
    assert count.tolist() == [0, 40]


def test_baselines_stand_in_rows_with_deep_ensembles_of_their_own_setting(sweep, panels):
    accuracy = panels["baselines"][0].figure.axes[0]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names[0] == "fine-tuned, rate decayed"
    assert names[-1] == "deep ensemble"
    assert "fine-tuned" not in names
    setting = next(iter(figures.baseline_settings(sweep)))
    entries = figures.deep_ensembles_of(sweep, setting)
    base = 100 * scores_of(sweep, "finetuned", "accuracy", l1=setting.l1, l2=setting.l2,
                           optimizer="sgd", dropout=setting.dropout).mean()  # fmt: skip
    diamonds = [line.get_xdata() for line in accuracy.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(diamonds[0], [100 * e["accuracy"] - base for e in entries])
    assert not figures.deep_ensembles_of(sweep, setting._replace(l2=9.0))


def test_smaller_deep_ensembles_are_no_measurement_of_the_large_one(sweep):
    setting = next(iter(figures.baseline_settings(sweep)))
    whole = figures.deep_ensembles_of(sweep, setting)
    rest = {**whole[0], "members": 1, "accuracy": 0.5}
    more = replace(sweep, deep_ensembles=[rest, *sweep.deep_ensembles])
    assert figures.deep_ensembles_of(more, setting) == whole


# --- drawings -----------------------------------------------------------------------------


def test_every_section_has_panels(panels):
    assert all(panels.values())
    names = [panel.name for group in panels.values() for panel in group]
    assert len(names) == len(set(names))


def test_drawings_are_images_with_a_label_and_no_colour_of_their_own(drawings):
    for name, svg in drawings.items():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img", name
        assert len(root.get("aria-label")) > 20, name
        assert not re.findall(r"#[0-9a-fA-F]{6}", svg), name
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(figures.VARIABLES.values())
        assert "DejaVu" not in svg


def test_names_within_drawings_do_not_clash_and_all_references_hold(drawings):
    seen = set()
    for name, svg in drawings.items():
        own = re.findall(r'\bid="([^"]+)"', svg)
        assert len(own) == len(set(own)), name
        assert not seen & set(own), name
        seen |= set(own)
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) == set(own), name


def test_the_sliders_line_reaches_every_position(panels, drawings):
    panel = panels["updates"][0]
    shift = re.search(r'class="cursor" data-shift="\[([^\]]+)\]"', drawings[panel.name])
    places = [float(value) for value in shift[1].split(",")]
    positions = panel.cursor[1]
    assert len(places) == len(positions)
    assert places[0] == 0
    # The axis is logarithmic: equal ratios are equal distances.
    np.testing.assert_allclose(
        np.array(places) / places[-1], np.log(positions) / np.log(positions[-1]), atol=2e-3
    )


def test_the_same_sweep_gives_the_same_drawing(sweep, drawings):
    again = figures.accuracy_over_rates(sweep, "adam")[0]
    assert again.to_svg() == drawings["figure-2-dropout-0.5"]


def test_strange_names_of_layers_stay_text(sweep):
    strange = '<script>"&$x$ 層'
    record = next(r for r in sweep.records if "portrait" in r)
    layer = record["portrait"]["sigma"][0] | {"name": strange}
    changed = replace(sweep, records=[record | {"portrait": {"sigma": [layer]}}], deep_ensembles=[])
    svg = figures.portrait(changed, "sigma")[0].to_svg()
    assert strange in [text.text for text in ElementTree.fromstring(svg).iter() if text.text]


def test_png_files_of_every_panel(sweep, tmp_path):
    sections = {"figure-1": figures.differences_over_rates(sweep, "sgd")}
    paths = figures.write_pngs(sections, tmp_path / "figures")
    names = [f"figure-1-{metric}.png" for metric in ("accuracy", "nll", "ece")]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


# --- sweeps with holes --------------------------------------------------------------------


def test_an_empty_sweep_has_no_panels(sweep):
    empty = replace(sweep, records=[], deep_ensembles=[])
    assert not any(figures.draw_all(empty).values())


def test_one_seed_has_no_bars():
    sweep = synthetic_sweep(**SMALL | {"seeds": 1})
    panels = figures.draw_all(sweep)
    assert all(panels.values())
    bars = panels["figure-1"][0].figure.axes[0].collections
    segments = [segment for bar in bars for segment in bar.get_segments()]
    assert not any(np.ndim(s) == 2 and np.isfinite(s).all() for s in segments)
    panels["figure-1"][0].to_svg()
    panels["updates"][0].to_svg()


def test_a_half_finished_sweep_is_drawn(sweep):
    half = replace(sweep, records=sweep.records[: len(sweep.records) // 2 + 5])
    panels = figures.draw_all(half)
    assert panels["figure-1"]
    panels["figure-1"][0].figure.draw_without_rendering()


def collapse(sweep, method, accuracy, **cell):
    """The sweep with one seed's score changed."""
    records = []
    for record in sweep.records:
        if ({"seed": 1} | cell).items() <= record["cell"].items():
            scores = record["methods"][method] | {"accuracy": accuracy}
            record = record | {"methods": record["methods"] | {method: scores}}
        records.append(record)
    return replace(sweep, records=records)


CELL = {
    "optimizer": "sgd", "l1": 0.2, "dropout": 0.5, "finetune_optimizer": "sgd", "l2": 0.15
}  # fmt: skip


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_collapsed_networks_are_counted_and_left_out(sweep):
    broken = collapse(sweep, "finetuned", 0.098, **CELL)
    setting = Setting(**CELL)
    assert len(figures.shown(broken)[setting]) == 2
    assert len(by_setting(broken.records, figures.has_collapsed)[setting]) == 1
    axes = figures.accuracy_over_rates(broken)[0].figure.axes[0]
    kept = np.delete(100 * scores_of(sweep, "mean", "accuracy", **CELL), 1)
    assert kept.mean() == pytest.approx(lines_of(axes, figures.ACCENT, "-")[1][1])
    assert texts_of(axes).count("✕ 1") == 1
    assert "✕" not in str(texts_of(figures.accuracy_over_rates(sweep)[0].figure.axes[0]))


def test_a_rate_at_which_every_pre_training_collapsed_has_a_tick_and_a_count(sweep):
    rate = min(r["cell"]["l1"] for r in sweep.records if r["cell"]["optimizer"] == "sgd")
    start = {"optimizer": "sgd", "l1": rate, "l2": None}
    seeds = {r["cell"]["seed"] for r in sweep.records if start.items() <= r["cell"].items()}
    for seed in seeds:
        sweep = collapse(sweep, "pretrained", 0.098, **start, seed=seed)
    (panel,) = figures.pretraining_over_rates(sweep)
    (axes,) = panel.figure.axes
    assert axes.get_xticklabels()[0].get_text() == figures.number(rate)
    assert texts_of(axes) == [f"✕ {len(seeds)}"]
    places = np.concatenate([line.get_xdata() for line in axes.lines])
    assert min(places) > 0.5
    assert max(abs(places - np.round(places))) < 0.02 * len(axes.get_xticks())


def test_a_line_of_adam_looks_in_the_legend_as_in_the_panel(panels):
    for panel in panels["figure-2"]:
        legend = panel.figure.legends[0].legend_handles
        (shown,) = [h for h in legend if h.get_label() == "mean model, by Adam"]
        drawn = [line for line in panel.figure.axes[0].lines if line.get_color() == figures.INK]
        assert {line.get_linestyle() for line in drawn} == {shown.get_linestyle()}


def test_a_mean_that_fails_where_fine_tuning_does_not_stays_in(sweep):
    broken = collapse(sweep, "mean", 0.098, **CELL)
    axes = figures.accuracy_over_rates(broken)[0].figure.axes[0]
    expected = 100 * scores_of(broken, "mean", "accuracy", **CELL).mean()
    assert expected < 75
    assert lines_of(axes, figures.ACCENT, "-")[1][1] == pytest.approx(expected)
    # The scale is that of the others; a triangle and a note say what lies below.
    assert axes.get_ylim()[0] > 98
    assert f"▼ off the scale, down to {expected:.3g}" in texts_of(axes)
    assert len([line for line in axes.lines if line.get_marker() == "v"]) == 1


@pytest.mark.parametrize(("highest", "cropped"), [(0.775, False), (7.75, True)])
def test_the_scale_is_cropped_only_where_that_helps(highest, cropped):
    axes = figures.new_canvas(400, 300).subplots()
    axes.plot(range(8), [-0.15, -0.1, -0.12, -0.09, -0.07, 0.17, 0.62, highest])
    figures._crop([axes], least=0)
    assert bool(axes.get_ylim()[1] < highest) is cropped
    assert bool(axes.texts) is cropped


def test_the_scale_is_whole_where_nothing_lies_far_off(panels):
    for panel in panels["figure-1"] + panels["figure-2"]:
        assert "off the scale" not in str([texts_of(axes) for axes in panel.figure.axes])


def test_a_readers_own_style_does_not_reach_the_figures(sweep):
    import matplotlib

    with matplotlib.rc_context({"axes.grid": True, "grid.color": "#b0b0b0"}):
        drawn = figures.draw_all(sweep)
    assert not any("#b0b0b0" in p.to_svg() for group in drawn.values() for p in group[:1])
