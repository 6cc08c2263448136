"""The running mean and variance, against exact fractions and against two passes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays

from minires import arrays
from minires.resampling.moments import Moments

# Multiples of 2⁻²⁰ below a million: exact as float64, and so are their differences.
exact_numbers = st.integers(-(10**12), 10**12).map(lambda k: k / 2**20)
streams = hypothesis_arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=exact_numbers,
)


def fold(thetas, **options):
    """Moments of all the rows of `thetas`."""
    moments = Moments(thetas.shape[1:], **options)
    for theta in thetas:
        moments.update(theta)
    return moments


def exact(column, ddof=0):
    """Mean and variance without any rounding."""
    column = [Fraction(float(x)) for x in column]
    mean = sum(column) / len(column)
    return mean, sum((x - mean) ** 2 for x in column) / (len(column) - ddof)


def accumulators(moments):
    return moments._first, moments._offset, moments._m2


def assert_same_bits(a, b):
    assert (a.seen, a.count) == (b.seen, b.count)
    for x, y in zip(accumulators(a), accumulators(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


# --- what they are ------------------------------------------------------------------------


@pytest.mark.parametrize("ddof", [0, 1])
@given(thetas=streams)
def test_moments_agree_with_exact_fractions(ddof, thetas):
    moments = fold(thetas, ddof=ddof)
    assert moments.count == moments.seen == len(thetas)
    for p, column in enumerate(thetas.T):
        if ddof and len(thetas) == 1:
            break
        mean, variance = exact(column, ddof)
        scale = max(abs(Fraction(float(x))) for x in column)
        assert abs(Fraction(float(moments.mean[p])) - mean) <= scale * Fraction(1, 2**50)
        assert abs(Fraction(float(moments.variance[p])) - variance) <= variance / 10**13
        assert moments.std[p] == pytest.approx(float(variance) ** 0.5, rel=1e-13)


def test_one_update_has_no_sample_variance():
    moments = fold(np.array([[1.5]]), ddof=1)
    assert moments.mean[0] == 1.5
    for read in ("variance", "std"):
        with pytest.raises(ValueError, match=r"1 updates counted .* ddof 1 needs 2"):
            getattr(moments, read)


@given(st.floats(-1e30, 1e30), st.integers(1, 20))
def test_a_constant_stays_exactly_what_it_is(value, length):
    moments = fold(np.full((length, 1), value))
    assert moments.mean[0] == value
    assert moments.variance[0] == 0


@given(streams, st.integers(-(2**30), 2**30))
def test_a_shift_changes_no_bit_of_the_variance(thetas, shift):
    shifted = fold(thetas + shift)
    np.testing.assert_array_equal(shifted.variance, fold(thetas).variance)
    np.testing.assert_allclose(shifted.mean, fold(thetas).mean + shift, rtol=1e-15, atol=1e-6)


@given(streams, st.integers(-20, 20))
def test_a_scale_multiplies_the_mean_and_its_square_the_variance(thetas, power):
    scale = -(2.0**power)
    scaled = fold(thetas * scale)
    np.testing.assert_array_equal(scaled.mean, fold(thetas).mean * scale)
    np.testing.assert_array_equal(scaled.variance, fold(thetas).variance * scale**2)


@given(
    hypothesis_arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 4)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_the_variance_is_never_negative(thetas):
    assert (fold(thetas).variance >= 0).all()


# --- shapes, types, devices ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 5), (2, 3, 4)])
def test_any_shape_and_either_dtype(xp, rng, shape, dtype):
    thetas = rng.standard_normal((6, *shape)).astype(dtype)
    moments = Moments(shape)
    for theta in xp.asarray(thetas):
        moments.update(theta)
    for name, expected in [
        ("mean", thetas.mean(axis=0, dtype=np.float64)),
        ("variance", thetas.var(axis=0, dtype=np.float64)),
        ("std", thetas.std(axis=0, dtype=np.float64)),
    ]:
        value = getattr(moments, name)
        assert type(value) is type(xp.zeros(1)) or shape == ()
        assert value.dtype == dtype
        assert value.shape == shape
        np.testing.assert_allclose(arrays.to_host(value), expected, rtol=1e-6, atol=1e-7)
    assert moments.sample(2, rng).shape == (2, *shape)


def test_a_whole_number_is_a_shape():
    assert Moments(5).shape == Moments((5,)).shape == (5,)


def test_many_blocks_on_many_threads_are_one_vector(rng):
    thetas = rng.standard_normal((4, 300_001), dtype=np.float32)
    np.testing.assert_allclose(
        fold(thetas).variance, thetas.var(axis=0, dtype=np.float64), rtol=1e-6
    )
    with arrays.threads(1):
        one = fold(thetas)
    with arrays.threads(3):
        three = fold(thetas)
    assert_same_bits(one, three)


def test_replicas_at_once_equal_one_by_one(rng):
    thetas = rng.standard_normal((7, 3, 50)).astype(np.float32)
    together = fold(thetas)
    for replica in range(3):
        alone = fold(thetas[:, replica])
        for a, b in zip(accumulators(together), accumulators(alone), strict=True):
            np.testing.assert_array_equal(a[replica], b)


def test_weights_need_not_be_contiguous(rng):
    thetas = rng.standard_normal((5, 40, 2))
    assert_same_bits(fold(thetas[..., 0]), fold(thetas[..., 0].copy()))
    assert_same_bits(fold(thetas.swapaxes(1, 2)), fold(thetas.swapaxes(1, 2).copy()))


def test_theta_is_read_only_and_results_are_copies(rng):
    theta = rng.standard_normal(10)
    theta.flags.writeable = False
    moments = fold(np.stack([theta]))
    moments.update(theta)
    before = moments.mean
    for result in (moments.mean, moments.variance, moments.std):
        result[:] = 99
    np.testing.assert_array_equal(moments.mean, before)
    np.testing.assert_array_equal(moments.variance, np.zeros(10))


def test_what_does_not_fit_is_refused_and_changes_nothing(rng):
    moments = fold(np.ones((2, 4), np.float32))
    for theta, complaint in [
        (np.ones(5, np.float32), r"theta is \(5,\), expected \(4,\)"),
        (np.ones((1, 4), np.float32), r"theta is \(1, 4\), expected \(4,\)"),
        (np.ones(4), "theta is float64, expected float32 as before"),
        (np.ones(4, np.int32), "theta is int32, not float32 or float64"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            moments.update(theta)
    assert (moments.seen, moments.count) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"shape": -1}, "shape is -1"),
        ({"shape": 2.5}, "shape is 2.5"),
        ({"shape": 3, "ddof": 2}, "ddof is 2"),
        ({"shape": 3, "burn_in": -1}, "burn_in is -1"),
        ({"shape": 3, "stride": 0}, "stride is 0"),
        ({"shape": 3, "stride": 1.5}, "stride is 1.5"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Moments(**arguments)


def test_nothing_counted_has_no_moments(rng):
    moments = fold(np.ones((3, 2)), burn_in=3)
    for read in (lambda: moments.mean, lambda: moments.variance, lambda: moments.sample(1, rng)):
        with pytest.raises(ValueError, match=r"0 updates counted of 3 seen \(burn_in 3, stride 1"):
            read()


@pytest.mark.parametrize(("when", "steps"), [(0, 1), (0, 2), (0, 5), (2, 5), (4, 5)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_reported(rng, tmp_path, when, steps, value):
    thetas = rng.standard_normal((steps, 6)).astype(np.float32)
    thetas[when, [1, 4]] = value
    with np.errstate(invalid="ignore"):
        moments = fold(thetas)
    for read in (
        lambda: moments.mean,
        lambda: moments.variance,
        lambda: moments.std,
        lambda: moments.sample(2, rng),
        lambda: moments.save(tmp_path / "moments.npz"),
    ):
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(FloatingPointError, match="2 of 6 weights"),
        ):
            read()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("burn_in", "stride", "counted"),
    [
        (0, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (3, 1, [4, 5, 6, 7, 8, 9, 10]),
        (0, 3, [3, 6, 9]),
        (2, 4, [6, 10]),
        (10, 1, []),
    ],
)
def test_burn_in_and_stride(burn_in, stride, counted):
    thetas = 2.0 ** np.arange(1, 11)[:, None]
    moments = fold(thetas, burn_in=burn_in, stride=stride)
    assert (moments.seen, moments.count) == (10, len(counted))
    if counted:
        assert moments.mean[0] == pytest.approx(np.mean([2.0**i for i in counted]), rel=1e-14)
        assert moments.variance[0] == pytest.approx(np.var([2.0**i for i in counted]), rel=1e-13)


# --- ten thousand updates of float32 ------------------------------------------------------


def trajectories(rng):
    """Float32 weights of many sizes over 10,000 updates, by the way they move."""
    steps, weights = 10_000, 250
    size = np.geomspace(1e-4, 10, weights)
    noise = rng.standard_normal((steps, weights)) * size * 2e-4
    time = np.linspace(0, 1, steps)[:, None]
    yield "around a fixed point", size + noise
    yield "drifting by 5 %", size * (1 + 0.05 * time) + noise
    yield "drifting by 200 σ", size + 200 * 2e-4 * size * time + noise
    yield "through zero", size * (1 - 2 * time) + noise
    yield "away from a far start", np.where(np.arange(steps)[:, None] == 0, 1.0, size + noise)


def test_ten_thousand_float32_updates_are_exact_for_every_weight(rng):
    for name, thetas in trajectories(rng):
        thetas = thetas.astype(np.float32)
        moments = fold(thetas)
        sigma = thetas.std(axis=0, dtype=np.float64)
        error = np.abs(moments.std - sigma) / sigma
        assert error.max() < 1e-7, f"{name}: {error.max()}"
        size = np.abs(thetas).max(axis=0)
        mean_error = np.abs(moments.mean - thetas.mean(axis=0, dtype=np.float64)) / size
        assert mean_error.max() < 1e-7, f"{name}: {mean_error.max()}"


def test_float32_weights_are_accumulated_as_exactly_as_float64_ones(rng):
    thetas = rng.standard_normal((20, 1000)).astype(np.float32)
    narrow, wide = fold(thetas), fold(thetas.astype(np.float64))
    np.testing.assert_array_equal(narrow._offset, wide._offset)
    np.testing.assert_array_equal(narrow._m2, wide._m2)
    for part in (narrow, wide):
        part.merge(fold(thetas[:7].astype(part.mean.dtype)))
    np.testing.assert_array_equal(narrow._offset, wide._offset)
    np.testing.assert_array_equal(narrow._m2, wide._m2)


# --- merging ------------------------------------------------------------------------------


def assert_agree(a, b):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(a.variance, b.variance, rtol=1e-11, atol=1e-20)


def merged(*parts):
    whole = Moments(parts[0].shape)
    for part in parts:
        whole.merge(part)
    return whole


@given(streams, streams, streams)
def test_merging_is_commutative_and_associative(a, b, c):
    width = min(part.shape[1] for part in (a, b, c))
    a, b, c = (fold(part[:, :width]) for part in (a, b, c))
    assert_agree(merged(a, b), merged(b, a))
    assert_agree(merged(merged(a, b), c), merged(a, merged(b, c)))


def test_merging_with_nothing_changes_no_bit(rng):
    some = fold(rng.standard_normal((4, 3)))
    again = merged(some)
    again.seen = some.seen
    assert_same_bits(again, some)
    again.merge(Moments(3))
    assert_same_bits(again, some)
    nothing = Moments(3)
    nothing.merge(Moments(3))
    assert nothing.count == 0


def test_merging_leaves_the_other_alone_and_copies(rng):
    some, thetas = Moments(3), rng.standard_normal((5, 3))
    other, reference = fold(thetas), fold(thetas)
    some.merge(other)
    some.update(thetas[0])
    some.merge(other)
    assert_same_bits(other, reference)
    assert some.count == 11
    assert some.seen == 1


def test_merging_with_itself_doubles_the_count_only(rng):
    moments = fold(rng.standard_normal((5, 3)))
    mean, variance = moments.mean, moments.variance
    moments.merge(moments)
    assert moments.count == 10
    np.testing.assert_array_equal(moments.mean, mean)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-15)


def test_merging_does_not_touch_burn_in_and_stride():
    moments = Moments(1, burn_in=2, stride=2)
    moments.update(np.array([50.0]))
    moments.merge(fold(np.full((100, 1), 3.0)))
    for value in (50.0, 50.0, 3.0):
        moments.update(np.array([value]))
    assert (moments.seen, moments.count) == (4, 101)
    assert moments.mean[0] == 3


def test_merging_what_does_not_fit_is_refused():
    moments = fold(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"merge: other has shape \(4,\), expected \(3,\)"):
        moments.merge(Moments(4))
    with pytest.raises(ValueError, match="merge: theta is float32, expected float64"):
        moments.merge(fold(np.ones((2, 3), np.float32)))


# --- drawing networks ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_members_are_the_mean_plus_sigma_times_noise(xp, rng, dtype):
    thetas = rng.standard_normal((9, 2, 1000)).astype(dtype)
    moments = Moments((2, 1000))
    for theta in thetas:
        moments.update(xp.asarray(theta))
    members = moments.sample(3, np.random.default_rng(5), scale=0.5)
    assert members.dtype == dtype
    assert members.shape == (3, 2, 1000)
    for member, stream in zip(members, np.random.default_rng(5).spawn(3), strict=True):
        noise = stream.standard_normal(2000, dtype=dtype).reshape(2, 1000)
        expected = thetas.mean(axis=0) + 0.5 * thetas.std(axis=0) * noise
        np.testing.assert_allclose(arrays.to_host(member), expected, rtol=1e-5, atol=1e-6)


def test_members_have_the_mean_and_the_standard_deviation(rng):
    moments = fold(np.array([[1.0], [2.0], [6.0]]).repeat(40_000, axis=1))
    members = moments.sample(10, rng, scale=2.0)
    sigma = 2 * moments.std[0]
    standard_error = sigma / members.size**0.5
    assert abs(members.mean() - 3) < 4 * standard_error
    assert abs(members.std() - sigma) < 4 * standard_error
    assert np.abs(np.corrcoef(members) - np.eye(10)).max() < 4 / 40_000**0.5


def test_a_member_does_not_depend_on_how_many_are_drawn(rng):
    moments = fold(rng.standard_normal((4, 100)).astype(np.float32))
    ten = moments.sample(10, np.random.default_rng(1))
    three = moments.sample(3, np.random.default_rng(1))
    np.testing.assert_array_equal(ten[:3], three)
    with arrays.threads(1):
        np.testing.assert_array_equal(moments.sample(10, np.random.default_rng(1)), ten)
    assert len(np.unique(ten[:, 0])) == 10


def test_a_second_draw_gives_other_networks(rng):
    moments = fold(rng.standard_normal((4, 100)))
    assert not np.array_equal(moments.sample(2, rng), moments.sample(2, rng))


def test_draws_that_make_no_sense_are_refused(rng):
    moments = fold(np.ones((2, 3)))
    with pytest.raises(ValueError, match="k is 0"):
        moments.sample(0, rng)
    with pytest.raises(ValueError, match=r"k is 2\.0"):
        moments.sample(2.0, rng)
    with pytest.raises(TypeError, match="rng is 7"):
        moments.sample(2, 7)
    for scale in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale is"):
            moments.sample(2, rng, scale=scale)


# --- files --------------------------------------------------------------------------------


@settings(max_examples=15)
@given(thetas=streams, data=st.data())
def test_going_on_from_a_file_gives_the_same_bits(tmp_path_factory, thetas, data):
    cut = data.draw(st.integers(0, len(thetas)))
    options = data.draw(
        st.fixed_dictionaries(
            {"ddof": st.integers(0, 1), "burn_in": st.integers(0, 3), "stride": st.integers(1, 3)}
        )
    )
    folder = tmp_path_factory.mktemp("moments")
    moments = fold(thetas[:cut], **options) if cut else Moments(thetas.shape[1:], **options)
    moments.save(folder / "moments")
    assert [file.name for file in folder.iterdir()] == ["moments"]
    loaded = Moments.load(folder / "moments")
    for theta in thetas[cut:]:
        loaded.update(theta)
    whole = fold(thetas, **options)
    assert (loaded.seen, loaded.count) == (whole.seen, whole.count)
    assert {name: getattr(loaded, name) for name in options} == options
    if whole.count:
        assert_same_bits(loaded, whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_keeps_the_dtype_and_draws_the_same_networks(tmp_path, xp, rng, dtype):
    moments = Moments((2, 30))
    for theta in rng.standard_normal((4, 2, 30)).astype(dtype):
        moments.update(xp.asarray(theta))
    moments.save(tmp_path / "moments.npz")
    loaded = Moments.load(tmp_path / "moments.npz", device="cpu" if xp is np else "gpu")
    a, b = (m.sample(2, np.random.default_rng(3)) for m in (moments, loaded))
    assert a.dtype == b.dtype == dtype
    np.testing.assert_array_equal(arrays.to_host(a), arrays.to_host(b))


@pytest.fixture
def saved(tmp_path, rng):
    fold(rng.standard_normal((4, 30)).astype(np.float32)).save(tmp_path / "moments.npz")
    return tmp_path / "moments.npz"


def test_a_file_that_is_cut_off_is_refused(saved):
    content = saved.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            Moments.load(saved)


def test_a_file_with_a_changed_weight_is_refused(saved):
    content = saved.read_bytes()
    with np.load(saved) as archive:
        position = content.index(archive["m2"].tobytes())
    saved.write_bytes(content[:position] + b"\x01" + content[position + 1 :])
    with pytest.raises(ValueError, match="CRC"):
        Moments.load(saved)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": np.array("minires moments 2")}, "format is 'minires moments 2'"),
        ({"m2": None}, "'m2'"),
        ({"count": None}, "'count'"),
        ({"m2": np.full(30, -1.0)}, "m2, a sum of squares, is negative"),
        ({"m2": np.full(30, np.inf)}, "m2 is not finite"),
        ({"m2": np.full(30, 1e79)}, "m2 is larger than 4 weights of float32 can make it"),
        ({"offset": np.full(30, 1e39)}, "first . offset, the mean, exceeds the largest float32"),
        (
            {"offset": np.full(30, 1e308), "first": np.full(30, 1e308)},
            "exceeds the largest float64",
        ),
        ({"count": np.array(1)}, "offset and m2 of one update are not 0"),
        ({"offset": np.full(30, np.nan)}, "offset is not finite"),
        ({"offset": np.zeros(29)}, r"offset is \(29,\), expected \(30,\)"),
        ({"shape": np.array([29])}, r"first is \(30,\), expected \(29,\)"),
        ({"shape": np.array([30.5])}, "shape is 30.5"),
        ({"m2": np.zeros(30, np.float32)}, "m2 is float32"),
        ({"first": np.zeros(30, np.int32)}, "first is int32"),
        ({"count": np.array(-4)}, "count is -4"),
        ({"seen": np.array(1.5)}, "seen is 1.5"),
        ({"stride": np.array(0)}, "stride is 0"),
        ({"ddof": np.array([0, 1])}, "ValueError"),
        ({"first": np.full(30, None)}, "Python objects"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(saved, changes, complaint):
    with np.load(saved) as archive:
        content = dict(archive) | changes
    np.savez(saved, **{name: array for name, array in content.items() if array is not None})
    with pytest.raises(ValueError, match=f"moments.npz .*{complaint}"):
        Moments.load(saved)


def test_the_largest_weights_come_back_from_a_file(tmp_path):
    """What is refused as impossible is no number smaller than the possible ones."""
    for dtype in (np.float32, np.float64):
        largest = np.finfo(dtype).max * dtype(1 if dtype == np.float32 else 1e-155)
        moments = fold(np.array([[largest, -largest], [-largest, -largest]] * 3))
        moments.save(tmp_path / "moments.npz")
        loaded = Moments.load(tmp_path / "moments.npz")
        np.testing.assert_array_equal(loaded.std, moments.std)
        assert loaded.std[0] == largest


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("not weights")
    for name in ("array.npy", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is damaged or not an .npz file"):
            Moments.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Moments.load(tmp_path / "nowhere.npz")


def test_a_device_that_does_not_exist_is_not_a_damaged_file(saved):
    with pytest.raises(ValueError, match="device is 'tpu', expected 'cpu' or 'gpu'"):
        Moments.load(saved, device="tpu")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved, rng, monkeypatch):
    before = saved.read_bytes()

    def break_off(file, **content):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", break_off)
    with pytest.raises(OSError, match="no space left"):
        fold(rng.standard_normal((4, 30))).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_state_is_a_snapshot(rng):
    """What is folded in later, here or by another one that went on from it, does not change it."""
    history = rng.standard_normal((10, 4))
    moments, expected = fold(history[:3]), fold(history[:3])
    state = moments.state()
    for theta in history[3:]:
        moments.update(theta)
    again, other = Moments.from_state(state), Moments.from_state(state)
    other.update(history[9])
    assert again.count == 3
    np.testing.assert_array_equal(again.mean, expected.mean)
    np.testing.assert_array_equal(again.variance, expected.variance)
