"""The cells of the study: the paper's grid, every fine-tuning after its pre-training."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest

from minires.study.grid import FULL, PROFILES, SMOKE, Cell, Setting, nearest
from minires.study.scores import by_setting
from minires.study.statistics import LEAST_SEEDS

every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def test_full_is_the_grid_of_the_paper():
    cells = FULL.cells()
    figure_1 = {
        Cell("sgd", l1, dropout, seed, "sgd", l2)
        for l1 in (0.15, 0.2, 0.25, 0.3)
        for l2 in (0.05, 0.1, 0.15, 0.2, 0.25)
        for dropout in (0.0, 0.5)
        for seed in range(10)
    }
    figure_2 = {
        Cell("adam", 1e-3, dropout, seed, *after)
        for after in [("sgd", l2) for l2 in (0.05, 0.1, 0.15, 0.2, 0.25)] + [("adam", 1e-3)]
        for dropout in (0.0, 0.5)
        for seed in range(10)
    }
    assert {cell for cell in cells if not cell.is_pretraining} == figure_1 | figure_2
    outside = {Cell("sgd", l1, 0.5, seed) for l1 in (0.05, 0.6) for seed in range(10)}
    shared = {cell.pretraining for cell in figure_1 | figure_2}
    assert {cell for cell in cells if cell.is_pretraining} == shared | outside
    assert len(shared) == 100
    settings = FULL.settings()
    assert settings["network"] == {"name": "lenet"}  # 32-64-1024
    assert (settings["epochs"], settings["updates"], settings["batch"]) == (2, 500, 128)
    assert FULL.model(0.5, (28, 28, 1)).size == 3_274_634


@every_profile
def test_cells_come_once_and_after_what_they_start_from(profile):
    cells = profile.cells()
    assert max(Counter(cells).values()) == 1
    assert len({cell.key for cell in cells}) == len(cells)
    done = set()
    for cell in cells:
        done.add(cell)
        assert cell.pretraining in done
        assert cell.is_pretraining == (cell.l2 is None)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


@every_profile
def test_more_seeds_are_more_of_the_same(profile):
    fewer, more = (set(replace(profile, seeds=n).cells()) for n in (2, 3))
    assert fewer < more
    assert {cell.seed for cell in more - fewer} == {2}
    assert len(more) * 2 == len(fewer) * 3
    assert replace(profile, seeds=2).settings() == replace(profile, seeds=3).settings()


@every_profile
def test_every_profile_shows_each_part(profile):
    parts = {cell: profile.parts(cell) for cell in profile.cells()}
    for part in ("baselines", "curves"):
        having = [cell for cell in parts if part in parts[cell]]
        assert Counter(cell.seed for cell in having).keys() == set(range(profile.seeds))
        for cell in having:
            assert (cell.optimizer, cell.finetune_optimizer) == ("sgd", "sgd")
            assert cell.dropout == 0.5
    assert sum("portrait" in found for found in parts.values()) == 1


def test_verdicts_need_seeds():
    for profile in PROFILES.values():
        assert profile.seeds >= LEAST_SEEDS or profile is SMOKE


@every_profile
def test_the_portrait_is_of_the_first_cell_with_curves(profile):
    found = [cell for cell in profile.cells() if "portrait" in profile.parts(cell)]
    assert [(cell.seed, cell.l2) for cell in found] == [(0, profile.curves[0])]
    assert "curves" in profile.parts(found[0])


def test_cells_survive_json():
    for cell in SMOKE.cells():
        assert Cell(**json.loads(json.dumps(asdict(cell)))) == cell


@every_profile
def test_settings_survive_json(profile):
    assert json.loads(json.dumps(profile.settings())) == profile.settings()


@every_profile
def test_names_of_files_are_plain(profile):
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert all(set(cell.key) <= allowed for cell in profile.cells())
    example = Cell("adam", 0.001, 0.5, 3, "sgd", 0.05)
    assert example.key == "adam_0.001_dropout_0.5_seed_3_then_sgd_0.05"
    assert example.pretraining.key == "adam_0.001_dropout_0.5_seed_3"


def test_keys_tell_close_rates_apart():
    """Two rates never share a file, however close they are."""
    a, b = Cell("sgd", 0.1, 0.5, 0), Cell("sgd", 0.1 + 1e-9, 0.5, 0)
    assert a.key != b.key


def test_a_network_or_an_option_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="lenet has no option width"):
        replace(SMOKE, options={"width": 3}).model(0.5, (28, 28, 1))
    with pytest.raises(ValueError, match="mobilenet_v2 has batch norm"):
        replace(SMOKE, network="mobilenet_v2", options={}).model(0.5, (224, 224, 3))
    with pytest.raises(ValueError, match="network is 'resnet', there are lenet"):
        replace(SMOKE, network="resnet")
    with pytest.raises(ValueError, match="updates is 0, expected 1 or more"):
        replace(SMOKE, updates=0)


def test_dropout_reaches_the_network():
    assert SMOKE.model(0.25, (28, 28, 1)).network.layers[-2].rate == 0.25


def test_the_nearest_of_some_numbers():
    assert nearest((0.1, 0.3, 0.24), 0.2) == 0.24
    assert nearest((0.75, 0.25), 0.5) == 0.25


def test_records_are_grouped_by_all_but_their_seed_and_in_order():
    """SGD before Adam, small rates before large ones, with dropout before without; by seed."""
    settings = [
        Setting("sgd", 0.1, 0.5),
        Setting("sgd", 0.2, 0.5),
        Setting("sgd", 0.2, 0.5, "sgd", 0.05),
        Setting("sgd", 0.2, 0.0, "sgd", 0.05),
        Setting("sgd", 0.2, 0.5, "sgd", 0.25),
        Setting("adam", 0.001, 0.5),
    ]
    cells = [Cell(seed=seed, **setting._asdict()) for seed in (2, 0) for setting in settings[::-1]]
    assert {cell.setting for cell in cells} == set(settings)
    assert settings[2].rates == settings[3].rates != settings[4].rates
    groups = by_setting([{"cell": asdict(cell)} for cell in cells])
    assert list(groups) == settings
    for setting, records in groups.items():
        assert [Cell(**record["cell"]).setting for record in records] == [setting] * 2
        assert [record["cell"]["seed"] for record in records] == [0, 2]
    some = by_setting([{"cell": asdict(cell)} for cell in cells], lambda r: r["cell"]["seed"] > 0)
    assert all(len(records) == 1 for records in some.values())
