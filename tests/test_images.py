"Real-world image files through `mlxvit predict`: every kind is read, every bad one is named, nothing crashes"
import io, json, os, struct, zlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from mlxvit.data.mnist import load_digits
from mlxvit.images import MAX_BYTES, ImageError, open_image, prepare_digit
from mlxvit.reader import load

DIGITS = {int(d): i for i,d in enumerate(load_digits('test').labels[:64])}


def digit(d, side=200):
    "A test digit as black ink on a white page, large"
    return Image.fromarray(255-load_digits('test').images[DIGITS[d]]).resize((side, side), Image.Resampling.BICUBIC)


def rgba(image, ink, paper=(0, 0, 0, 0)):
    "Ink with transparency around it"
    out = Image.new('RGBA', image.size, paper)
    out.paste(Image.new('RGBA', image.size, ink), mask=ImageOps.invert(image))
    return out


def corner(image):
    "Off-centre on a large page"
    page = Image.new('L', (700, 500), 255); page.paste(image, (430, 30)); return page


def lit(image):
    "Grey page, light from one side, grain"
    a = np.asarray(image, np.float32)*0.5 + np.linspace(20, 90, image.width)[None]
    return Image.fromarray(np.uint8((a + np.random.default_rng(0).normal(0, 4, a.shape)).clip(0, 255)))


KINDS = {
    'as it is': lambda i: i, 'light on dark': ImageOps.invert, 'RGB': lambda i: i.convert('RGB'), 'palette': lambda i: i.convert('P'), '1 bit': lambda i: i.convert('1'),
    'CMYK': lambda i: i.convert('CMYK'), 'RGBA opaque': lambda i: i.convert('RGBA'), 'transparent, dark ink': lambda i: rgba(i, (10, 10, 60, 255)), 'transparent, light ink': lambda i: rgba(i, (250, 250, 210, 255)),
    'LA': lambda i: i.convert('LA'), '16 bit': lambda i: Image.fromarray(np.asarray(i).astype(np.uint16)*257), '12 bit in 16': lambda i: Image.fromarray(np.asarray(i).astype(np.uint16)*16), 'float': lambda i: Image.fromarray(np.asarray(i)/np.float32(255)),
    'coloured ink': lambda i: ImageOps.colorize(i, (30, 60, 160), (250, 245, 230)), 'off-centre': corner, 'uneven light': lit, 'tiny': lambda i: i.resize((32, 32)), 'wide page': lambda i: ImageOps.pad(i, (900, 200), color=255), 'huge': lambda i: i.resize((3000, 3000)),
    'blurred': lambda i: i.filter(ImageFilter.GaussianBlur(4)),
}


@pytest.fixture(scope='module')
def reader(): return load('digit', 'torch')


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_image_is_read(reader, kind):
    "Nine digits of ten at least, for each kind; most kinds read all ten"
    answers = [int(reader.predict(KINDS[kind](digit(d)))) for d in range(10)]
    assert sum(a == d for d,a in enumerate(answers)) >= 9, answers


def test_exif_rotation(reader, tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    digit(7).rotate(90, fillcolor=255).save(tmp_path/'turned.jpg', exif=exif)
    assert reader.predict(tmp_path/'turned.jpg') == 7


def test_a_thin_pen(reader):
    page = Image.new('L', (300, 200), 235)
    ImageDraw.Draw(page).line([(60, 30), (130, 34), (85, 150)], fill=60, width=3, joint='curve')
    assert reader.predict(page) == 7


def test_a_small_digit_on_a_large_page(reader):
    page = Image.new('L', (1000, 1000), 250)
    page.paste(digit(4, 60), (700, 200))
    assert reader.predict(page) == 4


def test_a_pen_of_one_pixel(reader):
    page = Image.new('L', (81, 101), 255)
    ImageDraw.Draw(page).line([(20, 12), (58, 12), (34, 88)], fill=0, width=1)
    seen = prepare_digit(page)
    assert reader.predict(page) == 7 and np.ptp(np.flatnonzero(seen.max(1) > 128)) >= 17


def test_a_truncated_file_that_pillow_opened_already():
    with pytest.raises(ImageError, match='damaged'): prepare_digit(Image.open(io.BytesIO(saved(digit(3))[:900])))


def test_the_preparation_can_be_seen(mlxvit, tmp_path):
    digit(4).save(tmp_path/'four.png')
    p = mlxvit('predict', 'digit', tmp_path/'four.png', '--prepared', tmp_path/'seen', '--json')
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout)['digit'] == 4
    seen = np.asarray(Image.open(tmp_path/'seen'/'1-four.png'))
    assert seen.shape == (28, 28) and (seen == prepare_digit(tmp_path/'four.png')).all()


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
def png(width, height): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
def saved(image, kind='PNG'): f = io.BytesIO(); image.save(f, kind); return f.getvalue()


