"""No file runs code, and none reaches the network: every reader is given files that would leave a mark

A process apart reads them all, with an audit hook that notes unpickling, sockets, programs, and code that comes out of the
folder. Then the marks are looked for. The first tests show that the hook does see such things.
"""
import base64, hashlib, json, os, pickle, shutil, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from fuzz_models import safetensors, timm_weights, weights, whole

GUARD = '''
import json, os, sys, types
seen, home = [], os.environ['PAYLOADS']
def hook(event, args):
    if event in ('pickle.find_class', 'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'os.system', 'os.exec', 'os.posix_spawn'): seen.append(f'{event} {args[:2]}'[:200])
    elif event == 'subprocess.Popen' and home in str(args): seen.append(f'{event} {args[:2]}'[:200])
    elif event == 'exec' and isinstance(args[0], types.CodeType) and args[0].co_filename.startswith(home): seen.append(f'exec {args[0].co_filename}')
    elif event == 'import' and args[1] and str(args[1]).startswith(home): seen.append(f'import {args[1]}')
def guarded(name, call):
    'What came of a call, in one line'
    seen.clear()
    try: call(); words = 'read'
    except (ValueError, OSError, ImportError) as error: words = f'refused: {error}'
    except BaseException as error: words = f'fault: {type(error).__name__}: {error}'
    if seen: words = f'fault: {seen[0]}'
    print(json.dumps([name, words]), flush=True)
'''
CONTROL = GUARD + '''
import pickle, socket
sys.addaudithook(hook)
raw = open(home + '/a.pkl', 'rb').read()
def connect():
    with socket.socket() as s: s.settimeout(1); s.connect(('127.0.0.1', 9))
guarded('pickle', lambda: pickle.loads(raw))
guarded('socket', connect)
guarded('code', lambda: exec(compile('1', home + '/x.py', 'exec')))
guarded('program', lambda: os.system('true'))
'''
READ = GUARD + '''
from pathlib import Path
import torch, transformers, datasets, PIL.Image
from mlxvit.checkpoint import load_checkpoint
from mlxvit.convert import convert
from mlxvit.data.mnist import from_hub
from mlxvit.data.photos import load_photos
from mlxvit.encoders import Encoder, EncoderConfig
from mlxvit.features import Features
from mlxvit.images import open_image
from mlxvit.text import Tokenizer, take
load = torch.load
def noted(*a, **k): seen.append(f'torch.load {a[:1]}'[:200]); return load(*a, **k)
torch.load = noted
convert(Path(home)/'plain')
sys.addaudithook(hook)
READERS = dict(convert=convert, encoder=lambda f: Encoder(EncoderConfig(str(f), framework='torch')), tokenizer=take, checkpoint=load_checkpoint,
               words=lambda f: Tokenizer.from_json((f/'tokenizer.json').read_text(errors='replace')), image=lambda f: open_image(f/'image.png'),
               features=lambda f: Features(f/'x.features'), digits=lambda f: from_hub('test', str(f)),
               photos=lambda f: [load_photos(f, 'train', progress=False)], name=lambda f: convert((f/'name').read_text()))
for folder in sorted(Path(home).iterdir()):
    kinds = folder.name.split('.')[0].split('+')
    for kind in kinds:
        if kind in READERS: guarded(f'{folder.name} {kind}', lambda: READERS[kind](folder))
'''


class Boom:
    "What leaves a mark when it is unpickled"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)


