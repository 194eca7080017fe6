"Many calls of one reader from 16 threads, beside a training: python tests/long_threads.py --calls 10000 --framework torch"
import argparse, sys, threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import mlxvit
sys.path.insert(0, str(Path(__file__).parent))
from test_threads import DIGITS, as_bytes, digit_batches, learner_for, parameters

KINDS = ('predict', 'attention', 'probabilities')


def answers(reader, images):
    "What one thread alone is told, image by image"
    return {name: getattr(reader, name)(images) for name in KINDS}


def same(got, want):
    "Equal classes, or numbers within 1e-5 (sums of another order in batches of another size)"
    return np.array_equal(got, want) if got.dtype.kind == 'i' else np.allclose(got, want, atol=1e-5)


def work(reader, want, images, calls, seed):
    "The calls of one thread: what came of them"
    rng, found = np.random.default_rng(seed), Counter()
    for _ in range(calls):
        first, size, name = rng.integers(len(images)-8), rng.integers(1, 9), KINDS[rng.integers(3)]
        try: right = same(getattr(reader, name)(images[first:first+size]), want[name][first:first+size])
        except Exception as error: found[f'{type(error).__name__}: {error}'[:100]] += 1
        else: found['right' if right else 'wrong'] += 1
    return found


def train(learner, steps, stop=None):
    "Some steps, or as many of them as there is time for; their losses"
    batches, losses = digit_batches(), []
    while len(losses) < steps and not (stop and stop.is_set()):
        losses.append(learner.step(batches[len(losses)%len(batches)], 1e-3)['loss'])
    return losses


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--calls', type=int, default=10_000)
    p.add_argument('--threads', type=int, default=16)
    p.add_argument('--framework', default='torch', choices=('torch', 'mlx'))
    p.add_argument('--model', default='digit')
    args = p.parse_args()
    images = DIGITS.images[:64]
    want = answers(mlxvit.load(args.model, args.framework), images)
    reader = mlxvit.load(args.model, args.framework) # cold
    before, start, stop = parameters(reader.learner), time.perf_counter(), threading.Event()
    beside, alone = (learner_for(args.framework) for _ in range(2))
    with ThreadPoolExecutor(args.threads+1) as pool:
        training = pool.submit(train, beside, 10**9, stop)
        parts = [len(range(i, args.calls, args.threads)) for i in range(args.threads)]
        found = [pool.submit(work, reader, want, images, n, i) for i, n in enumerate(parts)]
        total = sum((f.result() for f in found), Counter())
        stop.set()
        losses = training.result()
    seconds = time.perf_counter()-start
    untouched = parameters(reader.learner) == before
    equal = train(alone, len(losses)) == losses and as_bytes(alone) == as_bytes(beside)
    print(f'{args.framework}, {args.model}: {args.calls:,} calls of {args.threads} threads in {seconds:.0f} s: {dict(total)}; '
          f'parameters {"untouched" if untouched else "CHANGED"}; the training beside, {len(losses)} steps, ends {"as" if equal else "NOT as"} it does alone')
    return 0 if total == {'right': args.calls} and untouched and equal else 1


if __name__ == '__main__': sys.exit(main())
