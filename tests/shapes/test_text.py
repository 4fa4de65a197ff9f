from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from qframe_shapes import tasks, text, vocabulary, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    text.save_text(path, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(folder / "tokenizer")


@pytest.mark.parametrize(
    ("template", "length", "next_token"),
    [(text.TEXT_TEMPLATE, 34, "zebra"), (text.EDIT_TEMPLATE, 64, "<|vision_start|>")],
)
def test_prefixes_count_what_the_pipelines_drop(
    tokenizer: Qwen2Tokenizer, template: str, length: int, next_token: str
) -> None:
    ids = tokenizer(template.format("zebra")).input_ids
    assert tokenizer.decode(ids[:length]).endswith("<|im_start|>user\n")
    assert tokenizer.decode(ids[length:]).startswith(next_token)


def test_the_templates_are_those_of_diffusers() -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage, pipeline_qwenimage_edit

    for module, template in ((pipeline_qwenimage, text.TEXT_TEMPLATE), (pipeline_qwenimage_edit, text.EDIT_TEMPLATE)):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert template.replace("\n", "\\n") in source


def test_every_word_of_the_world_is_one_token(tokenizer: Qwen2Tokenizer) -> None:
    episodes = [tasks.training_episode(0, i) for i in range(300)] + [tasks.lora_episode(0, i) for i in range(50)]
    words = {word for episode in episodes for word in episode.prompt.split()} | set(world.PALETTE)
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in words)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary.training_words())


def test_any_text_survives_the_tokenizer(tokenizer: Qwen2Tokenizer) -> None:
    written = "A zébra, 12 × 日本 \n\t🙂"
    assert tokenizer.decode(tokenizer(written).input_ids) == written


def test_special_tokens_are_in_their_real_order(tokenizer: Qwen2Tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(text.SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(text.SPECIAL_TOKENS)))


@pytest.mark.parametrize("canvas", world.CANVASES, ids=str)
def test_no_canvas_is_resized_and_a_vision_token_is_a_transformer_token(canvas: world.Canvas) -> None:
    picture = world.render(world.Scene(canvas, "white"))
    grid = text.new_image_processor()(images=[picture], return_tensors="pt").image_grid_thw
    assert grid.tolist() == [[1, canvas.height // text.PATCH, canvas.width // text.PATCH]]
    assert text.PATCH * text.MERGE == world.TOKEN


def test_embeddings_depend_on_prompt_and_picture(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    episode = tasks.recolour(world.sample_rng(0, 1), world.MAIN_CANVAS)
    assert episode.source is not None

    def embed(prompt: str, scene: world.Scene) -> torch.Tensor:
        picture = text.new_image_processor()(images=[world.render(scene)], return_tensors="pt")
        count = int(picture.image_grid_thw.prod()) // text.MERGE**2
        written = text.EDIT_TEMPLATE.format(prompt).replace("<|image_pad|>", "<|image_pad|>" * count)
        inputs = tokenizer(written, return_tensors="pt")
        types = (inputs.input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        with torch.no_grad():
            output = encoder(**inputs, **picture, mm_token_type_ids=types, output_hidden_states=True)
        return output.hidden_states[-1][0, 64:]

    base = embed("make the circle blue", episode.source)
    for other in (embed("make the circle red", episode.source), embed("make the circle blue", episode.target)):
        change = (base - other).norm(dim=-1) / base.norm(dim=-1)
        assert change.max() > 0.3