def payloads(home: Path, marks: Path) -> dict[str, dict[str, bytes]]:
    "Folders: their name begins with the readers that are given them"
    good, hugging = whole(), whole()['hugging']['config.json']
    dumps = lambda v: json.dumps(v).encode()
    def boom(name): return pickle.dumps(Boom(marks/name))
    def code(name): return f'import os; os.system("touch {marks/name}")\nclass Evil: pass\n'.encode()
    def torch_file(name):
        import io, torch
        out = io.BytesIO()
        torch.save(dict(state_dict=Boom(marks/name)), out)
        return out.getvalue()
    arrays, timm = safetensors(weights()), good['timm']['config.json']
    model = {'config.json': dumps(hugging), 'model.safetensors': arrays}
    with_timm = lambda **more: {'config.json': dumps({**timm, 'model_args': {**timm['model_args'], **more}}), 'model.safetensors': safetensors(timm_weights(weights()))}
    hugging_with = lambda **more: {**model, 'config.json': dumps({**hugging, **more})}
    tokens = {n: dumps(v) for n, v in good['tokenizer'].items()}
    tokens_with = lambda **more: {**tokens, 'tokenizer_config.json': dumps({**good['tokenizer']['tokenizer_config.json'], **more})}
    processor = good['hugging']['preprocessor_config.json']
    evil = home/'convert+encoder.timm_pickle'/'x.pth'
    found = {
        'plain': model,
        'convert+encoder.timm_pickle': {**with_timm(checkpoint_path=str(evil)), 'x.pth': torch_file('timm')},
        'convert+encoder.timm_pretrained': with_timm(pretrained=True), 'convert+encoder.timm_overlay': with_timm(pretrained_cfg_overlay=dict(file=str(evil))),
        'convert+encoder.timm_cfg': with_timm(pretrained_cfg=dict(url='http://127.0.0.1:9/x', file=str(evil))), 'convert+encoder.timm_cache': with_timm(cache_dir=str(home)),
        'convert.timm_hub': {**with_timm(), 'config.json': dumps(dict(architecture='hf-hub:someone/model'))},
        'convert.timm_local': {**with_timm(), 'config.json': dumps(dict(architecture=f'local-dir:{home}/plain'))},
        'convert+encoder.bin': {'config.json': dumps(hugging), 'pytorch_model.bin': torch_file('bin')},
        'convert+encoder.both': {**model, 'pytorch_model.bin': torch_file('both'), 'adapter_config.json': dumps(dict(peft_type='LORA', base_model_name_or_path='someone/model'))},
        'convert+encoder.index': {**model, 'x.bin': torch_file('index'), 'model.safetensors.index.json': dumps(dict(weight_map={'a': 'x.bin'}))},
        'convert+encoder.index_pickle': {'config.json': dumps(hugging), 'x.safetensors': torch_file('index2'), 'model.safetensors.index.json': dumps(dict(weight_map={'a': 'x.safetensors'}))},
        'convert+encoder.auto_map': {**hugging_with(auto_map=dict(AutoModel='modeling_evil.Evil', AutoConfig='modeling_evil.Evil')), 'modeling_evil.py': code('auto_map')},
        'convert+encoder.kernel': hugging_with(attn_implementation='someone/kernel', _attn_implementation='someone/kernel', _name_or_path='someone/model'),
        'convert+encoder.quantized': hugging_with(quantization_config=dict(quant_method='bitsandbytes', load_in_8bit=True)),
        'convert+encoder.weights': {**model, 'model.safetensors': boom('weights')}, 'convert+encoder.config': {**model, 'config.json': boom('config')},
        'encoder.processor': {**model, 'preprocessor_config.json': dumps({**processor, 'auto_map': dict(AutoImageProcessor='image_evil.Evil'), 'image_processor_type': 'Evil'}), 'image_evil.py': code('processor')},
        'encoder.processor_known': {**model, 'preprocessor_config.json': dumps({**processor, 'auto_map': dict(AutoImageProcessor='image_evil.Evil')}), 'image_evil.py': code('processor2')},
        'encoder.processor_pickle': {**model, 'preprocessor_config.json': boom('processor3')},
        'tokenizer.auto_map': {**tokens_with(auto_map=dict(AutoTokenizer=['tokenization_evil.Evil', None]), tokenizer_class='Evil'), 'tokenization_evil.py': code('tokenizer')},
        'tokenizer.vocab': {'tokenizer_config.json': dumps(dict(tokenizer_class='TransfoXLTokenizer')), 'vocab.pkl': boom('vocab'), 'vocab.bin': torch_file('vocab2'), 'tokenizer.model': boom('vocab3'), 'config.json': dumps(dict(model_type='transfo-xl'))},
        'tokenizer+words.pickle': {'tokenizer.json': boom('tokenizer2')}, 'tokenizer.chat': tokens_with(chat_template='{{ cycler.__init__.__globals__.os.system("touch ' + str(marks/'chat') + '") }}'),
        'image.pickle': {'image.png': boom('image')}, 'image.numpy': {'image.png': numpy_object(marks/'numpy')},
        'image.eps': {'image.png': f'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {marks/"eps"}) (w) file\n'.encode()},
        'features.pickle': {'x.features': boom('features'), 'x.json': boom('features2')},
        'digits.pickle': {'test-0.parquet': boom('parquet')}, 'digits.script': {'evil.py': code('script'), 'test.csv': b'image,label\n'},
        'photos.csv': {'captions.csv': boom('csv'), 'captions.pkl': boom('pkl')}, 'photos.json': {'captions.json': boom('json')}, 'photos.parquet': {'train.parquet': boom('parquet2')},
        'photos.script': {'photos.script.py': code('script2'), 'README.md': b'---\nconfigs:\n- config_name: default\n  data_files: http://127.0.0.1:9/x.csv\n---\n', 'train.csv': b'image,captions\n'},
        'name.colon': {'name': b'hf-hub:someone/model'}, 'name.loose': {'name': b'someone/model'}, 'name.branch': {'name': b'someone/model@main'}, 'name.up': {'name': b'../../x@' + b'0'*40}}
    for part, wanted in (('model.safetensors', 'checkpoint.weights'), ('config.json', 'checkpoint.config'), ('state.json', 'checkpoint.state')):
        found[wanted] = ours(part, boom(wanted))
    return found


