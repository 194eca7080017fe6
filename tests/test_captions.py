"Captioners as whole programs: train, stop, resume, write and be examined, on scenes, canvases and photographs; and every way to get it wrong"
import json, shutil, signal, subprocess
from dataclasses import replace
import numpy as np
import pytest
import mlxvit.mlx # a fast BLAS before MLX
from hypothesis import Phase, given, settings, strategies as st
from PIL import Image
from conftest import command
from mlxvit import caption_tasks
from mlxvit.checkpoint import load_checkpoint, save_checkpoint
from mlxvit.config import ACTIVATIONS, ViTConfig
from mlxvit.data.photos import draw_shapes, write_parquet
from mlxvit.fit import FitConfig
from mlxvit.generate import Choice, Rules, write
from mlxvit.mlx.captioner import CaptionLearner as MLXLearner, Captioner as MLXCaptioner
from mlxvit.reader import find
from mlxvit.sequences import CaptionerConfig, captioner_shapes, pack
from mlxvit.torch.captioner import CaptionLearner as TorchLearner, Captioner as TorchCaptioner
from mlxvit.twins import compare, take_weights
from test_resume import records, same, wait_for

SMALL = '--data.valid 200 --data.limit 640 --data.warps 16 --batch_size 16 --model.dim 16 --model.heads 2 --model.depth 1 --model.dropout 0.1 --quiet'.split()
SCENE = ['train', 'scene', '--data.scenes', 64, '--data.unfreeze', 1, *SMALL]
READING = ['train', 'reading', '--data.canvases', 64, *SMALL]


# The twins

@st.composite
def configs(draw):
    "Any small captioner: every option"
    heads, width, tokens = draw(st.sampled_from([1, 2, 4])), 8*draw(st.integers(1, 3)), draw(st.integers(1, 7))
    tail = ViTConfig((7*tokens, 7), dim=width, convolution=draw(st.sampled_from([0, 3])), heads=2, depth=draw(st.integers(1, 2)), bias=draw(st.booleans()), layer_scale=draw(st.booleans()), activation=draw(st.sampled_from(ACTIVATIONS))) if draw(st.booleans()) else None
    return CaptionerConfig(vocabulary=draw(st.integers(4, 30)), length=draw(st.integers(4, 9)), dim=heads*draw(st.sampled_from([4, 8])), depth=draw(st.integers(1, 3)), heads=heads, mlp_ratio=draw(st.sampled_from([1., 2.5, 4.])),
                           activation=draw(st.sampled_from(ACTIVATIONS)), dropout=0., tied=draw(st.booleans()), eps=draw(st.sampled_from([1e-12, 1e-6, 1e-3])), tokens=tokens, width=width, mixers=draw(st.integers(0, 2)), tail=tail)


def random_weights(config, seed):
    "Weights that hide nothing: no ones in the norms, no zeros in the biases"
    rng = np.random.default_rng(seed)
    value = lambda n, s: rng.standard_normal(s)*(0.3/s[-1]**0.5 if len(s) > 1 else 0.1) + (len(s) == 1 and n.endswith('weight'))
    return {n: value(n, s).astype(np.float32) for n,s in captioner_shapes(config).items()}


def random_batch(config, seed, B=3, n=2):
    "Features, and n captions of each image, of any lengths"
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, config.length+1, (B, n, 1))
    tokens = np.where(np.arange(config.length) < lengths, rng.integers(1, config.vocabulary, (B, n, config.length)), 0)
    return rng.standard_normal((B, config.tokens, config.width)).astype(np.float32), tokens


