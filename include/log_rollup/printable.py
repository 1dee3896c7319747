"""Makes text of a bucket safe to show: control characters become escapes."""


def printable(text: str) -> str:
    """Escape text so that a terminal shows it in one line.

    Control characters (C0, C1, DEL, line ends), bidirectional and other format characters, line separators,
    unusual spaces and unassigned code points become escapes as in Python: ``\\x1b``, ``\\u202e``. All else stays
    unchanged.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
