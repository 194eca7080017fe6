"Captioning sets as they come: every layout gives the same photos, every broken file is counted, every wrong request is told what there is"
import csv, io, json, os, re, shutil, socket, struct, subprocess, sys, tempfile, time, unicodedata, warnings, zlib
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from mlxvit.data.photos import Photos, as_jpeg, check_photos, draw_shapes, load_photos, write_parquet
from mlxvit.data import paths, unpack
from mlxvit.data.tables import SourceError, find_files, read_tables, spelled_list
from mlxvit.images import MAX_BYTES, ImageError
from mlxvit.metrics import cider, most_common_caption

datasets = pytest.importorskip('datasets', reason='Parquet and the hub need `pip install datasets`')
import pandas
IMAGES, CAPTIONS = draw_shapes(8, seed=1, size=64)
STORED = [as_jpeg(i) for i in IMAGES]
NAMES = [f'{i:03}.jpg' for i in range(8)]
KARPATHY = ['train', 'restval', 'train', 'train', 'val', 'val', 'test', 'train'] # of the eight photos
TRAIN = [0, 1, 2, 3, 7]


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('arrow')


@pytest.fixture
def load(cache):
    "load_photos, silent, with its cache in a temporary folder"
    return lambda source, split='train', **kw: load_photos(source, split, **{'progress': False, 'cache': cache, **kw})


def image_folder(folder, names=NAMES, stored=STORED):
    "A folder of files"
    for name, raw in zip(names, stored):
        (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_bytes(raw)
    return folder


def features(**kinds): return datasets.Features({n: datasets.Image() if k == 'image' else datasets.List(datasets.Value(k[1:])) if k[0] == '*' else datasets.Value(k) for n,k in kinds.items()})
def parquet(file, columns, **kinds): file.parent.mkdir(parents=True, exist_ok=True); datasets.Dataset.from_dict(columns, features=features(**kinds)).to_parquet(file)
def cells(at=range(8)): return [dict(bytes=STORED[i], path=NAMES[i]) for i in at]
def lines(rows): return '\n'.join(json.dumps(r) for r in rows)


# ---- layouts: each writes photos TRAIN as training (and some more in other splits), and says which arguments read them

def parquet_lists(at):
    for split, part in (('train', TRAIN), ('validation', [4, 5]), ('test', [6])):
        parquet(at/f'{split}.parquet', dict(image=cells(part), filename=[NAMES[i] for i in part], captions=[CAPTIONS[i] for i in part]), image='image', filename='string', captions='*string')

def parquet_shards(at):
    for k, part in enumerate((TRAIN[:2], TRAIN[2:])):
        parquet(at/'data'/f'train-{k:05}-of-00002.parquet', dict(image=cells(part), filename=[NAMES[i] for i in part], captions=[CAPTIONS[i] for i in part]), image='image', filename='string', captions='*string')

def parquet_split_column(at):
    parquet(at/'all.parquet', dict(image=cells(), filename=NAMES, captions=CAPTIONS, split=KARPATHY), image='image', filename='string', captions='*string', split='string')

def parquet_captions(at):
    rows = [(i, c) for i in TRAIN for c in CAPTIONS[i]]
    parquet(at/'train.parquet', dict(photo=cells(i for i,_ in rows), image_id=[NAMES[i] for i,_ in rows], text=[c for _,c in rows]), photo='image', image_id='string', text='string')
    return dict(image='photo', captions='text')

def parquet_paths_as_names(at):
    "One caption a row and no column of names: the path that each photo was stored with names it"
    rows = [(i, c) for i in TRAIN for c in CAPTIONS[i]]
    parquet(at/'train.parquet', dict(image=cells(i for i,_ in rows), captions=[c for _,c in rows]), image='image', captions='string')

def parquet_five_columns(at):
    parquet(at/'train.parquet', dict(image=cells(TRAIN), **{f'caption_{k}': [CAPTIONS[i][k] for i in TRAIN] for k in range(5)}), image='image', **{f'caption_{k}': 'string' for k in range(5)})
    return dict(captions=', '.join(f'caption_{k}' for k in range(5)))

def parquet_sentences(at):
    import pyarrow as pa, pyarrow.parquet as pq
    at.mkdir()
    pq.write_table(pa.table(dict(image=cells(TRAIN), filename=[NAMES[i] for i in TRAIN], sentences=[[dict(raw=c, sentid=k) for k,c in enumerate(CAPTIONS[i])] for i in TRAIN])), at/'train.parquet')
    return dict(captions='sentences')

def jsonl_paths(at):
    image_folder(at/'files')
    for split, part in (('train', TRAIN), ('val', [4, 5])): (at/f'{split}.jsonl').write_text(lines(dict(image=f'files/{NAMES[i]}', filename=NAMES[i], captions=CAPTIONS[i]) for i in part))

def json_absolute(at):
    image_folder(at/'elsewhere')
    (at/'set.json').write_text(json.dumps([dict(image=str(at/'elsewhere'/NAMES[i]), filename=NAMES[i], captions=[dict(sentence=c) for c in CAPTIONS[i]]) for i in TRAIN]))

def csv_lists(at):
    "The annotations of Flickr30k on the hub: captions as a JSON list in a field, Karpathy's splits in a column"
    image_folder(at/'flickr30k-images')
    quoted = [json.dumps(c).replace('"', '""') for c in CAPTIONS]
    (at/'annotations.csv').write_text('raw,split,filename,img_id\n' + '\n'.join(f'"{q}",{s},{n},{k}' for k,(q,s,n) in enumerate(zip(quoted, KARPATHY, NAMES))))
    return dict(image='filename', captions='raw')

def csv_bars(at):
    "The results.csv of Flickr30k"
    image_folder(at/'images')
    (at/'results.csv').write_text('image_name| comment_number| comment\n' + '\n'.join(f'{NAMES[i]}| {k}| {c}' for i in TRAIN for k,c in enumerate(CAPTIONS[i])))
    return dict(image='image_name', captions='comment')

def captions_txt(at):
    image_folder(at/'Images')
    (at/'captions.txt').write_text('image,caption\n' + '\n'.join(f'{NAMES[i]},{c}' for i in TRAIN for c in CAPTIONS[i]))

def token_file(at):
    "Flickr8k as it was first given out: captions and lists in one folder, photos in another; a photo in no list"
    image_folder(at/'Flicker8k_Dataset'); (at/'Flickr8k_text').mkdir()
    (at/'Flickr8k_text'/'Flickr8k.token.txt').write_text('\n'.join(f'{n}#{k}\t{c}' for n,cs in zip(NAMES, CAPTIONS) for k,c in enumerate(cs)) + '\n')
    (at/'Flickr8k_text'/'Flickr8k.lemma.token.txt').write_text('001.jpg#0\tnot this one')
    for part, which in (('train', TRAIN), ('dev', [4, 5])): (at/'Flickr8k_text'/f'Flickr_8k.{part}Images.txt').write_text('\n'.join(NAMES[i] for i in which) + '\n')

def karpathy(at):
    image_folder(at/'Images')
    (at/'dataset_flickr8k.json').write_text(json.dumps(dict(dataset='flickr8k', images=[dict(filename=n, split=s, imgid=k, sentids=[], sentences=[dict(raw=c, tokens=c.split()) for c in cs]) for k,(n,s,cs) in enumerate(zip(NAMES, KARPATHY, CAPTIONS))])))

def karpathy_folders(at):
    "Karpathy's COCO: photos in two folders, which the file names"
    image_folder(at/'val2014', NAMES[:4], STORED[:4]); image_folder(at/'train2014', NAMES[4:], STORED[4:])
    (at/'dataset_coco.json').write_text(json.dumps(dict(images=[dict(filepath='val2014' if k < 4 else 'train2014', filename=n, split=s, sentences=[dict(raw=c) for c in cs]) for k,(n,s,cs) in enumerate(zip(NAMES, KARPATHY, CAPTIONS))])))

def coco(at):
    image_folder(at/'train2014', [NAMES[i] for i in TRAIN], [STORED[i] for i in TRAIN]); image_folder(at/'val2014', NAMES[4:6], STORED[4:6]); (at/'annotations').mkdir()
    for split, part in (('train', TRAIN), ('val', [4, 5])):
        (at/'annotations'/f'captions_{split}2014.json').write_text(json.dumps(dict(images=[dict(id=10+i, file_name=NAMES[i]) for i in part], annotations=[dict(image_id=10+i, id=0, caption=c) for i in part for c in CAPTIONS[i]])))
    (at/'annotations'/'instances_val2014.json').write_text('{}')

def metadata(at):
    "An image folder of the hub"
    for split, part in (('train', TRAIN), ('test', [6])):
        image_folder(at/split, [NAMES[i] for i in part], [STORED[i] for i in part])
        (at/split/'metadata.jsonl').write_text(lines(dict(file_name=NAMES[i], captions=CAPTIONS[i]) for i in part))
    return dict(image='file_name')

LAYOUTS = [parquet_lists, parquet_shards, parquet_split_column, parquet_captions, parquet_paths_as_names, parquet_five_columns, parquet_sentences, jsonl_paths, json_absolute, csv_lists, csv_bars, captions_txt, token_file, karpathy, karpathy_folders, coco, metadata]


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda f: f.__name__)
def test_every_layout_gives_the_same_photos(layout, load, tmp_path):
    "Names, captions, stored bytes and so the fingerprint are the same, whatever they came in"
    arguments = layout(tmp_path/'a set [1]') or {} # blanks and brackets are common in names of folders
    photos = load(tmp_path/'a set [1]', **arguments)
    assert [Path(n).name for n in photos.names] == [NAMES[i] for i in TRAIN] and not photos.skipped
    assert photos.captions == [CAPTIONS[i] for i in TRAIN]
    assert [photos.stored(k) for k in range(5)] == [STORED[i] for i in TRAIN]
    assert photos[2].mode == 'RGB' and photos[2].size == IMAGES[2].size


