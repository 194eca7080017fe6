"Threads and forks: one reader asked by many threads, a training that is watched, a forked process; labels; exports of any batch size"
import importlib, os, subprocess, sys, threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import pytest
import mlxvit
import mlxvit.mlx # a fast BLAS before MLX
import mlx.core as mx
import torch
from mlx.utils import tree_flatten
from mlxvit.checkpoint import Checkpoint, save_checkpoint
from mlxvit.config import HEADS, ViTConfig
from mlxvit.data.mnist import load_digits, normalise
from mlxvit.data.scenes import fixed_scenes
from mlxvit.fit import FitConfig
from mlxvit.generate import Rules, greedy
from mlxvit.sequences import CaptionerConfig, pack
from mlxvit.torch.captioner import Captioner
from mlxvit.torch.decoder import Decoder
from mlxvit.torch.vit import ViT

TWINS = ('torch', 'mlx')
both = pytest.mark.parametrize('framework', TWINS)
DIGITS = load_digits('test')
TINY = ViTConfig(dim=32, depth=2, heads=2, dropout=0.1)
TALKER = CaptionerConfig(vocabulary=50, length=12, dim=32, heads=2, depth=1, dropout=0.1, tokens=9, width=16, mixers=1)


def learner_for(framework, model=TINY, **recipe):
    module, name = ('captioner', 'CaptionLearner') if isinstance(model, CaptionerConfig) else ('learner', 'Learner')
    return getattr(importlib.import_module(f'mlxvit.{framework}.{module}'), name).build(model, FitConfig(**recipe))


def parameters(learner):
    "Type and bytes of every parameter of the module"
    if isinstance(learner.model, torch.nn.Module):
        return {n: (type(p), p.requires_grad, p.detach().numpy().tobytes()) for n,p in learner.model.named_parameters()}
    return {n: (type(a), np.array(a).tobytes()) for n,a in tree_flatten(learner.model.parameters())}


def as_bytes(learner): return {n: a.tobytes() for n,a in (learner.weights() | learner.state()).items()}


def ask(jobs, threads=16):
    "Run (call, input, answer) in threads: how many were right, and what else happened"
    def one(job):
        call, x, want = job
        try: got = call(x)
        except BaseException as error: return f'{type(error).__name__}: {error}'
        return 'right' if (got == want if isinstance(want, (str, list)) else np.allclose(got, want, atol=1e-5)) else 'wrong'
    with ThreadPoolExecutor(threads) as pool: return Counter(pool.map(one, jobs))


def digit_jobs(reader, n, truth):
    "Calls of all kinds, batches of 1 to 8, and what `truth` alone says"
    rng, jobs, images = np.random.default_rng(0), [], DIGITS.images[:40]
    answers = {name: getattr(truth, name)(images) for name in ('predict', 'attention', 'probabilities')}
    for _ in range(n):
        first, size = rng.integers(32), rng.integers(1, 9)
        name = rng.choice(list(answers))
        jobs.append((getattr(reader, name), images[first:first+size], answers[name][first:first+size]))
    return jobs


@both
@pytest.mark.parametrize('cold', [False, True])
def test_sixteen_threads_ask_one_reader(framework, cold):
    truth = mlxvit.load('digit', framework)
    reader = mlxvit.load('digit', framework) if cold else truth
    jobs, before = digit_jobs(reader, 112, truth), parameters(reader.learner)
    assert ask(jobs) == {'right': 112}
    assert parameters(reader.learner) == before


@both
def test_threads_that_load_each_a_reader_of_their_own(framework):
    x = DIGITS.images[:4]
    want = mlxvit.load('digit', framework).probabilities(x)
    assert ask([(lambda x: mlxvit.load('digit', framework).probabilities(x), x, want)]*4, 4) == {'right': 4}


@both
def test_threads_ask_one_captioner(framework):
    truth, images = mlxvit.load('scene', framework), fixed_scenes(DIGITS, 3, seed=1).images
    looks = [truth.attention(i)[1] for i in images]
    jobs = []
    for n in range(6):
        part = images[n%3:n%3+1+n%2]
        jobs.append((lambda x, n=n: reader.caption(x, beams=1 + n%3), part, truth.caption(part, beams=1 + n%3)))
        jobs.append((lambda x: reader.attention(x)[1], images[n%3], looks[n%3]))
    drawn = dict(beams=1, temperature=1., seed=3)
    jobs += [(lambda x: reader.caption(x, **drawn), images, truth.caption(images, **drawn))]
    reader = mlxvit.load('scene', framework)
    before = parameters(reader.learner)
    assert ask(jobs, 8) == {'right': 13}
    assert parameters(reader.learner) == before


