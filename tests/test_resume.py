"A run that is stopped, by choice, by Ctrl-C or by kill -9, and resumed ends with the bytes of one that was not"
import json, signal, subprocess, time
import pytest
from conftest import TINY, command

FILES = ('model.safetensors', 'optimizer.safetensors')


def same(a, b):
    "Are the last checkpoints of two runs equal, byte for byte?"
    return all((a/'last'/f).read_bytes() == (b/'last'/f).read_bytes() for f in FILES)


def records(out):
    "The log of a run without its times"
    return [{k: v for k,v in json.loads(l).items() if k != 'seconds'} for l in (out/'metrics.jsonl').read_text().splitlines()]


def wait_for(condition, process, seconds=120):
    "Wait until a running process has got so far"
    end = time.time()+seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.time() < end, 'took too long'
        time.sleep(0.005)


def test_two_and_two_are_four(mlxvit, straight, tmp_path):
    out = tmp_path/'run'
    assert mlxvit('train', 'digit', '--epochs', 4, '--stop_after', 2, '--out', out, *TINY).returncode == 0
    assert not same(out, straight)
    p = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet')
    assert p.returncode == 0, p.stderr
    assert same(out, straight)
    assert records(out) == records(straight)


def test_another_seed_differs(mlxvit, straight, tmp_path):
    "The comparison above can fail"
    out = tmp_path/'run'
    assert mlxvit('train', 'digit', '--epochs', 4, '--seed', 1, '--out', out, *TINY).returncode == 0
    assert not same(out, straight)


def test_kill_9_and_resume(mlxvit, straight, tmp_path):
    out = tmp_path/'run'
    p = subprocess.Popen(command('train', 'digit', '--epochs', 4, '--out', out, *TINY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out/'last'/'state.json').exists(), p)
    time.sleep(0.02)
    p.kill(); p.wait()
    assert p.returncode == -signal.SIGKILL
    q = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet')
    assert q.returncode == 0, q.stderr
    assert same(out, straight) and records(out) == records(straight)


def test_ctrl_c_and_resume(mlxvit, straight, tmp_path):
    out = tmp_path/'run'
    p = subprocess.Popen(command('train', 'digit', '--epochs', 4, '--out', out, *TINY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out/'last'/'state.json').exists(), p)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    assert 'resume' in err and 'Traceback' not in err
    assert mlxvit('train', 'digit', '--resume', '--out', out, '--quiet').returncode == 0
    assert same(out, straight) and records(out) == records(straight)


@pytest.mark.parametrize('flags, words', [
    (['--lr', '0.1', '--resume'], 'was trained with lr='),
    (['--epochs', '10', '--resume'], 'was trained with epochs=4'), # also when it is the default
    ([], 'already holds a run'),
])
def test_a_run_is_not_overwritten(mlxvit, run, flags, words):
    before = (run/'last'/'model.safetensors').read_bytes()
    p = mlxvit('train', 'digit', '--out', run, '--quiet', *flags)
    assert p.returncode == 1 and words in p.stderr and 'Traceback' not in p.stderr
    assert (run/'last'/'model.safetensors').read_bytes() == before


@pytest.mark.parametrize('task', ['grid', 'layout'])
def test_other_tasks_resume_as_exactly(mlxvit, tmp_path, task):
    "Composed grids and drawn canvases come from (seed, epoch, batch), so a second half is the same whoever draws it"
    tiny = [*TINY, *(['--data.canvases', 320] if task == 'layout' else [])]
    for out, more in ((tmp_path/'straight', []), (tmp_path/'halved', ['--stop_after', 1])): assert mlxvit('train', task, '--epochs', 2, '--out', out, *tiny, *more).returncode == 0
    assert not same(tmp_path/'halved', tmp_path/'straight')
    p = mlxvit('train', task, '--resume', '--out', tmp_path/'halved', '--quiet')
    assert p.returncode == 0, p.stderr
    assert same(tmp_path/'halved', tmp_path/'straight') and records(tmp_path/'halved') == records(tmp_path/'straight')


def test_a_run_from_before_a_setting_existed(mlxvit, straight, tmp_path):
    "A run whose record lacks a field of today goes on: the field did not exist, and its default changes nothing"
    from mlxvit.checkpoint import load_checkpoint, save_checkpoint
    out = tmp_path/'run'
    assert mlxvit('train', 'digit', '--epochs', 4, '--stop_after', 2, '--out', out, *TINY).returncode == 0
    for name in ('last', 'best'):
        old = load_checkpoint(out/name)
        del old.config['model']['layer_scale']
        save_checkpoint(out/name, old)
    p = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet')
    assert p.returncode == 0, p.stderr
    assert (out/'last'/'model.safetensors').read_bytes() == (straight/'last'/'model.safetensors').read_bytes()
