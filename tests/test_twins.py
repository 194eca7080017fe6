"The two frameworks are one: any configuration, any recipe, the shipped models, and whole runs of the program"
import json, os, subprocess, sys
import numpy as np
import pytest
import mlxvit.mlx # a fast BLAS before MLX
import mlx.core as mx
import torch
from hypothesis import Phase, given, settings, strategies as st
from conftest import TINY
from mlxvit.checkpoint import load_checkpoint
from mlxvit.config import ACTIVATIONS, HEADS, ViTConfig, from_dict, initial_values, parameter_shapes
from mlxvit.fit import FitConfig
from mlxvit.mlx.learner import Learner as MLXLearner
from mlxvit.mlx.vit import ViT as MLXViT
from mlxvit.reader import find, load
from mlxvit.tasks import TASKS
from mlxvit.torch.learner import Learner as TorchLearner
from mlxvit.torch.vit import ViT as TorchViT
from mlxvit.twins import compare, take_weights


@st.composite
def configs(draw, classifier=True):
    "Any small model: every option of ViTConfig"
    P, rows, cols = draw(st.sampled_from([2, 4, 7])), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head, heads = draw(st.sampled_from(HEADS)), draw(st.sampled_from([1, 2, 4]))
    convolution = draw(st.sampled_from([0, 1, 3, 5])) if head in ('mean', 'patch') else 0
    down, across = (rows, cols) if head == 'patch' else (rows*draw(st.integers(1, 2)), cols*draw(st.integers(1, 2)))
    return ViTConfig((down*P, across*P), P, channels=draw(st.sampled_from([1, 3])), dim=heads*draw(st.sampled_from([4, 8])), depth=draw(st.integers(1, 3)), heads=heads,
                     mlp_ratio=draw(st.sampled_from([1., 2.5, 4.])), activation=draw(st.sampled_from(ACTIVATIONS)), cells=(rows, cols), C=draw(st.integers(1, 11)) if classifier else 0,
                     bias=draw(st.booleans()), patch_bias=draw(st.booleans()), pre_norm=draw(st.booleans()), layer_scale=draw(st.booleans()), eps=draw(st.sampled_from([1e-12, 1e-6, 1e-3])), head=head, convolution=convolution, positions=not convolution or draw(st.booleans()))


def random_weights(config, seed):
    "Weights that hide nothing: no zeros in the head, no ones in the norms"
    rng = np.random.default_rng(seed)
    value = lambda n, s: rng.standard_normal(s)*(0.3/s[-1]**0.5 if len(s) > 1 else 0.1) + (len(s) == 1 and n.endswith('weight'))
    return {n: value(n, s).astype(np.float32) for n,s in parameter_shapes(config).items()}


def images_for(config, n=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *config.image_size) + ((config.channels,) if config.channels > 1 else ())).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(configs(), st.integers(0, 2**16))
def test_any_model_has_equal_outputs_and_gradients(config, seed):
    theirs = TorchViT(config)
    take_weights(theirs, random_weights(config, seed))
    gaps = compare(theirs, MLXViT(config), images_for(config, seed=seed))
    assert max(gaps.values()) < 1e-5, (config, gaps)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(configs(classifier=False))
def test_any_model_without_classifier_has_equal_features(config):
    weights, images = random_weights(config, 1), images_for(config)
    theirs, ours = TorchViT(config), MLXViT(config)
    for m in (theirs, ours): take_weights(m, weights)
    assert 'head.weight' not in weights
    a, b = theirs.features(torch.from_numpy(images)).detach().numpy(), np.array(ours.features(mx.array(images)))
    assert abs(a-b).max() < 1e-5*max(1, abs(a).max())
    for m, x in ((theirs, torch.from_numpy(images)), (ours, mx.array(images))):
        with pytest.raises(ValueError, match='no classifier'): m(x)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(configs(), st.fixed_dictionaries(dict(clip=st.sampled_from([0., 0.1, 1.]), label_smoothing=st.sampled_from([0., 0.2]), focal=st.sampled_from([0., 2.]),
                                             average=st.sampled_from([0., 0.9]), weight_decay=st.sampled_from([0., 0.3]), seed=st.integers(0, 9))), st.booleans())
