"""shared.ids の検査: 型・形・範囲。"""

import pytest
import torch

from shared.ids import require_ids


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_inside_the_vocabulary_pass(dtype: torch.dtype):
    require_ids(torch.tensor([[0, 4], [3, 1]], dtype=dtype), "ids", 5)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[0]], TypeError, "ids には整数.*list"),
        (torch.zeros(1, 2), TypeError, "ids には整数.*float32"),
        (torch.ones(1, 2, dtype=torch.bool), TypeError, "ids には整数.*bool"),
        (torch.tensor([1, 2]), ValueError, r"ids の形は \(文の数, 長さ\).*\(2,\)"),
        (torch.zeros(0, 2, dtype=torch.long), ValueError, r"1 以上.*\(0, 2\)"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, r"1 以上.*\(2, 0\)"),
        (torch.tensor([[-1, 2]]), ValueError, "ids は 0 以上 5 未満にしてください: -1 から 2"),
        (torch.tensor([[0, 5]]), ValueError, "ids は 0 以上 5 未満にしてください: 0 から 5"),
    ],
)
def test_other_things_are_refused(ids: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        require_ids(ids, "ids", 5)  # pyright: ignore[reportArgumentType]