def test_the_fingerprint_is_of_the_contents_alone(load, tmp_path):
    "Parquet, Karpathy, CSV and lines of captions, in other folders, made at other times: one fingerprint; another caption: another"
    for f in (parquet_lists, karpathy, csv_lists, captions_txt): f(tmp_path/f.__name__)
    prints = {load(tmp_path/n, **kw).fingerprint for n,kw in (('parquet_lists', {}), ('karpathy', {}), ('csv_lists', dict(image='filename', captions='raw')), ('captions_txt', {}))}
    assert len(prints) == 1
    shutil.move(tmp_path/'captions_txt', tmp_path/'moved'); os.utime(tmp_path/'moved'/'Images'/NAMES[0], (1, 1))
    command = f'from mlxvit.data.photos import load_photos; print(load_photos({str(tmp_path/"moved")!r}, progress=False).fingerprint)'
    assert subprocess.run([sys.executable, '-c', command], capture_output=True, text=True, env={**os.environ, 'PYTHONHASHSEED': '7'}).stdout.strip() in prints
    text = tmp_path/'moved'/'captions.txt'; text.write_text(text.read_text().replace('above', 'over').replace('left', 'right'))
    assert load(tmp_path/'moved').fingerprint not in prints


@pytest.mark.parametrize('layout, arguments', [(karpathy, {}), (parquet_split_column, {}), (csv_lists, dict(image='filename', captions='raw'))], ids=['json', 'parquet', 'csv'])
def test_karpathy_splits(layout, arguments, load, tmp_path):
    layout(tmp_path/'set')
    assert {s: [Path(n).name for n in load(tmp_path/'set', s, **arguments).names] for s in ('train', 'validation', 'val', 'test')} == {'train': [NAMES[i] for i in TRAIN], 'validation': NAMES[4:6], 'val': NAMES[4:6], 'test': NAMES[6:7]}


def test_a_photo_in_no_list_is_in_no_split(load, tmp_path):
    token_file(tmp_path/'set')
    assert len(load(tmp_path/'set')) == 5 and len(load(tmp_path/'set', 'validation')) == 2
    with pytest.raises(SourceError, match=r"no split 'test'; there are: train \(25 rows\), validation \(10 rows\)"): load(tmp_path/'set', 'test')


