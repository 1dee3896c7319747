"""CRCs match the catalogue, can be combined, and are read as S3 writes them."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import crc

# The input of the check values in https://reveng.sourceforge.io/crc-catalogue/all.htm: the digits 1 to 9.
CHECK_INPUT = b"123456789"


def test_crc64_matches_the_catalogue_of_crcs() -> None:
    assert crc.crc64(CHECK_INPUT) == 0xAE8B14860A799888


@pytest.mark.parametrize(
    ("algorithm", "value"), [("crc64nvme", 0xAE8B14860A799888), ("crc32c", 0xE3069283), ("crc32", 0xCBF43926)]
)
def test_algorithm_is_chosen_by_its_s3_name(algorithm: str, value: int) -> None:
    assert crc.by_algorithm(algorithm, CHECK_INPUT) == value
    assert algorithm in crc.ALGORITHMS


@given(st.binary(max_size=200))
def test_crc32_matches_zlib(data: bytes) -> None:
    assert crc.by_algorithm("crc32", memoryview(data)) == zlib.crc32(data)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_combined_crc_is_the_crc_of_the_concatenation(pieces: list[bytes]) -> None:
    combined = crc.concatenate((crc.crc64(piece), len(piece)) for piece in pieces)
    assert combined == crc.crc64(b"".join(pieces))


def test_order_of_pieces_matters() -> None:
    one, other = (crc.crc64(b"one"), 3), (crc.crc64(b"two"), 3)
    assert crc.concatenate([one, other]) != crc.concatenate([other, one])


@given(st.integers(0, 2**64 - 1))
def test_crc_round_trips_through_header_and_hex(value: int) -> None:
    assert crc.from_header(crc.to_header(value)) == value
    assert len(crc.to_hex(value)) == 16
    assert int(crc.to_hex(value), 16) == value


def test_header_is_eight_big_endian_bytes_in_base64() -> None:
    assert crc.to_header(0xAE8B14860A799888) == "rosUhgp5mIg="


@pytest.mark.parametrize("value", [None, "", "rosUhgp5mIg=-3"])
def test_missing_and_composite_headers_give_no_crc(value: str | None) -> None:
    assert crc.from_header(value) is None
