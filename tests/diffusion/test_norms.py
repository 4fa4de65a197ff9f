"""Layer norms keep the dtype of a network's stream under the autocast of every device."""

from __future__ import annotations

import torch
from torch import nn

from qframe.diffusion.norms import StreamNorm, keep_stream_dtype
from tests.cuda_autocast import cuda_autocast


def test_cudas_autocast_makes_a_layer_norm_float32_and_not_ours() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain, own = nn.LayerNorm(8, elementwise_affine=False), StreamNorm(8, elementwise_affine=False)
    alone = plain(x)
    with cuda_autocast():
        assert plain(x).dtype == torch.float32
        assert own(x).dtype == torch.bfloat16
        assert torch.equal(own(x), alone)
        assert torch.equal(own(x.float()), plain(x.float()))
    assert plain(x).dtype == torch.bfloat16, "the imitation ends with its context"


def test_on_the_meta_device_too() -> None:
    """The forecast of memory runs there, where there is no autocast."""
    assert StreamNorm(8, elementwise_affine=False)(torch.empty(5, 8, device="meta")).shape == (5, 8)


def test_norms_with_weights_are_left_alone() -> None:
    network = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4, eps=0.1, elementwise_affine=False))
    keep_stream_dtype(network)
    assert [type(part) for part in network] == [nn.LayerNorm, StreamNorm]
    assert network[1].eps == 0.1
