"""Counts what passes of encoder, denoiser and codec take besides weights, by running the real code on shapes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from PIL import Image
from torch import Tensor, nn

from qframe import adapters
from qframe.cache.lengths import Shape
from qframe.compose import Composition
from qframe.diffusion.attention import attention_kernels
from qframe.interfaces import PLAIN, Conditioning, Denoiser, ForwardOptions, Grid, PackedSequence
from qframe.pictures.geometry import Size
from qframe.preflight.counting import COUNTED, Count, counted, counting, to_counted

log = logging.getLogger(__name__)

_FEW = (2, 3)
"""Numbers of repeated blocks with which passes are counted. Each further block takes what the last of them does."""


@attrs.frozen(kw_only=True)
class StepBytes:
    """The bytes of one forward and backward pass.

    Attributes:
        activations: On the device, besides weights, gradients and the states of the optimizer.
        inputs: In host memory: what blocks keep there for the backward pass.
    """

    activations: int
    inputs: int = 0


@attrs.frozen(kw_only=True)
class Batch:
    """The shapes of a batch whose samples are all alike.

    Attributes:
        shape: The sides of the target's latents, and of each reference's.
        text: The number of text tokens of each prompt.
        count: The number of samples.
    """

    shape: Shape
    text: int
    count: int = 1

    def tokens(self, patch: int) -> int:
        """Return how many picture and text tokens a sample has."""
        target, references = self.shape
        return sum(height * width for height, width in (target, *references)) // patch**2 + self.text


class Counts:
    """Counts passes of the components of compositions, and remembers the results.

    Attributes:
        unknown: Says for each thing that could not be counted why.
    """

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        self._found: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, or what it returned before for an equal key."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    def step(self, composition: Composition, batch: Batch, *, checkpointing: bool, offloaded: bool) -> StepBytes:
        """Count a forward and a backward pass of the denoiser as training makes them.

        Args:
            composition: The composition, whose configuration says what is trained, and in which precision.
            batch: The shapes of the batch.
            checkpointing: Whether blocks are recomputed in the backward pass.
            offloaded: Whether what blocks keep is copied to the CPU until then.
        """
        config = composition.config
        train = config.train
        key = (
            *(config.lora, train.mode, train.precision, train.gradient_accumulation > 1),
            *(composition.dtype("encoder"), batch, checkpointing, offloaded),
        )
        return self._remembered(
            "training", composition, "denoiser", key, lambda: _step(composition, batch, checkpointing, offloaded)
        ) or StepBytes(activations=0)

    def forward(self, composition: Composition, batch: Batch, *, trains: bool = False) -> int:
        """Count a forward pass of the denoiser as a sampling run makes it; `trains` for one inside a training run."""
        autocast = trains and composition.config.train.precision == "bfloat16"
        key = (composition.dtype("encoder"), batch, autocast, trains and composition.config.train.mode)
        return (
            self._remembered(
                "sampling", composition, "denoiser", key, lambda: _forward(composition, batch, trains, autocast)
            )
            or 0
        )

    def encode(self, composition: Composition, size: Size, count: int) -> int:
        """Count the codec while it encodes `count` pictures of a size in pixels."""

        def pass_() -> int:
            codec = _on_counted(composition, "codec")
            with _no_gradients(composition, "codec") as found:
                pixels = torch.empty(count, composition.specs["codec"].pixel_channels, *size, device=COUNTED)
                codec.encode(pixels)
            return found.peak

        return self._remembered("encoding pictures", composition, "codec", (size, count), pass_) or 0

    def decode(self, composition: Composition, sides: Size, count: int = 1) -> int:
        """Count the codec while it decodes latents of these sides."""

        def pass_() -> int:
            codec = _on_counted(composition, "codec")
            with _no_gradients(composition, "codec") as found:
                codec.decode(torch.empty(count, composition.specs["codec"].channels, *sides, device=COUNTED))
            return found.peak

        return self._remembered("decoding", composition, "codec", (sides, count), pass_) or 0

    def prompts(self, composition: Composition, prompt: str, sizes: Sequence[Size], count: int) -> int:
        """Count the encoder while it encodes `count` times a prompt with pictures of these sizes in pixels."""
        one, two = (
            self._remembered(
                "encoding prompts",
                composition,
                "encoder",
                (prompt, tuple(sizes), several),
                partial(_prompts, composition, prompt, sizes, several),
            )
            or 0
            for several in (1, min(count, 2))
        )
        return int(one + (count - 1) * (two - one))

    def _remembered(
        self, what: str, composition: Composition, role: str, key: Hashable, count: Callable[[], Any]
    ) -> Any:
        """Return what `count` returns, or what it returned before for an equal component; None if it cannot count."""
        settings = getattr(composition.config, role)
        about = (
            *(what, settings.use, str(composition.model(role).folder), repr(settings.options)),
            *(composition.dtype(role), imitates_cuda(composition.device(role)), key),
        )
        if about not in self._found:
            try:
                self._found[about] = None if composition.outlines.get(role) is None else count()
            # A plugin's network may do what has no answer without values. A run must not end because of its forecast.
            except Exception as error:
                log.debug("%s cannot be counted", what, exc_info=True)
                self.unknown[f"{what} ({role} {settings.use!r})"] = f"{type(error).__name__}: {error}"
                self._found[about] = None
        return self._found[about]


def imitates_cuda(device: torch.device) -> bool:
    """Whether autocast on a device has the lists of CUDA."""
    return device.type not in ("cpu", "mps")


def _step(composition: Composition, batch: Batch, checkpointing: bool, offloaded: bool) -> StepBytes:
    total = _block_count(composition.outlines["denoiser"])
    few = _FEW if total > _FEW[-1] else (total,)
    found = [_short_step(composition, batch, checkpointing, offloaded, blocks) for blocks in few]
    more = total - few[-1]
    return StepBytes(
        activations=found[-1].activations + more * (found[-1].activations - found[0].activations),
        inputs=found[-1].inputs + more * (found[-1].inputs - found[0].inputs),
    )


def _short_step(composition: Composition, batch: Batch, checkpointing: bool, offloaded: bool, blocks: int) -> StepBytes:
    train = composition.config.train
    denoiser: Denoiser = composition.outline("denoiser", composition.dtype("denoiser"))
    _shorten(denoiser, blocks)
    module = denoiser.module
    if train.mode == "lora":
        lora = adapters.as_new(module, composition.config.lora)
        adapters.add_lora(module, lora, denoiser.lora_presets, seed=0)
    else:
        module.requires_grad_(True)
        nn.Module.to(module, torch.float32)
    to_counted(module)
    host = _HostCopies()
    if checkpointing:
        _recompute(module, host if offloaded else None)
    module.train()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    if train.gradient_accumulation > 1:  # those of the pass before are there
        for parameter in trained:
            parameter.grad = counted(parameter)
        gradients = 0
    device = composition.device("denoiser")
    with counting(cuda=imitates_cuda(device)) as found, attention_kernels(device, batch.tokens(1)):
        noisy, sigma, cond, references = _inputs(composition, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=train.precision == "bfloat16"):
            predicted = denoiser.velocity(noisy, sigma, cond, references, forward=_options(composition))
        (predicted.float() - torch.empty_like(predicted)).square().mean().backward()
        del predicted, noisy, sigma, cond, references
    return StepBytes(activations=max(found.peak - gradients, 0), inputs=host.most)


def _forward(composition: Composition, batch: Batch, trains: bool, autocast: bool) -> int:
    full = trains and composition.config.train.mode == "full"
    dtype = torch.float32 if full else composition.dtype("denoiser")
    denoiser: Denoiser = composition.outline("denoiser", dtype)
    _shorten(denoiser, _FEW[0])
    to_counted(denoiser.network)
    with _no_gradients(composition, "denoiser") as found:
        noisy, sigma, cond, references = _inputs(composition, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            denoiser.velocity(noisy, sigma, cond, references, forward=_options(composition))
    return found.peak


def _prompts(composition: Composition, prompt: str, sizes: Sequence[Size], count: int) -> int:
    encoder = _on_counted(composition, "encoder")
    encoder.placed_on = torch.device("cpu")  # tokens and their positions keep their values, which the network reads
    pictures = [Image.new("RGB", (width, height)) for height, width in sizes]
    with _no_gradients(composition, "encoder") as found:
        encoder.encode([prompt] * count, [pictures] * count)
    return found.peak


@contextmanager
def _no_gradients(composition: Composition, role: str) -> Iterator[Count]:
    with counting(cuda=imitates_cuda(composition.device(role))) as found, torch.no_grad():
        yield found


def _on_counted(composition: Composition, role: str) -> Any:
    """A new component whose network is on the counted device, with few of its repeated blocks."""
    part = composition.outline(role, composition.dtype(role))
    _shorten(part, _FEW[0])
    to_counted(part.network)
    return part


def _lists(part: Any) -> list[tuple[str, nn.ModuleList]]:
    """The lists of repeated blocks of a component's network, by name, whose blocks have all the same shapes."""
    found = []
    for name in part.block_lists():
        listed = part.network.get_submodule(name)
        shapes = {tuple((key, p.shape) for key, p in block.named_parameters()) for block in listed}
        if len(shapes) == 1:
            found.append((name, listed))
    return found


