"Real-world image files through `mlxvit predict`: every kind is read, every bad one is named, nothing crashes"
import io, itertools, json, os, re, struct, subprocess, sys, threading, warnings, zlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from mlxvit.data.mnist import load_digits
from fuzz_images import check, exif, mutations, seeds
from mlxvit.data.preparation import Preparation, prepare_photo, to_colour
from mlxvit.image_files import Patient, largest_frame
from mlxvit.images import MAX_BYTES, ImageError, ImageNote, open_image, prepare_digit
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
    turned = Image.Exif(); turned[0x0112] = 6
    digit(7).rotate(90, fillcolor=255).save(tmp_path/'turned.jpg', exif=turned)
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
def saved(image, kind='PNG', **options): f = io.BytesIO(); image.save(f, kind, **options); return f.getvalue()


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


SIX = (0x0112, 3, 1, struct.pack('<I', 6)) # turned by a quarter
ODD_EXIF = {
    'nothing odd': (), 'a text for a number': (0x011a, 2, 3, b'72\0\0'), 'a number for a text': (0x010f, 3, 1, bytes(4)), 'a place far outside': (0x8825, 4, 1, struct.pack('<I', 2**31)), 'a directory of letters': (0x8769, 2, 4, b'abc\0'),
    'a loop': (0x8769, 4, 1, struct.pack('<I', 8)), 'a billion values': (0x010e, 2, 10**9, bytes(4)), 'an unknown kind': (0x9999, 99, 1, bytes(4)), 'a fraction outside': (0x011a, 5, 1, struct.pack('<I', 500)),
}


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('odd', ODD_EXIF.values(), ids=ODD_EXIF)
def test_of_exif_the_orientation_alone_matters(kind, odd):
    page = Image.new('RGB', (60, 40), 'red')
    file = io.BytesIO(); page.save(file, kind, exif=exif(SIX, *([odd] if odd else [])))
    assert open_image(file.getvalue()).size == (40, 60)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'AVIF', 'TIFF'])
def test_all_orientations_are_as_pillow_turns_them(kind):
    page = digit(7, 48).convert('RGB').crop((0, 0, 48, 40))
    for turn in range(1, 9):
        told = Image.Exif(); told[0x0112] = turn
        file = io.BytesIO(); page.save(file, kind, exif=told)
        right = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
        for source in (file.getvalue(), Image.open(io.BytesIO(file.getvalue()))):
            assert (np.asarray(open_image(source)) == np.asarray(right)).all(), turn


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_deep_grey_is_scaled_by_its_data(bits, kind):
    eight = np.asarray(digit(5)).astype(np.uint16)
    deep = eight << bits-8
    hot = deep.copy(); hot[3, 3] = hot[90, 7] = 65_535
    for values in (deep, hot):
        raw = saved(Image.fromarray(values), kind)
        seen = np.asarray(to_colour(open_image(raw)))[...,0].astype(int)
        assert np.median(np.abs(seen-eight)) <= 1
        assert np.abs(prepare_digit(raw).astype(int) - prepare_digit(digit(5))).mean() < 3


def test_floats_are_scaled_by_their_data():
    eight = np.asarray(digit(5))
    for white in (1, 255, 3e-3, 4e4):
        values = np.float32(eight/255*white); values[3, 3] = 1e6
        seen = np.asarray(to_colour(Image.fromarray(values)))[...,0].astype(int)
        assert np.median(np.abs(seen-eight)) <= 1
        assert np.abs(prepare_digit(Image.fromarray(values)).astype(int) - prepare_digit(digit(5))).mean() < 3
    for bad in (np.nan, np.inf, -np.inf):
        values[9, 9] = bad
        for read in (prepare_digit, to_colour):
            with pytest.raises(ImageError, match='not finite'): read(Image.fromarray(values))


NAMED = {
    'PDF': (b'%PDF-1.4\n', 'a PDF'), 'SVG': (b'<?xml version="1.0"?>\n<svg>', 'SVG'), 'PSD': (b'8BPS\0\1', 'Photoshop'), 'HEIC': (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'pillow-heif|damaged'), 'JPEG XL': (b'\xff\x0a\0', 'JPEG XL'),
    'video': (b'\0\0\0\x18ftypisom\0\0\0\0isommp42', 'a video'), 'zip': (b'PK\3\4', 'archive'), 'page': (b'<!DOCTYPE html>', 'web page'), 'text': ('Grüße, 你好'.encode(), 'a text'), 'raw': (b'\0\0\0\x18ftypcrx \0\0\0\0crx isom', 'raw data of a camera'), 'icon': (b'\0\0\1\0\1\0', 'an icon'),
}


