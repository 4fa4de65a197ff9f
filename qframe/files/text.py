"""Decodes the text files that users bring, whatever mark their editor or system put in front."""

from __future__ import annotations

import codecs


def decode_text(data: bytes) -> str:
    """Decode a text file: UTF-8 with or without a byte-order mark, or UTF-16 with one (what Windows calls Unicode).

    Raises:
        ValueError: The bytes are neither, or hold a NUL, as UTF-16 without a mark does. The message says what to do.
    """
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds a NUL character, as UTF-16 without a mark does; save it as UTF-8")
    return text
