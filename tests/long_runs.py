"""What takes minutes: `python tests/long_runs.py [SECONDS]`. Not collected by pytest; every line says what was tried and found.

Two writers and three readers of one folder for SECONDS (default 30); a save and a training, killed with signal 9 at
every act on files; trainings of the command line in both frameworks, killed at random moments until they are done.
"""
import collections, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
from conftest import TINY, command
from crash import answers, in_child, killed_at
from mlxvit.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from mlxvit.fit import lock_run
from mlxvit.folders import InUse
from test_resume import records, same
from test_runs import model, number, train, wait_for_losers


def told(name, **counts):
    "Print a line of counts"
    print(f'{name}: ' + ', '.join(f'{n} {k.replace("_", " ")}' for k, n in counts.items()), flush=True)


def crowd(home, seconds):
    "Writers and readers of one folder"
    until, out = time.time() + seconds, home/'last'
    save_checkpoint(out, model(0))
    def writer(n):
        def work():
            done = 0
            while time.time() < until: save_checkpoint(out, model(n)); done += 1
            return done
        return work
    def reader():
        found = collections.Counter()
        while time.time() < until:
            try: found['right' if number(out) is not None else 'missing'] += 1
            except AssertionError: found['mixed'] += 1
            except Exception as e: found[f'{type(e).__name__}: {e}'] += 1
        return dict(found)
    said = answers([in_child(w) for w in (writer(1), writer(2), reader, reader, reader)])
    left = sorted(p.name for p in home.iterdir())
    print(f'2 writers, 3 readers, {seconds} s: saved {said[:2]}, read {said[2:]}, left {left}', flush=True)
    assert all(eval(s).keys() == {'right'} for s in said[2:]) and left == ['last']


def killed_writers(home, seconds):
    "Writers killed at random moments, beside readers that may see nothing of it"
    until, out, kills, reads, rng = time.time() + seconds, home/'last', 0, 0, random.Random(0)
    save_checkpoint(out, model(0))
    while time.time() < until:
        child, end = in_child(lambda: [save_checkpoint(out, model(1)) for _ in range(10**6)])
        stop = time.time() + rng.uniform(0, 0.1)
        while time.time() < stop:
            assert number(out) in (0, 1)
            reads += 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(end)
        kills += 1
        assert number(out) in (0, 1)
    save_checkpoint(out, model(2))
    assert [p.name for p in home.iterdir()] == ['last']
    told('writers killed at random', kills=kills, reads_right=reads)


def every_save(home):
    "A save, killed at every act; the next one cleans up"
    points = 0
    for old in (None, 1):
        for n in range(1, 1000):
            folder = home/f'{old}-{n}'/'last'
            if old: save_checkpoint(folder, model(old))
            else: folder.parent.mkdir()
            killed = killed_at(n, lambda: save_checkpoint(folder, model(2)))
            points += killed
            assert number(folder) in (old, 2)
            again = killed_at(n//2+1, lambda: save_checkpoint(folder, model(3))) # and the next one, too
            assert number(folder) in (old, 2, 3)
            points += again
            save_checkpoint(folder, model(4))
            assert number(folder) == 4 and [p.name for p in folder.parent.iterdir()] == ['last']
            shutil.rmtree(folder)
            assert not has_checkpoint(folder)
            if not killed: break
    told('saves killed', points=points, lost_or_mixed=0)


def every_training(home):
    "A training killed at every act, its resumption killed too, then finished"
    straight, points = train(home/'straight'), 0
    log = records(home/'straight')
    for save_every in (0, 1, 3):
        for n in range(1 + save_every, 10**4, 7): # the strides meet other acts
            out = home/'run'
            killed = killed_at(n, lambda: train(out, save_every=save_every))
            before = load_checkpoint(out/'last').state['step'] if has_checkpoint(out/'last') else 0
            again = killed_at(n//3+1, lambda: train(out, resume=before > 0, save_every=2))
            resume = has_checkpoint(out/'last')
            assert not resume or load_checkpoint(out/'last').state['step'] >= before
            assert train(out, resume=resume) == straight and records(out) == log
            assert sorted(p.name for p in out.iterdir()) == ['best', 'last', 'metrics.jsonl']
            shutil.rmtree(out)
            points += killed + again
            if not killed: break
    told('trainings killed', points=points, other_bytes=0)


def real_trainings(home, framework):
    "The command line, killed at random moments until a run is done"
    flags, rng, kills, lost = ['--epochs', 3, '--framework', framework, *TINY], random.Random(1), 0, []
    assert not subprocess.run(command('train', 'digit', '--out', home/'straight', *flags), stdout=subprocess.DEVNULL).returncode
    out, most = home/'run', 5
    while True:
        resume = has_checkpoint(out/'last')
        start = load_checkpoint(out/'last').state['step'] if resume else 0
        words = ['--resume', '--quiet'] if resume else flags
        p = subprocess.Popen(command('train', 'digit', '--out', out, '--save_every', most, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.time() + 120
        while p.poll() is None and time.time() < end: # once it has saved a little more, kill it soon
            time.sleep(0.002)
            try: step = load_checkpoint(out/'last').state['step'] if has_checkpoint(out/'last') else 0
            except InUse: continue
            if step >= start + most: time.sleep(rng.uniform(0, 0.05)); break
        if p.poll() is not None: break
        p.kill()
        p.wait()
        kills += 1
    assert p.returncode == 0, p.stderr.read()
    assert same(out, home/'straight') and records(out) == records(home/'straight')
    told(f'command line, {framework}', kills=kills, other_bytes=0)


def together(home, rounds=20):
    "Processes that lock one folder in the same instant"
    for n in range(rounds):
        begin, losers = time.time() + 0.1, home/f'losers{n}'
        losers.mkdir()
        def work():
            while time.time() < begin: pass
            try:
                with lock_run(home/'run'): wait_for_losers(losers, 7)
            except InUse as e:
                (losers/str(os.getpid())).touch()
                return 'told' if 'process' in str(e) else str(e)
            return 'won'
        said = collections.Counter(answers([in_child(work) for _ in range(8)]))
        assert said == dict(won=1, told=7), said
    told('eight at once', rounds=rounds, winners=rounds)


if __name__ == '__main__':
    seconds, home = int(sys.argv[1]) if sys.argv[1:] else 30, Path(tempfile.mkdtemp())
    def place(name): (home/name).mkdir(); return home/name
    try:
        together(place('together'))
        crowd(place('crowd'), seconds)
        killed_writers(place('killed'), seconds)
        for framework in ('torch', 'mlx'): real_trainings(place(framework), framework)
        os.fsync = lambda handle: None # what a killed process wrote is there without it
        every_save(place('saves'))
        every_training(place('trainings'))
    finally: shutil.rmtree(home, ignore_errors=True)