def test_text_files_need_no_library(tmp_path):
    "Without `datasets`, lines of captions still load, and Parquet says what to install"
    captions_txt(tmp_path/'lines'); parquet_lists(tmp_path/'parquet')
    command = f'''
import sys; sys.modules['datasets'] = None
from mlxvit.data.photos import load_photos
print(len(load_photos({str(tmp_path/"lines")!r}, progress=False)))
try: load_photos({str(tmp_path/"parquet")!r})
except ValueError as e: print(e)'''
    out = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True)
    assert out.stdout.splitlines()[0] == '5' and 'pip install datasets' in out.stdout, out.stderr


def test_a_set_in_memory(load):
    one = datasets.Dataset.from_dict(dict(image=IMAGES, captions=CAPTIONS), features=features(image='image', captions='*string'))
    assert [p.tobytes() for p in load(one)] == [i.tobytes() for i in IMAGES]
    assert len(load(datasets.DatasetDict(train=one, val=one.select([3])), 'validation')) == 1


def test_files_one_by_one(load, tmp_path):
    parquet_shards(tmp_path); files = sorted((tmp_path/'data').glob('*.parquet'))
    assert load(files).names == [NAMES[i] for i in TRAIN] and load(files[1]).names == [NAMES[i] for i in TRAIN[2:]]


# ---- faults

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
def png(width, height): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
def saved(image, kind='PNG', **kw): f = io.BytesIO(); image.save(f, kind, **kw); return f.getvalue()


BROKEN = {
    'truncated JPEG': (STORED[0][:-300], 'damaged'), 'only the head of a JPEG': (STORED[0][:60], 'damaged'), 'truncated PNG': (saved(IMAGES[0])[:100], 'damaged'),
    'text': (b'404: not found\n', 'not an image'), 'web page': (b'<html>', 'not an image'), 'pointer of git-lfs': (b'version https://git-lfs.github.com/spec/v1\n', 'not an image'), 'PDF': (b'%PDF-1.4\n', 'not an image'),
    'empty': (b'', 'empty files'), 'a billion pixels': (png(40_000, 25_000), 'too large'), 'sixty million pixels': (png(10_000, 6_000), 'too large'), 'floats': (saved(Image.new('F', (4, 4), .5), 'TIFF'), 'of unknown range'),
}


@pytest.mark.parametrize('raw, why', BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize('kind', ['file', 'parquet'])
def test_a_broken_photo_is_skipped_and_counted(raw, why, kind, load, tmp_path):
    if kind == 'parquet': write_parquet(tmp_path/'set', [STORED[1], raw, STORED[2]], CAPTIONS[:3])
    else:
        image_folder(tmp_path/'set', NAMES[:3], [STORED[1], raw, STORED[2]])
        (tmp_path/'set'/'train.jsonl').write_text(lines(dict(image=n, captions=c) for n,c in zip(NAMES[:3], CAPTIONS)))
    with pytest.warns(UserWarning, match=f'left out 1 {why} of 3 photos') as heard: photos = load(tmp_path/'set')
    assert len(heard) == 1 and '\n' not in str(heard[0].message)
    assert photos.skipped == {why: 1} and photos.captions == [CAPTIONS[0], CAPTIONS[2]] and photos.stored(1) == STORED[2]
    unchecked = load(tmp_path/'set', check=False)
    assert len(unchecked) == 3
    with pytest.raises(ImageError, match=re.escape(unchecked.names[1])): unchecked[1]


def test_files_that_are_missing_folders_or_too_large(load, tmp_path):
    image_folder(tmp_path, ['a.jpg'], STORED); (tmp_path/'b.jpg').mkdir()
    with open(tmp_path/'c.jpg', 'wb') as f: f.truncate(MAX_BYTES+1)
    (tmp_path/'train.jsonl').write_text(lines(dict(image=n, captions=['One .']) for n in ('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg', 'e'*400, 'f\0.jpg', '', 'https://example.org/g.jpg')))
    with pytest.warns(UserWarning): photos = load(tmp_path)
    assert photos.names == ['a.jpg'] and sum(photos.skipped.values()) == 7 and photos.skipped['too large'] == 1 and photos.skipped['missing'] >= 2


def to_colours(a): return np.asarray(a.convert('RGB'), float)


KINDS = {
    'CMYK JPEG': lambda i: (saved(i.convert('CMYK'), 'JPEG', quality=95), i), 'grey JPEG': lambda i: (saved(i.convert('L'), 'JPEG', quality=95), i.convert('L')), 'grey with alpha': lambda i: (saved(i.convert('LA')), i.convert('L')),
    '16-bit PNG': lambda i: (saved(Image.fromarray(np.asarray(i.convert('L')).astype(np.uint16)*257)), i.convert('L')), 'palette': lambda i: (saved(i.quantize(32)), i), '1 bit': lambda i: (saved(i.convert('1')), i.convert('1')), 'progressive JPEG': lambda i: (saved(i, 'JPEG', progressive=True, quality=95), i),
    'WebP': lambda i: (saved(i, 'WEBP', lossless=True), i), 'GIF': lambda i: (saved(i, 'GIF'), i), 'TIFF': lambda i: (saved(i, 'TIFF'), i), 'BMP': lambda i: (saved(i, 'BMP'), i),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_photo_is_read(kind):
    raw, truth = KINDS[kind](IMAGES[0])
    photo = Photos([raw].__getitem__, ['x'], [['One .']])[0]
    assert photo.mode == 'RGB' and photo.size == IMAGES[0].size and np.abs(to_colours(photo)-to_colours(truth)).mean() < 6


def test_transparency_becomes_white():
    rgba = np.zeros((8, 8, 4), np.uint8); rgba[:4] = (200, 30, 30, 255)
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).quantize(4)):
        photo = Photos([saved(image)].__getitem__, ['x'], [['One .']])[0]
        assert photo.getpixel((0, 7)) == (255, 255, 255) and photo.getpixel((0, 0)) == (200, 30, 30)