# beside a training

def digit_batches():
    x, y = normalise(DIGITS.images[:320]), DIGITS.labels[:320,None]
    return [(x[i:i+64], y[i:i+64]) for i in range(0, 320, 64)]


def caption_batches():
    rng, out = np.random.default_rng(0), []
    for _ in range(3):
        tokens = np.where(np.arange(12) < rng.integers(3, 13, (6, 2, 1)), rng.integers(1, 50, (6, 2, 12)), 0)
        out.append((rng.standard_normal((6, 9, 16)).astype(np.float32), tokens))
    return out


def train(learner, batches, steps, watchers=()):
    "Losses of some steps, while others look; what they ran into, and how often they looked"
    stop, faults, looks = threading.Event(), [], Counter()
    def watch(look):
        while not stop.is_set():
            try: look()
            except BaseException as error: faults.append(f'{type(error).__name__}: {error}')
            looks[look] += 1
    threads = [threading.Thread(target=watch, args=(look,)) for look in watchers]
    for t in threads: t.start()
    try: losses = [learner.step(batches[s%len(batches)], 2e-3)['loss'] for s in range(steps)]
    finally:
        while any(not looks[look] for look in watchers) and not faults: time.sleep(0.01)
        stop.set()
        for t in threads: t.join()
    assert not faults
    return losses


@both
@pytest.mark.parametrize('average', [0., 0.9])
def test_a_training_that_is_watched_ends_like_one_alone(framework, average):
    "Dropout is on: neither looking nor loading a model nor drawing numbers changes what it drops"
    batches, reader = digit_batches(), mlxvit.load('digit', framework)
    alone, seen = (learner_for(framework, average=average) for _ in range(2))
    looks = [lambda: seen.logits(batches[0][0][:8]), lambda: seen.attention(batches[0][0][:4]),
             lambda: seen.evaluate(batches[:1]), lambda: seen.weights(), lambda: torch.rand(100),
             lambda: reader.probabilities(DIGITS.images[:8]), lambda: mlxvit.load('digit', framework)]
    assert train(alone, batches, 15) == train(seen, batches, 15, looks)
    assert as_bytes(alone) == as_bytes(seen)
    if framework == 'torch': assert {type(p) for p in seen.model.parameters()} == {torch.nn.Parameter}


@both
def test_a_captioner_that_is_watched_ends_like_one_alone(framework):
    batches, rules = caption_batches(), Rules(1, 2, 8)
    features, tokens = batches[0]
    alone, seen = (learner_for(framework, TALKER, average=0.9) for _ in range(2))
    def write(precision='float32'):
        with seen.averaged_weights(): greedy(seen.writer(features, precision), len(features), rules)
    looks = [write, lambda: write('bfloat16'), lambda: greedy(seen.writer(features), len(features), rules),
             lambda: seen.attention(features, tokens[:,0]), lambda: seen.evaluate(batches[:1])]
    assert train(alone, batches, 10) == train(seen, batches, 10, looks)
    assert as_bytes(alone) == as_bytes(seen)


@both
def test_two_trainings_in_two_threads_do_not_disturb_each_other(framework):
    batches = digit_batches()
    alone = [learner_for(framework, seed=s) for s in (0, 1)]
    want = [train(l, batches, 10) for l in alone]
    together = [learner_for(framework, seed=s) for s in (0, 1)]
    with ThreadPoolExecutor(2) as pool: assert list(pool.map(lambda l: train(l, batches, 10), together)) == want
    for a, b in zip(alone, together): assert as_bytes(a) == as_bytes(b)


@both
def test_the_averaged_weights_are_lent_to_one_thread_alone(framework):
    learner, batches = learner_for(framework, TALKER, average=0.9), caption_batches()
    train(learner, batches, 3)
    first = lambda: learner.writer(batches[0][0]).step(np.ones(6, int))
    raw = first()
    with learner.averaged_weights():
        averaged = first()
        with learner.averaged_weights(): assert np.array_equal(first(), averaged)
        assert np.array_equal(first(), averaged)
        with ThreadPoolExecutor(1) as pool: assert np.array_equal(pool.submit(first).result(), raw)
    assert np.array_equal(first(), raw) and not np.array_equal(raw, averaged)