def _shorten(part: Any, blocks: int) -> None:
    """Leave out all but a few blocks of each list."""
    for name, listed in _lists(part):
        part.network.set_submodule(name, nn.ModuleList(listed[:blocks]))


def _block_count(part: Any) -> int:
    lists = _lists(part)
    return len(lists[0][1]) if len(lists) == 1 else 0


def _options(composition: Composition) -> ForwardOptions:
    return ForwardOptions(guidance=1.0) if composition.specs["denoiser"].guidance else PLAIN


def _inputs(
    composition: Composition, batch: Batch
) -> tuple[PackedSequence, Tensor, Conditioning, PackedSequence | None]:
    """Noisy tokens, sigmas, conditioning and references of a batch, on the counted device."""
    spec, count = composition.specs["denoiser"], batch.count
    target, references = batch.shape

    def packed(grids: tuple[Grid, ...]) -> PackedSequence:
        tokens = sum(frames * height * width for frames, height, width in grids)
        return PackedSequence(torch.empty(count * tokens, spec.token_channels, device=COUNTED), (grids,) * count)

    def grid(sides: tuple[int, int]) -> Grid:
        return (1, sides[0] // spec.patch, sides[1] // spec.patch)

    embeds = torch.empty(count * batch.text, spec.text_width, dtype=composition.dtype("encoder"), device=COUNTED)
    given = packed(tuple(map(grid, references))) if references else None
    sigma = torch.empty(count, device=COUNTED)
    return packed((grid(target),)), sigma, Conditioning(embeds, (batch.text,) * count), given


class _HostCopies:
    """Takes what blocks keep off the counted device until the backward pass, as `train.offload_inputs` does.

    Attributes:
        most: The most bytes that lay in host memory at once.
    """

    def __init__(self) -> None:
        self.most = self._now = 0

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.device != COUNTED:
            return tensor
        self._now += tensor.nbytes
        self.most = max(self.most, self._now)
        return tensor.shape, tensor.dtype, tensor.requires_grad

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        shape, dtype, _ = kept
        return torch.empty(shape, dtype=dtype, device=COUNTED)


def _recompute(module: Any, host: _HostCopies | None) -> None:
    """Turn on gradient checkpointing, as `qframe.train.recomputing` does."""
    if host is None:
        module.enable_gradient_checkpointing()
        return

    def recomputed(block: nn.Module, *args: Any) -> Any:
        with host.hooks():
            return torch.utils.checkpoint.checkpoint(block.__call__, *args, use_reentrant=False)

    module.enable_gradient_checkpointing(gradient_checkpointing_func=recomputed)
