"Checkpoints, records and settings that someone made to hurt: one line each, nothing enumerated, nothing run"
import hashlib, json, os, shutil
from pathlib import Path
import numpy as np
import pytest
import mlxvit
from mlxvit.checkpoint import NAMES, CheckpointError, load_checkpoint
from mlxvit.files import FileError, parse_json
from mlxvit.results import results_table

ASSETS = Path(mlxvit.__file__).parent/'assets'


def seal(folder):
    "Make the sums anew, as whoever sends a hostile checkpoint would"
    there = [n for n in NAMES if (folder/n).is_file()]
    sums = [f'{hashlib.sha256((folder/n).read_bytes()).hexdigest()}  {n}\n' for n in there]
    (folder/'SHA256SUMS').write_text(''.join(sums))


@pytest.fixture
def model(tmp_path):
    "A copy of a shipped model, and how to change its settings"
    def make(name='digit', change=lambda config: None):
        folder = tmp_path/name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ASSETS/name, folder)
        config = json.loads((folder/'config.json').read_text(encoding='utf-8'))
        config = change(config) or config
        (folder/'config.json').write_text(json.dumps(config), encoding='utf-8')
        seal(folder)
        return folder
    return make


def refused(folder):
    "The one line with which a folder is refused"
    with pytest.raises(ValueError) as caught: mlxvit.load(folder, 'torch')
    assert '\n' not in str(caught.value)
    return str(caught.value)


SIZES = [('depth', 10**9, 'depth should be at most'), ('depth', 900, 'should have 900 blocks'), ('dim', 'x', 'dim should be a whole number'),
         ('dim', True, 'dim should be a whole number'), ('dim', 96.5, 'dim should be a whole number'), ('dim', None, 'dim should be'),
         ('cells', 1, 'cells should be a list'), ('cells', [1], 'cells should be 2 numbers'), ('cells', [[1, 1], 1], 'cells should be a whole number'),
         ('image_size', [2**40, 2**40], 'image_size should be at most'), ('heads', 0, 'heads should be at least 1'), ('eps', 'small', 'eps should be a number'),
         ('activation', ['gelu'], 'activation should be a text'), ('head', {}, 'head should be a text'), ('bias', 1, 'bias should be true or false'),
         ('patch_size', -4, 'patch_size should be at least 1'), ('C', 10**12, 'C should be at most'), ('surprise', 1, "unknown fields of ViTConfig: ['surprise']")]


@pytest.mark.parametrize('field, value, words', SIZES)
def test_a_hostile_size_is_one_line(model, field, value, words):
    said = refused(model(change=lambda c: c['model'].update({field: value})))
    assert words in said and 'digit' in said


@pytest.mark.parametrize('text, words', [
    ('[]', 'should hold a JSON object'), ('{"format":"mlxvit","version":1,"task":"digit"}', "has no 'model'"),
    ('{"format":"mlxvit","version":1,"task":["digit"],"model":{}}', "'task' should be a text"),
    ('{"format":"mlxvit","version":1,"task":"digit","model":[]}', "'model' should be an object"),
    ('{"format":"mlxvit","version":1,"task":"digit","model":{},"data":7}', "'data' should be an object"),
    ('{"format":"mlxvit","version":1,"model":{"mlp_ratio":1e999}}', 'not a finite number'), ('{"a":NaN}', 'not a finite number'),
    ('{"format":"mlxvit","format":"mlxvit"}', 'stands twice'), ('['*100_000, 'nested too deeply'),
    ('{"a":'*40+'1'+'}'*40, 'deep'), ('{"a":'+'9'*6000+'}', 'damaged'), ('\ufeff{', 'damaged'),
    ('{"format":"mlxvit","version":1,"trained":{"before":[1]}}', "'before' should be a list of objects"),
    ('{"format":"mlxvit","version":1,"trained":{"seconds":"long"}}', "'seconds' of the training")])
def test_a_hostile_config_is_one_line(model, text, words):
    folder = model()
    (folder/'config.json').write_text(text, encoding='utf-8')
    seal(folder)
    assert words in refused(folder)


def test_a_canvas_without_positions_is_bounded(model):
    "Nothing in the weights says how large the image is, so the limit must"
    huge = dict(image_size=[16000, 16000], cells=[2000, 2000])
    assert 'take larger patches' in refused(model('layout', lambda c: c['model'].update(huge)))


@pytest.mark.parametrize('change, words', [
    (lambda b: (2**63-1).to_bytes(8, 'little')+b[8:], 'is damaged'), (lambda b: b[:-1], 'is damaged'), (lambda b: b+b'x', 'is damaged'),
    (lambda b: b'', 'is damaged'), (lambda b: b.replace(b'"F32"', b'"I32"'), 'numbers of type int32'), (lambda b: b.replace(b'"F32"', b'"F99"'), 'is damaged'),
    (lambda b: b[:-4]+np.float32(np.nan).tobytes(), 'not finite'), (lambda b: b[:-4]+np.float32(np.inf).tobytes(), 'not finite')])
def test_hostile_weights_are_one_line(model, change, words):
    folder = model()
    weights = folder/'model.safetensors'
    weights.write_bytes(change(weights.read_bytes()))
    seal(folder)
    assert words in refused(folder)


def test_a_huge_list_of_sums_is_not_read(model):
    folder = model()
    os.truncate(folder/'SHA256SUMS', 4*2**30)
    assert 'at most' in refused(folder)


