"`mlxvit convert`, as a program, on folders, on a real pretrained model, and on what it must refuse"
import json, os
from pathlib import Path
from unittest.mock import patch
import numpy as np
import pytest
import torch, transformers
from mlxvit.checkpoint import CheckpointError, load_checkpoint
from mlxvit.convert import build, convert

TINY_HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    "A small CLIP encoder with random weights, as a folder"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('hf')/'clip'
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY_HF)).save_pretrained(folder)
    return folder


def test_a_folder_becomes_a_checkpoint(mlxvit, clip, tmp_path):
    p = mlxvit('convert', clip, tmp_path/'ours')
    assert p.returncode == 0, p.stderr
    assert '2 blocks × 32, no classifier: features' in p.stdout and 'images 32×32×3, patches of 8 px' in p.stdout
    config = load_checkpoint(tmp_path/'ours').config['model']
    assert (config['pre_norm'], config['patch_bias'], config['activation'], config['eps'], config['head'], config['C']) == (True, False, 'quick_gelu', 1e-5, 'cls', 0)


def test_another_size_by_the_command(mlxvit, clip, tmp_path):
    assert mlxvit('convert', clip, tmp_path/'ours', '--size', '[48,64]').returncode == 0
    assert load_checkpoint(tmp_path/'ours').weights['embedding.position'].shape == (1, 6*8+1, 32)


@pytest.mark.parametrize('name, content, words', [
    ('empty', {}, 'has no config.json'),
    ('pickle', {'config.json': '{"model_type": "vit"}', 'pytorch_model.bin': 'x'}, 'pickled weights (.bin, .pt) can run code'),
    ('foreign', {'config.json': '{"model_type": "llama"}', 'model.safetensors': None}, "unknown architecture 'llama'")])
def test_refused_in_one_line_and_nothing_written(mlxvit, tmp_path, name, content, words):
    from safetensors.numpy import save_file
    folder = tmp_path/name; folder.mkdir()
    for f, text in content.items(): (folder/f).write_text(text) if text is not None else save_file({'x': np.zeros(1, np.float32)}, folder/f)
    p = mlxvit('convert', folder, tmp_path/'ours')
    assert p.returncode == 1 and p.stderr.count('\n') == 1 and words in p.stderr
    assert not (tmp_path/'ours').exists()


@pytest.mark.parametrize('args, words', [(['google/vit-base-patch16-224'], 'owner/model@revision'), (['nobody@main'], 'owner/model@revision')])
def test_an_unpinned_model_is_refused(mlxvit, tmp_path, args, words):
    p = mlxvit('convert', *args, tmp_path/'ours')
    assert p.returncode == 1 and words in p.stderr


def test_a_folder_of_someone_elses_is_left_alone(mlxvit, clip, tmp_path):
    (tmp_path/'notes').mkdir(); (tmp_path/'notes'/'mine.txt').write_text('keep')
    p = mlxvit('convert', clip, tmp_path/'notes')
    assert p.returncode == 1 and 'is not a checkpoint: it was left alone' in p.stderr and (tmp_path/'notes'/'mine.txt').read_text() == 'keep'


def test_a_pinned_model_is_fetched_at_its_revision(clip):
    asked = {}
    def fake(name, **how): asked.update(name=name, **how); return str(clip)
    with patch('huggingface_hub.snapshot_download', fake): found = convert('owner/clip@' + '0123456789'*4)
    assert asked == dict(name='owner/clip', revision='0123456789'*4, allow_patterns=['config.json', 'preprocessor_config.json', 'model*.safetensors', 'model.safetensors.index.json'])
    assert found.config['trained']['source'] == 'owner/clip@' + '0123456789'*4


def test_truncated_weights_are_refused(clip, tmp_path):
    import shutil
    folder = shutil.copytree(clip, tmp_path/'cut')
    from safetensors.torch import load_file, save_file
    weights = load_file(folder/'model.safetensors'); weights.pop(next(n for n in weights if n.endswith('fc2.bias')))
    save_file(weights, folder/'model.safetensors')
    with pytest.raises(CheckpointError, match='lacks 1 of'): convert(folder)


@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'], ids=['cut', 'pointer'])
def test_a_broken_file_is_one_line(mlxvit, clip, tmp_path, damage):
    import shutil
    folder = Path(shutil.copytree(clip, tmp_path/'broken'))
    (folder/'model.safetensors').write_bytes(damage((folder/'model.safetensors').read_bytes()))
    p = mlxvit('convert', folder, tmp_path/'ours')
    assert p.returncode == 1 and p.stderr.count('\n') == 1 and 'are the files whole, or pointers of git-lfs?' in p.stderr and not (tmp_path/'ours').exists()


def test_shards_are_put_together(clip, tmp_path):
    from safetensors.torch import load_file, save_file
    folder, whole = tmp_path/'shards', load_file(clip/'model.safetensors')
    folder.mkdir(); (folder/'config.json').write_text((clip/'config.json').read_text())
    halves = [dict(list(whole.items())[i::2]) for i in range(2)]
    for i,h in enumerate(halves): save_file(h, folder/f'model-{i}.safetensors')
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={n: f'model-{i}.safetensors' for i,h in enumerate(halves) for n in h})))
    a, b = convert(clip).weights, convert(folder).weights
    assert a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_what_a_config_leaves_out_is_what_transformers_assumes(clip, tmp_path):
    import shutil
    folder = Path(shutil.copytree(clip, tmp_path/'short'))
    config = json.loads((folder/'config.json').read_text())
    for key in ('layer_norm_eps', 'hidden_act'): config.pop(key)
    (folder/'config.json').write_text(json.dumps(config))
    assert convert(folder).config['model'] == convert(clip).config['model']


def test_ours_needs_no_converting(mlxvit, clip, tmp_path):
    assert mlxvit('convert', clip, tmp_path/'ours').returncode == 0
    p = mlxvit('convert', tmp_path/'ours', tmp_path/'again')
    assert p.returncode == 1 and 'is a checkpoint of mlxvit already' in p.stderr
    p = mlxvit('results', tmp_path/'ours')
    assert p.returncode == 0 and 'features alone' in p.stdout, p.stderr


@pytest.mark.skipif('MLXVIT_DATA' not in os.environ, reason='MLXVIT_DATA does not say where the pretrained model and the photographs lie')
def test_a_real_pretrained_model_on_32_photographs():
    "All tokens within 1e-3 in both twins"
    import datasets, mlx.core as mx
    data = Path(os.environ['MLXVIT_DATA'])
    rows = datasets.load_dataset('parquet', data_files=str(data/'flickr8k'/'validation.parquet'), split='train[:32]')
    photos = ((np.stack([np.array(r.convert('RGB').resize((224, 224))) for r in rows['image']])/255 - [0.485, 0.456, 0.406])/[0.229, 0.224, 0.225]).astype(np.float32)
    original = transformers.AutoModel.from_pretrained(data/'vit-small-patch14', dtype=torch.float32).eval()
    with torch.no_grad(): theirs = original(pixel_values=torch.tensor(photos).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    found = convert(data/'vit-small-patch14', size=(224, 224))
    assert theirs.shape == (32, 257, 384)
    for framework, to in (('torch', torch.tensor), ('mlx', mx.array)):
        with torch.no_grad(): ours = np.array(build(found, framework).features(to(photos)))
        assert abs(ours-theirs).max() < 1e-3
