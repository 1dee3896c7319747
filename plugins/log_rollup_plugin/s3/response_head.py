"""Heads of responses that are not quite HTTP/1.1: h11 refuses them, but boto3 reads them."""

import re

# Lines may end with LF alone.
END_OF_HEAD = re.compile(rb"\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
# https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_NOT_IN_VALUES = re.compile(rb"[\x00\r\v\f]")


def repair_head(head: bytes) -> bytes:
    """A head that h11 accepts, with the same meaning; without the reason phrase, which has none.

    Lines that cannot be read are left out, except if they state how long the body is: h11 refuses those.

    :param head: one head, up to its empty line
    """
    status, *lines = _LINE_END.split(_FOLD.sub(b" ", head.strip(b"\r\n")))
    kept = [b" ".join(status.split()[:2])]
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.strip(), value.strip()
        match name.lower():
            case b"content-length":
                value = value.removeprefix(b"+")
            case b"transfer-encoding":
                if value.lower() == b"identity":
                    continue
            case _:
                if not _TOKEN.fullmatch(name) or _NOT_IN_VALUES.search(value):
                    continue
        kept.append(name + b": " + value)
    return b"\r\n".join((*kept, b"", b""))
