"""Codes as bytes: what actually crosses the network, and nothing besides.

    header (52 bytes) | public prefix | public suffix | payload

The payload is the private prompt: T tokens of d codes of n bits, packed without gaps into ceil(T d n / 8) bytes. It may
be entropy-coded instead: at strong privacy a code looks like a fair coin's sum whatever the input, so the fixed public
law Bin(2^n - 1, 1/2) is a good model, and neither the model nor the choice between the two forms depends on the text
other than through the codes. Prefix and suffix are public text around the private prompt.

A frame comes from anyone: every length is checked against :class:`Limits` and against the bytes at hand before memory
is taken for it, and whatever is accepted is the one spelling of its frame in its form. All integers are little-endian.
Needs numpy and the standard library; entropy coding also needs `constriction`.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from del_lightning.errors import ConfigError, FrameError
from del_lightning.privacy.checks import require, require_count

Codes = NDArray[np.uint8]
Public = str | tuple[int, ...]
"""Public text: as text, or as token ids below 2^32."""

MAGIC, BATCH_MAGIC = b"DELf", b"DELb"
VERSION = 1
_CODED, _PREFIX_IDS, _SUFFIX_IDS = 1, 2, 4
# magic, version, flags, n, reserved, d, reserved, model, setting, a_plus, tokens, prefix, suffix, payload, checksum
_HEADER = struct.Struct("<4sBBBBHH8s8sIIIIII")
_COUNT = struct.Struct("<I")
_CHECKSUM = slice(_HEADER.size - _COUNT.size, _HEADER.size)
HEADER_BYTES = _HEADER.size
_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class Limits:
    """What a decoder accepts; the defaults bound its memory to some megabytes.

    Attributes:
        tokens: most private tokens T of a frame.
        dim: largest code width d.
        public_bytes: most bytes of prefix and suffix together.
        frames: most frames of a batch.
    """

    tokens: int = 8192
    dim: int = 1024
    public_bytes: int = 1 << 16
    frames: int = 64

    @property
    def frame_bytes(self) -> int:
        """Size of the largest frame that can be accepted."""
        return HEADER_BYTES + self.public_bytes + self.tokens * self.dim


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Frame:
    """One request: a private prompt as codes, with public text around it.

    Attributes:
        model: fingerprint of the language model, 16 hex digits.
        setting: fingerprint of codec, mechanism and soft prompt, 16 hex digits.
        bits: n, 1 to 8.
        a_plus: the sampler's largest threshold, in (2^31, 2^32): what the client's privacy rests on.
        codes: (T, d) uint8 codes in 0..2^n - 1, T and d at least 1.
        prefix: public text in front of the private prompt, or its token ids.
        suffix: public text behind it, or its token ids.
    """

    model: str
    setting: str
    bits: int
    a_plus: int
    codes: Codes
    prefix: Public = ""
    suffix: Public = ""

    @property
    def tokens(self) -> int:
        """T: private tokens."""
        return int(self.codes.shape[0])

    @property
    def dim(self) -> int:
        """Code width d."""
        return int(self.codes.shape[1])


class Header(NamedTuple):
    """What stands in front of a frame, in its order; prefix, suffix and payload are sizes in bytes."""

    flags: int
    bits: int
    dim: int
    model: str
    setting: str
    a_plus: int
    tokens: int
    prefix: int
    suffix: int
    payload: int
    checksum: int


def public_size(public: Public) -> int:
    """Bytes of public text in a frame."""
    return len(_public_bytes(public))


def packed_bytes(codes: int, bits: int) -> int:
    """Size of so many packed codes of n bits: ceil(codes n / 8)."""
    return -(-codes * bits // 8)


def pack(codes: Codes, bits: int) -> bytes:
    """Pack codes without gaps, highest bit first; the last byte is filled up with zeros.

    Args:
        codes: uint8 codes in 0..2^n - 1 of any shape, row-major.
        bits: n, 1 to 8.

    Returns:
        ceil(codes.size n / 8) bytes.

    Raises:
        ConfigError: a code needs more than n bits, or the array is not uint8.

    Example:
        >>> pack(np.array([1, 2, 3], dtype=np.uint8), bits=4).hex()
        '1230'
    """
    require_count("bits", bits, 1, 8)
    require(codes.dtype == np.uint8, "codes", "an array of uint8", codes.dtype.name)
    largest = int(codes.max(initial=0))
    require(largest >> bits == 0, "codes", f"at most {(1 << bits) - 1} at {bits} bits", largest)
    if bits == 8:
        return codes.tobytes()
    spread = np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(spread).tobytes()


def unpack(data: bytes, bits: int, shape: tuple[int, ...]) -> Codes:
    """Undo :func:`pack`.

    Args:
        data: exactly the bytes that ``pack`` makes of an array of this shape.
        bits: n, 1 to 8.
        shape: shape of the codes.

    Returns:
        uint8 codes in 0..2^n - 1 of that shape.

    Raises:
        FrameError: ``data`` is too long or too short, or the bits that fill it up are not zero.
    """
    require_count("bits", bits, 1, 8)
    size = math.prod(shape)
    expected = packed_bytes(size, bits)
    _expect(len(data) == expected, "payload", f"{expected} bytes", f"{len(data)} bytes")
    if bits == 8:
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)
    spread = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    _expect(not spread[size * bits :].any(), "padding of the payload", "zero bits", "a one")
    # packbits fills up at the right end; shifting brings the code to the low bits.
    codes: Codes = np.packbits(spread[: size * bits].reshape(size, bits), axis=1)
    codes >>= 8 - bits
    return codes.reshape(shape)


def encode_frame(frame: Frame, *, entropy_coding: bool = False) -> bytes:
    """Write a frame.

    Args:
        frame: what to send.
        entropy_coding: entropy-code the payload if that makes it shorter; needs `constriction`.

    Raises:
        ConfigError: a part of the frame is out of range, or `constriction` is not installed.
    """
    _check(frame)
    payload, flags = pack(frame.codes, frame.bits), 0
    if entropy_coding:
        coded = _code(frame.codes, frame.bits)
        if _least_bytes(frame.codes.size, frame.bits) <= len(coded) < len(payload):
            payload, flags = coded, _CODED
    prefix, suffix = _public_bytes(frame.prefix), _public_bytes(frame.suffix)
    flags |= _PREFIX_IDS * isinstance(frame.prefix, tuple) | _SUFFIX_IDS * isinstance(frame.suffix, tuple)
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        flags,
        frame.bits,
        0,
        frame.dim,
        0,
        bytes.fromhex(frame.model),
        bytes.fromhex(frame.setting),
        frame.a_plus,
        frame.tokens,
        len(prefix),
        len(suffix),
        len(payload),
        0,
    )
    body = prefix + suffix + payload
    return header[: _CHECKSUM.start] + _COUNT.pack(_checksum(header, body)) + body


def decode_frame(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Frame:
    """Read a frame that may come from anyone.

    Args:
        data: one whole frame, nothing behind it.
        limits: what is accepted; checked before any memory is taken.

    Raises:
        FrameError: truncated, damaged, too large or otherwise no valid frame; the message names the field.
        ConfigError: the frame is entropy-coded and `constriction` is not installed.
    """
    header = read_header(data)
    public = header.prefix + header.suffix
    _expect(header.dim <= limits.dim, "dim", f"between 1 and {limits.dim}", header.dim)
    _expect(header.tokens <= limits.tokens, "tokens", f"between 1 and {limits.tokens}", header.tokens)
    _expect(public <= limits.public_bytes, "public text", f"at most {limits.public_bytes} bytes", public)
    check_whole(data, header)
    body = memoryview(data)[HEADER_BYTES:]
    read = _decode if header.flags & _CODED else unpack
    return Frame(
        model=header.model,
        setting=header.setting,
        bits=header.bits,
        a_plus=header.a_plus,
        codes=read(bytes(body[public:]), header.bits, (header.tokens, header.dim)),
        prefix=_read_public("prefix", bytes(body[: header.prefix]), bool(header.flags & _PREFIX_IDS)),
        suffix=_read_public("suffix", bytes(body[header.prefix : public]), bool(header.flags & _SUFFIX_IDS)),
    )


def read_header(data: bytes) -> Header:
    """Read the header of a frame that may come from anyone; what is behind it is not looked at.

    Raises:
        FrameError: no valid header; the message names the field.
    """
    _expect(len(data) >= HEADER_BYTES, "frame", f"at least {HEADER_BYTES} bytes", f"{len(data)} bytes")
    magic, version, flags, bits, zero, dim, zeros, model, setting, *rest = _HEADER.unpack_from(data)
    header = Header(flags, bits, dim, model.hex(), setting.hex(), *rest)
    _expect(magic == MAGIC, "magic", repr(MAGIC), repr(magic))
    _expect(version == VERSION, "version", str(VERSION), version)
    _expect(flags < 2 * _SUFFIX_IDS, "flags", f"below {2 * _SUFFIX_IDS}", flags)
    _expect(zero == 0 and zeros == 0, "reserved bytes", "zero", zeros << 8 | zero)
    _expect(1 <= bits <= 8, "bits", "between 1 and 8", bits)
    _expect(dim >= 1, "dim", "at least 1", dim)
    _expect(header.tokens >= 1, "tokens", "at least 1", header.tokens)
    _expect(header.a_plus > 1 << 31, "a_plus", "above 2^31", header.a_plus)
    return header


def check_whole(data: bytes, header: Header) -> None:
    """Compare a frame with the length and the checksum that its header states.

    Raises:
        FrameError: it is truncated or damaged, or something follows it.
    """
    whole = HEADER_BYTES + header.prefix + header.suffix + header.payload
    _expect(len(data) == whole, "frame", f"{whole} bytes, as its header says", f"{len(data)} bytes")
    found = _checksum(data, memoryview(data)[HEADER_BYTES:])
    _expect(found == header.checksum, "checksum", f"{found:#010x}", f"{header.checksum:#010x}")


def encode_batch(frames: list[Frame], *, entropy_coding: bool = False) -> bytes:
    """Write several frames as one message; see :func:`encode_frame`."""
    written = [encode_frame(frame, entropy_coding=entropy_coding) for frame in frames]
    return b"".join([BATCH_MAGIC, _COUNT.pack(len(written)), *(_COUNT.pack(len(one)) + one for one in written)])


def decode_batch(data: bytes, limits: Limits = DEFAULT_LIMITS) -> list[Frame]:
    """Read a message of :func:`encode_batch`, which may come from anyone; ``limits`` hold for each frame.

    Raises:
        FrameError: see :func:`decode_frame`.
        ConfigError: see :func:`decode_frame`.
    """
    start = len(BATCH_MAGIC) + _COUNT.size
    _expect(len(data) >= start, "batch", f"at least {start} bytes", f"{len(data)} bytes")
    _expect(data[: len(BATCH_MAGIC)] == BATCH_MAGIC, "magic", repr(BATCH_MAGIC), repr(data[: len(BATCH_MAGIC)]))
    count = _COUNT.unpack_from(data, len(BATCH_MAGIC))[0]
    _expect(count <= limits.frames, "frames", f"at most {limits.frames}", count)
    frames: list[Frame] = []
    for _ in range(count):
        left = len(data) - start
        _expect(left >= _COUNT.size, "batch", f"{count} frames, as its header says", f"{len(frames)}")
        size = _COUNT.unpack_from(data, start)[0]
        _expect(size <= left - _COUNT.size, "frame of the batch", f"{size} bytes", f"{left - _COUNT.size} bytes")
        start += _COUNT.size + size
        frames.append(decode_frame(data[start - size : start], limits))
    _expect(start == len(data), "batch", f"{start} bytes, as its header says", f"{len(data)} bytes")
    return frames


def _expect(condition: bool, field: str, expectation: str, value: object) -> None:
    if not condition:
        raise FrameError(f"`{field}` of the frame must be {expectation}, got {value}")


def _check(frame: Frame) -> None:
    """Refuse to write what could not be read back."""
    for name, value in (("model", frame.model), ("setting", frame.setting)):
        digits = len(value) == _FINGERPRINT_DIGITS and set(value) <= set("0123456789abcdef")
        require(digits, name, f"a fingerprint of {_FINGERPRINT_DIGITS} hex digits", value)
    shape = frame.codes.shape
    proper = len(shape) == 2 and 1 <= shape[0] < 1 << 32 and 1 <= shape[1] < 1 << 16
    require(proper, "codes", "an array (T, d) of at least one token", shape)
    require_count("a_plus", frame.a_plus, (1 << 31) + 1, (1 << 32) - 1)


def _checksum(header: bytes, body: bytes | memoryview) -> int:
    """CRC-32 of everything but itself: against accidents, not against an attacker."""
    return zlib.crc32(body, zlib.crc32(memoryview(header)[: _CHECKSUM.start]))


def _public_bytes(public: Public) -> bytes:
    if isinstance(public, str):
        try:
            return public.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"public text must be valid Unicode, got a surrogate at {error.start}") from None
    for token in public:
        require_count("token id of the public text", token, 0, (1 << 32) - 1)
    return np.asarray(public, dtype="<u4").tobytes()


def _read_public(field: str, data: bytes, is_ids: bool) -> Public:
    if is_ids:
        _expect(len(data) % 4 == 0, field, "token ids of 4 bytes", f"{len(data)} bytes")
        return tuple(np.frombuffer(data, dtype="<u4").tolist())
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"`{field}` of the frame must be UTF-8, got an error at byte {error.start}") from None


@lru_cache
def _law(bits: int) -> tuple[Any, Any]:
    """`constriction`'s coder and its model of one code, Bin(2^n - 1, 1/2).

    Made from exact probabilities, so that two machines cannot disagree about the last digit of a special function.
    """
    try:
        from constriction import stream
    except ImportError:
        raise ConfigError(
            "`constriction` must be installed for entropy-coded frames (pip install 'del-lightning[serve]'), got none"
        ) from None
    m = (1 << bits) - 1
    probabilities = np.array([math.comb(m, k) / 2**m for k in range(m + 1)])
    return stream.stack.AnsCoder, stream.model.Categorical(probabilities, perfect=False)


def _code(codes: Codes, bits: int) -> bytes:
    """Entropy-code; the coder's last word is not zero, and its zero bytes are left out."""
    make, law = _law(bits)
    coder = make()
    coder.encode_reverse(codes.ravel().astype(np.int32), law)
    written: bytes = coder.get_compressed().astype("<u4").tobytes()
    return written.rstrip(b"\0")


def _least_bytes(codes: int, bits: int) -> int:
    """What so many codes take at least: the likeliest one has probability C(m, m // 2) / 2^m.

    Memory for codes is bounded by the bytes received through this; the coder itself writes a run of zeros for nothing,
    which then goes packed.
    """
    m = (1 << bits) - 1
    return int(codes * -math.log2(math.comb(m, m // 2) / 2**m) / 8)


def _decode(data: bytes, bits: int, shape: tuple[int, ...]) -> Codes:
    """Undo :func:`_code`; only what it writes is read."""
    size = math.prod(shape)
    least = _least_bytes(size, bits)
    _expect(len(data) >= least, "payload", f"at least {least} bytes", f"{len(data)} bytes")
    _expect(len(data) < packed_bytes(size, bits), "payload", "packed if that is no longer", f"{len(data)} bytes")
    _expect(data[-1:] != b"\0", "payload", "without zero bytes at its end", "one")
    make, law = _law(bits)
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), dtype="<u4").astype(np.uint32)
    codes: Codes = make(words).decode(law, size).astype(np.uint8).reshape(shape)
    _expect(_code(codes, bits) == data, "payload", "what its codes are written as", "another spelling")
    return codes
