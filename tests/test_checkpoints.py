"Damaged and foreign checkpoints, met through the command line: one line that names the file and what was expected"
import json, os, shutil
import numpy as np
import pytest
from mlxvit.checkpoint import Checkpoint, CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint, to_files, write_folder


def edit(file, change):
    "Change the bytes of a file"
    b = bytearray(file.read_bytes())
    file.write_bytes(change(b))


def flip(b): b[len(b)//2] ^= 1; return b


def resave(best, change, **config):
    "Write the checkpoint anew with changed weights or config, sums and all"
    c = load_checkpoint(best)
    change(c.weights)
    write_folder(best, to_files(Checkpoint({**c.config, **config}, c.weights)))


DAMAGE = {
    'truncated weights': (lambda d: edit(d/'model.safetensors', lambda b: b[:-100]), ['model.safetensors is damaged', 'expected']),
    'flipped bit in weights': (lambda d: edit(d/'model.safetensors', flip), ['model.safetensors is damaged', 'expected']),
    'flipped bit in config': (lambda d: edit(d/'config.json', flip), ['config.json is damaged', 'expected']),
    'empty config': (lambda d: edit(d/'config.json', lambda b: b''), ['config.json is damaged', '0 bytes']),
    'missing weights': (lambda d: (d/'model.safetensors').unlink(), ['model.safetensors is missing']),
    'no sums': (lambda d: (d/'SHA256SUMS').unlink(), ['is not a checkpoint of mlxvit', 'SHA256SUMS']),
    'foreign folder': (lambda d: (shutil.rmtree(d), d.mkdir(), (d/'pytorch_model.bin').write_bytes(b'x')), ['is not a checkpoint of mlxvit', 'pytorch_model.bin']),
    'missing key': (lambda d: resave(d, lambda w: w.pop('norm.bias')), ['model.safetensors lacks 1 of', 'norm.bias (16,)']),
    'unknown key': (lambda d: resave(d, lambda w: w.update(extra=np.zeros(3, np.float32))), ['does not know', 'extra']),
    'wrong shape': (lambda d: resave(d, lambda w: w.update({'norm.bias': np.zeros(7, np.float32)})), ['norm.bias has shape (7,), expected (16,)']),
    'unknown version': (lambda d: resave(d, lambda w: None, version=99), ['config.json has version 99', 'reads version 1']),
    'unknown format': (lambda d: resave(d, lambda w: None, format='other'), ['config.json', 'format']),
    'unknown task': (lambda d: resave(d, lambda w: None, task='cats'), ["for the task 'cats'"]),
}


@pytest.mark.parametrize('harm, words', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(mlxvit, run, harm, words):
    harm(run/'best')
    p = mlxvit('evaluate', run)
    assert p.returncode == 1, p.stdout
    assert p.stderr.count('\n') == 1 and p.stderr.startswith('mlxvit: error: ') and 'Traceback' not in p.stderr
    for w in words: assert w in p.stderr
    assert not (run/'metrics.json').exists()


def test_the_undamaged_one_evaluates(mlxvit, run):
    p = mlxvit('evaluate', run)
    assert p.returncode == 0, p.stderr
    assert json.loads((run/'metrics.json').read_text())['accuracy'] > 0.1


def between(folder):
    "What a crash between the two renames leaves: the old one aside, the new one whole beside it"
    shutil.copytree(folder, folder.with_name(f'.{folder.name}.new'))
    folder.rename(folder.with_name(f'.{folder.name}.old'))


def test_a_crash_between_the_renames_is_read_from_the_old(mlxvit, run):
    between(run/'last')
    p = mlxvit('train', 'digit', '--out', run, '--resume', '--quiet')
    assert p.returncode == 0, p.stderr


def test_a_run_whose_last_is_being_replaced_is_still_a_run(mlxvit, run):
    between(run/'last')
    between(run/'best')
    p = mlxvit('train', 'digit', '--out', run, '--quiet')
    assert p.returncode == 1 and 'already holds a run' in p.stderr
    assert mlxvit('evaluate', run).returncode == 0


@pytest.mark.parametrize('mark', ['', '-0123abcd'])
def test_a_leftover_is_never_revived(run, mark):
    "A crash after both renames left the old one; whoever deletes the checkpoint later has deleted it"
    (run/'last').rename(run/f'.last.old{mark}')
    assert not has_checkpoint(run/'last')
    with pytest.raises(CheckpointError): load_checkpoint(run/'last')


def test_disk_full_leaves_the_old_one(run, monkeypatch):
    "The disk fills in the middle of writing: an error, and the previous checkpoint whole"
    old = load_checkpoint(run/'last')
    real = os.fsync
    calls = []
    def full(handle):
        calls.append(1)
        if len(calls) == 2: raise OSError(28, 'No space left on device')
        return real(handle)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): save_checkpoint(run/'last', Checkpoint({}, {}))
    again = load_checkpoint(run/'last')
    assert again.state == old.state and all((again.weights[n] == w).all() for n,w in old.weights.items())


def test_a_folder_with_sums_of_its_own_is_not_replaced(tmp_path):
    for n in ('SHA256SUMS', 'thesis.iso'): (tmp_path/n).write_text('mine')
    with pytest.raises(ValueError, match='left alone'): save_checkpoint(tmp_path, Checkpoint({}, {}))
    assert (tmp_path/'thesis.iso').exists()


def test_nothing_but_a_checkpoint_is_replaced(tmp_path):
    (tmp_path/'thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='left alone'): save_checkpoint(tmp_path, Checkpoint({}, {}))
    assert (tmp_path/'thesis.txt').read_text() == 'years of work'