BAD = {
    'empty': (b'', 'is empty'), 'text': (b'Dear sir or madam,\n', 'is not an image'), 'truncated png': (saved(digit(3))[:900], 'is damaged'), 'truncated jpeg': (saved(digit(3), 'JPEG')[:900], 'is damaged'),
    'a billion pixels': (png(40_000, 25_000), 'pixels'), 'sixty million pixels': (png(10_000, 6_000), '10000×6000 pixels'), 'blank': (saved(Image.new('L', (80, 80), 250)), 'is blank'),
    'almost blank': (saved(Image.fromarray(np.random.default_rng(0).integers(240, 250, (80, 80), dtype=np.uint8))), 'is blank'), 'fully transparent': (saved(Image.new('RGBA', (50, 50), (0, 0, 0, 0))), 'is blank'), 'one pixel': (saved(Image.new('L', (1, 1), 9)), 'is blank'),
    'almost blank, 16 bit': (saved(Image.fromarray(np.random.default_rng(0).integers(60000, 60100, (80, 80), dtype=np.uint16))), 'is blank'), 'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'is not an image'), 'zip': (b'PK\x03\x04'+bytes(100), 'is not an image'), 'html': (b'<html><body>404</body></html>', 'is not an image'), 'random bytes': (np.random.default_rng(1).bytes(5000), 'is not an image'),
}


@pytest.mark.parametrize('raw, words', BAD.values(), ids=BAD)
def test_bad_images_are_named(raw, words, tmp_path):
    (tmp_path/'x.png').write_bytes(raw)
    with pytest.raises(ImageError, match=words): prepare_digit(tmp_path/'x.png')


def test_a_file_too_large_is_not_read(tmp_path):
    with open(tmp_path/'big.png', 'wb') as f: f.truncate(MAX_BYTES+1)
    with pytest.raises(ImageError, match='at most'): open_image(tmp_path/'big.png')


def test_good_and_bad_together(mlxvit, tmp_path):
    "A bad file costs one line and the exit code; the good ones are still read"
    digit(2).save(tmp_path/'two.png'); digit(9).save(tmp_path/'nine.png'); (tmp_path/'note.txt').write_text('hello')
    p = mlxvit('predict', 'digit', tmp_path/'two.png', tmp_path/'note.txt', tmp_path/'nine.png')
    assert p.returncode == 1 and 'Traceback' not in p.stderr
    assert [l.split(': ')[1][0] for l in p.stdout.splitlines()] == ['2', '9']
    assert p.stderr.count('\n') == 1 and 'note.txt is not an image' in p.stderr


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
def test_random_damage_never_crashes(kind):
    "Forty damaged copies of each format: read, or an ImageError; nothing else"
    good, rng = saved(digit(5, 64), kind), np.random.default_rng(0)
    for _ in range(40):
        b = bytearray(good)
        for at in rng.integers(0, len(b), 6): b[at] = rng.integers(256)
        try: assert prepare_digit(bytes(b[:rng.integers(1, len(b)+1)])).shape == (28, 28)
        except ImageError: pass