def test_a_step_leaves_the_random_numbers_of_others_alone():
    learner = learner_for('torch')
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    learner.step(digit_batches()[0], 1e-3)
    assert torch.equal(torch.rand(3), want)


def test_seeded_dropout_draws_what_the_default_generator_would():
    from mlxvit.torch.learner import SeededDropout
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(7, 33).to(dtype)
        ours = SeededDropout(0.3, torch.Generator().manual_seed(11))
        torch.manual_seed(11)
        for _ in range(3): assert torch.equal(ours(x), torch.nn.functional.dropout(x, 0.3))
        assert torch.equal(ours.eval()(x), x)


def test_threads_that_come_and_go_leave_no_threads_of_mlx_behind():
    "Each thread that computed with MLX itself would leave one"
    reader = mlxvit.load('digit', 'mlx')
    alive = lambda: len(os.listdir('/proc/self/task'))
    if not os.path.isdir('/proc/self/task'): pytest.skip('threads are counted in /proc')
    reader.predict(DIGITS.images[:2])
    before = alive()
    for _ in range(40):
        t = threading.Thread(target=reader.predict, args=(DIGITS.images[:2],))
        t.start(); t.join()
    assert alive() < before + 20


# programs of their own

def python(code, *args, **environment):
    "What a program printed, and how it ended"
    run = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    return run.returncode, run.stdout.strip(), run.stderr


FORK = """
import os, sys, threading, time, numpy as np, mlxvit
framework, what, load_again = sys.argv[1:]
reader, n = mlxvit.load(what, framework), dict(digit=28, scene=80)[what]
page = np.zeros((40, n, n), np.uint8); page[:,6:22,13:16] = 255
ask = (lambda r: r.probabilities(page)) if what == 'digit' else (lambda r: np.array(r.caption(page[:2], beams=2)))
want = ask(reader)
if child := os.fork():
    for _ in range(1200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended: sys.exit(os.waitstatus_to_exitcode(status))
        time.sleep(0.05)
    os.kill(child, 9); sys.exit('the child hangs')
try:
    if load_again == 'yes': reader = mlxvit.load(what, framework)
    same = np.array_equal(ask(reader), want) if what == 'scene' else np.allclose(ask(reader), want, atol=1e-5)
    print('right' if same else 'wrong', flush=True)
except RuntimeError as error: print(error, flush=True)
os._exit(0)
"""
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')


@forks
@pytest.mark.parametrize('cores, what, again', [('4', 'scene', 'yes')])
def test_a_forked_process_gets_right_answers_in_torch(cores, what, again):
    assert python(FORK, 'torch', what, again, OMP_NUM_THREADS=cores)[:2] == (0, 'right')


@forks
@pytest.mark.parametrize('what, again', [('digit', 'no'), ('digit', 'yes')])
def test_a_forked_process_is_told_what_to_do_in_mlx(what, again):
    code, said, _ = python(FORK, 'mlx', what, again)
    assert code == 0 and 'forked from one that had loaded a model in MLX' in said and "'spawn' method" in said


@forks
def test_a_process_may_be_forked_while_both_frameworks_compute():
    "OpenBLAS, which may multiply for MLX, ends its threads before a fork, and waits for ever if they are asked meanwhile"
    code = """
import os, threading, time, numpy as np, mlxvit
readers, page = [mlxvit.load('digit', f) for f in ('torch', 'mlx')], np.zeros((4, 28, 28), np.uint8)
want, stop = readers[0].predict(page), []
def ask(reader):
    while not stop: reader.predict(page)
threads = [threading.Thread(target=ask, args=(r,), daemon=True) for r in readers]
for t in threads: t.start()
ends = []
for _ in range(8):
    child = os.fork()
    if not child:
        try: readers[1].predict(page)
        except RuntimeError: os._exit(int((readers[0].predict(page) != want).any()))
        os._exit(2)
    ends.append(os.waitpid(child, 0)[1])
print(set(ends), flush=True); os._exit(0)"""
    assert python(code, OMP_NUM_THREADS='2')[:2] == (0, '{0}')


