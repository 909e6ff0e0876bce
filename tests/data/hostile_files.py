"""Media files made by hand to do harm: huge pictures in few bytes, frames without end, lists of other files."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

SIDE = 65535


def endless_gif(path: Path, frames: int, side: int) -> Path:
    """`frames` pictures of one new pixel each, 23 bytes a frame, on a canvas of `side` x `side`."""
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    control = b"\x21\xf9\x04" + struct.pack("<BHBB", 0, 4, 0, 0)
    # LZW of minimum code size 2: clear (4), colour 0, end (5), three bits each
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(screen + (control + picture) * frames + b"\x3b")
    return path


def png(path: Path, width: int, height: int, honest: bool) -> Path:
    """A black RGB picture; all its rows are there where it is honest, else next to none."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    rows = b"".join(packer.compress(row) for _ in range(height if honest else 4)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def huge_headers() -> dict[str, bytes]:
    """File names and contents: each claims pictures of up to 65535 x 65535 and holds almost nothing."""
    bmp = b"BM" + struct.pack("<IHHI", 200, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(146)
    start_of_frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, SIDE, SIDE, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    tables = b"\xff\xdb\x00\x43\x00" + bytes([1]) * 64 + b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00"
    tables += b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\x00"
    scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00" + bytes(64) + b"\xff\xd9"
    # VP8L: signature, 14 bits width - 1, 14 bits height - 1; VP8X: 24 bits each
    lossless = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(32)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x00" * 4 + (SIDE - 1).to_bytes(3, "little") * 2
    return {
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
        + b"\x2c" + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x02\x02\x44\x01\x00\x3b",
        "huge.bmp": bmp,
        "huge.jpg": b"\xff\xd8" + tables + start_of_frame + scan,
        "huge.webp": _riff(b"WEBP", b"VP8L" + struct.pack("<I", len(lossless)) + lossless + b"\x00"),
        "huge-canvas.webp": _riff(b"WEBP", extended + b"VP8L" + struct.pack("<I", len(lossless)) + lossless + b"\x00"),
        "huge-vp9.ivf": _ivf(b"VP90", _vp9_key_frame()),
        "huge-vp8.ivf": _ivf(b"VP80", b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(64)),
        "huge-raw.avi": _avi(b"DIB ", SIDE, SIDE, 24),
        "huge-mjpeg.avi": _avi(b"MJPG", SIDE, SIDE, 24),
        "huge-ffv1.avi": _avi(b"FFV1", 32766, 32766, 24),
    }  # fmt: skip


def playlists(beside: str, url: str) -> dict[str, str]:
    """File names and contents: lists in many formats that name a file beside them, and an address."""
    mpd = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    mpd += (
        f'<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    return {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{beside}\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "hls-master.mp4": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {beside}\nfile {url}\n",
        "concat.ffconcat": f"ffconcat version 1.0\nfile {beside}\n",
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash.mp4": mpd,
        "asx.wmv": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "reference.wmv": f"[Reference]\nRef1={url}\n",
        "smooth.mp4": f'<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{url}"/></SmoothStreamingMedia>',
        "vector.mp4": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
        "rtsp.mp4": f"RTSPtext\n{url.replace('http', 'rtsp')}\n",
        "script.avs": f'DirectShowSource("{beside}")\n',
    }


def with_data_reference(movie: bytes, target: str) -> bytes:
    """An MP4 that says its samples lie in another file, and holds none: its data reference is an alias record.

    The fields that FFmpeg's demuxer reads: lengths, levels, and item 2, the absolute path.
    """
    path = target.encode() + bytes(len(target.encode()) % 2)
    alias = bytes(10) + bytes(1 + 27) + bytes(12) + bytes(1 + 63) + bytes(16) + struct.pack(">HH", 0, 0) + bytes(16)
    alias += struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)
    at = movie.index(b"url ") - 4
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    changed = bytearray(movie[:at] + entry + movie[at + 12 :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        box = changed.index(name) - 4
        changed[box : box + 4] = struct.pack(">I", struct.unpack(">I", changed[box : box + 4])[0] + len(alias))
    samples = changed.index(b"mdat") + 4
    end = samples - 8 + struct.unpack(">I", changed[samples - 8 : samples - 4])[0]
    changed[samples:end] = bytes(end - samples)
    return bytes(changed)


def with_sample_count(movie: bytes, count: int) -> bytes:
    """An MP4 that says it holds `count` samples of one byte and one tick each."""
    grown = bytearray(movie)
    sizes, times = grown.index(b"stsz") + 8, grown.index(b"stts") + 8
    grown[sizes : sizes + 8] = struct.pack(">II", 1, count)
    grown[times + 4 : times + 12] = struct.pack(">II", count, 1)
    return bytes(grown)


def mutated(seed_file: bytes, rng: random.Random) -> bytes:
    """One to four random changes: bits, blocks, length, and fields near the start and the end set to extremes."""
    data = bytearray(seed_file)
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(("bits", "bytes", "copy", "zero", "cut", "insert", "field", "field", "drop"))
        at, length = rng.randrange(len(data)), rng.randint(1, max(1, len(data) // 8))
        if kind == "bits":
            for _ in range(rng.randint(1, 16)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif kind == "copy":
            source = rng.randrange(len(data))
            block = data[source : source + length]
            data[at : at + len(block)] = block
        elif kind == "zero":
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif kind == "cut" and len(data) > 64:
            del data[rng.randrange(32, len(data)) :]
        elif kind == "insert":
            data[at:at] = rng.randbytes(rng.randint(1, 64))
        elif kind == "drop" and len(data) > 256:
            del data[at : at + min(length, 128)]
        elif kind == "field":  # headers and indexes stand at either end
            near = rng.randrange(min(len(data), 2048))
            place = near if rng.random() < 0.5 else max(0, len(data) - 1 - near)
            value = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32)))
            data[place : place + 4] = value.to_bytes(4, rng.choice(("big", "little")))[: max(1, len(data) - place)]
    return bytes(data)


def _riff(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + kind + body


def _avi(codec: bytes, width: int, height: int, depth: int) -> bytes:
    def part(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\x00" * (len(body) % 2)

    main = struct.pack("<14I", 40000, 0, 0, 0x10, 0xFFFFFFFF, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = b"vids" + codec + struct.pack("<IHHIIIIIIIIhhhh", 0, 0, 0, 0, 1, 25, 0, 0xFFFFFFFF, 0, 0, 0, 0, 0, 0, 0)
    kind = b"\x00\x00\x00\x00" if codec == b"DIB " else codec
    picture = struct.pack("<Iii HH 4s IiiII", 40, width, height, 1, depth, kind, 0, 0, 0, 0, 0)
    streams = part(b"LIST", b"strl" + part(b"strh", stream) + part(b"strf", picture))
    headers = part(b"LIST", b"hdrl" + part(b"avih", main) + streams)
    return _riff(b"AVI ", headers + part(b"LIST", b"movi" + part(b"00dc", bytes(range(256)) * 4) * 3))


def _ivf(codec: bytes, frame: bytes) -> bytes:
    header = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, codec, SIDE, SIDE, 25, 1, 0xFFFFFFFF, 0)
    return header + (struct.pack("<IQ", len(frame), 0) + frame) * 4


def _vp9_key_frame() -> bytes:
    """The start of a VP9 key frame of 65536 x 65536 (VP9 specification, 6.2), then noise."""
    bits = "10000011" + f"{0x498342:024b}" + "0010" + "1" * 32 + "0" + "0" * 7
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") + bytes(range(1, 200))
