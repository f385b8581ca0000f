"""Text files that people edit, as the editors of several systems save them."""

from __future__ import annotations

import codecs

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(data: bytes) -> str:
    """UTF-8 text with `\\n` at the end of each line, whether or not it begins with a byte order mark.

    Raises ValueError for another encoding.
    """
    if data.startswith(_OTHER_ENCODINGS):
        raise ValueError("it is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
