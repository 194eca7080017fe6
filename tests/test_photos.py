"Captioning sets as they come: every layout gives the same photos, every broken file is counted, every wrong request is told what there is"
import io, json, os, re, shutil, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from mlxvit.data.photos import Photos, as_jpeg, check_photos, draw_shapes, load_photos, write_parquet
from mlxvit.data.tables import SourceError, find_files, read_tables
from mlxvit.images import MAX_BYTES, ImageError
from mlxvit.metrics import cider, most_common_caption

datasets = pytest.importorskip('datasets', reason='Parquet and the hub need `pip install datasets`')
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
