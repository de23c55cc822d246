import math
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from del_lightning.errors import ConfigError, FrameError
from del_lightning.wire import (
    HEADER_BYTES,
    Frame,
    Limits,
    decode_batch,
    decode_frame,
    encode_batch,
    encode_frame,
    pack,
    unpack,
)
from tests.fuzz import wire as fuzz

ROOT = Path(__file__).parents[1]


def fair_codes(bits: int, tokens: int, dim: int = 18, seed: int = 0) -> Any:
    return np.random.default_rng(seed).binomial((1 << bits) - 1, 0.5, (tokens, dim)).astype(np.uint8)


def make_frame(bits: int = 4, tokens: int = 5, dim: int = 18, **changes: Any) -> Frame:
    frame = Frame("0123456789abcdef", "fedcba9876543210", bits, (1 << 31) + 12345, fair_codes(bits, tokens, dim))
    return replace(frame, **changes)


def same(one: Frame, other: Frame) -> bool:
    fields = ("model", "setting", "bits", "a_plus", "prefix", "suffix")
    return all(getattr(one, f) == getattr(other, f) for f in fields) and np.array_equal(one.codes, other.codes)


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[Any, int]:
    bits = draw(st.integers(1, 8))
    shape = arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)
    return draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, (1 << bits) - 1))), bits


@given(codes_and_bits())
def test_packing_is_exact_and_can_be_undone(drawn: tuple[Any, int]) -> None:
    codes, bits = drawn
    data = pack(codes, bits)
    assert len(data) == math.ceil(codes.size * bits / 8)
    # The bits of all codes, one after the other, as text: an independent spelling of the format.
    text = "".join(f"{code:0{bits}b}" for code in codes.ravel())
    assert "".join(f"{byte:08b}" for byte in data) == text.ljust(8 * len(data), "0")
    assert np.array_equal(unpack(data, bits, codes.shape), codes)


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="`codes` must be at most 15 at 4 bits, got 16"):
        pack(np.array([3, 16], np.uint8), 4)
    with pytest.raises(ConfigError, match="`codes` must be an array of uint8, got 'int64'"):
        pack(np.array([3]), 4)
    with pytest.raises(FrameError, match="`payload` of the frame must be 2 bytes, got 3 bytes"):
        unpack(b"abc", 4, (1, 3))
    with pytest.raises(FrameError, match="`padding of the payload` of the frame must be zero bits"):
        unpack(b"\x12\x31", 4, (1, 3))


@settings(deadline=None)  # the first entropy-coded frame imports the coder
@given(codes_and_bits(), st.text() | st.lists(st.integers(0, 2**32 - 1)).map(tuple), st.text(), st.booleans())
def test_a_frame_survives_the_way(drawn: tuple[Any, int], prefix: Any, suffix: str, coded: bool) -> None:
    codes, bits = drawn
    frame = make_frame(bits=bits, codes=codes, prefix=prefix, suffix=suffix)
    data = encode_frame(frame, entropy_coding=coded)
    assert same(decode_frame(data), frame)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_size_on_the_wire(bits: int, tokens: int) -> None:
    frame = make_frame(bits, tokens, prefix="public", suffix=(1, 2))
    assert HEADER_BYTES <= 64
    assert len(encode_frame(frame)) == HEADER_BYTES + len("public") + 2 * 4 + math.ceil(tokens * 18 * bits / 8)


def test_the_format_does_not_change_silently() -> None:
    frame = Frame(
        "00112233445566aa", "ff0123456789abcd", 3, 0x80001234, np.arange(6, dtype=np.uint8).reshape(2, 3), "ab", (9,)
    )
    expected = (
        "44454c66 01 04 03 00 0300 0000 00112233445566aa ff0123456789abcd 34120080 02000000 02000000 04000000 03000000"
        "{checksum} 6162 09000000 053940"
    ).replace(" ", "")
    plain = bytes.fromhex(expected.format(checksum=""))
    checksum = struct.pack("<I", zlib.crc32(plain)).hex()
    assert encode_frame(frame).hex() == expected.format(checksum=checksum)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("tokens", [64, 256])
def test_entropy_coding_comes_within_two_percent_of_the_entropy(bits: int, tokens: int) -> None:
    m = (1 << bits) - 1
    law = np.array([math.comb(m, k) / 2**m for k in range(m + 1)])
    entropy = -float((law * np.log2(law)).sum()) / 8 * tokens * 18
    sizes = []
    for seed in range(40):
        codes = fair_codes(bits, tokens, seed=seed)
        size = len(encode_frame(make_frame(bits, codes=codes), entropy_coding=True)) - HEADER_BYTES
        ideal = -float(np.log2(law[codes]).sum()) / 8
        assert size <= 1.02 * ideal
        sizes.append(size)
    assert abs(float(np.mean(sizes)) / entropy - 1) <= 0.02
    assert np.mean(sizes) < tokens * 18 * bits / 8


def test_entropy_coding_is_used_only_where_it_helps() -> None:
    one_bit = make_frame(bits=1, tokens=64)
    assert encode_frame(one_bit, entropy_coding=True) == encode_frame(one_bit)
    for code in (0, 15):  # a corner is less likely than its bits say; a run of zeros the coder writes as nothing
        corners = make_frame(codes=np.full((64, 18), code, np.uint8))
        assert encode_frame(corners, entropy_coding=True) == encode_frame(corners)


