"""Decodes the text files that users bring, whatever mark their editor or system put in front, and checks texts."""

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


def text_problem(text: str, name: str = "the prompt") -> str | None:
    """Return the reason why a text cannot be used as prompt, id or group, or None if it can be used.

    A text is refused if it is empty, holds half a character, or holds control characters, which no writer of captions
    means: they come from files in another encoding, or from files that are no text.
    """
    if not text.strip():
        return f"{name} is empty"
    if control := next((c for c in text if c < " " and c not in "\t\n\r\f\v"), None):
        return f"{name} holds the control character {control!r}, as text in another encoding does; save it as UTF-8"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{name} holds half a character, as badly cut or decoded text does; write it anew"
    return None
