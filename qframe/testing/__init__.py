"""Tests for authors of plugins: for each interface of components a class with the tests that a component must pass.

Subclass the class of your component's interface in your own tests, and define the pytest fixtures that its docstring
names:

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
