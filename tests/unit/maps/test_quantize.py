import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from olmoearth_cli.maps.quantize import MAX_CODE, NO_DATA, Quantizer

FINITE = st.floats(-1e3, 1e3, width=32)


@st.composite
def rules(draw):
    d = draw(st.integers(1, 9))
    weight = draw(hnp.arrays(np.float32, d, elements=st.floats(-4, 4, width=32)))
    bias = draw(hnp.arrays(np.float32, d, elements=st.floats(-2, 2, width=32)))
    return Quantizer.from_layernorm(weight, bias)


def test_the_rule_is_the_layernorms_own_image_of_six_deviations():
    rule = Quantizer.from_layernorm([1.0, -2.0], [0.5, 3.0])
    # code 127 is z = 6: value = bias + |weight| * 6
    assert rule.decode(np.array([127, 127], np.int8)) == pytest.approx([6.5, 15.0], rel=1e-6)
    assert rule.decode(np.array([-127, 0], np.int8)) == pytest.approx([-5.5, 3.0], rel=1e-6)
    assert rule.encode(np.array([0.5 + 6 / 127, 3.0], np.float32)).tolist() == [1, 0]


@given(rule=rules(), data=st.data())
def test_the_error_is_at_most_half_a_step_inside_the_range(rule, data):
    z = data.draw(hnp.arrays(np.float32, (5, len(rule.scale)), elements=st.floats(-1, 1, width=32)))
    vectors = rule.offset + z * rule.scale * MAX_CODE
    error = np.abs(rule.decode(rule.encode(vectors)).astype(np.float64) - vectors)
    slack = 1e-5 * (np.abs(vectors) + rule.scale * MAX_CODE + np.abs(rule.offset))
    assert (error <= rule.scale / 2 + slack).all()


@given(rule=rules(), a=FINITE, b=FINITE)
def test_larger_values_never_get_smaller_codes(rule, a, b):
    low, high = (np.full(len(rule.scale), v, np.float32) for v in sorted((a, b)))
    assert (rule.encode(low).astype(int) <= rule.encode(high).astype(int)).all()


@given(rule=rules(), value=st.sampled_from([np.nan, np.inf, -np.inf]), data=st.data())
def test_one_bad_value_makes_the_whole_vector_no_data_and_no_other(rule, value, data):
    vectors = np.zeros((3, len(rule.scale)), np.float32)
    vectors[1, data.draw(st.integers(0, len(rule.scale) - 1))] = value
    codes = rule.encode(vectors)
    assert (codes[1] == NO_DATA).all()
    assert (codes[[0, 2]] != NO_DATA).all()
    assert np.isnan(rule.decode(codes)[1]).all()
    assert np.isfinite(rule.decode(codes)[[0, 2]]).all()


@given(rule=rules())
def test_every_code_survives_decoding_and_encoding(rule):
    assume((rule.scale > 1e-5 * np.abs(rule.offset)).all())  # else float32 cannot hold the step
    codes = np.repeat(np.arange(-127, 128, dtype=np.int8)[:, None], len(rule.scale), axis=1)
    assert np.array_equal(rule.encode(rule.decode(codes)), codes)


def test_values_beyond_the_range_are_clipped_and_counted():
    rule = Quantizer.from_layernorm([1.0, 1.0], [0.0, 0.0])
    vectors = np.array([[7.0, 0.0], [0.0, -100.0], [6.0, -6.0], [np.nan, 0.0]], np.float32)
    assert rule.encode(vectors)[:2].tolist() == [[127, 0], [0, -127]]
    loss = rule.loss(vectors)
    assert loss.cells == 3
    assert loss.saturation == pytest.approx(2 / 6)
    # 1 lost of 7, 94 of 100, nothing elsewhere: sqrt((1 + 94^2) / 6); 6 * 127 / 127 is exact to float32.
    assert loss.rms == pytest.approx(np.sqrt((1 + 94**2) / 6), rel=1e-5)
    assert loss.mean_cosine == pytest.approx(1.0, abs=1e-6)


def test_standard_normal_vectors_keep_a_cosine_above_0_9998():
    rng = np.random.default_rng(1)
    weight, bias = rng.uniform(0.3, 2, 128).astype(np.float32), rng.normal(0, 0.2, 128).astype(np.float32)
    rule = Quantizer.from_layernorm(weight, bias)
    loss = rule.loss((rng.normal(size=(2000, 128)) * weight + bias).astype(np.float32))
    assert loss.saturation == 0.0
    assert 0.9998 < loss.mean_cosine < 0.99995
    # A uniform rounding error has the deviation step / sqrt(12).
    assert loss.rms == pytest.approx(np.sqrt((rule.scale.astype(float) ** 2).mean() / 12), rel=0.02)


def test_a_dimension_that_the_model_switched_off_keeps_a_scale_above_zero():
    assert (Quantizer.from_layernorm([0.0, 1.0], [0.3, 0.0]).scale > 0).all()
    assert (Quantizer.from_layernorm([0.0, 0.0], [0.3, 0.0]).scale > 0).all()


def test_a_vector_without_any_data_loses_nothing():
    loss = Quantizer.from_layernorm([1.0], [0.0]).loss(np.full((2, 2, 1), np.nan, np.float32))
    assert (loss.cells, loss.saturation, loss.rms, loss.mean_cosine) == (0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("weight", "bias"), [([1.0], [0.0, 1.0]), ([np.nan], [0.0]), ([[1.0]], [[0.0]])])
def test_parameters_that_are_no_layernorm_are_a_callers_mistake(weight, bias):
    with pytest.raises(ValueError, match="finite vectors of one length"):
        Quantizer.from_layernorm(weight, bias)
