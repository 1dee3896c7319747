"""HTTP/1.1 on the wire: heads, bodies, and bodies that are changed, stalled or cut off on the way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

CHUNK_BYTES = 256 * 1024
"""How much of a body is read at a time."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or a response: its bytes, and what they mean."""

    raw: bytes
    first_line: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a head with its final empty line."""
        # Latin-1 maps every byte to one character, so that a head can be encoded again without change.
        first_line, *lines = raw.decode("latin-1").strip("\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return cls(raw, first_line, tuple((name.strip(), value.strip()) for name, _, value in pairs))

    def lower(self) -> dict[str, str]:
        """The headers by name in lower case."""
        return {name.lower(): value for name, value in self.headers}

    @property
    def status(self) -> int:
        return int(self.first_line.split(" ", 2)[1])

    @property
    def reason(self) -> str:
        return self.first_line.partition(" ")[2].partition(" ")[2]


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head; None if the peer has closed the connection between two messages."""
    try:
        return Head.parse(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise
        return None


class Body:
    """The body that follows a head. Read it once, with :meth:`pieces` or :meth:`whole`.

    :param until_close: without a length and chunks, the body ends where the connection does
    """

    def __init__(
        self, reader: asyncio.StreamReader, headers: Mapping[str, str], *, until_close: bool
    ) -> None:
        self._reader = reader
        self.chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self.length = (
            int(headers["content-length"]) if "content-length" in headers and not self.chunked else None
        )
        self.until_close = until_close and not self.chunked and self.length is None
        self.expected = self.chunked or self.until_close or bool(self.length)

    async def pieces(self, *, decoded: bool = False) -> AsyncIterator[bytes]:
        """The body as it is on the wire; with ``decoded``, without the framing of chunks.

        :raises EOFError: if the body ends too early
        """
        if self.chunked:
            async for piece in self._chunks(decoded):
                yield piece
        elif self.until_close:
            while piece := await self._reader.read(CHUNK_BYTES):
                yield piece
        else:
            left = self.length or 0
            while left:
                piece = await self._reader.read(min(CHUNK_BYTES, left))
                if not piece:
                    raise EOFError(f"the body ended {left} bytes early")
                left -= len(piece)
                yield piece

    async def _chunks(self, decoded: bool) -> AsyncIterator[bytes]:
        while True:
            line = await self._reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if not decoded:
                yield line
            if not size:
                break
            data = await self._reader.readexactly(size + 2)
            yield data[:-2] if decoded else data
        while True:
            trailer = await self._reader.readuntil(b"\r\n")
            if not decoded:
                yield trailer
            if trailer == b"\r\n":
                return

    async def whole(self) -> bytes:
        """The whole body, decoded."""
        return b"".join([piece async for piece in self.pieces(decoded=True)])


@dataclass(frozen=True, slots=True)
class Event:
    """What happens after the first ``position`` bytes of a body."""

    position: int
    act: Literal["corrupt", "stall", "close", "reset"]
    seconds: float = 0.0


class StoppedError(Exception):
    """A rule cuts a body off here."""

    def __init__(self, act: str) -> None:
        super().__init__(act)
        self.act = act


async def apply_events(
    pieces: AsyncIterator[bytes], events: Sequence[Event], sleep: Callable[[float], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """A body with the events applied to it.

    :raises StoppedError: if an event cuts it off
    """
    pending = sorted(events, key=lambda event: event.position)
    passed = 0
    async for piece in pieces:
        while pending and pending[0].position < passed + len(piece):
            event = pending.pop(0)
            cut = event.position - passed
            if event.act == "corrupt":
                piece = piece[:cut] + bytes([piece[cut] ^ 0xFF]) + piece[cut + 1 :]
                continue
            if cut:
                yield piece[:cut]
            passed, piece = event.position, piece[cut:]
            if event.act != "stall":
                raise StoppedError(event.act)
            await sleep(event.seconds)
        passed += len(piece)
        yield piece


async def single_piece(piece: bytes) -> AsyncIterator[bytes]:
    """A body of one piece; none if it is empty."""
    if piece:
        yield piece
