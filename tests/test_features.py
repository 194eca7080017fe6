"Frozen encoders and feature files under what no notebook can show: kill -9, a full disk, files of other encoders, damaged images, no network"
import io, json, os, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch, transformers
from PIL import Image
from mlxvit.encoders import Encoder, EncoderConfig
from mlxvit.features import FeatureError, Features, Writer, cache_features, read_record
from mlxvit.images import ImageError

N, BATCH = 60, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 64, 64), np.uint8)
SLOWLY = '''
import signal, sys, time, numpy as np
from mlxvit.encoders import Encoder, EncoderConfig
from mlxvit.features import cache_features
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell in the background starts its children deaf to it
class Slow(list):
    def __getitem__(self, i): time.sleep(0 if i < 34 else 0.2); return super().__getitem__(i)
images = np.random.default_rng(0).integers(0, 256, (60, 64, 64), np.uint8)
cache_features(Encoder(EncoderConfig('layout', framework='torch')), Slow(images), 'noise', sys.argv[1], batch=4, progress=False)
'''


@pytest.fixture(scope='module')
def encoder(): return Encoder(EncoderConfig('layout', framework='torch'))


@pytest.fixture(scope='module')
def whole(encoder, tmp_path_factory):
    "Features that nothing interrupted"
    return cache_features(encoder, IMAGES, 'noise', tmp_path_factory.mktemp('whole'), batch=BATCH, progress=False)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    "An encoder for colour: a small CLIP with random weights"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('hf')/'clip'
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)).save_pretrained(folder)
    return Encoder(EncoderConfig(str(folder), framework='torch'))


def done(folder): return next((read_record(p)['done'] for p in Path(folder).glob('*.json')), 0)


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_it_ends_in_the_same_bytes(encoder, whole, tmp_path, how):
    p = subprocess.Popen([sys.executable, '-c', SLOWLY, tmp_path])
    try:
        deadline = time.monotonic() + 120
        while done(tmp_path) < 32:
            assert p.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(FeatureError, match='is being written by another process'): cache_features(encoder, IMAGES, 'noise', tmp_path, batch=BATCH, progress=False)
        p.send_signal(how); p.wait(30)
    finally: p.kill(); p.wait()
    assert p.returncode and 32 <= done(tmp_path) < N and done(tmp_path)%BATCH == 0
    with pytest.raises(FeatureError, match='and it goes on from there'): Features(tmp_path/whole.path.name)
    computed = []
    class Counted(list):
        def __getitem__(self, i): computed.append(i); return super().__getitem__(i)
    kept = done(tmp_path)
    again = cache_features(encoder, Counted(IMAGES), 'noise', tmp_path, batch=BATCH, progress=False)
    assert computed == list(range(kept, N))
    assert again.path.read_bytes() == whole.path.read_bytes() and again.crc == whole.crc
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ['.features', '.json']


def test_a_disk_that_fills_up_keeps_what_is_done(encoder, whole, tmp_path):
    "A real short write: the system lets no file grow beyond a limit"
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (41*2*64*96 + 1000, hard))
    try:
        with pytest.raises(OSError, match='no room to write .*: 40 of 60 images are kept; make room for 245,760 bytes') as error: cache_features(encoder, IMAGES, 'noise', tmp_path, batch=BATCH, progress=False)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert '\n' not in str(error.value) and done(tmp_path) == 40
    assert next(tmp_path.glob('*.features')).stat().st_size == 40*2*64*96
    assert cache_features(encoder, IMAGES, 'noise', tmp_path, batch=BATCH, progress=False).path.read_bytes() == whole.path.read_bytes()


def test_a_disk_so_full_that_not_even_the_record_fits(encoder, whole, tmp_path, monkeypatch):
    "The last record then still holds, and its images are whole"
    import mlxvit.features as module
    real, calls = module.write_record, []
    def record(path, what):
        calls.append(what['done'])
        if what['done'] > 32: raise OSError(28, 'No space left on device')
        real(path, what)
    monkeypatch.setattr(module, 'write_record', record)
    with pytest.raises(OSError, match='no room to write .*: 32 of 60 images are kept'): cache_features(encoder, IMAGES, 'noise', tmp_path, batch=BATCH, progress=False)
    monkeypatch.undo()
    assert calls[-1] > 32 and done(tmp_path) == 32
    assert cache_features(encoder, IMAGES, 'noise', tmp_path, batch=BATCH, progress=False).path.read_bytes() == whole.path.read_bytes()