@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
@given(configs(), st.integers(0, 2**16))
def test_any_captioner_has_equal_outputs_and_gradients(config, seed):
    import mlx.core as mx, torch
    theirs = TorchCaptioner(config)
    take_weights(theirs, random_weights(config, seed))
    features, tokens = random_batch(config, seed)
    packed = pack(tokens, 0)[:3]
    call = lambda m, x: m(x, *map(torch.from_numpy if isinstance(m, torch.nn.Module) else mx.array, packed))
    gaps = compare(theirs, MLXCaptioner(config), features, call=call)
    assert max(gaps.values()) < 1e-5, (config, gaps)


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(configs(), st.sampled_from([0., 0.1]), st.sampled_from([0., 0.9]), st.integers(0, 2**16))
def test_any_captioner_trains_and_writes_equally(config, smoothing, average, seed):
    fit = FitConfig(label_smoothing=smoothing, average=average)
    learners = [L.build(config, fit) for L in (TorchLearner, MLXLearner)]
    for learner in learners: learner.load(random_weights(config, seed))
    for step in range(3):
        a, b = (learner.step(random_batch(config, seed+step), lr=1e-3) for learner in learners)
        assert abs(a['loss']-b['loss']) < 1e-4 and abs(a['grad_norm']-b['grad_norm']) < 1e-3*max(1, a['grad_norm'])
    weights = learners[0].weights()
    for n, w in learners[1].weights().items(): assert abs(w-weights[n]).max() < 2e-3, n # Adam's first steps are of the size of the rate, whatever the gradient
    learners[1].load(weights); learners[0].load(weights)
    features, rules = random_batch(config, seed)[0], Rules(1, 2, config.length-1, (0,))
    for choice in (Choice(), Choice(3), Choice(temperature=1., seed=seed)):
        a, b = ([w.tokens for w in write(learner, features, rules, choice)] for learner in learners)
        assert a == b, (config, choice)


# Runs

@pytest.fixture(scope='module')
def scene(mlxvit, tmp_path_factory):
    "A tiny captioner of scenes, two epochs without interruption, dropout and augmentation on"
    out = tmp_path_factory.mktemp('captions')/'scene'
    p = mlxvit(*SCENE, '--epochs', 2, '--out', out)
    assert p.returncode == 0, p.stderr
    assert '2 epochs of 4 steps' in p.stdout and f'mlxvit caption {out} IMAGE' in p.stdout
    return out


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    "A small set of generated pictures with captions, as Parquet"
    folder = tmp_path_factory.mktemp('shapes')
    for split, seed in (('train', 0), ('validation', 1), ('test', 2)): write_parquet(folder, *draw_shapes(32, seed), split)
    return folder


def photo_flags(folder, *more):
    return ['train', 'photos', '--data.source', folder, '--data.encoder', 'layout', '--data.cache', folder/'features', '--data.least', 1, '--batch_size', 8,
            '--model.dim', 16, '--model.heads', 2, '--model.depth', 1, '--quiet', *more]


def test_the_checkpoint_holds_words_and_encoder(scene):
    checkpoint = load_checkpoint(scene/'best')
    assert checkpoint.config['encoder']['name'] == 'layout-large' and len(checkpoint.config['encoder']['encoder']) == 16
    assert '"above"' in checkpoint.config['tokenizer'] and 'tokenizer' not in (scene/'best/config.json').read_text()
    assert {'true', 'unseen_true'} <= {k.removeprefix('valid_') for k in json.loads((scene/'metrics.jsonl').read_text().splitlines()[-1])}


def test_stopped_and_resumed(mlxvit, scene, tmp_path):
    out = tmp_path/'run'
    assert mlxvit(*SCENE, '--epochs', 2, '--stop_after', 1, '--out', out).returncode == 0
    assert not same(out, scene)
    p = mlxvit('train', 'scene', '--resume', '--out', out, '--quiet')
    assert p.returncode == 0, p.stderr
    assert same(out, scene) and records(out) == records(scene)


def test_killed_and_resumed(mlxvit, scene, tmp_path):
    out = tmp_path/'run'
    p = subprocess.Popen(command(*SCENE, '--epochs', 2, '--out', out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out/'last'/'state.json').exists(), p)
    p.kill(); p.wait()
    assert p.returncode == -signal.SIGKILL
    assert mlxvit('train', 'scene', '--resume', '--out', out, '--quiet').returncode == 0
    assert same(out, scene)


def test_resuming_in_mlx(mlxvit, tmp_path):
    whole, parts = tmp_path/'whole', tmp_path/'parts'
    flags = [*READING, '--framework', 'mlx', '--epochs', 2, '--out']
    assert mlxvit(*flags, whole).returncode == 0
    assert mlxvit(*flags, parts, '--stop_after', 1).returncode == 0
    assert mlxvit('train', 'reading', '--resume', '--out', parts, '--quiet').returncode == 0
    assert same(whole, parts)


