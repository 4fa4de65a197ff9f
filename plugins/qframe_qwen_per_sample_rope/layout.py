"""The layout of a packed batch, made once per batch: order of the samples, runs of equal length, groups, positions."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence

import attrs
import torch
from torch import Tensor

from qframe.diffusion.copies import sent
from qframe.interfaces import Grid, grid_length
from qframe_qwen_per_sample_rope.rotary import MOST_ROWS, Axes, sample_pictures, text_start, text_table
from qframe_qwen_per_sample_rope.rows import repeated

Grids = Sequence[Sequence[Grid]]


@attrs.frozen
class Run:
    """Neighbouring samples of equal length in one stream.

    Attributes:
        first: The place of the first of these samples in the layout's order.
        count: How many samples they are.
        length: How many rows each sample has.
        target: How many rows of each sample, its first ones, are modulated by the sample's own time. The other rows, of
            references, are modulated by time 0 (`zero_cond_t`).
    """

    first: int
    count: int
    length: int
    target: int

    @property
    def rows(self) -> int:
        """How many rows all these samples have."""
        return self.count * self.length


@attrs.frozen
class Group:
    """Neighbouring samples of equal text and equal picture lengths, whose attention is computed as one dense batch.

    Attributes:
        count: How many samples they are.
        text: How many text rows each sample has.
        image: How many picture rows each sample has.
    """

    count: int
    text: int
    image: int


@attrs.frozen(eq=False, kw_only=True)
class Stream:
    """One stream of a batch, its pictures or its text, with the samples in the layout's order.

    Attributes:
        lengths: How many rows each sample has.
        runs: Neighbouring samples of equal lengths.
        turns: The cosine and the sine of each row's rotary positions, [N, 1, d / 2, 2].
        owner: For each row of the stream, which row of the modulation [B or 2 B, D] applies to it: [N], int64. It has
            the same information as `runs`, in a tensor of which only the size changes from batch to batch, so that a
            compiled block is not compiled again.
    """

    lengths: tuple[int, ...]
    runs: tuple[Run, ...]
    turns: Tensor
    owner: Tensor

    @property
    def at_own_time(self) -> Stream:
        """The same stream with every row, of references too, modulated by its sample's own time."""
        if all(run.target == run.length for run in self.runs):
            return self
        runs = tuple(attrs.evolve(run, target=run.length) for run in self.runs)
        return attrs.evolve(self, runs=runs, owner=self.owner % len(self.lengths))