@pytest.mark.parametrize('raw, words', NAMED.values(), ids=NAMED)
def test_what_is_no_image_is_called_by_its_name(raw, words):
    with pytest.raises(ImageError, match=words): open_image(raw)


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'WEBP', 'PNG', 'AVIF'])
def test_the_first_frame_that_holds_something(kind):
    blank, drawn = Image.new('RGB', (80, 60), 'white'), digit(7, 60).convert('RGB').crop((0, 0, 80, 60))
    for frames, read in (((blank, drawn, blank), 2), ((drawn, blank), 1), ((blank, blank.copy(), drawn), 3)):
        raw = seeds()[f'{kind} frames'] if kind == 'AVIF' else saved_frames(frames, kind)
        with pytest.warns(ImageNote) as heard: image = open_image(raw)
        assert len(heard) == 1 and np.ptp(np.asarray(image.convert('L'))) > 100
        if kind != 'AVIF' and len({f.tobytes() for f in frames}) == len(frames): assert f'{read} is read' in str(heard[0].message) and f'{len(frames)-1} left' in str(heard[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            open_image(raw, note=False)


def saved_frames(frames, kind):
    first, *rest = (f.copy() for f in frames)
    file = io.BytesIO(); first.save(file, kind, save_all=True, append_images=rest)
    return file.getvalue()


def test_a_page_behind_the_first_may_be_damaged():
    raw = saved_frames([Image.new('RGB', (80, 60), 'white'), digit(7, 60).convert('RGB')], 'TIFF')
    for cut in (raw[:-40], raw[:-2000]):
        try: assert open_image(cut, note=False).size == (80, 60)
        except ImageError as e: assert 'cut off' in str(e)


def tiny_pieces(n):
    "A PNG, a JPEG and a GIF that consist of many small pieces"
    head = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 9, 9, 8, 0, 0, 0, 0))
    gif = struct.pack('<6sHHBBB', b'GIF89a', 9, 9, 128, 0, 0) + bytes(6)
    return head + chunk(b'IDAT', b'')*n, b'\xff\xd8' + b'\xff\xe1\0\x09Exif\0\0a'*n, gif + b'!\xfe\1a\0'*n


def test_pieces_scans_tags_and_pages_are_bounded():
    for raw in tiny_pieces(120_000):
        with pytest.raises(ImageError, match='more than|too many small pieces'): open_image(raw)
    file = io.BytesIO(); Image.new('L', (64, 64)).save(file, 'JPEG', progressive=True)
    raw = file.getvalue(); last = raw[raw.rindex(b'\xff\xda'):-2]
    with pytest.raises(ImageError, match='scans'): open_image(raw[:-2] + last*200 + raw[-2:])
    tags = [(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1), (273, 1, 9_000_000, 100), (277, 3, 1, 1)]
    with pytest.raises(ImageError, match='tag 273 has 9,000,000 values'): open_image(b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(9_000_100))


def test_an_avif_whose_frame_is_larger_than_it_says():
    raw = bytearray(saved(Image.new('L', (5000, 4000)), 'AVIF', speed=10))
    at = raw.index(b'ispe')
    raw[at+8:at+16] = struct.pack('>II', 90, 90)
    assert largest_frame(bytes(raw)) == 20_000_000
    with pytest.raises(ImageError, match='20,000,000 pixels, more than are read'): open_image(bytes(raw))


def test_a_jpeg_2000_of_two_sizes():
    raw = bytearray(saved(Image.new('L', (300, 200)), 'JPEG2000'))
    at = raw.index(b'ihdr')
    raw[at+4:at+12] = struct.pack('>II', 90, 90)
    with pytest.raises(ImageError, match='tells two sizes'): open_image(bytes(raw))