def test_a_photo_taken_sideways_is_turned():
    exif = Image.Exif(); exif[0x0112] = 6
    assert Photos([saved(Image.new('RGB', (60, 40)), 'JPEG', exif=exif)].__getitem__, ['x'], [['One .']])[0].size == (40, 60)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
def test_random_damage_is_counted_and_never_crashes(kind):
    good, rng, damaged = saved(IMAGES[1], kind), np.random.default_rng(0), []
    for _ in range(60):
        b = bytearray(good)
        for at in rng.integers(0, len(b), 8): b[at] = rng.integers(256)
        damaged.append(bytes(b[:rng.integers(1, len(b)+1)]))
    with warnings.catch_warnings(action='ignore'): kept = check_photos(Photos(damaged.__getitem__, [str(i) for i in range(60)], [['One .']]*60), progress=False)
    assert len(kept) + sum(kept.skipped.values()) == 60 and len(kept) < 60


def test_empty_and_long_captions(load, tmp_path):
    said = [['One .', '', '  \t\n'], ['', '   '], [], [' A  dog\nruns\u00a0. ', 'one '*40], ['word '*50]]
    write_parquet(tmp_path, STORED[:5], said)
    photos = load(tmp_path, words=20)
    assert photos.captions == [['One .'], ['A dog runs .']] and photos.names == ['train-00000.jpg', 'train-00003.jpg']
    assert photos.skipped == {'empty captions': 4, 'without a caption': 3, 'captions too long': 2}
    assert '4 empty captions' in repr(photos) and len(load(tmp_path).captions[2][0].split()) == 50


def test_a_line_without_a_caption(load, tmp_path):
    image_folder(tmp_path/'Images')
    (tmp_path/'captions.txt').write_text('image,caption\n000.jpg,One .\n001.jpg\n002.jpg,\n')
    assert load(tmp_path).skipped == {'empty captions': 2, 'without a caption': 2}


WRONG = {'image': (dict(image='photo'), "no column 'photo'; there are: image, filename, captions"), 'captions': (dict(captions='caption'), "no column 'caption'; there are"), 'one of several': (dict(captions='captions,more'), "no column 'more'"), 'name': (dict(name='id'), "no column 'id'"),
         'captions that are photos': (dict(captions='image'), 'a caption is looked for under'), 'split': (dict(split='test'), r"no split 'test'; there are: train \(5 rows\), validation \(1 rows\)"), 'limit': (dict(limit=-1), '0 or more')}


