"""Tests for authors of plugins: a class of tests for each contract. Subclass it and define the fixtures it names.

class TestMySampler(SamplerContract):
    @pytest.fixture
    def sampler(self):
        return MySampler()
"""

from __future__ import annotations

from qframe.testing.codecs import CodecContract
from qframe.testing.denoisers import DenoiserContract
from qframe.testing.encoders import EncoderContract
from qframe.testing.samplers import SamplerContract
from qframe.testing.transforms import TransformContract

__all__ = ["CodecContract", "DenoiserContract", "EncoderContract", "SamplerContract", "TransformContract"]
