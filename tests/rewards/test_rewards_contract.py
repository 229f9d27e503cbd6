"""What a reward of one's own may return, and what is said of anything else."""

import numpy as np
import pytest

from rewards.contract import MAX_COMPONENTS, CustomReward, checked_function
from rewards.errors import RewardContractError


def mine(**fields) -> CustomReward:
    return CustomReward("mine", lambda text, example: None, **fields)


def test_a_number_is_one_component_and_a_dict_one_per_key():
    assert mine().components(0.25) == {"mine": 0.25}
    assert mine().components(np.float32(0.5)) == {"mine": 0.5} and mine().components(True) == {"mine": 1.0}
    assert mine().components({"near": 1, "far": 0.5}) == {"mine/near": 1.0, "mine/far": 0.5}
    assert mine().components({}) == {}  # it does not apply to the row


@pytest.mark.parametrize("value", [None, "1.0", float("inf"), float("nan"), -1.1e6, 10**400, [1.0], {"a": None}, {"a": float("nan")}])
def test_what_is_no_finite_number_never_becomes_a_reward(value):
    with pytest.raises(RewardContractError, match="return a finite float or a dict"):
        mine().components(value)


@pytest.mark.parametrize("value, named", [([1.0], "a list, [1.0]"), ((), "a tuple, ()")])
def test_a_list_for_one_text_is_said_to_need_batched(value, named):
    with pytest.raises(RewardContractError) as told:
        mine().components(value)
    assert f"returned {named}: " in str(told.value) and str(told.value).endswith("needs `batched: true`")
    with pytest.raises(RewardContractError) as told:
        mine(batched=True).components(value)
    assert "needs `batched" not in str(told.value)


def test_components_have_names_and_are_few():
    with pytest.raises(RewardContractError, match="key 3: name components by printable strings"):
        mine().components({3: 1.0})
    with pytest.raises(RewardContractError, match=f"65 components: at most {MAX_COMPONENTS}"):
        mine().components({str(index): 0.0 for index in range(MAX_COMPONENTS + 1)})


def test_what_does_not_print_is_named_by_its_type_and_what_is_long_is_cut():
    class Mute:
        def __repr__(self):
            raise OSError

    with pytest.raises(RewardContractError, match="returned a Mute"):
        mine().components(Mute())
    with pytest.raises(RewardContractError) as told:
        mine().components("x" * 10**6)
    assert len(str(told.value)) < 400


def test_a_group_gets_one_result_for_each_completion_and_a_fault_is_its_own():
    problem = ValueError("no verdict")
    first, second, third, fourth = mine().group_components([1.0, problem, "high", {"a": 2}], 4)
    assert (first, second, fourth) == ({"mine": 1.0}, problem, {"mine/a": 2.0}) and isinstance(third, RewardContractError)


LOST = "for 2 completions, so that the whole group loses its scores: return one for each, in order"


@pytest.mark.parametrize("results, got", [([1.0], "1 values"), ("ab", "a str"), (None, "a NoneType"), (0.5, "a float")])
def test_a_group_of_another_size_is_refused(results, got):
    with pytest.raises(RewardContractError, match=f"returned {got} {LOST}"):
        mine().group_components(results, 2)


def test_params_are_keyword_arguments_of_every_call():
    scaled = CustomReward("scaled", lambda text, example, *, scale: len(text) * scale, {"scale": 2.0})
    assert scaled.call("abc", None) == 6.0


async def later(text, example):
    return 1.0


class Callable:
    async def __call__(self, text, example):
        return 1.0


def test_async_functions_are_known():
    assert CustomReward("later", later).is_async and CustomReward("later", Callable()).is_async and not mine().is_async


@pytest.mark.parametrize(
    "function, params, message",
    [
        (3, {}, "it is a int, not a function"),
        (lambda text: 0.0, {}, "given \\(completion_text, example\\)"),
        (lambda text, example, *, scale: 0.0, {}, "missing a required argument: 'scale'"),
        (lambda text, example: 0.0, {"scale": 1}, "and scale from its params"),
    ],
)
def test_what_cannot_be_called_is_refused(function, params, message):
    with pytest.raises(RewardContractError, match=message):
        checked_function(function, "reward 'mine'", params)


def test_a_function_without_a_signature_is_taken_as_it_is():
    assert checked_function(min, "reward 'min'", {}) is min
