"""A number that is not one is found in every number format; large numbers are not taken for one."""

from __future__ import annotations

import pytest
import torch

from instructedit.models.finite import finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_that_overflows_is_finite_where_its_parts_are(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert finite(torch.full((1000,), largest, dtype=dtype))
    assert finite(torch.full((1000,), -largest, dtype=dtype))
    assert finite(torch.zeros(0, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_is_enough(dtype: torch.dtype, number: float) -> None:
    x = torch.ones(50, dtype=dtype)
    x[17] = number
    assert not finite(x)
    assert not finite(torch.tensor([float("inf"), -float("inf")], dtype=dtype))