@attrs.frozen(eq=False, kw_only=True)
class Layout:
    """The layout of a batch. Samples are sorted, so that samples of equal lengths are neighbours and slices are views.

    The last four attributes are for the attention kernel that takes sequences of different lengths. It gets one
    sequence per sample: the sample's text, then its pictures.

    Attributes:
        order: The samples in the order of the layout, as numbers in the caller's batch. All other attributes have this
            order.
        image: The stream of pictures.
        text: The stream of prompts.
        groups: The samples of equal lengths, which attention computes as one dense batch each.
        ends: Where each sequence starts, and the end of the last one, [B + 1], int32.
        longest: The length of the longest sequence.
        joined: Permutes the rows of the text stream, followed by those of the picture stream, into the sequences:
            [M + N], int64.
        parted: The inverse permutation of `joined`, [M + N].
    """

    order: tuple[int, ...]
    image: Stream
    text: Stream
    groups: tuple[Group, ...]
    ends: Tensor
    longest: int
    joined: Tensor
    parted: Tensor

    @property
    def batch_size(self) -> int:
        """How many samples the batch has."""
        return len(self.order)

    def sort(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """Bring rows [N, ...] from the caller's order into the layout's.

        `lengths` counts rows, in the layout's order.
        """
        return _reorder(rows, self.unsorted(lengths), self.order)

    def unsort(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """Bring rows [N, ...] from the layout's order back into the caller's.

        `lengths` counts rows, in the layout's order.
        """
        return _reorder(rows, lengths, self.unsorted(range(self.batch_size)))

    def unsorted(self, values: Sequence[int]) -> list[int]:
        """Bring one value per sample from the layout's order back into the caller's."""
        found = [0] * self.batch_size
        for place, sample in enumerate(self.order):
            found[sample] = values[place]
        return found

    def per_sample(self, what: str, values: Tensor) -> Tensor:
        """Bring the caller's values into the layout's order.

        Args:
            what: What an error calls the values.
            values: One value per sample, [B], or one for all samples.

        Raises:
            ValueError: There is another number of values; the message names both numbers.
        """
        values = values.reshape(-1)
        if values.shape[0] == 1:
            return values.expand(self.batch_size)
        if values.shape[0] != self.batch_size:
            sample = min(values.shape[0], self.batch_size)
            raise ValueError(f"sample {sample}: {values.shape[0]} {what}, {self.batch_size} samples")
        return self.sort(values, (1,) * self.batch_size)


def make_layout(
    grids: Grids,
    text_lengths: Sequence[int],
    *,
    axes: Axes,
    device: torch.device,
    zero_cond_t: bool = False,
    layered: bool = False,
    text_positions: Sequence[Tensor] | None = None,
) -> Layout:
    """Make the layout of a batch.

    Args:
        grids: For each sample the grids of its pictures, the target first.
        text_lengths: How many text tokens each sample has.
        axes: How many channels of a head are rotated along each axis.
        device: Where the tensors of the layout go.
        zero_cond_t: Whether references are modulated by time 0.
        layered: Whether a sample's last picture lies at frame -1, as in Qwen-Image-Layered.
        text_positions: For each sample the positions of its text tokens, counted from the first position of its text.
            None stands for 0, 1, 2 and so on.

    Raises:
        ValueError: A sample has no picture or no text, there are not as many prompts as sets of pictures, or a position
            table would have more than MOST_ROWS rows. The message names the sample and both numbers.
    """
    _check_samples(grids, text_lengths)
    spans = text_lengths if text_positions is None else [int(places.max()) + 1 for places in text_positions]
    _check_tables(grids, [text_start(own, layered=layered) + span for own, span in zip(grids, spans, strict=True)])
    images = [sum(map(grid_length, own)) for own in grids]
    targets = [grid_length(own[0]) if zero_cond_t else length for own, length in zip(grids, images, strict=True)]
    keys = list(zip(images, targets, text_lengths, strict=True))
    order = tuple(sorted(range(len(keys)), key=keys.__getitem__))
    image_turns, text_turns = [], []
    for sample in order:
        image_turns += sample_pictures(grids[sample], axes, device, layered=layered)
        start = text_start(grids[sample], layered=layered)
        if text_positions is None:
            text_turns.append(text_table(start, text_lengths[sample], axes, device))
        else:
            places = text_positions[sample]
            text_turns.append(text_table(start, int(places.max()) + 1, axes, device)[places])
    image_lengths = tuple(images[sample] for sample in order)
    ordered_text = tuple(text_lengths[sample] for sample in order)
    both = list(zip(ordered_text, image_lengths, strict=True))
    joined = _joined_rows(ordered_text, image_lengths)
    return Layout(
        order=order,
        image=_stream(image_lengths, [targets[sample] for sample in order], image_turns),
        text=_stream(ordered_text, ordered_text, text_turns),
        groups=tuple(Group(count, *lengths) for lengths, _, count in _neighbours(both)),
        ends=sent(torch.tensor([0, *itertools.accumulate(map(sum, both))], dtype=torch.int32), device),
        longest=max(map(sum, both)),
        joined=sent(joined, device),
        parted=sent(joined.argsort(), device),
    )


def as_grid(sample: int, shape: Sequence[int]) -> Grid:
    """Return the shape of a picture as a grid. ValueError names the sample if it is not three positive integers."""
    if len(shape) != 3 or not all(hasattr(side, "__index__") for side in shape) or min(shape) < 1:
        raise ValueError(f"sample {sample}: a grid is 3 positive integers, got {tuple(shape)}")
    frames, height, width = map(operator.index, shape)
    return frames, height, width


def check_rows(what: str, lengths: Sequence[int], rows: int) -> None:
    """Check that the lengths of all samples add up to the number of rows of a tensor.

    Args:
        what: What the message calls the tokens: "picture" or "text".
        lengths: How many rows each sample has, in the caller's order.
        rows: How many rows the tensor has.

    Raises:
        ValueError: They do not. The message names the sample whose rows end beyond the tensor, or the last sample if
            the tensor has rows that belong to no sample.
    """
    end = 0
    for sample, length in enumerate(lengths):
        end += length
        if end > rows or (end < rows and sample == len(lengths) - 1):
            raise ValueError(f"sample {sample}: its {what} tokens end at {end}, the tensor holds {rows}")


def cut(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Cut x [N, ...] into slices of these sizes.

    If there is only one size, x itself is returned, because splitting would cost a copy in the backward pass.
    """
    return (x,) if len(sizes) == 1 else x.split(list(sizes))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, stream: Stream) -> Tensor:
    """Return x (1 + scale) + shift for x [N, D], with the rows of shift and scale [B or 2 B, D] that `owner` gives."""

    def piece(rows: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, rows, 1 + scale)

    return _per_sample(piece, stream, (x,), (shift, scale))


def add_gated(x: Tensor, change: Tensor, gate: Tensor, stream: Stream) -> Tensor:
    """Return x + gate change for x and change [N, D], with the rows of gate [B or 2 B, D] that `owner` gives."""

    def piece(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, change, gate)

    return _per_sample(piece, stream, (x, change), (gate,))


def _per_sample(
    piece: Callable[..., Tensor], stream: Stream, rows: Sequence[Tensor], values: Sequence[Tensor]
) -> Tensor:
    """Apply `piece` run by run, to rows [count, length, D] and the values [count, 1, D] of their samples.

    The values are not repeated over the tokens, because that would cost as much memory as the streams themselves. Only
    under `torch.compile` they are: the compiler fuses the repetition, and would compile again for every mixture of
    lengths if it saw runs.
    """
    if torch.compiler.is_compiling():
        return piece(*rows, *(repeated(value, stream.owner) for value in values))
    batch = len(stream.lengths)
    sizes = [run.rows for run in stream.runs]
    found = []
    for run, *own_rows in zip(stream.runs, *(cut(x, sizes) for x in rows), strict=True):
        dense = [part.unflatten(0, (run.count, run.length)) for part in own_rows]
        own = slice(run.first, run.first + run.count)
        spans = [(slice(0, run.target), own)]
        if run.target < run.length:
            spans.append((slice(run.target, None), slice(batch + run.first, batch + run.first + run.count)))
        parts = [piece(*(x[:, at] for x in dense), *(v[who, None] for v in values)) for at, who in spans]
        found.append(_joined(parts, 1).flatten(0, 1))
    return _joined(found, 0)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _reorder(rows: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    if list(order) == sorted(order):
        return rows
    parts = rows.split(list(lengths))
    return torch.cat([parts[sample] for sample in order])


def _stream(lengths: tuple[int, ...], targets: Sequence[int], turns: Sequence[Tensor]) -> Stream:
    runs = tuple(Run(first, count, *both) for both, first, count in _neighbours(zip(lengths, targets, strict=True)))
    places = torch.tensor([[sample, len(lengths) + sample] for sample in range(len(lengths))]).flatten()
    rows = torch.tensor([[target, length - target] for length, target in zip(lengths, targets, strict=True)]).flatten()
    joined = torch.cat(list(turns))
    return Stream(
        lengths=lengths,
        runs=runs,
        turns=torch.view_as_real(joined)[:, None],
        owner=sent(places.repeat_interleave(rows), joined.device),
    )


def _joined_rows(text: Sequence[int], image: Sequence[int]) -> Tensor:
    """Make `Layout.joined`: for each sample the rows of its text, then of its pictures."""
    rows = torch.arange(sum(text) + sum(image)).split([*text, *image])
    return torch.cat([part for pair in zip(rows[: len(text)], rows[len(text) :], strict=True) for part in pair])


def _neighbours(keys: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, int], int, int]]:
    """Return (key, place of the first, count) for each stretch of equal keys."""
    found = []
    first = 0
    for key, same in itertools.groupby(keys):
        count = len(list(same))
        found.append((key, first, count))
        first += count
    return found


def _check_samples(grids: Grids, text_lengths: Sequence[int]) -> None:
    if len(grids) != len(text_lengths):
        raise ValueError(
            f"sample {min(len(grids), len(text_lengths))}: pictures of {len(grids)} samples, "
            f"prompts of {len(text_lengths)}"
        )
    if not grids:
        raise ValueError("a batch needs at least 1 sample, got 0")
    for sample, (own, length) in enumerate(zip(grids, text_lengths, strict=True)):
        if not own:
            raise ValueError(f"sample {sample}: 0 pictures, at least 1 is needed")
        for grid in own:
            as_grid(sample, grid)
        if length < 1:
            raise ValueError(f"sample {sample}: {length} text tokens, at least 1 is needed")


def _check_tables(grids: Grids, text_ends: Sequence[int]) -> None:
    """ValueError for a sample that needs too large a position table. `text_ends` has the position after each text."""
    for sample, (own, end) in enumerate(zip(grids, text_ends, strict=True)):
        rows = sum(map(grid_length, own))
        if rows > MOST_ROWS:
            raise ValueError(f"sample {sample}: {rows} picture tokens, position tables have at most {MOST_ROWS} rows")
        if end > MOST_ROWS:
            raise ValueError(
                f"sample {sample}: its text ends at position {end}, position tables have at most {MOST_ROWS} rows"
            )