@pytest.mark.parametrize('arguments, words', WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_told_what_there_is(arguments, words, load, tmp_path):
    write_parquet(tmp_path, STORED[:5], CAPTIONS[:5]); write_parquet(tmp_path, STORED[5:6], CAPTIONS[5:6], 'validation')
    with pytest.raises(ValueError, match=words): load(tmp_path, **arguments)


def test_numbers_are_no_captions_and_no_photos(load, tmp_path):
    (tmp_path/'train.jsonl').write_text(lines([dict(image=3, captions=['One .'], label=7)]))
    with pytest.raises(SourceError, match='expected captions, got a int: 7'): load(tmp_path, captions='label')
    with pytest.raises(SourceError, match="'image' holds a int, not photos"): load(tmp_path)


def test_nothing_left_is_an_error(load, tmp_path):
    write_parquet(tmp_path, [b'text']*3, CAPTIONS[:3])
    with pytest.warns(UserWarning), pytest.raises(SourceError, match='no photo is left of 3 in train.*3 not an image'): load(tmp_path)


@pytest.mark.parametrize('name, text, words', [('train.parquet', 'version https://git-lfs', 'cannot be read as Parquet'), ('train.jsonl', '{"image": ', 'train.jsonl is not laid out'), ('train.json', '{}', 'a list of objects'), ('captions.txt', 'dear reader', 'captions.txt is not laid out'),
                                               ('train.csv', 'image,captions\na,b,c', 'more fields than the header'), ('dataset_x.json', '{"images": [{"filename": "a"}]}', "lacks 'sentences'"), ('notes.md', '', 'holds no captions: expected .*; there is notes.md')])
def test_a_broken_file_of_captions_is_named(name, text, words, load, tmp_path):
    (tmp_path/name).write_text(text)
    with pytest.raises(SourceError, match=words): load(tmp_path)


def test_a_parquet_file_damaged_in_the_middle(load, tmp_path):
    file = write_parquet(tmp_path, STORED, CAPTIONS); raw = bytearray(file.read_bytes())
    raw[4:400] = bytes(396); file.write_bytes(raw)
    with pytest.raises(SourceError, match='train.parquet cannot be read as Parquet'): load(tmp_path)


def test_a_file_cut_short_in_writing_is_never_there(tmp_path, monkeypatch):
    "What stood there before is still whole when writing fails"
    file = write_parquet(tmp_path, STORED[:2], CAPTIONS[:2]); before = file.read_bytes()
    def fail(self, path, *a, **kw): Path(path).write_bytes(b'half'); raise OSError('no space left on device')
    monkeypatch.setattr(datasets.Dataset, 'to_parquet', fail)
    with pytest.raises(OSError): write_parquet(tmp_path, STORED, CAPTIONS)
    assert file.read_bytes() == before and find_files(tmp_path) == [file]


def test_empty_and_doubled_folders(load, tmp_path):
    (tmp_path/'empty').mkdir(); karpathy(tmp_path/'two'); shutil.copy(tmp_path/'two'/'dataset_flickr8k.json', tmp_path/'two'/'dataset_coco.json')
    with pytest.raises(SourceError, match='nothing in it'): load(tmp_path/'empty')
    with pytest.raises(SourceError, match='give the file itself'): load(tmp_path/'two')
    assert len(load(tmp_path/'two'/'dataset_coco.json')) == 5
    with pytest.raises(SourceError, match='no folder and no file'): load(tmp_path/'absent')


# ---- names as people write them

WRITTEN = {'backslash': ('images/1.jpg', r'images\1.jpg'), 'ending in capitals': ('1.JPG', '1.jpg'), 'capitals': ('Images/A.jpg', 'images/a.JPG'), 'jpeg for jpg': ('1.jpg', '1.jpeg'), 'tiff for tif': ('1.tif', '1.tiff'),
           'no ending': ('1000_693b.jpg', '1000_693b'), 'no ending, in a folder': ('images/1.jpg', 'images/1'), '%20': ('images/1 a.jpg', 'images/1%20a.jpg'), '%20 on the disk': ('1%20a.jpg', '1 a.jpg'), 'plus': ('1 a.jpg', '1+a.jpg'),
           'blanks around': ('1.jpg', ' 1.jpg '), 'quotes around': ('1.jpg', "'1.jpg'"), 'dot and slash': ('1.jpg', './1.jpg'), 'doubled slashes': ('images/1.jpg', 'images//1.jpg'), 'the root of the set': ('images/1.jpg', '/images/1.jpg'),
           'NFC for NFD': (unicodedata.normalize('NFD', 'é.jpg'), 'é.jpg'), 'NFD for NFC': ('é.jpg', unicodedata.normalize('NFD', 'é.jpg')), 'another machine': ('images/1.jpg', r'C:\Users\me\set\images\1.jpg'), 'another root': ('images/1.jpg', '/home/me/set/images/1.jpg'),
           'a number': ('1.jpg', 1), 'a number with zeros': ('000000000139.jpg', 139), 'a float of pandas': ('1.jpg', 1.0)}


@pytest.mark.parametrize('file, said', WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize('kind', ['json', 'csv'])
def test_a_name_is_found_however_it_is_written(file, said, kind, load, tmp_path):
    image_folder(tmp_path, [file, 'images/other.jpg'], STORED)
    if kind == 'json': (tmp_path/'t.jsonl').write_text(json.dumps(dict(image=said, captions='One .')))
    else: (tmp_path/'t.csv').write_text(f'image,captions\n"{said}",One .\n', 'utf-8')
    assert load(tmp_path).stored(0) == STORED[0]


@pytest.mark.parametrize('files, said', [(['1.jpg', '1.png'], '1'), (['a/1.jpg', 'b/1.jpg'], '1.jpg'), (['1.JPG', '1.Jpg'], '1.jpg'), (['01.jpg', '001.jpg'], 1)])
def test_a_name_that_fits_two_files_is_not_guessed(files, said, load, tmp_path):
    image_folder(tmp_path, files, STORED)
    (tmp_path/'t.jsonl').write_text(json.dumps(dict(image=said, captions='One .')))
    with pytest.raises(SourceError, match='could be any of 2 files, such as') as error: load(tmp_path)
    assert all(f in str(error.value) for f in files)


def test_the_folder_in_a_name_decides(load, tmp_path):
    image_folder(tmp_path, ['a/1.JPG', 'b/1.jpg'], STORED)
    (tmp_path/'t.jsonl').write_text(json.dumps(dict(image='a/1.jpg', captions='One .')))
    assert load(tmp_path).stored(0) == STORED[0]


# ---- tables stay in their folder

def leave(set_, secret):
    "Names that lead out of a set, each in its own way"
    os.symlink(secret/'p.jpg', set_/'link.jpg'); os.symlink(secret, set_/'linked')
    return ['../secret/p.jpg', str(secret/'p.jpg'), 'link.jpg', 'linked/p.jpg', 'images/../../secret/p.jpg', '%2e%2e/secret/p.jpg', r'..\secret\p.jpg', ' ../secret/p.jpg', f'file://{secret}/p.jpg', '/etc/passwd', '/proc/self/environ', '/dev/zero', '//host/share/p.jpg']


@pytest.mark.parametrize('kind', ['text', 'parquet', 'dictionary', 'datasets', 'records'])
def test_no_file_outside_of_the_folder_is_opened(kind, load, tmp_path, monkeypatch):
    secret, set_ = tmp_path/'secret', tmp_path/'set'
    image_folder(secret, ['p.jpg'], STORED); image_folder(set_/'images', ['1.jpg'], STORED[1:])
    names = ['images/1.jpg', *leave(set_, secret)]
    said, source = ['One .']*len(names), set_
    cells = [dict(bytes=None, path=n) for n in names] if kind in ('dictionary', 'datasets') else names
    if kind == 'text': (set_/'t.jsonl').write_text(lines(dict(image=n, captions='One .') for n in names))
    elif kind in ('parquet', 'dictionary'):
        import pyarrow as pa, pyarrow.parquet as pq
        pq.write_table(pa.table(dict(image=cells, captions=said)), set_/'t.parquet')
    elif kind == 'datasets': source = datasets.Dataset.from_dict(dict(image=cells, captions=said), features=features(image='image', captions='string'))
    else: source = [dict(image=n, captions='One .') for n in names]
    monkeypatch.chdir(set_)
    opened, real = [], os.open
    monkeypatch.setattr(os, 'open', lambda path, *a, **kw: opened.append(str(path)) or real(path, *a, **kw))
    with pytest.warns(UserWarning, match='13 outside the folder of 14 photos; the first is') as heard: photos = load(source)
    assert photos.skipped == {'outside the folder': 13} and photos.stored(0) == STORED[1] and len(heard) == 1
    assert '--data.outside true' in str(heard[0].message) and '\n' not in str(heard[0].message)
    assert not [p for p in opened if 'secret' in p or p.startswith(('/etc', '/proc', '/dev'))]
    with pytest.warns(UserWarning, match='left out'): photos = load(source, outside=True)
    assert [photos.stored(i) for i in range(len(photos))] == [STORED[1]] + [STORED[0]]*8


def test_links_of_tables_and_split_lists_stay_inside(load, tmp_path):
    captions_txt(tmp_path/'elsewhere'); token_file(tmp_path/'set')
    lists = tmp_path/'set'/'Flickr8k_text'/'Flickr_8k.trainImages.txt'
    lists.rename(tmp_path/'list.txt'); lists.symlink_to(tmp_path/'list.txt')
    with pytest.raises(SourceError, match='trainImages.txt lies outside of'): load(tmp_path/'set')
    (tmp_path/'linked').mkdir(); (tmp_path/'linked'/'captions.txt').symlink_to(tmp_path/'elsewhere'/'captions.txt')
    with pytest.raises(SourceError, match='captions.txt lies outside of'): load(tmp_path/'linked')
    assert len(load(tmp_path/'set', outside=True)) == 5


def test_a_file_exchanged_for_a_link_is_not_followed(tmp_path, monkeypatch):
    "Between the look at its place and its opening"
    image_folder(tmp_path/'set'/'images', ['1.jpg'], STORED); image_folder(tmp_path/'secret', ['1.jpg'], STORED[1:])
    real = paths.is_inside
    def exchange(folder, path):
        inside = real(folder, path)
        if (tmp_path/'set'/'images').is_dir() and not (tmp_path/'set'/'images').is_symlink():
            shutil.move(tmp_path/'set'/'images', tmp_path/'gone'); (tmp_path/'set'/'images').symlink_to(tmp_path/'secret')
        return inside
    path, folder = tmp_path/'set'/'images'/'1.jpg', os.path.realpath(tmp_path/'set')
    monkeypatch.setattr(paths, 'is_inside', exchange)
    with pytest.raises(ImageError, match='cannot be opened'): paths.open_inside(folder, path)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_pipes_are_no_photos_and_no_tables(load, tmp_path):
    image_folder(tmp_path, ['1.jpg'], STORED); os.mkfifo(tmp_path/'2.jpg'); os.mkfifo(tmp_path/'a.jsonl')
    (tmp_path/'t.jsonl').write_text(lines(dict(image=n, captions='One .') for n in ('1.jpg', '2.jpg')))
    with pytest.warns(UserWarning, match='1 not a file'): assert load(tmp_path).names == ['1.jpg']


# ---- cells as people have them

LISTS = {'Python': """['a dog runs', "a dog's tail"]""", 'a tuple': """('a dog runs', "a dog's tail")""", 'JSON': '["a dog runs", "a dog\'s tail"]', 'NumPy': """['a dog runs'\n "a dog's tail"]"""}


@pytest.mark.parametrize('text', LISTS.values(), ids=LISTS)
@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_a_cell_that_spells_a_list_is_one(text, kind, load, tmp_path):
    image_folder(tmp_path, ['1.jpg'], STORED)
    row = dict(image='1.jpg', captions=text)
    if kind == 'csv':
        with open(tmp_path/'t.csv', 'w', newline='') as f: csv.writer(f).writerows([list(row), list(row.values())])
    elif kind == 'jsonl': (tmp_path/'t.jsonl').write_text(json.dumps(row))
    else: parquet(tmp_path/'t.parquet', {k: [v] for k,v in row.items()}, image='string', captions='string')
    assert load(tmp_path).captions == [['a dog runs', "a dog's tail"]]


@pytest.mark.parametrize('text', ['[__import__("os").getcwd()]', "['a', 1]", "[['a'], ['b']]", "['a'", '['*3000, "{'a'}", '[a dog] runs', "[f'{1}']", "[b'a']"])
def test_what_only_looks_like_a_list_stays_a_text(text):
    assert spelled_list(text) == text


@pytest.mark.parametrize('cell, why, words', [('NaN', 'empty captions', 'nothing where a caption should be'), ('null', 'empty captions', 'nothing where a caption should be'), ('7', 'not captions', 'got a int: 7'), ('true', 'not captions', 'got a bool: True'),
                                              ('{"x": 1}', 'not captions', 'looked for under'), ('"\\ud800"', 'not captions', 'half a character'), ('[[7]]', 'not captions', 'got a int: 7')])
def test_a_cell_without_a_caption_is_counted_and_named(cell, why, words, load, tmp_path):
    image_folder(tmp_path, ['1.jpg', '2.jpg'], STORED)
    (tmp_path/'t.jsonl').write_text(f'{{"image": "2.jpg", "captions": "One ."}}\n{{"image": "1.jpg", "captions": {cell}}}\n')
    with pytest.warns(UserWarning, match=f'left out .*1 {why}.*; the first is t.jsonl, row 2: .*{words}'): photos = load(tmp_path)
    assert photos.skipped == {why: 1, 'without a caption': 1} and photos.names == ['2.jpg']


def test_one_photo_that_is_none_does_not_end_the_load(load, tmp_path):
    image_folder(tmp_path, ['1.jpg', '2.jpg'], STORED)
    (tmp_path/'t.jsonl').write_text(lines(dict(image=i, captions='One .') for i in ('1.jpg', ['1.jpg', '2.jpg'], {'x': 1}, True, None, ['2.jpg'])))
    with pytest.warns(UserWarning, match='2 not a photo, 2 empty files'): assert len(load(tmp_path)) == 2


# ---- what people hold in their hands

def beside(at):
    image_folder(at, ['1.jpg'], STORED); (at/'1.txt').write_text('One .')

def tabs(at):
    image_folder(at, ['1.jpg'], STORED); (at/'a.tsv').write_text('image\tcaptions\n1.jpg\tOne .\n')

def semicolons(at):
    image_folder(at, ['1.jpg'], STORED); (at/'a.csv').write_text('sep=;\nimage;captions\n1.jpg;One .\n')

def saved_set(at): datasets.Dataset.from_dict(dict(image=cells([0]), captions=['One .']), features=features(image='image', captions='string')).save_to_disk(at)

def frame(orient):
    def write(at):
        image_folder(at, ['1.jpg'], STORED)
        pandas.DataFrame(dict(image=['1.jpg'], captions=['One .'])).to_json(at/'a.json', orient=orient)
    return write


HELD = {'beside': beside, 'tabs': tabs, 'semicolons': semicolons, 'saved': saved_set, **{f'to_json {o}': frame(o) for o in ('records', 'columns', 'index', 'split', 'table')}}


@pytest.mark.parametrize('write', HELD.values(), ids=HELD)
def test_files_as_programs_write_them(write, load, tmp_path):
    write(tmp_path/'set')
    photos = load(tmp_path/'set')
    assert photos.captions == [['One .']] and photos.stored(0) == STORED[0]


def test_objects_in_memory(load, tmp_path, monkeypatch):
    image_folder(tmp_path, ['1.jpg'], STORED); monkeypatch.chdir(tmp_path)
    listed = datasets.Dataset.from_dict(dict(image=[cells([0])], captions=['One .'])).cast_column('image', datasets.List(datasets.Image()))
    for source in (pandas.DataFrame(dict(image=['1.jpg'], captions=['One .'])), pandas.DataFrame(dict(image=[1], captions=['One .'])), [dict(image=Path('1.jpg'), captions='One .')], [dict(image=STORED[0], captions='One .')], dict(image=['1.jpg'], captions=['One .']), listed):
        assert load(source).stored(0) == STORED[0]


def test_a_saved_set_of_splits(load, tmp_path):
    one = lambda i: datasets.Dataset.from_dict(dict(image=cells([i]), captions=[f'{i} .']), features=features(image='image', captions='string'))
    datasets.DatasetDict(train=one(0), test=one(1)).save_to_disk(tmp_path/'both'); one(2).save_to_disk(tmp_path/'one')
    assert load(tmp_path/'both', 'test').captions == [['1 .']] and load(tmp_path/'both').captions == [['0 .']] and load(tmp_path/'one').captions == [['2 .']]


def test_what_cannot_be_read_says_what_to_do(load, tmp_path):
    stream = datasets.Dataset.from_dict(dict(image=['1.jpg'], captions=['One .'])).to_iterable_dataset()
    (tmp_path/'tar').mkdir(); (tmp_path/'tar'/'0.tar').write_bytes(b''); (tmp_path/'zip').mkdir(); (tmp_path/'zip'/'images.zip').write_bytes(b'PK'); (tmp_path/'zip'/'metadata.jsonl').write_text('{"file_name": "1.jpg", "captions": "One ."}')
    for source, words in ((stream, r'gather some of it first, as in list\(stream.take\(1000\)\)'), (iter([]), 'gather some of it first'), (tmp_path/'tar', '0.tar should be unpacked first'), (7, 'expected a folder'), ([], 'an empty list'), ('x'*5000, 'cannot be a path')):
        with pytest.raises(SourceError, match=words): load(source)
    with pytest.warns(UserWarning), pytest.raises(SourceError, match='images.zip should be unpacked first'): load(tmp_path/'zip', image='file_name')


# ---- Parquet within limits

def bombs(n=500_000):
    "Small files that unpack to much, each in its own way"
    import pyarrow as pa
    word, many = pa.array(['x'*200]*n), pa.array(['a.png']*n)
    yield 'dictionaries', dict(image=many.dictionary_encode(), captions=word.dictionary_encode()), 'unpacks to more than'
    yield 'repeated', dict(image=many, captions=word), 'unpacks to more than'
    yield 'one list', dict(image=['a.png'], captions=[['x'*200]*n]), 'bytes of memory at once|unpacks to more than'
    yield 'one page', dict(image=['a.png'], captions=['x'*80_000_000]), 'unpacks to more than'
    yield 'nothings', dict(image=['a.png'], captions=pa.array([[None]*2_000_000])), 'bytes of memory at once|unpacks to more than'
    yield 'rows', dict(image=pa.nulls(20_000_001)), 'at most 20,000,000 are read'
    yield 'columns', {f'c{i}': [1] for i in range(1200)}, 'at most 1,000 are read'


def test_a_small_file_that_unpacks_to_much_is_refused(load, tmp_path):
    "In one line, within seconds, and nothing is left on the disk"
    import pyarrow as pa, pyarrow.parquet as pq
    for name, columns, words in bombs():
        pq.write_table(pa.table(columns), tmp_path/'train.parquet', compression='zstd')
        del columns
        start = time.monotonic()
        with pytest.raises(SourceError, match=f'train.parquet cannot be read as Parquet: .*({words})') as error: load(tmp_path, cache=tmp_path/'cache')
        assert '\n' not in str(error.value) and time.monotonic() - start < 30, name
        assert sum(f.stat().st_size for f in (tmp_path/'cache').rglob('*') if f.is_file()) == 0, name


def test_a_limit_can_be_set(load, tmp_path):
    write_parquet(tmp_path, STORED, CAPTIONS)
    with pytest.raises(SourceError, match='unpacks to more than 1,000 bytes'): load(tmp_path, unpacked=1000)


def test_a_library_that_crashes_costs_one_line(load, tmp_path, monkeypatch):
    write_parquet(tmp_path, STORED, CAPTIONS)
    greedy = 'import json, sys; sys.path[:] = json.loads(sys.argv[2]); from mlxvit.data.unpack import limit_process; limit_process(2**29, 9, 99); bytearray(2**30)'
    for command, words in ((greedy, 'MemoryError'), ('import os; os.abort()', 'makes the library crash'), ('raise SystemExit(3)', 'could not be unpacked'), ('import sys; sys.exit("no such module")', 'no such module')):
        monkeypatch.setattr(unpack, 'COMMAND', command)
        with pytest.raises(SourceError, match=f'train.parquet cannot be read as Parquet: .*{words}'): load(tmp_path, cache=tmp_path/'cache')


def test_local_sets_need_no_network(load, tmp_path, monkeypatch):
    def refuse(*_, **__): raise AssertionError('a local set asks for the network')
    write_parquet(tmp_path/'parquet', STORED, CAPTIONS); saved_set(tmp_path/'saved')
    for name in ('connect', 'connect_ex', 'sendto'): monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    assert len(load(tmp_path/'parquet')) == 8 and len(load(tmp_path/'saved')) == 1


def test_only_what_is_needed_is_unpacked(load, tmp_path):
    parquet(tmp_path/'train.parquet', dict(image=cells([0]), captions=['One .'], notes=['x'*10_000]), image='image', captions='string', notes='string')
    assert len(load(tmp_path, cache=tmp_path/'cache')) == 1
    copy, = (tmp_path/'cache').rglob('*.arrow')
    assert copy.stat().st_size < 8_000
    with pytest.raises(SourceError, match="no column 'photo'; there are: image, captions, notes"): load(tmp_path, image='photo')


WRONG_TEXT = {'deep': ('t.json', '['*100_000, 'nested too deeply'), 'a number': ('t.json', '[' + '9'*10_000 + ']', 'damaged'), 'twice': ('t.json', '[{"a": 1, "a": 2}]', 'stands twice'), 'keys': ('t.json', json.dumps([{f'k{i}': 1} for i in range(2000)]), '2,000 columns'),
              'columns': ('t.csv', ','.join(f'c{i}' for i in range(2000)) + '\n1\n', '2,000 columns'), 'header': ('t.csv', 'image,captions,image\n', "says 'image' twice"), 'field': ('t.csv', 'image,captions\n1.jpg,' + 'x'*200_000, 'field limit'),
              'lists': ('t.json', '[' + '{},'*3_000_001 + '{}]', 'more than 3,000,000 lists'), 'line': ('t.jsonl', '{"image": "1.jpg"}\n[]', 'line 2 should hold a JSON object'), 'UTF-16': ('t.csv', 'image,captions\n'.encode('utf-16'), 'is not UTF-8')}


@pytest.mark.parametrize('name, text, words', WRONG_TEXT.values(), ids=WRONG_TEXT)
def test_a_text_that_is_too_much_is_refused(name, text, words, load, tmp_path):
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=words) as error: load(tmp_path)
    assert '\n' not in str(error.value)


def test_mutated_tables_and_feature_files():
    "A few of the mutations that `python tests/fuzz_tables.py 3000` tries by the thousand"
    import fuzz_tables
    outcomes = set()
    for _, (_, files) in zip(range(60), fuzz_tables.mutations(np.random.default_rng(5))):
        with tempfile.TemporaryDirectory() as folder:
            fuzz_tables.write(folder, files)
            outcomes.add(fuzz_tables.check(folder) == 'read')
    assert outcomes == {True, False}


# ---- the hub

def test_a_set_of_the_hub_is_pinned_and_read_as_a_local_one(load, monkeypatch, tmp_path):
    parquet_split_column(tmp_path); asked = []
    rows = datasets.load_dataset('parquet', data_files=str(tmp_path/'all.parquet'), split='train', cache_dir=str(tmp_path/'c'))
    monkeypatch.setattr('huggingface_hub.HfApi.dataset_info', lambda self, name, **kw: asked.append((name, kw['revision'])))
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, **kw: asked.append((name, kw['revision'])) or datasets.DatasetDict(test=rows)) # as Flickr30k: all in one part, splits in a column
    photos = load(f'owner/flickr30k@{"0a"*20}')
    assert asked == [('owner/flickr30k', '0a'*20)]*2 and photos.names == [NAMES[i] for i in TRAIN]
    for name in ('owner/flickr30k', 'owner/flickr30k@main', 'owner/flickr30k@0a0a', 'flickr30k'):
        with pytest.raises(SourceError, match='owner/name@revision, with the 40 hexadecimal digits of a commit'): load(name)