def rows(width, height, channels=4):
    "A PNG of zeros, packed: a hundred kilobytes for a hundred megabytes"
    packer, row = zlib.compressobj(1), bytes(channels*width+1)
    some = max(1, 2**20//len(row))
    data = b''.join(packer.compress(row*min(some, height-top)) for top in range(0, height, some)) + packer.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


LARGE = { # what is read, and what is not
    'square.png': (lambda: rows(7000, 7000), 'is blank'), 'phone.png': (lambda: rows(8192, 6144, 3), 'is blank'), 'column.png': (lambda: rows(1, 49_000_000, 1), 'sides of at most 65,535'), 'too many.png': (lambda: rows(9504, 6336, 1), 'at most'),
    'phone.jpg': (lambda: saved(Image.new('L', (14_000, 13_000)), 'JPEG'), 'is blank'), 'slow.jpg': (lambda: saved_jpeg(8192, 6144), 'to decode'), 'large.webp': (lambda: saved(Image.new('RGB', (5000, 4000)), 'WEBP', method=0), 'to decode'), 'scan.jp2': (lambda: saved(Image.new('RGB', (4000, 3300)), 'JPEG2000'), 'is blank'),
}


def saved_jpeg(width, height):
    file = io.BytesIO(); Image.new('RGB', (width, height)).save(file, 'JPEG', progressive=True, subsampling=0)
    return file.getvalue()


PEAK = """import re, sys
from pathlib import Path
from mlxvit.data.preparation import Preparation, prepare_photo
from mlxvit.images import prepare_digit
peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])/1024
before, said = peak(), []
for name in sys.argv[1:]:
    try: prepare_digit(name)
    except ValueError as e: said.append(str(e))
    try: prepare_photo(name, Preparation((64, 64), (64, 64)))
    except ValueError as e: pass
print(peak()-before, *said, sep='\\n')"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the peak is read from /proc')
def test_memory_stays_below_300_megabytes(tmp_path):
    for name, (make, _) in LARGE.items(): (tmp_path/name).write_bytes(make())
    p = subprocess.run([sys.executable, '-c', PEAK, *LARGE], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    peak, *said = p.stdout.splitlines()
    assert float(peak) < 300
    for line, (name, (_, words)) in zip(said, LARGE.items(), strict=True): assert line.startswith(name) and words in line, line


def test_special_files_and_strange_names(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for name, words in ((tmp_path/'pipe', 'not a regular file'), ('/dev/zero', 'not a regular file'), (tmp_path, 'is a folder'), ('x'*300, 'cannot be opened'), ('a\0b.png', 'cannot be opened'), ('a\n\x1b[31m.png', 'does not exist')):
        with pytest.raises(ImageError, match=words) as e: prepare_digit(name)
        assert str(e.value).isprintable() and len(str(e.value)) < 300


def test_no_bytes_of_a_file_in_an_error(tmp_path):
    for raw in (b'root:secret:0:0', b'P5 secret', b'P3\n4 4\n255\nsecret', b'GIF89asecret', b'BM'+b'secret'*9, b'\x89PNG\r\n\x1a\n' + chunk(b'secr', b'et'), b'II*\0secretsecretsecret'):
        with pytest.raises(ImageError) as e: open_image(raw)
        assert 'secr' not in str(e.value)


def test_no_program_and_no_pillow_warning(recwarn):
    raw = saved(Image.fromarray(np.zeros((9, 9), np.uint8)), 'TIFF')
    with pytest.raises(ImageError): open_image(raw[:-30])
    for image in (digit(3).convert('P'), rgba(digit(3), (0, 0, 0, 255)).quantize(8)): open_image(saved(image))
    assert not recwarn.list


def test_threads_keep_the_filters_of_warnings():
    before, raw = list(warnings.filters), saved(digit(3))
    threads = [threading.Thread(target=lambda: [open_image(raw) for _ in range(30)]) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert list(warnings.filters) == before


def test_each_bad_image_is_one_line_and_the_rest_is_read(mlxvit, tmp_path):
    "LAB, a broken header, odd notes, a name too long: good ones between them are read"
    digit(2).save(tmp_path/'two.png'); digit(9).save(tmp_path/'nine.png'); digit(3).convert('RGB').convert('LAB').save(tmp_path/'lab.tif')
    (tmp_path/'cut.tif').write_bytes(saved(digit(3), 'TIFF')[:200]); (tmp_path/'a.heic').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')
    bad = ['lab.tif', 'cut.tif', 'a.heic', 'y'*300 + '.png']
    p = mlxvit('predict', 'digit', *(tmp_path/n for n in (bad[0], 'two.png', *bad[1:], 'nine.png')))
    assert p.returncode == 1 and 'Traceback' not in p.stderr
    assert [l.split(': ')[1][0] for l in p.stdout.splitlines()] == ['2', '9']
    assert p.stderr.count('\n') == len(bad) and all(l.startswith('mlxvit: error: ') for l in p.stderr.splitlines())


@pytest.mark.filterwarnings('ignore::mlxvit.images.ImageNote')
def test_damaged_files_are_arrays_or_one_line():
    for _, raw in itertools.islice(mutations(np.random.default_rng(7)), 1500): check(raw)