def test_too_little_room_is_seen_before_anything_is_written(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda folder: type('usage', (), dict(free=1000)))
    with pytest.raises(OSError, match='the features need 737,280 bytes, and 1,000 are free'): cache_features(encoder, IMAGES, 'noise', tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('options, data, words', [
    (dict(blocks=(3,)), 'noise', r'blocks is \[4\] in the file, \[3\] was asked for'), (dict(grid=4), 'noise', 'grid is 0 in the file, 4'), (dict(norm=False), 'noise', 'norm is True in the file, False'),
    (dict(size=(64, 72)), 'noise', r'model.image_size is \[64, 64\] in the file, \[64, 72\]'), ({}, 'other', "data is noise in the file, other"), (dict(name='layout-large'), 'noise', 'encoder is [0-9a-f]{16} in the file')])
def test_a_file_of_another_encoder_is_named(whole, tmp_path, options, data, words):
    "Even under the right name: someone copied it there"
    from mlxvit.features import feature_key, key_name
    other = Encoder(EncoderConfig(**{'name': 'layout', 'framework': 'torch', **options}))
    name = key_name(feature_key(other, data, N))
    for suffix in ('.features', '.json'): (tmp_path/f'{name}{suffix}').write_bytes(whole.path.with_suffix(suffix).read_bytes())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FeatureError, match=words): cache_features(other, IMAGES, data, tmp_path, progress=False)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_cut_and_damaged_files(encoder, whole, tmp_path):
    for suffix in ('.features', '.json'): (tmp_path/f'{whole.path.stem}{suffix}').write_bytes(whole.path.with_suffix(suffix).read_bytes())
    copy = tmp_path/whole.path.name
    with open(copy, 'r+b') as f: f.seek(5000); f.write(b'\0\1\2\3')
    with pytest.raises(FeatureError, match='is damaged: checksum'): Features(copy).verify()
    os.truncate(copy, 5000)
    for f in (lambda: Features(copy), lambda: cache_features(encoder, IMAGES, 'noise', tmp_path, progress=False)):
        with pytest.raises(FeatureError, match='was cut or written to: it has 5,000 bytes, expected 737,280; delete it and its .json'): f()
    copy.unlink()
    with pytest.raises(FeatureError, match='it has 0 bytes'): Features(copy)


def test_an_unfinished_file_that_was_cut_is_not_gone_on_with(tmp_path):
    rows = np.ones((2, 3, 4), '<f2')
    with Writer(tmp_path/'a.features', {}, (6, 3, 4)) as w: w.append(rows); w.append(rows)
    os.truncate(tmp_path/'a.features', 50)
    with pytest.raises(FeatureError, match='does not hold the 4 images that its record promises'): Writer(tmp_path/'a.features', {}, (6, 3, 4))
    assert (tmp_path/'a.features').stat().st_size == 50


HOSTILE = {'shape': [[1, 2], [6, 3, '4'], [6, 3, True], [0, 3, 4], [2**40, 3, 4], [6, 3, 10**30], None], 'done': [7, -1, 1.5, '6', None, True], 'crc': [-1, 2**32, 'a', None], 'key': [[], None, 'encoder'], 'format': ['mlxvit features 9', None], 'more': [1]}


@pytest.mark.parametrize('field', HOSTILE)
def test_a_record_from_elsewhere_is_checked(field, tmp_path):
    with Writer(tmp_path/'a.features', {}, (6, 3, 4)) as w: w.append(np.ones((6, 3, 4), '<f2'))
    whole = json.loads((tmp_path/'a.json').read_text())
    for value in HOSTILE[field]:
        (tmp_path/'a.json').write_text(json.dumps({**whole, field: value}))
        for f in (lambda: Features(tmp_path/'a.features'), lambda: Writer(tmp_path/'a.features', {}, (6, 3, 4))):
            with pytest.raises(FeatureError, match='a.json is (damaged|no record of features)') as error: f()
            assert '\n' not in str(error.value)


@pytest.mark.parametrize('text, words', [('['*100_000, 'nested too deeply'), (' '*2**21, 'bytes; at most'), ('{"done": NaN}', 'damaged'), ('{"done": ' + '9'*6000 + '}', 'damaged'), ('[]', 'should hold a JSON object'), ('{"key": ' + '{"a":'*20 + '1' + '}'*21, 'nested 21 deep')])
def test_a_record_that_is_too_much(text, words, tmp_path):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(FeatureError, match=words): read_record(tmp_path/'a.json')


def test_a_record_of_another_shape(tmp_path):
    with Writer(tmp_path/'a.features', {}, (6, 3, 4)) as w: w.append(np.ones((2, 3, 4), '<f2'))
    with pytest.raises(FeatureError, match=r'a.json belongs to features of the shape \[6, 3, 4\], asked for were \[6, 4, 3\]'): Writer(tmp_path/'a.features', {}, (6, 4, 3))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_a_pipe_is_no_feature_file(tmp_path):
    with Writer(tmp_path/'a.features', {}, (6, 3, 4)) as w: w.append(np.ones((6, 3, 4), '<f2'))
    (tmp_path/'a.features').unlink(); os.mkfifo(tmp_path/'a.features')
    for f in (lambda: Features(tmp_path/'a.features'), lambda: Writer(tmp_path/'a.features', {}, (6, 3, 4))):
        with pytest.raises(FeatureError, match='not a regular file'): f()


