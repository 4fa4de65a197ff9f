"""The interfaces that components implement, and the values that components exchange.

Authors of components import from here; one file holds each contract, and one each group of values. (What a plugin needs
to declare its components comes from `qframe`, which imports no torch.) An abstract class names every method that must
exist; Python reports a missing method when the class is instantiated.

Symbols in shapes: B samples, N image tokens of a batch, C channels of an image token, M text tokens of a batch, D width
of a text token, Z channels of latents, h and w height and width of latents, H and W height and width of a picture.
"""

from __future__ import annotations

from qframe.interfaces.codec import CodecSpec, LatentCodec, require_latents
from qframe.interfaces.denoiser import Denoiser, DenoiserSpec, Flops, SavedAs
from qframe.interfaces.encoder import Encoder, EncoderSpec, TokenCounter
from qframe.interfaces.examples import Example, ExampleInputs, Record, TextInput
from qframe.interfaces.frozen_linear import FrozenLinear
from qframe.interfaces.loadable import Loadable, Streamed
from qframe.interfaces.optimizer import OptimizerFactory
from qframe.interfaces.oracle import Encoded, Oracle, Step, Trace
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import PLAIN, AfterStep, ForwardOptions, Guide, Plan, Velocity
from qframe.interfaces.quantiser import PackedLayer, Quantiser
from qframe.interfaces.recipe import Recipe
from qframe.interfaces.request import Request, SamplingDefaults, as_request
from qframe.interfaces.sampler import OnStep, Sampler
from qframe.interfaces.schedule import Schedule
from qframe.interfaces.sequences import Conditioning, Grid, PackedSequence, grid_length
from qframe.interfaces.settled import PictureSets, Settled, SettledAround
from qframe.interfaces.source import LazyRecords, Problem, RecordSource, Survey
from qframe.interfaces.transform import RecipeTransform

__all__ = [
    "PLAIN",
    "AfterStep",
    "CodecSpec",
    "Conditioning",
    "Denoiser",
    "DenoiserSpec",
    "Encoded",
    "Encoder",
    "EncoderSpec",
    "Example",
    "ExampleInputs",
    "Flops",
    "ForwardOptions",
    "FrozenLinear",
    "Grid",
    "Guide",
    "LatentCodec",
    "LazyRecords",
    "Loadable",
    "OnStep",
    "OptimizerFactory",
    "Oracle",
    "PackedLayer",
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
    "SavedAs",
    "Schedule",
    "Settled",
    "SettledAround",
    "Step",
    "Streamed",
    "Survey",
    "TextInput",
    "TokenCounter",
    "Trace",
    "Velocity",
    "as_request",
    "grid_length",
    "require_latents",
]
