"""Numbers out of text, and the mean relative accuracy at its boundaries."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.accuracy import TOLERANCES, mean_relative_accuracy, number_reward
from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.number import MAX_CHARACTERS, parse_number

MODES = ("inclusive", "strict", "float_compat")


@pytest.mark.parametrize(
    "text, unit, value",
    [
        ("42", None, 42.0),
        ("3.1", "m", 3.1),
        ("3.1 m", "m", 3.1),
        ("3.1m", "m", 3.1),
        ("3.1 meters.", "m", 3.1),
        ("3 metres", "m", 3.0),
        ("1,000", "cm", 1000.0),
        ("1,234,567.5 cm", "cm", 1234567.5),
        ("-2.5", "m", -2.5),
        ("+2", None, 2.0),
        (".5", "m", 0.5),
        ("5.", "m", 5.0),
        ("1e2", "cm", 100.0),
        ("12 m2", "m2", 12.0),
        ("12 m^2", "m2", 12.0),
        ("12 m²", "m2", 12.0),
        ("12 square meters", "m2", 12.0),
        ("12 sq. m", "m2", 12.0),
        ("12 sqm", "m2", 12.0),
        ("about 3 m", "m", 3.0),
        ("~3", None, 3.0),
        ("(3)", None, 3.0),
        ("3 chairs in the room", None, 3.0),
        ("The distance is 3.1 meters.", "m", 3.1),
        ("three", None, 3.0),
        ("Twenty.", None, 20.0),
        ("0", None, 0.0),
    ],
)
def test_one_number_is_read(text, unit, value):
    assert parse_number(text, unit) == value


@pytest.mark.parametrize(
    "text, unit",
    [
        ("", None),
        ("many", None),
        ("a", None),
        ("3-5", "m"),
        ("3 - 5", "m"),
        ("3–5", "m"),
        ("3 to 5", "m"),
        ("3 or four", None),
        ("between two and 3", None),
        ("3 4", None),
        ("3, 4", None),
        ("3 m 20 cm", "m"),
        ("1_000", "cm"),
        ("1,00", "cm"),
        ("10,00", "cm"),
        ("0,123", "m"),
        ("1,0000", "cm"),
        ("3.1.2", "m"),
        ("inf", None),
        ("-inf", None),
        ("nan", None),
        ("1e999", None),
        ("9" * 400, None),
        ("٣", None),
        ("３", None),
        ("3½", None),
        ("3²", None),
        ("0x10", None),
        ("3e", None),
        ("2nd", None),
        ("3%", None),
        ("3 %", None),
        ("$3", None),
        ("- 3", None),
        ("minus 3", None),
        ("3 hundred", None),
        ("3 and a half", "m"),
        ("three chairs", None),
        ("thirty-one", None),
        ("3 cm", "m"),
        ("3 m", "cm"),
        ("3 m", None),
        ("3 feet", "m"),
        ("3 ft", "m"),
        ("36 inches", "cm"),
        ("36 in.", "cm"),
        ('36"', "cm"),
        ("In feet: 3", "m"),
        ("12 m", "m2"),
        ("12 square feet", "m2"),
        ("12 m2", "m"),
        ("12 m3", "m2"),
        ("12 cubic meters", "m2"),
        ("3 m/s", "m"),
        ("90 degrees", "m"),
        ("3*2", None),
        ("2 x 3", None),
    ],
)
def test_anything_but_one_number_in_the_expected_unit_is_refused(text, unit):
    assert parse_number(text, unit) is None


@pytest.mark.parametrize(
    "text",
    ["3 cms", "3 kms", "3 yds", "3 µm", "3 μm", "3 nm", "3 feets", "3 inchs", "3 mtrs", "3 c m", "3 milli m"]
    + ["3 kilo meters", "3 centi meters"]
    + ["3 meters squared", "3 m squared", "3 m cubed", "3 meters square", "3 square", "3 m per second"]
    + ['3 "', "3 ″", "3 '", "3'", "3′", "3 (kms)", "(3) feets", '3 "feets"', "3 parsecs", "3 chairs", "3 ｍ", "3 \u200bfeets"]
    + ["3 in the room", "3 in long", "(3 in)", "in µm: 3", "In cms: 3", "in centi meters: 3", "1/2 cms", "1/2 parsecs"],
)
def test_an_unknown_word_behind_a_measured_number_is_taken_for_a_unit(text):
    assert parse_number(text, "m") is None


@pytest.mark.parametrize(
    "text",
    ["3 acres", "3 hectares", "3 ha", "in acres: 3", "21.5 sf", "21.5 sqft", "21.5 sq", "21.5 square", "21.5 meters"]
    + ["21.5 meters square", "21.5 m cubed", "21.5 square m3", "21.5 feet squared", "21.5 cm squared"],
)
def test_another_area_is_refused(text):
    assert parse_number(text, "m2") is None


@pytest.mark.parametrize(
    "text", ["3 cms", "(3 in)", "3 feets", "3 acres", "3 m squared", "3 nm", "3 kg", '3 "', "3 万", "3 x"]
)
def test_a_count_has_no_unit(text):
    assert parse_number(text, None) is None


@pytest.mark.parametrize(
    "text",
    ["3 quarters", "2 thirds", "3 fifths", "3 halves", "3 tens", "3 dozens", "3 hundreds", "3 thousands", "3 millions"]
    + ["3 k", "3 K", "3 bn", "3 pairs", "3 thirty", "3 sixty", "3 sixty-five", "ninety 3", "3 whole “dozens”"]
    + ["3 m, dozens", "1/2 k"],
)
@pytest.mark.parametrize("unit", ["m", None])
def test_a_multiple_is_another_number(text, unit):
    assert parse_number(text, unit) is None


@pytest.mark.parametrize(
    "text, unit, value",
    [
        ("21.5 meters squared", "m2", 21.5),
        ("21.5 m squared", "m2", 21.5),
        ("21.5 metres-squared.", "m2", 21.5),
        ("21.5 sq m squared", "m2", 21.5),
        ("3 cms", "cm", 3.0),
        ("The distance is about 3 meters.", "m", 3.0),
        ("approximately 3.2m", "m", 3.2),
        ("3 meters apart", "m", 3.0),
        ("3 (m)", "m", 3.0),
        ("3 meter(s)", "m", 3.0),
        ("In meters: 3", "m", 3.0),
        ("The diameter is 3 m", "m", 3.0),
        ("I’m sure: 3 cm", "cm", 3.0),  # the m of I’m is no metre
        ("It is 3", "m", 3.0),
        ("3 apart", "m", 3.0),
        ("1/2 apart", "m", 0.5),
        ("3, I think", "m", 3.0),
        ("1/2, I think", "m", 0.5),
        ("3. It is measured from the closest point.", "m", 3.0),
        ("3\nIt is measured from the closest point.", "m", 3.0),
        ("3 chairs", None, 3.0),
        ("3 chair(s)", None, 3.0),
        ('3 "chairs"', None, 3.0),
        ("There are 3 chairs in the room.", None, 3.0),
        ("There are 3 in the room", None, 3.0),
        ("3 of them", None, 3.0),
        ("There are 3 wooden ones.", None, 3.0),
        ("3 L-shaped sofas", None, 3.0),
        ("2 TV", None, 2.0),
    ],
)
def test_ordinary_prose_around_a_number_is_read(text, unit, value):
    assert parse_number(text, unit) == value


@given(st.text("bdfghjklnpqrstvxyz", min_size=1, max_size=12), st.sampled_from(["m", "cm", "m2"]))
def test_no_word_of_consonants_is_the_expected_unit(word, unit):
    """Whatever abbreviation it may be: there is no m among the letters."""
    assert parse_number(f"3 {word}", unit) is None
    assert parse_number(f"1 1/2 {word}.", unit) is None


@pytest.mark.parametrize(
    "text, unit, value",
    [
        ("1/2", "m", 0.5),
        ("3/4 m", "m", 0.75),
        ("3/4m", "m", 0.75),
        ("3/4 meters.", "m", 0.75),
        ("-1/2", None, -0.5),
        ("+1/4", None, 0.25),
        ("1 / 2", None, 0.5),
        ("1 /2", None, 0.5),
        ("1 1/2", None, 1.5),
        ("1 1/2 m", "m", 1.5),
        ("-2 3/8", None, -2.375),
        ("1\n1 / 2", None, 1.5),
        ("7/4", None, 1.75),
        ("12/8 square meters", "m2", 1.5),
        ("0/5", None, 0.0),
        ("1/3", None, 0.3333333333333333),  # the float64 nearest to a third
        ("999999999999999/1", None, 999999999999999.0),
        ("(1/2)", None, 0.5),
        ("~1/2 m", "m", 0.5),
        ("The distance is 1 1/2 meters.", "m", 1.5),
    ],
)
def test_one_plain_fraction_or_mixed_number_is_read(text, unit, value):
    assert parse_number(text, unit) == value


@pytest.mark.parametrize(
    "text, unit",
    [
        ("1/0", None),
        ("0/0", None),
        ("1 1/0", None),
        ("1/2/3", None),
        ("1 / 2 / 3", None),
        ("1//2", None),
        ("/2", None),
        ("1/", None),
        ("1/-2", None),
        ("- 1/2", None),
        ("1-1/2", None),
        ("1 -1/2", None),
        ("1 3/2", None),  # two numbers rather than one: nobody writes 2 1/2 so
        ("2 1 1/2", None),
        ("3, 1/2", None),
        ("1 and 1/2", None),
        ("one 1/2", None),
        ("1/2 1/4", None),
        ("1/2 to 3/4", None),
        ("1/2 - 3/4", None),
        ("1.5/2", None),
        ("1/2.5", None),
        ("1,000/2", None),
        ("1e3/2", None),
        ("1/2e3", None),
        ("1_0/2", None),
        ("1/2nd", None),
        ("1/2%", None),
        ("1/2 %", None),
        ("$1/2", None),
        ("1/2 dozen", None),
        ("½", None),
        ("1½", None),
        ("½ m", "m"),
        ("1⁄2", None),  # U+2044, the fraction slash
        ("١/٢", None),
        ("1/2 m/s", "m"),
        ("1/2 m", "cm"),
        ("1/2 m", None),
        ("1/2 ft", "m"),
        ("1 m / 2", "m"),
        ("1 m / 2 m", "m"),
        ("m/2", "m"),
        ("3 and/or more", None),
        ("9999999999999999/3", None),  # 16 digits: beyond what is plain
        ("3/9999999999999999", None),
        ("1" * 500 + "/" + "1" * 500, None),
    ],
)
def test_any_other_slash_is_refused(text, unit):
    assert parse_number(text, unit) is None


@given(st.integers(-99, 99), st.integers(0, 999), st.integers(1, 999), st.sampled_from(["{} m", "{}", " ({}). "]))
def test_fractions_are_read_exactly(whole, numerator, denominator, form):
    assert parse_number(form.format(f"{numerator}/{denominator}"), "m") == float(Fraction(numerator, denominator))
    mixed = parse_number(form.format(f"{whole} {numerator}/{denominator}"), "m")
    sign = -1 if whole < 0 else 1
    exact = float(sign * (abs(whole) + Fraction(numerator, denominator)))
    assert mixed == (exact if numerator < denominator else None)


@pytest.mark.parametrize(
    "text, value",
    [
        ("3" + " " * (MAX_CHARACTERS - 1), 3.0),
        ("3" + " " * MAX_CHARACTERS, None),
        ("0" * (MAX_CHARACTERS - 1) + "7", 7.0),
        ("0" * MAX_CHARACTERS + "7", None),
        ("0." + "3" * (MAX_CHARACTERS - 2), 1 / 3),
        ("9" * MAX_CHARACTERS, None),  # finite as an integer, infinite as float64
        ("9" * 100_000, None),
        ("3 m " * 50_000, None),
    ],
)
def test_an_answer_beyond_the_limit_is_refused(text, value):
    assert parse_number(text, "m") == value


@given(st.text(max_size=80), st.sampled_from([None, "m", "cm", "m2"]))
def test_model_text_never_raises(text, unit):
    value = parse_number(text, unit)
    assert value is None or math.isfinite(value)


@given(
    st.decimals(-(10**9), 10**9, allow_nan=False, places=3), st.sampled_from(["{:f}", "{:,f}", " {:f} m ", "{:f}m."])
)
def test_decimals_are_read_exactly(value, form):
    assert parse_number(form.format(value), "m") == float(value)


@pytest.mark.parametrize(
    "prediction, target, inclusive, strict, float_compat",
    [
        (62, 101, 0.3, 0.3, 0.3),  # the paper's figure
        (1.35, 1, 0.4, 0.3, 0.3),  # a relative error of exactly 0.35, twice; the public rule
        (13.5, 10, 0.4, 0.3, 0.4),  # scores it by the rounding of the quotient
        (5, 5, 1.0, 1.0, 1.0),
        (1.5, 1, 0.1, 0.0, 0.1),
        (1.51, 1, 0.0, 0.0, 0.0),
        (0, 1, 0.0, 0.0, 0.0),
        (0, 0, 1.0, 1.0, 1.0),
        (1e-12, 0, 0.0, 0.0, 0.0),
        (-2, -2, 1.0, 1.0, 1.0),
        (2, -2, 0.0, 0.0, 0.0),
        (-2.5, -2, 0.6, 0.5, 0.6),
        (1e308, -1e308, 0.0, 0.0, 0.0),
        (1e308, 1e-308, 0.0, 0.0, 0.0),
        (math.inf, 1, 0.0, 0.0, 0.0),
        (math.nan, 1, 0.0, 0.0, 0.0),
    ],
)
def test_accuracy_in_the_three_modes(prediction, target, inclusive, strict, float_compat):
    found = [mean_relative_accuracy(prediction, target, mode) for mode in MODES]
    assert found == [inclusive, strict, float_compat]


def test_tolerances_are_the_papers():
    assert TOLERANCES == (0.50, 0.45, 0.40, 0.35, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)


@pytest.mark.parametrize("k", range(10))
@pytest.mark.parametrize("scale", ["0.001", "0.1", "1", "3", "7", "10", "101", "12345"])
def test_equal_ratios_score_equally_at_every_boundary(k, scale):
    """An error of exactly 5(k+1) %: `<=` holds for the tolerances from there up, `<` for one fewer."""
    target = Fraction(scale)
    for prediction in (target * (1 + Fraction(5 * (k + 1), 100)), target * (1 - Fraction(5 * (k + 1), 100))):
        held = sum(Fraction(5 * (j + 1), 100) >= Fraction(5 * (k + 1), 100) for j in range(10))
        assert mean_relative_accuracy(float(prediction), float(target), "inclusive") == held / 10
        assert mean_relative_accuracy(float(prediction), float(target), "strict") == (held - 1) / 10


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(1.0, 3.0))
def test_a_worse_estimate_never_scores_more(target, error, factor):
    for mode in MODES:
        near = mean_relative_accuracy(target + error, target, mode)
        assert mean_relative_accuracy(target + error * factor, target, mode) <= near


def test_reward_reads_both_sides_in_the_unit():
    assert number_reward("62 cm", "101", "cm") == 0.3
    assert number_reward("62 m", "101", "cm") == 0.0
    assert number_reward(None, "101", "cm") == 0.0
    assert number_reward("", "101", "cm") == 0.0


def test_a_fraction_earns_what_its_decimal_earns():
    assert number_reward("1/2", "0.5", "m") == number_reward("1/2 m", "1/2", "m") == 1.0
    assert number_reward("1 1/2 m", "1.25", "m") == 0.7  # an error of exactly 20 %


@pytest.mark.parametrize("truth", ["", "A", "nan", "3-4", "3 feet", "1/0", "3" * 2000])
def test_a_truth_that_is_no_number_raises_whatever_the_answer(truth):
    for answer in ("3", None):
        with pytest.raises(GroundTruthError, match="fix the row"):
            number_reward(answer, truth, "m")


def test_unknown_mode_and_infinite_target_raise():
    with pytest.raises(RewardSettingsError, match="choose one of inclusive, strict, float_compat"):
        mean_relative_accuracy(1, 1, "loose")
    with pytest.raises(GroundTruthError):
        mean_relative_accuracy(1, math.inf)