@forks
def test_a_process_that_only_imported_mlx_may_be_forked():
    code = ("import os, sys, numpy as np, mlxvit, mlxvit.mlx.learner\n"
            "if child := os.fork(): sys.exit(os.waitpid(child, 0)[1])\n"
            "print(mlxvit.load('digit', 'mlx').predict(np.zeros((2, 28, 28), np.uint8)).shape, flush=True); os._exit(0)")
    assert python(code)[:2] == (0, '(2,)')


def test_a_program_ends_quietly_while_a_thread_still_asks_mlx():
    "MLX aborts a process in which a thread that compiled something ends together with Python"
    code = ("import sys, threading, time, numpy as np, mlxvit\n"
            "reader, page = mlxvit.load('digit', 'mlx'), np.zeros((2, 28, 28), np.uint8)\n"
            "reader.predict(page)\n"
            "def ask():\n"
            "    while True: reader.predict(page)\n"
            "threading.excepthook = lambda args: None\n"
            "for _ in range(3): threading.Thread(target=ask, daemon=True).start()\n"
            "time.sleep(0.3)\n"
            "print('end')")
    assert python(code)[:2] == (0, 'end')


# labels

def labels(**changes):
    "A batch of three digits with something wrong"
    images, targets = np.zeros((3, 28, 28), np.float32), np.array([[3], [1], [9]])
    return changes.get('images', images), changes.get('targets', targets)


BAD = {
    'item 1 has the label 10: this model knows 10 classes, 0 to 9': labels(targets=np.array([[3], [10], [11]])),
    'item 0 has the label -1': labels(targets=np.array([[-1], [1], [2]])),
    f'item 2 has the label {2**40}': labels(targets=np.array([[0], [1], [2**40]])),
    'has the label 18446744073709551615': labels(targets=np.array([[2**64-1], [1], [2]], np.uint64)),
    r'expected targets \(3, 1\) for 3 images, got \(2, 1\)': labels(targets=np.zeros((2, 1), int)),
    r'expected targets \(3, 1\) for 3 images, got \(3, 2\)': labels(targets=np.zeros((3, 2), int)),
    r'expected targets \(3, 1\) for 3 images, got \(\)': labels(targets=np.array(1)),
    'expected labels as integers, got float64': labels(targets=np.array([[np.nan], [1], [2]])),
    'expected labels as integers, got <U1': labels(targets=np.array([['1'], ['2'], ['3']])),
    'float32, got uint8': labels(images=np.zeros((3, 28, 28), np.uint8)),
    'float32, got float64': labels(images=np.zeros((3, 28, 28))),
    'at least one image': labels(images=np.zeros((0, 28, 28), np.float32), targets=np.zeros((0, 1), int)),
}


@both
@pytest.mark.parametrize('words', BAD)
def test_labels_are_checked_before_anything_is_touched(framework, words):
    learner = learner_for(framework)
    before = as_bytes(learner)
    for f in (lambda: learner.step(BAD[words], 1e-3), lambda: learner.evaluate([BAD[words]])):
        with pytest.raises(ValueError, match=words): f()
    assert as_bytes(learner) == before and learner.steps == 0


@both
def test_integers_of_all_kinds_are_labels(framework):
    (x, y), learner, losses = digit_batches()[0], learner_for(framework, ViTConfig(dim=8, depth=1, heads=1)), set()
    for targets in (y, y[:,0], *(y.astype(kind) for kind in ('int8', 'uint8', 'uint32', 'uint64'))):
        losses.add(learner.step((x, targets), 0.)['loss'])
        learner.evaluate([(x, targets)])
    assert len(losses) == 1


@both
def test_a_label_of_a_grid_is_named_with_its_cell(framework):
    learner = learner_for(framework, ViTConfig((56, 56), dim=32, depth=1, heads=2, cells=(2, 2)))
    x, y = np.zeros((2, 56, 56), np.float32), np.array([[0, 1, 2, 3], [4, 5, 60, 7]])
    with pytest.raises(ValueError, match='item 1, cell 2, has the label 60'): learner.step((x, y), 1e-3)


def captions(**changes):
    features, tokens = caption_batches()[0]
    parts = dict(features=features, tokens=tokens, worth=np.ones((6, 2), np.float32), allowed=np.ones(50, bool), temperature=np.float32(1)) | changes
    return tuple(v for v in parts.values() if v is not None)


