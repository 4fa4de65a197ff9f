"""Files of tensors that are written as a stream: the bytes are those of safetensors, and the digest is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from qframe.files.storage import file_digest
from qframe.files.tensor_files import write_tensors

DTYPES = (
    torch.uint64, torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32,
    torch.bfloat16, torch.float16, torch.uint16, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def mixed() -> dict[str, Tensor]:
    """Tensors of every dtype, in no order, with an empty one, a number, and a name that JSON must escape."""
    generator = torch.Generator().manual_seed(0)
    found = {
        f"{number % 3}.{dtype}": torch.randint(0, 2, (number + 1, 3), generator=generator).to(dtype)
        for number, dtype in enumerate(reversed(DTYPES))
    }
    return {**found, "empty": torch.zeros(0, 5), "number": torch.tensor(2.5), 'ä "quoted"': torch.ones(2)}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_bytes_are_those_of_safetensors_and_the_digest_is_theirs(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    digest = write_tensors(tmp_path / "a", mixed(), metadata=metadata)
    assert (tmp_path / "a").read_bytes() == save(mixed(), metadata)
    assert digest == file_digest(tmp_path / "a")


def test_values_are_asked_for_one_after_another_in_the_order_of_the_file(tmp_path: Path) -> None:
    tensors = mixed()
    asked: list[str] = []
    like = {name: tensor.to("meta") for name, tensor in tensors.items()}
    given: Callable[[str], Tensor] = lambda name: (asked.append(name), tensors[name])[1]  # noqa: E731
    write_tensors(tmp_path / "a", like, value=given)
    assert (tmp_path / "a").read_bytes() == save(tensors)
    assert asked == list(load_file(tmp_path / "a"))


def test_views_and_shared_memory_are_written_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "a", {"turned": base.T, "row": base[1], "again": base[1]})
    read = load_file(tmp_path / "a")
    assert torch.equal(read["turned"], base.T)
    assert torch.equal(read["row"], read["again"])


def test_a_value_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a: torch.float32"):
        write_tensors(tmp_path / "a", {"a": torch.zeros(2)}, value=lambda name: torch.zeros(3))