def numpy_object(mark: Path) -> bytes:
    "An array of NumPy whose one value is a pickle"
    import io
    out = io.BytesIO()
    np.save(out, np.array([Boom(mark)], object), allow_pickle=True)
    return out.getvalue()


def ours(part: str, raw: bytes) -> dict[str, bytes]:
    "A shipped checkpoint with another file in it, and its sums made anew"
    from importlib import resources
    folder = Path(str(resources.files('mlxvit')/'assets'/'digit'))
    files = {n: (folder/n).read_bytes() for n in ('model.safetensors', 'config.json')} | {part: raw}
    return files | {'SHA256SUMS': ''.join(f'{hashlib.sha256(b).hexdigest()}  {n}\n' for n, b in files.items()).encode()}


def run(code: str, home: Path) -> dict[str, str]:
    "Name -> what came of it, in a process with the hook"
    env = {**os.environ, 'PAYLOADS': str(home), 'HF_HUB_OFFLINE': '0', 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(home.parent/'hub'), 'PYTHONPATH': os.pathsep.join(sys.path)}
    p = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300, cwd=home.parent)
    assert p.returncode == 0, p.stderr[-2000:]
    return dict(json.loads(line) for line in p.stdout.splitlines() if line.startswith('['))


def test_the_hook_sees_what_it_should(tmp_path):
    "Else all that follows would prove nothing"
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'a.pkl').write_bytes(pickle.dumps(Boom(tmp_path/'mark')))
    found = run(CONTROL, tmp_path/'in')
    assert {k: v.split()[1] for k, v in found.items()} == dict(pickle='pickle.find_class', socket='socket.connect', code='exec', program='os.system'), found
    assert (tmp_path/'mark').exists()


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
    "All payloads, read in one process"
    home = tmp_path_factory.mktemp('trust')
    marks = home/'marks'
    marks.mkdir()
    for name, files in payloads(home/'in', marks).items():
        (home/'in'/name).mkdir(parents=True)
        for file, raw in files.items(): (home/'in'/name/file).write_bytes(raw)
    return run(READ, home/'in'), marks


def test_no_payload_leaves_a_mark(outcome):
    found, marks = outcome
    assert len(found) > 50 and not list(marks.iterdir())


def test_nothing_is_unpickled_run_or_asked_of_the_network(outcome):
    assert {k: v for k, v in outcome[0].items() if v.startswith('fault')} == {}


def test_refusals_are_one_line(outcome):
    for name, words in outcome[0].items(): assert '\n' not in words and len(words) < 1000, (name, words)


def test_what_only_asks_is_read_or_refused_as_it_should_be(outcome):
    found = outcome[0]
    for name in ('both', 'kernel'): assert found[f'convert+encoder.{name} encoder'] == 'read'
    assert found['tokenizer.chat tokenizer'] == found['encoder.processor_known encoder'] == found['tokenizer.auto_map tokenizer'] == 'read'
    for name, words in {'timm_pickle': 'checkpoint_path', 'timm_pretrained': 'pretrained', 'timm_cache': 'cache_dir', 'auto_map': 'code of its own', 'quantized': 'quantised', 'bin': 'pickled weights',
                        'index': 'no file of safetensors'}.items(): assert words in found[f'convert+encoder.{name} convert'], found
    for name in ('timm_hub', 'timm_local'): assert 'unknown architecture' in found[f'convert.{name} convert']
    for name in ('colon', 'loose', 'branch', 'up'): assert 'owner/model@revision' in found[f'name.{name} name']


def test_yaml_builds_no_objects(mlxvit, tmp_path):
    (tmp_path/'a.yaml').write_text(f'epochs: !!python/object/apply:os.system ["touch {tmp_path/"mark"}"]\n')
    p = mlxvit('train', 'digit', '--config', tmp_path/'a.yaml')
    assert p.returncode and not (tmp_path/'mark').exists() and 'Traceback' not in p.stderr