def test_another_encoder_cannot_resume(mlxvit, scene, tmp_path):
    out = shutil.copytree(scene, tmp_path/'run')
    p = mlxvit('train', 'scene', '--resume', '--out', out, '--data.encoder', 'layout', '--quiet')
    assert p.returncode == 1 and 'was trained on features of another encoder' in p.stderr and p.stderr.count('\n') == 1


def test_a_moved_encoder_can_resume(mlxvit, scene, tmp_path):
    "Where the encoder lies is no setting of the run: what it is, is"
    out, moved = tmp_path/'run', tmp_path/'elsewhere'
    shutil.copytree(find('layout-large'), moved)
    assert mlxvit(*SCENE, '--epochs', 2, '--stop_after', 1, '--out', out).returncode == 0
    p = mlxvit('train', 'scene', '--resume', '--out', out, '--data.encoder', moved, '--quiet')
    assert p.returncode == 0, p.stderr
    assert same(out, scene)


def test_its_settings_repeat_it(mlxvit, scene, tmp_path):
    p = mlxvit('train', 'scene', '--config', scene/'config.yaml', '--out', tmp_path/'again', '--quiet')
    assert p.returncode == 0, p.stderr
    assert same(scene, tmp_path/'again')


def test_its_weights_begin_another_run(mlxvit, scene, tmp_path):
    p = mlxvit(*SCENE, '--epochs', 1, '--seed', 3, '--init', scene, '--out', tmp_path/'run')
    assert p.returncode == 0, p.stderr
    assert load_checkpoint(tmp_path/'run/last').config['trained']['before'][-1]['epoch'] in (1, 2)
    p = mlxvit(*READING, '--epochs', 1, '--init', scene, '--out', tmp_path/'other')
    assert p.returncode == 1 and 'named by --init, was trained on features of another encoder' in p.stderr and p.stderr.count('\n') == 1


def test_caption_files(mlxvit, scene, tmp_path):
    Image.fromarray(np.full((80, 80), 255, np.uint8)).save(tmp_path/'blank.png')
    Image.fromarray(np.full((200, 300, 4), 40, np.uint8), 'CMYK').save(tmp_path/'cmyk.jpg')
    (tmp_path/'text.png').write_text('not an image')
    (tmp_path/'cut.jpg').write_bytes((tmp_path/'cmyk.jpg').read_bytes()[:300])
    files = [tmp_path/n for n in ('blank.png', 'cmyk.jpg', 'text.png', 'cut.jpg')]
    p = mlxvit('caption', scene, *files, '--beams', 2, '--attention', tmp_path/'maps')
    assert p.returncode == 1 and 'Traceback' not in p.stderr
    assert len(p.stdout.splitlines()) == 2 and p.stdout.startswith(f'{files[0]}: ')
    assert 'text.png is not an image' in p.stderr and 'cut.jpg' in p.stderr and p.stderr.count('\n') == 2
    assert Image.open(tmp_path/'maps/1-blank.png').size[0] > 300
    q = mlxvit('caption', scene, files[0], '--json', '--temperature', 1, '--framework', 'mlx')
    assert q.returncode == 0 and set(json.loads(q.stdout)) == {'image', 'caption'}


def test_photographs_from_training_to_examination(mlxvit, shapes, tmp_path):
    out = tmp_path/'run'
    p = mlxvit(*photo_flags(shapes, '--epochs', 2, '--out', out))
    assert p.returncode == 0, p.stderr
    files = sorted((shapes/'features').glob('*.features'))
    assert len(files) == 3 # training, mirrored, validation
    times = [f.stat().st_mtime_ns for f in files]
    assert mlxvit('train', 'photos', '--config', out/'config.yaml', '--out', tmp_path/'again', '--quiet').returncode == 0
    assert [f.stat().st_mtime_ns for f in files] == times and same(out, tmp_path/'again') # read, not computed
    q = mlxvit('evaluate', out, '--beams', 2)
    assert q.returncode == 0, q.stderr
    for row in ('greedy', '2 beams', 'most common caption', 'nearest photograph'): assert f'| {row}' in q.stdout
    assert f'{out}, 2 beams: CIDEr' in q.stdout
    scores = json.loads((out/'metrics.json').read_text())
    assert {'bleu4', 'cider', 'rouge', 'distinct', 'beams', 'loss'} <= set(scores)
    assert list(scores['table']) == ['greedy', '2 beams', 'most common caption', 'nearest photograph']
    assert mlxvit('export', out, tmp_path/'record', '--record').returncode == 0
    kept = (tmp_path/'record/config.json').read_text() # what it was, without where it lay
    assert str(shapes) not in kept and f'--data.source {shapes.name} ' in json.loads(kept)['trained']['command'] and 'tokenizer' not in json.loads(kept)
    before = (out/'metrics.json').read_bytes()
    assert mlxvit('evaluate', out, '--split', 'test', '--beams', 1).returncode == 0 and (out/'metrics.json').read_bytes() == before