@pytest.mark.parametrize('text', ['{"loss":1}', '[]', '{', '{"accuracy":"high"}', '{"accuracy":NaN}', '{"read":null}', '{"f1":1}', '{"cider":1e999}', ''])
def test_hostile_scores_are_one_line(model, text):
    folder = model()
    (folder/'metrics.json').write_text(text)
    with pytest.raises(ValueError) as caught: results_table([folder])
    assert 'metrics.json' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('state', ['{"step":"x"}', '{"step":-1}', '[]', '{"step":1e400}', '{"score":"best"}', '{"epoch":true}'])
def test_a_hostile_state_is_one_line(model, state):
    folder = model()
    (folder/'state.json').write_text(state)
    seal(folder)
    with pytest.raises(CheckpointError, match='state.json'): load_checkpoint(folder)


def test_json_of_the_house_is_strict():
    for text in ('NaN', '1e999', '{"a":1,"a":1}', '['*20+']'*20, ''):
        with pytest.raises(FileError, match='x.json'): parse_json(text, 'x.json')


def test_a_record_does_not_choose_where_features_are_written(tmp_path):
    from mlxvit.caption_reader import own_cache
    from mlxvit.caption_tasks import PhotoData
    usual = PhotoData().cache
    for place in (str(tmp_path), '/', '../elsewhere', 'a/../../b'): assert own_cache(PhotoData(cache=place)).cache == usual
    assert own_cache(PhotoData(cache='mine/features')).cache == 'mine/features'
    (tmp_path/'a.features').touch()
    assert own_cache(PhotoData(cache=str(tmp_path))).cache == str(tmp_path), 'a cache that is there is used'


def test_loading_a_captioner_fetches_nothing(model, monkeypatch):
    "Somebody's checkpoint that names an encoder of the hub does not make us ask the hub"
    import socket
    def never(*args, **more): raise AssertionError('a socket was opened')
    monkeypatch.setattr(socket.socket, 'connect', never)
    monkeypatch.setattr(socket, 'getaddrinfo', never)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    hub = 'owner/model@' + '0'*40
    said = refused(model('photos', lambda c: c['data'].update(encoder=hub)))
    assert 'name it yourself' in said and hub in said


def test_a_bad_image_stops_no_batch_of_captions(tmp_path, capsys):
    from PIL import Image
    from mlxvit.cli import main
    Image.new('L', (80, 80), 255).save(tmp_path/'good.png')
    (tmp_path/'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(40))
    files = [str(tmp_path/n) for n in ('bad.png', 'good.png', 'missing.png', 'good.png')]
    assert main(['caption', 'scene', *files, '--framework', 'torch']) == 1
    out, err = capsys.readouterr()
    assert out.count('an empty canvas') == 2 and len(err.strip().split('\n')) == 2


@pytest.mark.parametrize('name', ['weights.head', 'exp_avg', 'exp_avg.nothing', 'moments.head.bias'])
@pytest.mark.parametrize('framework', ['torch', 'mlx'])
def test_the_state_of_another_optimizer_is_refused(framework, name):
    from mlxvit.config import ViTConfig
    from mlxvit.tasks import choose_framework, learner_class
    learner = learner_class(choose_framework(framework)).build(ViTConfig(dim=16, depth=1, heads=2))
    with pytest.raises(CheckpointError, match='state of the optimizer'): learner.load(learner.weights(), {name: np.zeros(3, np.float32)})
    shapes = {f'exp_avg.{n}': np.zeros((*w.shape, 2), np.float32) for n, w in learner.weights().items()}
    with pytest.raises(CheckpointError, match='expected'): learner.load(learner.weights(), shapes, 1)


@pytest.mark.parametrize('framework', ['torch', 'mlx'])
def test_weights_that_lack_an_array_are_refused(framework, model, capsys, tmp_path, monkeypatch):
    "By a learner that goes on, and by one that begins with them"
    from safetensors.numpy import load_file, save_file
    from mlxvit.cli import main
    from mlxvit.config import ViTConfig
    from mlxvit.tasks import choose_framework, learner_class
    learner = learner_class(choose_framework(framework)).build(ViTConfig(dim=16, depth=1, heads=2))
    weights = learner.weights()
    weights.pop('norm.bias')
    with pytest.raises(ValueError, match='lack norm.bias'): learner.load(weights)
    folder = model()
    arrays = load_file(folder/'model.safetensors')
    arrays.pop('embedding.position')
    save_file(arrays, folder/'model.safetensors')
    seal(folder)
    monkeypatch.chdir(tmp_path)
    more = '--data.limit 640 --data.valid 200 --model.patch_size 7 --quiet --framework'.split()
    assert main(['train', 'digit', '--init', str(folder), *more, framework]) == 1
    assert 'lacks 1 of' in capsys.readouterr().err


@pytest.mark.parametrize('log', [[], [{'epoch': 1}], [{'epoch': 1, 'valid_accuracy': 0.5}], [{'epoch': 1, 'valid_accuracy': 'high', 'seconds': 1.}]])
def test_a_log_without_a_whole_epoch_is_told(log, tmp_path):
    from mlxvit.cli import finish
    with pytest.raises(ValueError, match='holds no epoch with valid_accuracy'): finish(log, tmp_path, 1, 'accuracy')
