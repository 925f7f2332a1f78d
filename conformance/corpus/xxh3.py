"""XXH3-64 with seed 0 (rule D-2), in plain Python: bytes in, an integer out.

It follows the algorithm as published in the xxHash specification. It is slow, which does not
matter here, and has no dependency, which does: the corpus is to be made from the format's
specification alone.
"""

from struct import unpack_from

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF

PRIME32_1, PRIME32_2, PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIME64_1, PRIME64_2, PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
PRIME64_4, PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
PRIME_MX1, PRIME_MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
STRIPE = 64
STRIPES_PER_BLOCK = (len(SECRET) - STRIPE) // 8
START = [
    PRIME32_3,
    PRIME64_1,
    PRIME64_2,
    PRIME64_3,
    PRIME64_4,
    PRIME32_2,
    PRIME64_5,
    PRIME32_1,
]


def xxh3_64(data: bytes) -> int:
    if len(data) > 240:
        return _long(data)
    if len(data) > 128:
        return _up_to_240(data)
    if len(data) > 16:
        return _up_to_128(data)
    return _up_to_16(data)


def _u32(data: bytes, at: int) -> int:
    return int(unpack_from("<I", data, at)[0])


def _u64(data: bytes, at: int) -> int:
    return int(unpack_from("<Q", data, at)[0])


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & MASK64) ^ (product >> 64)


def _swap64(x: int) -> int:
    return int.from_bytes(x.to_bytes(8, "little"), "big")


def _rotate(x: int, n: int) -> int:
    return ((x << n) | (x >> (64 - n))) & MASK64


def _avalanche(h: int) -> int:
    h = ((h ^ (h >> 37)) * PRIME_MX1) & MASK64
    return h ^ (h >> 32)


def _xxh64_avalanche(h: int) -> int:
    h = ((h ^ (h >> 33)) * PRIME64_2) & MASK64
    h = ((h ^ (h >> 29)) * PRIME64_3) & MASK64
    return h ^ (h >> 32)


def _up_to_16(data: bytes) -> int:
    n = len(data)
    if n > 8:
        low = _u64(data, 0) ^ _u64(SECRET, 24) ^ _u64(SECRET, 32)
        high = _u64(data, n - 8) ^ _u64(SECRET, 40) ^ _u64(SECRET, 48)
        return _avalanche((n + _swap64(low) + high + _fold(low, high)) & MASK64)
    if n >= 4:
        keyed = _u32(data, n - 4) + (_u32(data, 0) << 32)
        keyed ^= _u64(SECRET, 8) ^ _u64(SECRET, 16)
        h = ((keyed ^ _rotate(keyed, 49) ^ _rotate(keyed, 24)) * PRIME_MX2) & MASK64
        h = ((h ^ ((h >> 35) + n)) * PRIME_MX2) & MASK64
        return h ^ (h >> 28)
    if n > 0:
        packed = (data[0] << 16) | (data[n >> 1] << 24) | data[n - 1] | (n << 8)
        return _xxh64_avalanche(packed ^ _u32(SECRET, 0) ^ _u32(SECRET, 4))
    return _xxh64_avalanche(_u64(SECRET, 56) ^ _u64(SECRET, 64))


def _mix16(data: bytes, at: int, secret_at: int) -> int:
    low = _u64(data, at) ^ _u64(SECRET, secret_at)
    return _fold(low, _u64(data, at + 8) ^ _u64(SECRET, secret_at + 8))


def _up_to_128(data: bytes) -> int:
    n = len(data)
    h = n * PRIME64_1
    for i in range((n - 1) // 32 + 1):
        h += _mix16(data, 16 * i, 32 * i) + _mix16(data, n - 16 * (i + 1), 32 * i + 16)
    return _avalanche(h & MASK64)


def _up_to_240(data: bytes) -> int:
    n = len(data)
    h = n * PRIME64_1
    for i in range(8):
        h += _mix16(data, 16 * i, 16 * i)
    h = _avalanche(h & MASK64)
    for i in range(8, n // 16):
        h += _mix16(data, 16 * i, 16 * (i - 8) + 3)
    h += _mix16(data, n - 16, 136 - 17)
    return _avalanche(h & MASK64)


def _accumulate(lanes: list[int], data: bytes, at: int, secret_at: int) -> None:
    words = unpack_from("<8Q", data, at)
    keys = unpack_from("<8Q", SECRET, secret_at)
    for i in range(8):
        keyed = words[i] ^ keys[i]
        lanes[i ^ 1] = (lanes[i ^ 1] + words[i]) & MASK64
        lanes[i] = (lanes[i] + (keyed & MASK32) * (keyed >> 32)) & MASK64


def _scramble(lanes: list[int]) -> None:
    keys = unpack_from("<8Q", SECRET, len(SECRET) - STRIPE)
    for i in range(8):
        lanes[i] = ((lanes[i] ^ (lanes[i] >> 47) ^ keys[i]) * PRIME32_1) & MASK64


def _long(data: bytes) -> int:
    lanes = list(START)
    stripes = (len(data) - 1) // STRIPE
    for s in range(stripes):
        _accumulate(lanes, data, STRIPE * s, 8 * (s % STRIPES_PER_BLOCK))
        if (s + 1) % STRIPES_PER_BLOCK == 0:
            _scramble(lanes)
    _accumulate(lanes, data, len(data) - STRIPE, len(SECRET) - STRIPE - 7)
    h = len(data) * PRIME64_1
    for i in range(4):
        key = unpack_from("<2Q", SECRET, 11 + 16 * i)
        h += _fold(lanes[2 * i] ^ key[0], lanes[2 * i + 1] ^ key[1])
    return _avalanche(h & MASK64)
