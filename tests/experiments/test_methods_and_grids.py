"""Methods as a table, points of a grid as lanes, and the parts that a run is played from."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cloning.config import Config
from experiments.cloning.setup import build
from experiments.kit import methods as methods_of_cloning
from experiments.kit.grid import Axis, axes_of, check_grid, read_axis
from experiments.kit.methods import (
    METHODS,
    NUMBERS,
    OFF,
    Lane,
    Method,
    curves,
    groups_of,
    label_of,
    numbers_of,
    numbers_read,
)
from experiments.kit.networks import MLP
from lopjax.runs import open_run
from lopjax.runs.schedule import Part, expected_records, play
from lopjax.training import Lanes

ALL, SEEDS = ("sgd", "noisy_sgd", "dropout", "adam"), (0, 1)
NUMBERS_HERE = numbers_of(Config(noise_scale=0.05, dropout=0.3), NUMBERS)


def test_groups_share_a_program_only_where_it_is_the_same():
    fused, separate = (groups_of(ALL, SEEDS, NUMBERS_HERE, is_fused=fused) for fused in (True, False))
    assert [group.methods for group in fused] == [("sgd", "noisy_sgd", "dropout"), ("adam",)]
    assert [group.methods for group in separate] == [(method,) for method in ALL]
    assert fused[1].lanes == (Lane("adam", (), 0), Lane("adam", (), 1))
    # Only what differs between lanes is traced; a method that does not read noise or dropout has none.
    assert fused[0].traced == {"noise_scale": (0.0, 0.0, 0.05, 0.05, 0.0, 0.0), "dropout": (0.0,) * 4 + (0.3, 0.3)}
    assert all(group.traced == {} for group in separate)
    assert [group.constants["noise_scale"] for group in separate] == [0.0, 0.05, 0.0, 0.0]
    assert [group.constants["dropout"] for group in separate] == [0.0, 0.0, 0.3, 0.0]


def test_a_grid_multiplies_the_lanes_of_the_methods_that_read_it():
    grid = [("noise_scale", (0.1, 0.2)), ("noise_decay", (0.9, 0.99, 1.0)), ("adam_learning_rate", (1e-3, 1e-2))]
    assert [len(curves([method], grid)) for method in ALL] == [1, 6, 1, 2]
    (group,) = groups_of(("noisy_sgd",), SEEDS, NUMBERS_HERE, grid[:2])
    assert len(group.lanes) == 12
    assert set(group.traced) == {"noise_scale", "noise_decay"}
    for lane, scale, decay in zip(group.lanes, group.traced["noise_scale"], group.traced["noise_decay"]):
        assert lane.fields() == {"method": "noisy_sgd", "noise_scale": scale, "noise_decay": decay, "seed": lane.seed}
    assert [lane.seed for lane in group.lanes[:4]] == [0, 1, 0, 1]  # the seeds of a point lie side by side
    assert label_of("noisy_sgd", group.lanes[0].point) == "noisy SGD, noise scale 0.1, noise decay 0.9"


def test_a_method_reads_no_number_but_those_that_it_names():
    for method in METHODS.values():
        settings = dict.fromkeys((*method.reads, *OFF), 0.1)
        if "noise_decay" not in method.reads:
            settings |= OFF  # an optimizer of several methods, with what the others read switched off
        assert hasattr(method.optimizer(settings, jax.random.key(0)), "update")


@pytest.mark.parametrize("name", ["cloning", "continual", "bit_flipping", "control"])
def test_every_number_that_a_method_reads_is_a_field_of_the_config(name):
    own = importlib.import_module(f"experiments.{name}.methods") if name != "cloning" else methods_of_cloning
    config = next(iter(importlib.import_module(f"experiments.{name}").EXPERIMENT.presets.values()))
    names = numbers_read(own.METHODS)
    assert {name: getattr(config, name) for name in names} == numbers_of(config, names)
    assert len(names) >= 5
    row = next(iter(own.METHODS.values()))._replace(reads=("loudness",))
    with pytest.raises(ValueError, match="Config has no field 'loudness', which a method reads"):
        numbers_of(config, numbers_read({**own.METHODS, "loud": row}))


def test_a_new_method_is_one_row(monkeypatch):
    import optax

    def clipped(settings, key):
        return optax.chain(optax.clip(1.0), optax.sgd(settings["learning_rate"]))

    row = Method("clipped SGD", clipped, ("learning_rate",))
    monkeypatch.setitem(METHODS, "clipped", row)
    (group,) = groups_of(("clipped",), SEEDS, NUMBERS_HERE, [("learning_rate", (0.1, 0.2))])
    assert group.traced == {"learning_rate": (0.1, 0.1, 0.2, 0.2)}
    assert label_of("clipped", ()) == "clipped SGD"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise_scale", "must be a field and numbers"),
        ("noise_scale=", "must be a field and numbers"),
        ("noise_scale=0.1,much", "must be a field and numbers"),
        ("=1", "must be a field and numbers"),
    ],
)
def test_axes_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        read_axis(text)


def test_axes_are_read_as_typed_and_kept_as_json():
    assert read_axis("noise-scale=0.1,2") == Axis("noise_scale", (0.1, 2.0))
    config = Config(grid=(Axis("dropout", (0.1, 0.2)),))
    assert (
        axes_of(config) == axes_of({"grid": [{"name": "dropout", "values": [0.1, 0.2]}]}) == [("dropout", (0.1, 0.2))]
    )
    assert axes_of({}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (Axis("batch_size", (1.0, 2.0)),)}, "experiments.sweep"),
        ({"grid": (Axis("dropout", (0.1, 0.1)),)}, "distinct values"),
        ({"grid": (Axis("dropout", (0.1,)), Axis("dropout", (0.2,)))}, "one axis"),
        ({"grid": (Axis("noise_decay", (0.9, 1.5)),)}, r"noise_decay=1\.5: must be"),
        ({"grid": (Axis("dropout", (0.1,)),), "methods": ("sgd",)}, "must be a number that one of the methods"),
        ({"release_at": 4, "methods": ("adam",)}, "among which is sgd, whose clones are released"),
        ({"release_at": 8}, r"release_at=8: must be in 0\.\.7"),
        ({"release_at": 4, "grid": (Axis("learning_rate", (0.1, 0.2)),)}, "for a grid over a number of sgd"),
    ],
)
def test_grids_and_releases_that_cannot_be_run(changes, message):
    config = Config(dataset="digits", net=MLP(widths=(4,)), unit="steps", clone_length=8, record_every=4, base_length=4)
    with pytest.raises(ValueError, match=message):
        build(config.__class__(**{**config.__dict__, **changes}))
    check_grid((Axis("dropout", (0.1, 0.2)),), NUMBERS)


# --- Parts --------------------


def counting_parts(log: list, ends_at: int = 99) -> list[Part]:
    """Two groups of three parts each; every lane of a group is frozen after part `ends_at` of it."""

    def part(group: int, number: int) -> Part:
        def do(state):
            log.append((group, number))
            total = jnp.zeros(2) if number == 0 else state.state
            frozen = jnp.full(2, 7 if number >= ends_at else -1, jnp.int32)
            return Lanes(total + number + 10 * group, frozen), [{"group": group, "number": number}]

        def keep(state):
            return {f"group_{group}": {"total": np.asarray(state.state)}}

        like = lambda: Lanes(jnp.zeros(2), jnp.zeros(2, jnp.int32))  # noqa: E731
        return Part(f"group {group}", 5, do, like, 1, is_start=number == 0, keep=keep if number == 2 else None)

    return [part(group, number) for group in range(2) for number in range(3)]


def test_parts_are_played_in_order_and_what_was_done_is_not_done_again(tmp_path):
    log, told = [], []
    parts = counting_parts(log)
    run = open_run(tmp_path / "run", Config())
    state = play(parts, None, run, progress=lambda name, steps: told.append((name, steps)))
    assert log == [(group, number) for group in range(2) for number in range(3)]
    assert sum(steps for _, steps in told) == 30
    np.testing.assert_array_equal(state.state, [33, 33])
    assert expected_records(run.folder) == len(run.metrics_path.read_text().splitlines()) == 6
    again = play(counting_parts(log), None, run, progress=lambda name, steps: told.append((name, steps)))
    assert len(log) == 6
    assert told[-1] == ("resumed: group 1", 5)
    np.testing.assert_array_equal(again.state, state.state)


@pytest.mark.parametrize("ends_at", [0, 1])
def test_a_group_of_frozen_lanes_is_passed_over_and_kept_and_the_next_starts(tmp_path, ends_at):
    from lopjax.runs import load

    log, told = [], []
    run = open_run(tmp_path / "run", Config())
    play(counting_parts(log, ends_at), None, run, progress=lambda name, steps: told.append((name, steps)))
    assert log == [(group, number) for group in range(2) for number in range(ends_at + 1)]
    assert sum(steps for _, steps in told) == 30
    kept = load(run.folder).variables("group_1")["total"]
    np.testing.assert_array_equal(kept, [sum(10 + number for number in range(ends_at + 1))] * 2)
