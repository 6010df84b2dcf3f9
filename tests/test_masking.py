"""Tests of greentx.protocol.websocket.masking: the same bytes in every way, and no package that has to be there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.speedups import apply_mask as in_c

from greentx.protocol.websocket.frames import Frame, FrameParser, Opcode, build_frame
from greentx.protocol.websocket.masking import apply_mask, apply_mask_in_python, compiled_mask

MASK = bytes.fromhex("37fa213d")

both_ways = pytest.mark.parametrize(
    "mask_with", [pytest.param(in_c, id="websockets"), pytest.param(apply_mask_in_python, id="standard library")]
)
masks = st.binary(min_size=4, max_size=4)


@pytest.fixture(params=[True, False], ids=["websockets", "standard library"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The package in C is there, or is not."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    compiled_mask.cache_clear()
    yield request.param
    compiled_mask.cache_clear()


def by_definition(payload: bytes, mask: bytes) -> bytes:
    """RFC 6455, section 5.3: octet i is XORed with octet i modulo 4 of the key."""
    return bytes([byte ^ mask[index % 4] for index, byte in enumerate(payload)])


@both_ways
@given(payload=st.binary(max_size=1600), mask=masks)
@example(payload=b"", mask=MASK)
@example(payload=bytes(range(256)) * 4, mask=b"\0\0\0\1")
def test_masking_is_a_bytewise_xor_and_undoes_itself(
    mask_with: Callable[[bytes, bytes], bytes], payload: bytes, mask: bytes
) -> None:
    """Short payloads and long ones become what the RFC's definition gives, in C and without it."""
    for mask_it in (mask_with, apply_mask):
        masked = mask_it(payload, mask)
        assert type(masked) is bytes
        assert masked == by_definition(payload, mask)
        assert mask_it(masked, mask) == payload


@both_ways
def test_every_length_is_masked_to_its_last_byte(mask_with: Callable[[bytes, bytes], bytes]) -> None:
    """Around the length at which the way changes, and for each remainder of four, no byte is left out."""
    for length in (*range(20), *range(760, 776), 4095, 4096, 65537):
        payload = bytes([number % 251 for number in range(length)])
        assert mask_with(payload, MASK) == by_definition(payload, MASK)


@both_ways
@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde", bytes(3), bytes(5)])
def test_a_mask_of_another_length_is_refused(mask_with: Callable[[bytes, bytes], bytes], mask: bytes) -> None:
    """In C as without it, for short payloads and long ones."""
    for mask_it in (mask_with, apply_mask):
        for payload in (b"x" * 10, b"x" * 1000):
            with pytest.raises(ValueError, match="4 bytes"):
                mask_it(payload, mask)


def test_masking_with_zeros_copies_nothing() -> None:
    """The payload itself comes back: its bytes are what they would become."""
    payload = b"as it is" * 100
    assert apply_mask(payload, bytes(4)) is payload


def test_the_package_in_c_is_used_where_it_is_installed(installed: bool) -> None:
    """Without it the standard library masks."""
    assert compiled_mask() is (in_c if installed else apply_mask_in_python)


@pytest.mark.parametrize("length", [0, 5, 125, 126, 1000, 65536])
@pytest.mark.usefixtures("installed")
def test_a_masked_frame_is_read_back(length: int) -> None:
    """What a client sends is what its server reads, with the package in C and without."""
    payload = bytes([number % 251 for number in range(length)])
    data = build_frame(payload, Opcode.BINARY, mask=MASK)
    assert data.endswith(MASK + by_definition(payload, MASK))
    assert FrameParser(require_mask=True).feed(data) == [Frame(payload, Opcode.BINARY)]


def test_importing_frames_does_not_import_websockets() -> None:
    """A handler that never masks does not pay for the package."""
    code = "import sys, greentx.protocol.websocket.frames; sys.exit('websockets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
