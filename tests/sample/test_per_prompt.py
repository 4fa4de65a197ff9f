from __future__ import annotations

import torch

from qframe.interfaces import Request
from qframe.sample.per_prompt import select


def test_a_part_of_a_request_has_what_belongs_to_its_prompts() -> None:
    """Negative prompts of their own, and the generators and latents of each picture made."""
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    request = Request(
        prompt=["a", "b", "c"],
        negative_prompt=["x", "y", "z"],
        num_images_per_prompt=2,
        generator=generators,
        latents=torch.arange(6.0).reshape(6, 1, 1),
    )
    part = select(request, (0, 2))
    assert (part.prompt, part.negative_prompt) == (("a", "c"), ("x", "z"))
    assert part.generator == [generators[i] for i in (0, 1, 4, 5)]
    assert part.latents is not None
    assert part.latents.flatten().tolist() == [0, 1, 4, 5]


def test_one_negative_prompt_serves_every_part() -> None:
    assert select(Request(prompt=["a", "b", "c"], negative_prompt="x"), (2,)).negative_prompt == ("x",)


def test_embeddings_go_with_their_prompts_and_one_for_all_with_every_part() -> None:
    embeds, mask = torch.arange(3.0).reshape(3, 1, 1), torch.tensor([[1], [2], [3]])
    part = select(
        Request(
            prompt_embeds=embeds,
            prompt_embeds_mask=mask,
            negative_prompt_embeds=embeds[:1],
            negative_prompt_embeds_mask=mask[:1],
        ),
        (0, 2),
    )
    assert part.prompt_embeds is not None
    assert part.prompt_embeds_mask is not None
    assert part.prompt_embeds.flatten().tolist() == [0, 2]
    assert part.prompt_embeds_mask.flatten().tolist() == [1, 3]
    assert part.negative_prompt_embeds is not None
    assert torch.equal(part.negative_prompt_embeds, embeds[:1])