def with_token(value):
    tokens = caption_batches()[0][1].copy()
    tokens[3,1,2] = value
    return tokens


BAD_CAPTIONS = {
    'item 3 has the token 50 at place 2: tokens should be 0 to 49; are they of another tokenizer': captions(tokens=with_token(50)),
    'item 3 has the token -1 at place 2': captions(tokens=with_token(-1)),
    'expected tokens as integers, got float32': captions(tokens=np.ones((6, 2, 12), np.float32)),
    'longer than the 12 places': captions(tokens=np.ones((6, 2, 14), int)),
    r'got \(6, 9, 16\) and \(5, 2, 12\)': captions(tokens=np.ones((5, 2, 12), int)),
    'expected features as float32, got float64': captions(features=np.zeros((6, 9, 16))),
    r'expected what \(6, 2\) captions are worth, got \(6,\)': captions(worth=np.ones(6, np.float32)),
    'expected allowed as 50 of True or False, got bool \\(49,\\)': captions(allowed=np.ones(49, bool)),
    'expected allowed as 50 of True or False, got float32': captions(allowed=np.ones(50, np.float32)),
    'expected one temperature above 0, got 0.0': captions(temperature=np.float32(0)),
    'expected one temperature above 0, got \\[1. 1.\\]': captions(temperature=np.ones(2, np.float32)),
    'worth, allowed and temperature, got 2 arrays more': captions(temperature=None),
}


@both
@pytest.mark.parametrize('words', BAD_CAPTIONS)
def test_captions_are_checked_before_anything_is_touched(framework, words):
    learner = learner_for(framework, TALKER)
    before = as_bytes(learner)
    with pytest.raises(ValueError, match=words): learner.step(BAD_CAPTIONS[words], 1e-3)
    assert as_bytes(learner) == before and learner.steps == 0
    assert np.isfinite(learner.step(captions(), 1e-3)['loss'])


def test_the_loss_of_mlx_reads_no_foreign_memory():
    "Asked directly, without a learner's check, it stays inside the scores"
    from mlxvit.mlx.learner import cross_entropy
    z = mx.array(np.arange(6, dtype=np.float32).reshape(2, 3))
    inside, outside = (cross_entropy(z, mx.array(y), FitConfig()).item() for y in ([2, 2], [2, 10**9]))
    assert inside == outside


# exports

def any_size(module, small, large, dynamic):
    "Traced and exported on one size, right on another"
    with torch.no_grad(): want = module(*large)
    traced = torch.jit.trace(module, small)
    assert torch.allclose(traced(*large), want, atol=1e-5)
    exported = torch.export.export(module, small, dynamic_shapes=dynamic).module()
    assert torch.allclose(exported(*large), want, atol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('head', HEADS)
def test_a_batch_of_any_size_goes_through_an_exported_model(head):
    wide = head in ('mean', 'patch')
    cells = dict(cls=(1, 1), tokens=(2, 2), mean=(2, 2), patch=(4, 4))[head]
    config = ViTConfig(dim=32, depth=1, heads=2, cells=cells, head=head, convolution=3 if wide else 0, positions=not wide, layer_scale=True)
    g = torch.Generator().manual_seed(0)
    small, large = (torch.randn(n, 28, 28, generator=g) for n in (3, 5))
    any_size(ViT(config).eval(), (small,), (large,), ({0: torch.export.Dim('B', min=1, max=64)},))


@pytest.mark.filterwarnings('ignore')
def test_a_batch_of_any_size_goes_through_an_exported_decoder_and_captioner():
    g, B = torch.Generator().manual_seed(0), torch.export.Dim('B', min=1, max=64)
    tokens, context = (lambda n: torch.randint(50, (n, 10), generator=g)), (lambda n: torch.randn(n, 9, 32, generator=g))
    any_size(Decoder(TALKER).eval(), (tokens(3), context(3)), (tokens(5), context(5)), ({0: B}, {0: B}))
    def packed(n):
        rows = np.where(np.arange(12) < np.full((n, 2, 1), 9), np.random.default_rng(n).integers(1, 50, (n, 2, 12)), 0)
        return torch.randn(n, 9, 16, generator=g), *map(torch.from_numpy, pack(rows, 0)[:3])
    any_size(Captioner(TALKER).eval(), packed(3), packed(5), ({0: B},)*4)