def test_a_finished_file_is_compared_when_it_is_opened(encoder, whole, tmp_path):
    for suffix in ('.features', '.json'): (tmp_path/f'{whole.path.stem}{suffix}').write_bytes(whole.path.with_suffix(suffix).read_bytes())
    assert (cache_features(encoder, IMAGES, 'noise', tmp_path, progress=False)[:] == whole[:]).all()
    with open(tmp_path/whole.path.name, 'r+b') as f: f.seek(700_000); f.write(b'\1')
    with pytest.raises(FeatureError, match='is damaged: checksum .*; delete it and its .json'): cache_features(encoder, IMAGES, 'noise', tmp_path, progress=False)
    assert len(cache_features(encoder, IMAGES, 'noise', tmp_path, progress=False, verify=False)) == N


def as_file(image, kind, **options): f = io.BytesIO(); image.save(f, kind, **options); return f.getvalue()

COLOUR = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)).resize((240, 160))
GREY = COLOUR.convert('L')
GOOD = {'jpeg': as_file(COLOUR, 'JPEG'), 'CMYK jpeg': as_file(COLOUR.convert('CMYK'), 'JPEG'), 'grey jpeg': as_file(GREY, 'JPEG'), 'palette': as_file(COLOUR.quantize(64), 'PNG'),
        'palette with transparency': as_file(COLOUR.quantize(64), 'GIF', transparency=3), 'alpha': as_file(COLOUR.convert('RGBA'), 'PNG'), 'grey with alpha': as_file(COLOUR.convert('LA'), 'PNG'),
        '16 bits': as_file(Image.fromarray(np.asarray(GREY).astype(np.uint16)*257), 'PNG'), 'one bit': as_file(GREY.convert('1'), 'PNG'), 'webp': as_file(COLOUR, 'WEBP'), 'a line': as_file(Image.new('RGB', (9000, 1)), 'PNG')}
BAD = {'truncated jpeg': (as_file(COLOUR, 'JPEG')[:2000], 'is damaged'), 'truncated png': (as_file(COLOUR, 'PNG')[:5000], 'is damaged'), 'a text': (b'Dear reader, this is no image.', 'is not an image'), 'nothing': (b'', 'is empty'),
       'floats': (as_file(Image.fromarray(np.zeros((9, 9), np.float32)), 'TIFF'), 'no known range'), 'no such file': ('nowhere/photo.jpg', 'does not exist')}


@pytest.mark.parametrize('name', GOOD)
def test_every_kind_of_image_is_prepared(clip, name):
    x = clip.prepare(GOOD[name])
    assert x.shape == (32, 32, 3) and x.dtype == np.uint8
    if name in ('one bit', 'a line', 'palette with transparency'): return # other pictures
    same = clip.prepare(GREY if 'grey' in name or name == '16 bits' else COLOUR)
    assert abs(x.astype(int) - same).mean() < 8


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_image_is_said_in_one_line(clip, name):
    with pytest.raises(ImageError, match=BAD[name][1]) as error: clip.prepare(BAD[name][0])
    assert '\n' not in str(error.value)


def test_a_damaged_photograph_is_named_and_nothing_before_it_is_lost(clip, tmp_path):
    photos = [GOOD['jpeg'], *GOOD.values(), BAD['truncated jpeg'][0], GOOD['jpeg']]
    with pytest.raises(ImageError, match=f'image {len(photos)-2}: the image is damaged'): cache_features(clip, photos, 'photos', tmp_path, batch=4, progress=False)
    assert done(tmp_path) == 12
    photos[-2] = GOOD['jpeg']
    assert np.isfinite(cache_features(clip, photos, 'photos', tmp_path, batch=4, progress=False)[:]).all()


def test_no_network(tmp_path, monkeypatch):
    "A pinned model of the hub, and a machine whose every connection is refused"
    import huggingface_hub.constants as constants
    def refuse(*_, **__): raise ConnectionRefusedError(111, 'Connection refused')
    for name in ('HF_HOME', 'HF_HUB_CACHE', 'HF_XET_CACHE', 'HF_ASSETS_CACHE'): monkeypatch.setattr(constants, name, str(tmp_path/'hub'), raising=False)
    monkeypatch.setattr(socket.socket, 'connect', refuse); monkeypatch.setattr(socket, 'getaddrinfo', refuse); monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None) # between the hub's own attempts
    with pytest.raises(ConnectionError, match='owner/model@0{40} is not on this machine, and could not be fetched from the hub') as error: Encoder(EncoderConfig('owner/model@' + 40*'0'))
    assert '\n' not in str(error.value)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_without_transformers_a_folder_still_runs_in_mlx(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ImportError, match="pip install transformers; or choose framework='mlx'"): Encoder(clip.config)
    image = clip.prepare(GOOD['jpeg'])[None]
    native = Encoder(EncoderConfig(clip.config.name, framework='mlx'))
    assert native.key() == clip.key() and abs(native.features(image) - clip.features(image)).max() < 1e-4
