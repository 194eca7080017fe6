"What the tests of whole programs share: running the command line as a user does, and one tiny trained run"
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1') # tiny models gain nothing from more, and the bytes of a run depend on it
TINY = '--data.limit 640 --data.valid 200 --batch_size 64 --model.dim 16 --model.heads 2 --model.depth 2 --model.dropout 0.1 --quiet'.split()


def command(*args):
    "The installed `mlxvit` with arguments, as a list for subprocess"
    return [shutil.which('mlxvit') or str(Path(sys.executable).with_name('mlxvit')), *map(str, args)]


@pytest.fixture(scope='session')
def mlxvit():
    "Run `mlxvit ARGS` and return the finished process"
    def run(*args, **kw): return subprocess.run(command(*args), capture_output=True, text=True, timeout=300, **kw)
    return run


@pytest.fixture(scope='session')
def straight(mlxvit, tmp_path_factory):
    "A tiny model trained for four epochs without interruption, augmentation and dropout on"
    out = tmp_path_factory.mktemp('runs')/'straight'
    p = mlxvit('train', 'digit', '--epochs', 4, '--out', out, *TINY)
    assert p.returncode == 0, p.stderr
    return out


@pytest.fixture
def run(straight, tmp_path):
    "A copy of the tiny run, to be damaged"
    return Path(shutil.copytree(straight, tmp_path/'run'))