@pytest.mark.parametrize('offline', [{'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HUB_OFFLINE': '0'}, {'HF_HUB_OFFLINE': '1'}], ids=['refused', 'switched off'])
def test_a_network_that_is_not_there_costs_one_line(offline, tmp_path):
    command = f'''
from mlxvit.data.photos import load_photos
try: load_photos('owner/flickr30k@{"0a"*20}', cache={str(tmp_path)!r})
except ValueError as e: print(e)'''
    out = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True, timeout=60, env={**os.environ, **offline, 'HF_HOME': str(tmp_path)})
    assert re.fullmatch(r'the hub cannot be reached for owner/flickr30k@\w+ \(.+\): without a network, give a folder that holds the files\n', out.stdout), out.stdout + out.stderr
    assert not out.stderr


# ---- a real set

flickr8k = pytest.mark.skipif(not os.environ.get('MLXVIT_DATA'), reason='Flickr8k is not part of the project: MLXVIT_DATA should name a folder that holds it')


@flickr8k
def test_flickr8k(tmp_path):
    "6,000 and 1,000 photos, five captions each, all of them whole; never more than a gigabyte of memory"
    command = f'''
import json, os
from mlxvit.bench import peak
from mlxvit.data.photos import load_photos
out = []
for split in ('train', 'val'):
    p = load_photos(os.environ['MLXVIT_DATA'] + '/flickr8k', split, progress=False, cache={str(tmp_path)!r})
    out.append([len(p), p.skipped, sorted({{len(c) for c in p.captions}}), len(p.fingerprint), list(p[len(p)-1].size), p.split, len(set(p.names))])
print(json.dumps([out, peak()]))'''
    out = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    found, peak = json.loads(out.stdout)
    assert found == [[6000, {}, [5], 32, [224, 224], 'train', 6000], [1000, {}, [5], 32, [224, 224], 'validation', 1000]]
    assert peak < 2**30


def test_the_shipped_captioner_of_photographs():
    "With the encoder that it was trained with; without, it says what it needs"
    import mlxvit
    with pytest.raises(ValueError, match='where it is now: encoder=FOLDER'): mlxvit.load('photos')
    if not os.environ.get('MLXVIT_DATA'): pytest.skip('photographs and their encoder: set MLXVIT_DATA')
    home = Path(os.environ['MLXVIT_DATA'])
    photos = load_photos(home/'flickr8k', 'validation', limit=24, progress=False)
    images = [photos.image(i) for i in range(24)]
    theirs, ours = (mlxvit.load('photos', framework=f, encoder=str(home/'vit-small-patch14')).caption(images, beams=1) for f in ('torch', 'mlx'))
    assert sum(a == b for a, b in zip(theirs, ours)) >= 23 # 1e-5 may decide between words that are equally likely
    assert cider(ours, photos.captions) > 2*cider([most_common_caption(photos.captions)]*24, photos.captions)
