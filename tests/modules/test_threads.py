"""Torch's number of threads, a setting of the whole process, is put back."""

from __future__ import annotations

import pytest
import torch

from mdcp_fast.modules.threads import torch_threads


@pytest.mark.parametrize("more", [0, 1])
def test_threads_are_put_back(more: int) -> None:
    before = torch.get_num_threads()
    with torch_threads(before + more):
        assert torch.get_num_threads() == before + more
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), torch_threads(before + more):
        raise KeyError
    assert torch.get_num_threads() == before