def test_examined_without_its_training_photographs(mlxvit, shapes, tmp_path):
    "Photographs kept apart, where the training set is not at hand"
    apart = tmp_path/'apart'
    write_parquet(apart, *draw_shapes(12, 5), 'test')
    assert mlxvit(*photo_flags(shapes, '--epochs', 1, '--out', tmp_path/'run')).returncode == 0
    p = mlxvit('evaluate', tmp_path/'run', '--source', apart, '--split', 'test', '--beams', 2)
    assert p.returncode == 0, p.stderr
    assert '2 beams' in p.stdout and 'no baselines beside it' in p.stdout
    import pyarrow.parquet as pq
    (file,) = apart.glob('*.parquet')
    table = pq.read_table(file)
    pq.write_table(table.rename_columns({'image': 'picture', 'captions': 'said'}), file) # called otherwise there
    q = mlxvit('evaluate', tmp_path/'run', '--source', apart, '--split', 'test', '--beams', 2)
    assert q.returncode and "there is no column 'image'" in q.stderr and 'picture' in q.stderr
    q = mlxvit('evaluate', tmp_path/'run', '--source', apart, '--split', 'test', '--beams', 2, '--image', 'picture', '--captions', 'said')
    assert q.returncode == 0 and q.stdout == p.stdout, q.stderr


@pytest.mark.parametrize('framework', ['torch', 'mlx'])
def test_paid_by_the_score(shapes, tmp_path, monkeypatch, framework):
    "First captions of people, then its own; a run of drafts that was stopped goes on byte for byte"
    from mlxvit.cli import main
    monkeypatch.chdir(tmp_path)
    go = lambda *args: main([str(a) for a in photo_flags(shapes, '--framework', framework, *args)])
    assert go('--epochs', 1, '--out', 'taught') == 0
    paid = ['--epochs', 2, '--init', 'taught', '--data.drafts', 3, '--label_smoothing', 0, '--out']
    assert go(*paid, 'whole') == 0 and go(*paid, 'parts', '--stop_after', 1) == 0
    assert not same(tmp_path/'whole', tmp_path/'parts')
    assert main(['train', 'photos', '--resume', '--out', 'parts', '--quiet']) == 0
    assert same(tmp_path/'whole', tmp_path/'parts')
    before, after = (load_checkpoint(f'{n}/last').weights for n in ('taught', 'whole'))
    assert any((before[n] != after[n]).any() for n in before)


def test_other_photographs_cannot_resume(shapes, tmp_path, monkeypatch, capsys):
    "The same captions, so the same words; but one picture is another one"
    from mlxvit.cli import main
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(shapes, tmp_path/'shapes', ignore=shutil.ignore_patterns('features'))
    assert main([str(a) for a in photo_flags(folder, '--epochs', 2, '--stop_after', 1, '--out', 'run')]) == 0
    pictures, captions = draw_shapes(32, 0)
    write_parquet(folder, [pictures[1], *pictures[1:]], captions, 'train')
    caption_tasks.photos_of.cache_clear(); caption_tasks.photo_material.cache_clear() # as in a new process
    before = (tmp_path/'run/last/state.json').read_bytes()
    assert main(['train', 'photos', '--resume', '--out', 'run', '--quiet']) == 1
    assert 'run learns from other photographs or captions than' in capsys.readouterr().err
    assert (tmp_path/'run/last/state.json').read_bytes() == before
    write_parquet(folder, pictures, captions, 'train')
    caption_tasks.photos_of.cache_clear(); caption_tasks.photo_material.cache_clear()
    assert main(['train', 'photos', '--resume', '--out', 'run', '--quiet']) == 0


