"""The contract tests that every denoiser must pass: above all, a sample's result does not depend on its neighbours."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qframe.interfaces import Conditioning, Denoiser, DenoiserSpec, Grid, PackedSequence


@attrs.frozen(eq=False)
class _Sample:
    """The arguments of `Denoiser.velocity`, for a batch of one sample."""

    x: PackedSequence
    sigma: Tensor
    cond: Conditioning
    references: PackedSequence | None


class DenoiserContract:
    """The contract tests that every denoiser must pass.

    A subclass defines two pytest fixtures: `denoiser`, the loaded denoiser, and `spec`, its DenoiserSpec. The tests run
    a batch whose samples have different shapes. If the model cannot take these shapes, the subclass sets the first
    three attributes.

    Attributes:
        grids: The grid (frames, rows, columns) of each sample's target.
        text_lengths: The number of text tokens of each sample.
        reference_grids: The grids of each sample's references.
        tolerance: The largest difference, relative and absolute, that counts as equal.
    """

    grids: tuple[Grid, ...] = ((1, 4, 4), (1, 2, 6), (1, 4, 4), (1, 6, 2))
    text_lengths: tuple[int, ...] = (7, 3, 12, 7)
    reference_grids: tuple[tuple[Grid, ...], ...] = (((1, 4, 4),), ((1, 4, 4),), ((1, 4, 4),), ((1, 2, 6), (1, 3, 3)))
    tolerance: float = 1e-5

    def samples(self, spec: DenoiserSpec, *, references: bool = False) -> list[_Sample]:
        """Return random samples of the shapes that the attributes name, the same in every call.

        Args:
            spec: The Spec of the denoiser.
            references: Whether the samples have references.
        """
        generator = torch.Generator().manual_seed(0)

        def tokens(grids: tuple[Grid, ...]) -> PackedSequence:
            length = sum(f * h * w for f, h, w in grids)
            return PackedSequence(torch.randn(length, spec.token_channels, generator=generator), (grids,))

        return [
            _Sample(
                tokens((grid,)),
                torch.rand(1, generator=generator),
                Conditioning(torch.randn(length, spec.text_width, generator=generator), (length,)),
                tokens(given) if references else None,
            )
            for grid, length, given in zip(self.grids, self.text_lengths, self.reference_grids, strict=True)
        ]

    def test_a_sample_is_the_same_alone_and_in_a_mixed_batch(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        for references in (False, True)[: 1 + spec.references]:
            samples = self.samples(spec, references=references)
            alone = [_velocity(denoiser, sample) for sample in samples]
            self._close(_velocity(denoiser, _join(samples)), torch.cat(alone))

    def test_order_in_the_batch_does_not_matter(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        samples = self.samples(spec, references=spec.references)
        lengths = [sum(sample.x.lengths) for sample in samples]
        forward = _velocity(denoiser, _join(samples)).split(lengths)
        backward = _velocity(denoiser, _join(samples[::-1])).split(lengths[::-1])
        self._close(torch.cat(backward[::-1]), torch.cat(forward))

    def test_bind_equals_velocity(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        batch = _join(self.samples(spec, references=spec.references))
        bound = denoiser.bind(batch.cond, batch.references, batch.x.grids)
        for sigma in (torch.tensor(1.0), torch.tensor(0.3)):
            again = attrs.evolve(batch, sigma=sigma.expand(len(self.grids)))
            with torch.no_grad():
                self._close(bound(batch.x.tokens, sigma), _velocity(denoiser, again))

    def test_everything_it_is_given_matters(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        sample = self.samples(spec, references=spec.references)[0]
        before = _velocity(denoiser, sample)
        others = [
            attrs.evolve(sample, x=sample.x.with_tokens(sample.x.tokens.flip(0))),
            attrs.evolve(sample, sigma=1 - sample.sigma),
            attrs.evolve(sample, cond=attrs.evolve(sample.cond, embeds=sample.cond.embeds + 1)),
        ]
        if sample.references is not None:
            others.append(attrs.evolve(sample, references=sample.references.with_tokens(sample.references.tokens + 1)))
        for other in others:
            assert not torch.allclose(_velocity(denoiser, other), before, atol=self.tolerance)

    def test_the_prediction_is_of_the_target_alone(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        batch = _join(self.samples(spec, references=spec.references))
        predicted = _velocity(denoiser, batch)
        assert predicted.shape == batch.x.tokens.shape
        assert predicted.dtype == batch.x.tokens.dtype
        assert predicted.isfinite().all()

    def test_the_declared_operations_are_those_of_a_forward_pass(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        for references in (False, True)[: 1 + spec.references]:
            batch = _join(self.samples(spec, references=references))
            given = batch.references.grids if batch.references is not None else ((),) * len(self.grids)
            grids = [own + shown for own, shown in zip(batch.x.grids, given, strict=True)]
            declared = denoiser.flops(grids, batch.cond.lengths)
            if declared is None:  # this denoiser does not know them
                return
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # only those are all counted
                _velocity(denoiser, batch)
            assert abs(declared.total / counter.get_total_flops() - 1) < 0.01

    def test_arguments_are_left_alone(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        batch = _join(self.samples(spec, references=spec.references))
        given = [batch.x.tokens, batch.sigma, batch.cond.embeds]
        if batch.references is not None:
            given.append(batch.references.tokens)
        before = [tensor.clone() for tensor in given]
        _velocity(denoiser, batch)
        assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))

    def test_no_gradient_runs_into_the_references(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        if not spec.references:
            return
        batch = _join(self.samples(spec, references=True))
        assert batch.references is not None
        batch.references.tokens.requires_grad_()
        batch.x.tokens.requires_grad_()
        denoiser.velocity(batch.x, batch.sigma, batch.cond, batch.references).square().sum().backward()
        assert batch.references.tokens.grad is None
        assert batch.x.tokens.grad is not None

    def test_what_it_keeps_from_inference_mode_serves_training(self, denoiser: Denoiser, spec: DenoiserSpec) -> None:
        """A backward pass refuses tensors that were made in inference mode, such as a kept position table."""
        batch = _join(self.samples(spec, references=spec.references))
        with torch.inference_mode():
            denoiser.velocity(batch.x, batch.sigma, batch.cond, batch.references)
        tokens = batch.x.tokens.clone().requires_grad_()
        predicted = denoiser.velocity(batch.x.with_tokens(tokens), batch.sigma, batch.cond, batch.references)
        predicted.square().sum().backward()
        assert tokens.grad is not None

    def test_lora_presets_name_linear_layers(self, denoiser: Denoiser) -> None:
        linear = [name for name, part in denoiser.module.named_modules() if isinstance(part, nn.Linear)]
        assert "default" in denoiser.lora_presets
        for preset, endings in denoiser.lora_presets.items():
            for ending in endings:
                assert any(name == ending or name.endswith("." + ending) for name in linear), (preset, ending)

    def test_the_module_has_the_blocks_it_names(self, denoiser: Denoiser) -> None:
        blocks = getattr(denoiser.module, denoiser.blocks)
        assert isinstance(blocks, nn.ModuleList)
        assert len(blocks) > 0

    def _close(self, found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted, rtol=self.tolerance, atol=self.tolerance)


def _velocity(denoiser: Denoiser, sample: _Sample) -> Tensor:
    with torch.no_grad():
        return denoiser.velocity(sample.x, sample.sigma, sample.cond, sample.references)


def _join(samples: list[_Sample]) -> _Sample:
    given = [sample.references for sample in samples if sample.references is not None]
    return _Sample(
        _join_sequences([sample.x for sample in samples]),
        torch.cat([sample.sigma for sample in samples]),
        Conditioning.join([sample.cond for sample in samples]),
        _join_sequences(given) if given else None,
    )


def _join_sequences(sequences: list[PackedSequence]) -> PackedSequence:
    grids = tuple(grids for sequence in sequences for grids in sequence.grids)
    return PackedSequence(torch.cat([sequence.tokens for sequence in sequences]), grids)
