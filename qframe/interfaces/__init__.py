"""What a component implements, and the values that components exchange: the door for authors of components.

`qframe` is the door for declaring, and imports no torch. This package is the door for implementing: one file for each
contract, and one for each group of values. An abstract class here names every method that must exist; Python reports a
method that is missing when the class is instantiated.

Symbols in shapes: B samples, N image tokens of a batch, C channels of a token, M text tokens of a batch, D width of a
text token, Z channels of a latent, h and w the sides of a latent, H and W the sides of a picture.
"""

from __future__ import annotations

from qframe.interfaces.codec import CodecSpec, LatentCodec
from qframe.interfaces.denoiser import Denoiser, DenoiserSpec
from qframe.interfaces.encoder import Encoder, EncoderSpec, TokenCounter
from qframe.interfaces.examples import Example, ExampleInputs, Record, TextInput
from qframe.interfaces.loadable import Loadable
from qframe.interfaces.optimizer import OptimizerFactory
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import PLAIN, AfterStep, ForwardOptions, Guide, Plan, Velocity
from qframe.interfaces.quantiser import Quantiser
from qframe.interfaces.recipe import Recipe
from qframe.interfaces.request import Request, SamplingDefaults, as_request
from qframe.interfaces.sampler import OnStep, Sampler
from qframe.interfaces.schedule import Schedule
from qframe.interfaces.sequences import Conditioning, Grid, PackedSequence, grid_length
from qframe.interfaces.settled import PictureSets, Settled, SettledAround
from qframe.interfaces.source import Problem, RecordSource, Survey
from qframe.interfaces.transform import RecipeTransform

__all__ = [
    "PLAIN",
    "AfterStep",
    "CodecSpec",
    "Conditioning",
    "Denoiser",
    "DenoiserSpec",
    "Encoder",
    "EncoderSpec",
    "Example",
    "ExampleInputs",
    "ForwardOptions",
    "Grid",
    "Guide",
    "LatentCodec",
    "Loadable",
    "OnStep",
    "OptimizerFactory",
    "PackedSequence",
    "Parts",
    "PictureSets",
    "Plan",
    "Problem",
    "Quantiser",
    "Recipe",
    "RecipeTransform",
    "Record",
    "RecordSource",
    "Request",
    "Sampler",
    "SamplingDefaults",
    "Schedule",
    "Settled",
    "SettledAround",
    "Survey",
    "TextInput",
    "TokenCounter",
    "Velocity",
    "as_request",
    "grid_length",
]