def test_results_know_captioners(mlxvit, scene):
    p = mlxvit('results', scene)
    assert p.returncode == 0 and f'| `{scene.name}` | scene |' in p.stdout


@pytest.mark.parametrize('args, words', [
    (['train', 'photos'], ['which photographs?']),
    (['train', 'photos', '--data.source', 'SHAPES'], ['whose features?']),
    (['train', 'photos', '--data.source', 'nowhere', '--data.encoder', 'layout'], ['nowhere']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.captions', 'texts'], ["no column 'texts'", 'captions']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.train', 'spring'], ['spring']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.length', '4'], ['no caption has at most 2 tokens', 'raise the length']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.grid', '3'], ['a grid of 3×3 does not divide']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.unfreeze', '9'], ['unfreeze should be 0 to']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.tokens', 'owner/model'], ['owner/model']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.drafts', '3'], ['label_smoothing should be 0']),
    (['train', 'photos', '--data.source', 'SHAPES', '--data.encoder', 'layout', '--data.least', '1', '--batch_size', '8', '--data.drafts', '1', '--label_smoothing', '0'], ['judged by each other: expected at least 2, got 1']),
    (['train', 'scene', '--data.unfreeze', '9'], ['unfreeze should be 0 to 4, got 9']),
    (['train', 'scene', '--data.encoder', 'nowhere'], ["no encoder 'nowhere'"]),
    (['train', 'scene', '--model.vocabulary', '9'], ['the data needs model.vocabulary=61, got 9']),
    (['caption', 'digit', 'x.png'], ['digit writes no captions', 'mlxvit predict']),
    (['caption', 'SCENE', 'x.png', '--beams', '0'], ['x.png does not exist']),
    (['caption', 'SCENE', 'BLANK', '--beams', '0'], ['beams should be at least 1']),
    (['caption', 'SCENE', 'BLANK', '--temperature', '1', '--top_p', '2'], ['top_p should be in (0, 1]']),
    (['caption', 'SCENE', 'BLANK', '--encoder', 'layout'], ['of another encoder']),
    (['predict', 'SCENE', 'BLANK'], ['writes captions', 'mlxvit caption']),
    (['evaluate', 'SCENE', '--beams', '0'], ['beams should be at least 1']),
    (['caption', 'SCENE', 'BLANK', '--top_p', '0.5'], ['nothing is drawn']),
    (['caption', 'SCENE', 'BLANK', '--alpha', '11'], ['alpha should be 0 to 10']),
    (['train', 'scene', '--class_weights', '[1,2]', '--data.scenes', '64'], ['2 class weights for 61 tokens']),
    (['evaluate', 'SCENE', '--split', 'test'], ['--split, --image and --captions are for photographs']),
    (['evaluate', 'SCENE', '--captions', 'said'], ['--captions are for photographs']),
    (['evaluate', 'digit', '--encoder', 'layout'], ['no captioner']),
])
def test_mistakes_are_one_line(scene, shapes, tmp_path, monkeypatch, capsys, args, words):
    "In this process: an error that were not caught would fail the test by itself"
    from mlxvit.cli import main
    Image.fromarray(np.full((80, 80), 255, np.uint8)).save(tmp_path/'blank.png')
    monkeypatch.chdir(tmp_path)
    names = dict(SCENE=scene, SHAPES=shapes, BLANK='blank.png')
    code, err = main([str(names.get(a, a)) for a in args]), capsys.readouterr().err
    said = [l for l in err.splitlines() if l.startswith('mlxvit: ')]
    assert code == 1 and len(said) == 1 and said[0].startswith('mlxvit: error: ') and 'Traceback' not in err, err
    for w in words: assert w in said[0]
    assert not list(tmp_path.glob('runs/*/last')) # nothing half-begun


def test_a_changed_encoder_is_noticed(mlxvit, scene, tmp_path):
    "Same name, other weights: the captioner says so and does not write nonsense"
    model = load_checkpoint(scene/'best')
    model.config['encoder']['encoder'] = '0'*16
    save_checkpoint(tmp_path/'other', model)
    Image.fromarray(np.full((80, 80), 255, np.uint8)).save(tmp_path/'blank.png')
    p = mlxvit('caption', tmp_path/'other', tmp_path/'blank.png')
    assert p.returncode == 1 and 'was trained on features of another encoder' in p.stderr