def test_any_recipe_takes_equal_steps(config, recipe, weighted):
    fit = FitConfig(**recipe, class_weights=tuple(np.linspace(0.5, 2, config.C)) if weighted else ())
    rng = np.random.default_rng(recipe['seed'])
    batches = [(images_for(config, 4, i), rng.integers(0, config.C, (4, config.K))) for i in range(4)]
    ours, theirs = MLXLearner.build(config, fit), TorchLearner.build(config, fit)
    for learner in (ours, theirs): learner.load(random_weights(config, recipe['seed']))
    for b in batches:
        p, q = ours.step(b, 1e-3), theirs.step(b, 1e-3)
        assert abs(p['loss']-q['loss']) < 1e-4*max(1, q['loss']) and abs(p['grad_norm']-q['grad_norm']) < 1e-3*max(1e-2, q['grad_norm'])
    assert abs(ours.evaluate(batches)['loss'] - theirs.evaluate(batches)['loss']) < 1e-3
    same_state(ours, theirs)


def same_state(ours, theirs):
    "Are weights and averages equal but for gradients that are rounding alone, and the running means in proportion to the largest?"
    a, b = ({**{f'averaged.{n}': w for n,w in l.weights().items()}, **l.state()} for l in (ours, theirs))
    assert a.keys() == b.keys()
    for n in a:
        if not n.startswith('exp_avg'): assert np.median(abs(a[n]-b[n])) < 2e-6, n
        else: assert abs(a[n]-b[n]).max() <= 1e-3*max(abs(v).max() for k,v in b.items() if k.split('.')[0] == n.split('.')[0]), n


@pytest.mark.parametrize('name', ['digit', 'grid', 'layout'])
def test_shipped_models_answer_alike_on_the_whole_examination(name):
    "All 10,000 items: the same predictions, logits within 1e-4"
    ours, theirs = load(name, 'mlx'), load(name, 'torch')
    n = changed = 0
    for images, _ in TASKS[name].exam(ours.data):
        a, b = ours.learner.logits(images), theirs.learner.logits(images)
        assert abs(a-b).max() < 1e-4
        n, changed = n+len(images), changed + (a.argmax(-1) != b.argmax(-1)).sum()
    assert (n, changed) == (10_000, 0)


def test_the_reader_says_the_same(tmp_path):
    ours, theirs = load('layout', 'mlx', size=(72, 80)), load('layout', 'torch', size=(72, 80))
    images = np.random.default_rng(0).integers(0, 255, (2, 72, 80)).astype(np.uint8)
    assert np.array_equal(ours.predict(images), theirs.predict(images)) and ours.predict(images).shape == (2, 9, 10)
    assert abs(ours.probabilities(images) - theirs.probabilities(images)).max() < 1e-4
    assert abs(ours.attention(images) - theirs.attention(images)).max() < 1e-4


# whole programs

def mlx_run(mlxvit, out, *more): return mlxvit('train', 'digit', '--framework', 'mlx', '--epochs', 4, '--out', out, *TINY, *more)


@pytest.fixture(scope='module')
def straight_mlx(mlxvit, tmp_path_factory):
    "A tiny model trained in MLX for four epochs without interruption, augmentation and dropout on"
    out = tmp_path_factory.mktemp('runs')/'mlx'
    p = mlx_run(mlxvit, out)
    assert p.returncode == 0, p.stderr
    assert ', mlx, 4 epochs' in p.stdout
    return out


def test_mlx_resumes_to_the_byte_in_its_own_framework(mlxvit, straight_mlx, tmp_path):
    out = tmp_path/'run'
    assert mlx_run(mlxvit, out, '--stop_after', 2).returncode == 0
    p = mlxvit('train', 'digit', '--resume', '--framework', 'torch', '--out', out, '--quiet')
    assert p.returncode == 1 and 'was trained in mlx: resume without --framework' in p.stderr
    p = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet')
    assert p.returncode == 0, p.stderr
    assert ', mlx, 4 epochs' in p.stdout
    for f in ('model.safetensors', 'optimizer.safetensors'): assert (out/'last'/f).read_bytes() == (straight_mlx/'last'/f).read_bytes()