def test_batches() -> None:
    frames = [make_frame(tokens=1), make_frame(bits=8, tokens=3, prefix="a")]
    data = encode_batch(frames, entropy_coding=True)
    assert len(data) == 8 + sum(4 + len(encode_frame(frame, entropy_coding=True)) for frame in frames)
    assert all(map(same, decode_batch(data), frames))
    assert decode_batch(encode_batch([])) == []
    with pytest.raises(FrameError, match="`frames` of the frame must be at most 1, got 2"):
        decode_batch(data, Limits(frames=1))


def at(offset: int, value: bytes, repair: bool = True) -> bytes:
    data = bytearray(encode_frame(make_frame(prefix="xyz")))
    data[offset : offset + len(value)] = value
    if repair:
        struct.pack_into("<I", data, 48, zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[:48])))
    return bytes(data)


HUGE = b"\xff\xff\xff\xff"
HOSTILE = {
    "`magic` of the frame must be": at(0, b"GIF8"),
    "`version` of the frame must be 1, got 2": at(4, b"\2"),
    "`flags` of the frame must be below 8, got 255": at(5, b"\xff"),
    "`bits` of the frame must be between 1 and 8, got 0": at(6, b"\0"),
    "`bits` of the frame must be between 1 and 8, got 9": at(6, b"\x09"),
    "`reserved bytes` of the frame must be zero, got 1": at(7, b"\1"),
    "`dim` of the frame must be between 1 and 1024, got 65535": at(8, b"\xff\xff"),
    "`a_plus` of the frame must be above 2^31, got 1": at(28, b"\1\0\0\0"),
    "`tokens` of the frame must be between 1 and 8192, got 4294967295": at(32, HUGE),
    "`tokens` of the frame must be at least 1, got 0": at(32, bytes(4)),
    "`public text` of the frame must be at most 65536 bytes, got 4294967298": at(36, b"\xff\xff\xff\xff\3\0\0\0"),
    "`frame` of the frame must be 4294967350 bytes, as its header says, got 100 bytes": at(44, HUGE),
    "`checksum` of the frame must be": at(48, HUGE, repair=False),
    "`payload` of the frame must be 27 bytes, got 45 bytes": at(32, b"\3\0\0\0"),
    "`prefix` of the frame must be token ids of 4 bytes, got 3 bytes": at(5, b"\2"),
    "`prefix` of the frame must be UTF-8, got an error at byte 1": at(HEADER_BYTES + 1, b"\xff"),
    "`payload` of the frame must be packed if that is no longer, got 45 bytes": at(5, b"\1"),
    "`frame` of the frame must be at least 52 bytes, got 0 bytes": b"",
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_frames_are_named(message: str) -> None:
    with pytest.raises(FrameError) as caught:
        decode_frame(HOSTILE[message])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hostile_lengths_take_no_memory() -> None:
    tracemalloc.start()
    try:
        for data in HOSTILE.values():
            with pytest.raises(FrameError):
                decode_frame(data)
        # The most tokens of the widest code that limits allow, in an entropy-coded payload of almost nothing.
        bomb = bytearray(at(5, b"\1"))
        struct.pack_into("<H", bomb, 8, 1024)
        struct.pack_into("<I", bomb, 32, 8192)
        fuzz.repair(bomb)
        with pytest.raises(FrameError, match="`payload` of the frame must be at least"):
            decode_frame(bytes(bomb))
        with pytest.raises(FrameError):
            decode_batch(b"DELb" + HUGE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coded", [False, True])
def test_every_truncation_and_every_flipped_bit_is_noticed(coded: bool) -> None:
    data = encode_frame(make_frame(tokens=4, prefix="public"), entropy_coding=coded)
    for end in range(len(data)):
        with pytest.raises(FrameError):
            decode_frame(data[:end])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_frame(bytes(damaged))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    assert not fuzz.check(data)


@settings(max_examples=300)
@given(st.binary(min_size=48, max_size=120), st.integers(0, 7))
def test_noise_behind_a_good_start_and_a_good_checksum_is_harmless(data: bytes, flags: int) -> None:
    damaged = bytearray(b"DELf\1" + bytes([flags]) + data)
    fuzz.repair(damaged)
    fuzz.check(bytes(damaged))


def test_mutants_give_typed_errors_only() -> None:
    accepted = fuzz.run(inputs=10_000, seed=1)
    assert accepted > 100  # the mutations reach what lies behind the checks


def test_writing_refuses_what_could_not_be_read() -> None:
    wrong = {
        "model": "xyz",
        "setting": "0123456789ABCDEF",
        "a_plus": 1 << 31,
        "codes": np.zeros((0, 18), np.uint8),
        "prefix": (1 << 32,),
        "suffix": "\ud800",
    }
    for field, value in wrong.items():
        with pytest.raises(ConfigError):
            encode_frame(replace(make_frame(), **{field: value}))


def test_fuzzer_is_reproducible() -> None:
    first, second = random.Random(3), random.Random(3)
    messages = fuzz.seeds(random.Random(0), count=4)
    assert [fuzz.mutant(first, messages) for _ in range(20)] == [fuzz.mutant(second, messages) for _ in range(20)]


def test_needs_numpy_only() -> None:
    code = (
        "import sys; import numpy as np; from del_lightning.wire import Frame, decode_frame, encode_frame\n"
        "frame = Frame('0' * 16, '1' * 16, 4, 2**31 + 9, np.ones((3, 18), np.uint8))\n"
        "decode_frame(encode_frame(frame))\n"
        "assert not {'torch', 'transformers', 'scipy', 'constriction', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_entropy_coding_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from del_lightning import wire

    wire._law.cache_clear()
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match="`constriction` must be installed for entropy-coded frames"):
        encode_frame(make_frame(), entropy_coding=True)
