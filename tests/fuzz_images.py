"""Damaged and hostile image files without end, for the fuzz runner: `mutations` makes them, `check` reads them.

    python tests/fuzz_images.py [SECONDS] [SEED]
"""
import io, itertools, struct, sys, time, warnings, zlib
from functools import cache
from typing import Iterator
import numpy as np
from PIL import Image, ImageDraw
from mlxvit.data.preparation import Preparation, prepare_photo
from mlxvit.images import ImageError, prepare_digit

ODD = [b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\x80\0\0\0', b'\0\0\0\x80', b'\0\0\xff\xff', b'\xff\xff\0\0', b'\1\0\0\0', b'\0\0\0\1', b'\0\1\0\0', b'\0\0\1\0'] # values at the borders of integers
PHOTO = Preparation((32, 32), (36, 36))


def drawing(mode='RGB', size=(48, 40)):
    "A seven on paper, with a little colour"
    image = Image.new('RGB', size, (250, 245, 230))
    ImageDraw.Draw(image).line([(10, 8), (34, 8), (18, 34)], fill=(20, 30, 90), width=4)
    if mode == 'I;16': return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) << 4)
    if mode in ('I', 'F'): return image.convert('L').convert(mode)
    return image.convert(mode)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(*entries):
    "EXIF data of (tag, kind, count, four bytes)"
    body = b''.join(struct.pack('<HHI', tag, kind, count) + value for tag, kind, count, value in entries)
    return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', len(entries)) + body + bytes(4)


@cache
def seeds() -> dict[str, bytes]:
    "Good files of every format, in several modes and ways of packing"
    out = {}
    for kind, modes in dict(PNG='1 L LA P RGB RGBA I;16', JPEG='L RGB CMYK', GIF='L P RGB', BMP='1 L P RGB RGBA', TIFF='1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F', WEBP='RGB RGBA', PPM='1 L RGB I F', JPEG2000='L LA RGB RGBA I;16', AVIF='RGB RGBA').items():
        for mode in modes.split(): out[f'{kind} {mode}'] = saved(drawing(mode), kind)
    turned = exif((0x0112, 3, 1, struct.pack('<I', 6)), (0x011a, 2, 3, b'72\0\0'), (0x8769, 4, 1, struct.pack('<I', 26)))
    for kind in ('JPEG', 'PNG', 'WEBP'): out[f'{kind} exif'] = saved(drawing(), kind, exif=turned)
    out['AVIF exif'] = saved(drawing(), 'AVIF', exif=exif((0x0112, 3, 1, struct.pack('<I', 6))))
    for how in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg', 'lzma', 'zstd'): out[f'TIFF {how}'] = saved(drawing(), 'TIFF', compression=how)
    for how in ('group3', 'group4'): out[f'TIFF {how}'] = saved(drawing('1'), 'TIFF', compression=how)
    out['TIFF big'] = saved(drawing(), 'TIFF', big_tiff=True)
    blank = Image.new('RGB', (48, 40), 'white')
    for kind in ('GIF', 'TIFF', 'WEBP', 'PNG', 'AVIF'): out[f'{kind} frames'] = saved(blank, kind, save_all=True, append_images=[drawing(), drawing('RGBA').convert('RGB').rotate(9)])
    out['JPEG progressive'] = saved(drawing(), 'JPEG', progressive=True)
    out['JPEG 2000 stream'] = saved(drawing(), 'JPEG2000', no_jp2=True)
    out['JPEG 2000 tiles'] = saved(drawing(), 'JPEG2000', tile_size=(32, 32))
    out['PPM letters'] = b'P3\n4 4\n99\n' + b' '.join(b'%d' % (n % 100) for n in range(48))
    out['PPM maximum'] = b'P5 16 16 1023\n' + np.arange(256, dtype='>u2').tobytes()
    out['BMP packed'] = b'BM' + struct.pack('<IHHI', 1200, 0, 0, 1078) + struct.pack('<IiiHHIIiiII', 40, 12, 12, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(range(256))*4 + b'\x06\1\x06\2\0\0'*12 + b'\0\1'
    out['WEBP lossless'] = saved(drawing('RGBA'), 'WEBP', lossless=True)
    return out


def mended(raw:bytes) -> bytes:
    "A PNG with right checksums, so that damage goes deeper than the first look"
    out, at = raw[:8], 8
    while at+12 <= len(raw):
        size = int.from_bytes(raw[at:at+4], 'big')
        if at+12+size > len(raw): break
        body = raw[at+4:at+8+size]
        out += raw[at:at+4] + body + zlib.crc32(body).to_bytes(4, 'big')
        at += 12+size
    return out + raw[at:]


def mutated(raw:bytes, other:bytes, rng:np.random.Generator) -> bytes:
    "A file with one or a few things wrong"
    b, head = bytearray(raw), rng.random() < 0.6
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(min(len(b), 160) if head else len(b))) if b else 0
        match int(rng.integers(9)):
            case 0: b[at:at+1] = bytes([rng.integers(256)])
            case 1: b[at:at+1] = bytes([b[at] ^ 1 << rng.integers(8)]) if b else b''
            case 2: b[at:at+4] = ODD[rng.integers(len(ODD))]
            case 3: b[at:at+2] = ODD[rng.integers(len(ODD))][1:3]
            case 4: del b[at:at+int(rng.integers(1, 9))]
            case 5: b[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 6: del b[int(rng.integers(len(b)+1)):]
            case 7: b[at:at] = b[at:at+int(rng.integers(1, 200))]*int(rng.integers(1, 4))
            case 8: b[at:] = other[at:]
    return bytes(b)


def mutations(rng:np.random.Generator) -> Iterator[tuple[str, bytes]]:
    "Damaged files without end: what they were, and their bytes"
    good = list(seeds().items())
    while True:
        (name, raw), (_, other) = (good[rng.integers(len(good))] for _ in range(2))
        bad = mutated(raw, other, rng)
        yield name, mended(bad) if name.startswith('PNG') and rng.random() < 0.7 else bad


def check(raw:bytes):
    "Read a file as a digit and as a photo: each is an array, or one line of an `ImageError`"
    for read, shape in ((prepare_digit, (28, 28)), (lambda r: prepare_photo(r, PHOTO), (32, 32, 3))):
        try: out = read(raw)
        except ImageError as e:
            assert str(e).isprintable() and len(str(e)) < 400, repr(e)
            continue
        assert out.shape == shape and out.dtype == np.uint8


if __name__ == '__main__':
    limit, seed = (float(a) for a in (*sys.argv[1:], 60, 0)[:2])
    warnings.simplefilter('ignore')
    slowest, start, n = 0., time.time(), 0
    for n, (name, raw) in enumerate(mutations(np.random.default_rng(int(seed))), 1):
        began = time.time()
        try: check(raw)
        except Exception as e:
            print(f'input {n}, {name}: {type(e).__name__} {e}')
            raise
        slowest = max(slowest, time.time()-began)
        if time.time()-start > limit: break
    print(f'{n:,} files, the slowest {slowest:.1f} s, no fault')