def test_another_seed_differs_in_mlx(mlxvit, straight_mlx, tmp_path):
    "The comparison above can fail"
    assert mlx_run(mlxvit, tmp_path/'run', '--seed', 1).returncode == 0
    assert (tmp_path/'run'/'last'/'model.safetensors').read_bytes() != (straight_mlx/'last'/'model.safetensors').read_bytes()


def test_a_run_of_mlx_is_read_by_torch(mlxvit, straight_mlx):
    log = [json.loads(l) for l in (straight_mlx/'metrics.jsonl').read_text().splitlines()]
    assert {'epoch', 'valid_accuracy', 'valid_loss', 'seconds'} <= set(log[-1]) and log[-1]['epoch'] == 4
    scores = []
    for framework in ('mlx', 'torch'):
        p = mlxvit('evaluate', straight_mlx, '--framework', framework)
        assert p.returncode == 0, p.stderr
        scores.append(json.loads((straight_mlx/'metrics.json').read_text()))
    assert abs(scores[0]['accuracy'] - scores[1]['accuracy']) <= 3e-4 and abs(scores[0]['loss'] - scores[1]['loss']) < 1e-4


def test_without_mlx_one_line_says_what_to_do(tmp_path):
    code = "import sys; sys.modules['mlx'] = None; from mlxvit.cli import main; sys.exit(main(sys.argv[1:]))"
    p = subprocess.run([sys.executable, '-c', code, 'train', 'digit', '--framework', 'mlx', '--out', str(tmp_path/'run')], capture_output=True, text=True)
    assert p.returncode == 1 and p.stderr.count('\n') == 1 and 'MLX is not installed' in p.stderr and "framework='torch'" in p.stderr
    assert not (tmp_path/'run').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux build alone needs another BLAS')
@pytest.mark.parametrize('environment, words', [({'MLXVIT_BLAS': 'off'}, 'reference BLAS'), ({'MLXVIT_BLAS': 'openblas'}, 'libopenblas'), ({'MLXVIT_BLAS': 'torch'}, 'libtorch_cpu'), ({}, 'matrix products by')])
def test_the_blas_is_found_and_named(environment, words):
    clean = {k: v for k,v in os.environ.items() if k != 'MLXVIT_BLAS'}
    p = subprocess.run([sys.executable, '-W', 'error', '-c', 'import ctypes, mlxvit.mlx as m; print(m.BLAS.about, hasattr(ctypes.CDLL(None), "sgemm_"))'], env=clean | environment, capture_output=True, text=True)
    assert p.returncode == 0 and words in p.stdout, p.stderr
    assert p.stdout.endswith(f"{environment != {'MLXVIT_BLAS': 'off'}}\n"), 'its symbols should stand in front of the built-in ones, or with `off` they should not'


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux build alone needs another BLAS')
def test_where_there_is_no_blas_a_warning_says_how_to_get_one():
    code = ("import ctypes, warnings; warnings.simplefilter('error')\n"
            "def nothing(*args, **more): raise OSError('no such library')\n"
            "ctypes.CDLL = nothing\n"
            "import mlxvit.mlx")
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'no fast BLAS found; install a faster one: apt install libopenblas0-pthread' in p.stderr


def test_a_foreign_layout_is_refused_by_name(run):
    "A kernel laid out as MLX's convolutions have it does not slip through"
    weights = dict(load_checkpoint(run/'best').weights)
    weights['embedding.projection.weight'] = weights['embedding.projection.weight'].reshape(-1, 7, 7, 1)
    from mlxvit.checkpoint import CheckpointError, check_weights
    with pytest.raises(CheckpointError, match=r'embedding.projection.weight has shape \(16, 7, 7, 1\), expected \(16, 49\)'): check_weights(weights, parameter_shapes(from_dict(ViTConfig, load_checkpoint(run/'best').config['model'])))
