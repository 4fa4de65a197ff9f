"""What is stored about the embedded model: caches and checkpoints that exist must still be recognised."""

from __future__ import annotations

import importlib.metadata

from qframe.compose import compose
from qframe.config import load_config


def test_the_ingredients_of_the_embedded_model_are_those_that_stored_keys_were_made_of() -> None:
    composition = compose(load_config(family="qwen-edit", overrides=["device=cpu"]))
    assert composition.ingredients("denoiser") == {
        "class": "qframe_qwen.denoiser:StockDenoiser",
        "fingerprint": "3147c548d99352a9270d67bce4e7c9e79d73049b000eec0950cf236fa7b4ddcb",
        "dtype": "float32",
    }
    assert composition.ingredients("schedule") == {
        "class": "qframe_qwen.schedule:FlowMatchSchedule",
        "fingerprint": "ff3eba01638e6b426b99b0a7aa9c28a25e82dbf20175c296928d41f98bab0040",
        "dtype": "float32",
    }
    assert composition.ingredients("codec") == {
        "class": "qframe_qwen.codec:QwenCodec",
        "weights": "7c47c0ac9cef82e106288f36ca42bf2e0e2030696778f9f89242324f81d89c66",
        "dtype": "float32",
    }
    assert composition.ingredients("encoder") == {
        "class": "qframe_qwen.encoder:QwenVLEncoder",
        "weights": "4af1af2ad62e5643f9eaf264c49797c0cb10b8b1ca7a24c406e99825a7261d8f",
        "tokenizer": "7598fd118a9674853c23cb461f036a6800c5928a0a9c57d4c7809f145c200e92",
        "processor": "927ea077546916fd8b957cd0c88b1dab8f0d0046659af007be23040c0704531a",
        "transformers": importlib.metadata.version("transformers"),
        "template": "auto",
        "positions": "mrope",
        "max_length": "None",
        "special_tokens": "refuse",
        "dtype": "float32",
    }
