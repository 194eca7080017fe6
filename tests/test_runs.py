"Several processes and one folder: trainers, writers, readers, crashes; and what an export may touch"
import errno, json, os, shutil, signal, subprocess, threading, time
import numpy as np
import pytest
from conftest import TINY, command
from crash import Draws, Straight, answers, in_child, killed_at
import mlxvit.mlx # a fast BLAS before MLX
from mlxvit import checkpoint as ck, fit as training, folders
from mlxvit.checkpoint import Checkpoint, CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from mlxvit.cli import main
from mlxvit.data.photos import draw_shapes, write_parquet
from mlxvit.fit import FitConfig, fit, lock_run
from mlxvit.folders import InUse, Lock
from mlxvit.results import read_run, results_table
from test_resume import records, same, wait_for

posix = pytest.mark.skipif(os.name != 'posix', reason='forks')


def model(n):
    "A checkpoint in which everything is n"
    a = {'a': np.full(3000, n, np.float32)}
    return Checkpoint(dict(task='demo', n=n), a, {'b': a['a']}, dict(n=n), [dict(n=n)])


def number(folder):
    "Which `model` stands there; None: nothing"
    if not has_checkpoint(folder): return None
    c = load_checkpoint(folder)
    found = {c.config['n'], c.state['n'], c.metrics[0]['n'], int(c.weights['a'][0]), int(c.optimizer['b'][0])}
    assert len(found) == 1, found
    return found.pop()


def train(out, **kw):
    "Train for three epochs of seven steps; the weights"
    learner = Straight(kw.pop('pause', 0.))
    fit(learner, Draws(), [], FitConfig(epochs=3), out, dict(task='demo'), progress=False, every=2, **kw)
    return learner.w.tobytes()


@pytest.fixture
def quick(monkeypatch):
    "Files are not forced to the disk: what a killed process wrote is there without it"
    monkeypatch.setattr(os, 'fsync', lambda handle: None)


# trainers

def wait_for_losers(folder, count, seconds=60):
    "Wait until so many others have left a file"
    end = time.time() + seconds
    while len(list(folder.iterdir())) < count and time.time() < end: time.sleep(0.005)


class Waits:
    "A tracker that holds a training up until the others have been told"
    def __init__(self, losers): self.losers = losers
    def log(self, record): wait_for_losers(self.losers, 7)
    def close(self): pass


@posix
def test_of_eight_trainings_that_start_together_one_wins(tmp_path):
    begin, losers = time.time() + 0.3, tmp_path/'losers'
    losers.mkdir()
    def go(n):
        def work():
            while time.time() < begin: pass
            try: fit(Straight(), Draws(), [], FitConfig(epochs=3, seed=n), tmp_path/'run', trackers=[Waits(losers)], progress=False)
            except InUse as e:
                (losers/str(n)).touch()
                return f'{e}'
            return f'won {n}'
        return work
    said = answers([in_child(go(n)) for n in range(8)])
    won = [s for s in said if s.startswith('won')]
    assert len(won) == 1, said
    assert all('is in use by process' in s for s in said if s not in won), said
    assert {load_checkpoint(tmp_path/'run'/n).state['seed'] for n in ('best', 'last')} == {int(won[0][4:])}
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['best', 'last', 'metrics.jsonl']


def test_two_trainings_in_one_process(tmp_path):
    first = threading.Thread(target=train, args=[tmp_path/'run'], kwargs=dict(pause=0.02))
    first.start()
    while not (tmp_path/'run'/'metrics.jsonl').exists(): time.sleep(0.005)
    (tmp_path/'link').symlink_to(tmp_path/'run')
    for out in (tmp_path/'run', tmp_path/'link', tmp_path/'link'/'..'/'run'):
        for resume in (False, True):
            with pytest.raises(InUse, match=f'this process {os.getpid()}'): train(out, resume=resume)
    first.join()
    assert load_checkpoint(tmp_path/'run'/'last').state['epoch'] == 3


@pytest.mark.parametrize('flags', [[], ['--resume'], ['--resume', '--seed', 3], ['--config', 'x.yaml']])
def test_a_second_trainer_is_told_and_writes_nothing(capsys, run, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'x.yaml').write_text('seed: 5\n')
    look = lambda: {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in run.rglob('*')}
    with lock_run(run):
        before = look()
        assert main(['train', 'digit', '--out', str(run), *TINY, *map(str, flags)]) == 1
        assert look() == before
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f'process {os.getpid()} on ' in err and ' since 2' in err


def test_a_fresh_folder_is_locked_before_anything_is_written(mlxvit, tmp_path):
    with lock_run(tmp_path/'run'):
        p = mlxvit('train', 'digit', '--out', tmp_path/'run', *TINY)
        assert p.returncode == 1 and 'is in use by process' in p.stderr and p.stderr.count('\n') == 1
        assert [f.name for f in (tmp_path/'run').iterdir()] == ['.training.lock']
    assert not (tmp_path/'run').exists()


@posix
def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    end, start = os.pipe()
    pid = os.fork()
    if not pid:
        Lock(tmp_path/'.training.lock', 'x').hold()
        child = os.fork()
        if not child: time.sleep(60); os._exit(0)
        os.write(start, str(child).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    child = int(os.read(end, 20))
    try:
        assert (tmp_path/'.training.lock').exists()
        with lock_run(tmp_path): pass
        assert not (tmp_path/'.training.lock').exists()
    finally: os.kill(child, signal.SIGKILL)


def test_the_note_of_another_machine_is_taken_over(tmp_path):
    note = dict(mlxvit='lock', pid=1, host='elsewhere', since='2020-01-01')
    (tmp_path/'.training.lock').write_text(json.dumps(note))
    train(tmp_path)
    assert not (tmp_path/'.training.lock').exists()


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_again(tmp_path, monkeypatch):
    "The holder before deletes the file after we opened it: ours would be a file without a name"
    real, path, calls = folders.seize, tmp_path/'.training.lock', []
    def seize(handle):
        if not calls: path.unlink()
        calls.append(1)
        return real(handle)
    monkeypatch.setattr(folders, 'seize', seize)
    with Lock(path, 'x'):
        assert len(calls) == 2 and path.exists()
        with pytest.raises(InUse): Lock(path, 'x').hold()
    assert not path.exists()


def test_a_file_that_is_no_lock_is_left_alone(tmp_path):
    (tmp_path/'precious').write_text('years of work')
    (tmp_path/'.training.lock').symlink_to('precious')
    with pytest.raises(OSError): train(tmp_path)
    assert (tmp_path/'precious').read_text() == 'years of work'


def test_a_trainer_whose_folder_was_taken_stops(tmp_path):
    "Somebody deletes the folder of a running training and begins another there"
    class Thief:
        def log(self, record):
            if record['step'] != 4: return
            shutil.rmtree(tmp_path/'run')
            (tmp_path/'run').mkdir()
            other.append(Lock(tmp_path/'run'/'.training.lock', 'x').hold())
        def close(self): pass
    other = []
    with pytest.raises(InUse): train(tmp_path/'run', trackers=[Thief()])
    assert [p.name for p in (tmp_path/'run').iterdir()] == ['.training.lock']
    other[0].release()


def test_a_failed_start_leaves_nothing(mlxvit, tmp_path):
    assert main(['train', 'digit', '--out', str(tmp_path/'a'/'b'), '--resume']) == 1
    with pytest.raises(ValueError, match='save_every should be'): train(tmp_path/'a'/'b', save_every=-1)
    assert not (tmp_path/'a').exists()


@pytest.mark.parametrize('name', ['SHA256SUMS', 'config.json'])
def test_a_model_is_not_trained_over(tmp_path, name):
    save_checkpoint(tmp_path/'model', model(1))
    if name == 'config.json': (tmp_path/'model'/'SHA256SUMS').unlink() # a record
    before = {p.name: p.read_bytes() for p in (tmp_path/'model').iterdir()}
    with pytest.raises(FileExistsError, match='holds a model'): train(tmp_path/'model')
    assert {p.name: p.read_bytes() for p in (tmp_path/'model').iterdir()} == before


# writers and readers

@posix
def test_writers_take_turns_and_readers_see_one_writing(tmp_path):
    out, until = tmp_path/'run', time.time() + 3
    config = json.loads((ck.Path(training.__file__).parent/'assets'/'digit'/'config.json').read_text())
    def one(n):
        c = model(n)
        c.config = {**config, 'n': n}
        return c
    save_checkpoint(out/'best', one(0))
    def writer(n):
        def work():
            done = 0
            while time.time() < until: save_checkpoint(out/'best', one(n)); done += 1
            return f'saved {done}'
        return work
    def reader():
        seen = 0
        while time.time() < until:
            assert number(out/'best') is not None
            assert read_run(out)['task'] == 'digit'
            seen += 1
        return f'read {seen}'
    said = answers([in_child(w) for w in (writer(1), writer(2), reader, reader)])
    assert [s.split()[0] for s in said] == ['saved', 'saved', 'read', 'read'], said
    assert all(int(s.split()[1]) > 3 for s in said), said
    assert [p.name for p in out.iterdir()] == ['best']


@posix
@pytest.mark.parametrize('before', ['nothing', 'model', 'empty', 'legacy', 'crashed'])
def test_a_save_killed_at_every_act(tmp_path, before, quick):
    "The old one or the new one; the next save cleans up; what is deleted then stays deleted"
    for n in range(1, 300):
        folder = tmp_path/str(n)/'last'
        folder.parent.mkdir()
        if before in ('model', 'legacy', 'crashed'): save_checkpoint(folder, model(1))
        if before == 'empty': folder.mkdir()
        if before == 'legacy': shutil.copytree(folder, folder.with_name('.last.old'))
        if before == 'crashed':
            folder.rename(folder.with_name('.last.old-00000000'))
            folder.with_name('.last.new-00000000').mkdir()
        old = 1 if before in ('model', 'legacy', 'crashed') else None
        inode = folder.stat().st_ino if before == 'empty' else None
        killed = killed_at(n, lambda: save_checkpoint(folder, model(2)))
        assert number(folder) in ((old, 2) if killed else (2,))
        if inode: assert folder.stat().st_ino == inode
        if n%2:
            if not folder.exists(): continue
            for p in folder.iterdir(): p.unlink()
            folder.rmdir() # deleted on purpose: an old one may not come back
            if before != 'legacy' and not killed: assert number(folder) is None
            save_checkpoint(folder, model(3))
            shutil.rmtree(folder)
            assert number(folder) is None
        save_checkpoint(folder, model(3))
        assert number(folder) == 3
        assert [p.name for p in folder.parent.iterdir()] == ['last']
        if not killed: break
    assert not killed and n > 15


@posix
def test_an_old_one_left_by_a_crash_does_not_come_back(tmp_path, quick):
    "After the second rename the new one stands, and the old one lies beside it until something cleans up"
    kept = 0
    for n in range(1, 100):
        folder = tmp_path/str(n)/'last'
        save_checkpoint(folder, model(1))
        if not killed_at(n, lambda: save_checkpoint(folder, model(2))): break
        if number(folder) != 2 or not folder.exists(): continue
        kept += any(p.name.startswith('.last.old') for p in folder.parent.iterdir())
        shutil.rmtree(folder)
        assert not has_checkpoint(folder)
        with pytest.raises(CheckpointError, match='no checkpoint'): load_checkpoint(folder)
    assert kept > 2


def test_opening_a_run_cleans_up(tmp_path):
    train(tmp_path/'run', stop_after=1)
    for name in ('.last.old', '.last.new', '.best.new-0123abcd', '.best.old-89ab4567'):
        shutil.copytree(tmp_path/'run'/'last', tmp_path/'run'/name)
    (tmp_path/'run'/'.metrics.jsonl.new-01234567').write_text('{')
    (tmp_path/'run'/'.last.old-notours').mkdir()
    train(tmp_path/'run', resume=True)
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['.last.old-notours', 'best', 'last', 'metrics.jsonl']


def test_what_somebody_else_put_beside_stays(tmp_path):
    (tmp_path/'.last.old-01234567').mkdir()
    (tmp_path/'.last.old-01234567'/'thesis.txt').write_text('years of work')
    save_checkpoint(tmp_path/'last', model(1))
    assert (tmp_path/'.last.old-01234567'/'thesis.txt').exists()


# killed trainings

@posix
@pytest.mark.parametrize('save_every', [0, 2])
def test_a_training_killed_anywhere_ends_in_the_same_bytes(tmp_path, save_every, quick):
    straight = train(tmp_path/'straight')
    log, n, points = records(tmp_path/'straight'), 1, 0
    while True:
        out = tmp_path/'run'
        killed = killed_at(n, lambda: train(out, save_every=save_every))
        resume = has_checkpoint(out/'last')
        assert train(out, resume=resume) == straight
        assert records(out) == log
        assert sorted(p.name for p in out.iterdir()) == ['best', 'last', 'metrics.jsonl']
        shutil.rmtree(out)
        points += 1
        if not killed: break
        n += 17
    assert points > 8


PHOTOS = ('--data.encoder layout --data.least 1 --data.drafts 2 --label_smoothing 0 --batch_size 8 --model.dim 16 --model.heads 2 '
          '--model.depth 1 --quiet').split() # captions that the model writes itself: all that is random in a step

@pytest.mark.parametrize('framework', ['torch', 'mlx'])
@pytest.mark.parametrize('task, flags', [('digit', TINY), ('photos', PHOTOS)], ids=['digit', 'photos'])
def test_save_every_and_a_kill_in_mid_epoch(tmp_path, monkeypatch, task, flags, framework):
    if task == 'photos':
        for split, seed in (('train', 0), ('validation', 1)): write_parquet(tmp_path, *draw_shapes(40, seed), split)
        flags = [*flags, '--data.source', tmp_path, '--data.cache', tmp_path/'features']
    args = lambda out, *more: ['train', task, '--out', str(tmp_path/out), '--framework', framework, *map(str, more)]
    assert main(args('straight', '--epochs', 2, *flags)) == 0
    real, saved = training.save_checkpoint, []
    class Kill(BaseException): "Nobody catches it"
    def save(folder, checkpoint):
        real(folder, checkpoint)
        saved.append(checkpoint.state)
        if len(saved) == 2: raise Kill
    monkeypatch.setattr(training, 'save_checkpoint', save)
    assert main(args('run', '--epochs', 2, '--save_every', 2, *flags)) == 1
    monkeypatch.setattr(training, 'save_checkpoint', real)
    assert [(s['epoch'], s['batch']) for s in saved] == [(0, 2), (0, 4)]
    assert main(args('run', '--resume', '--save_every', 3, '--quiet')) == 0
    assert same(tmp_path/'run', tmp_path/'straight')
    assert records(tmp_path/'run') == records(tmp_path/'straight')
    state = lambda out: {k: v for k,v in load_checkpoint(tmp_path/out/'last').state.items() if k != 'seconds'}
    assert state('run') == state('straight')


def test_sigterm_saves_and_stops(mlxvit, straight, tmp_path):
    "As Slurm and Kubernetes end a program; Ctrl-C is tested in test_resume.py"
    out = tmp_path/'run'
    p = subprocess.Popen(command('train', 'digit', '--epochs', 4, '--out', out, *TINY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out/'last'/'state.json').exists(), p)
    p.terminate()
    _, err = p.communicate(timeout=60)
    assert p.returncode == 143, err
    assert 'resume' in err and 'Traceback' not in err
    assert not (out/'.training.lock').exists()
    assert main(['train', 'digit', '--resume', '--out', str(out), '--quiet']) == 0
    assert same(out, straight) and records(out) == records(straight)


# disks

def test_no_room_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**9, 10**9, 4000))
    with pytest.raises(OSError, match=r'needs 0.0 MB of disk, and 0.0 MB are free: make room'): train(tmp_path/'run')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('at', [3, 9, 15, 40])
def test_a_disk_that_fills_up_keeps_what_was_saved(tmp_path, monkeypatch, at):
    straight, real, left = train(tmp_path/'straight'), os.fsync, [at]
    def full(handle):
        left[0] -= 1
        if left[0] <= 0: raise OSError(errno.ENOSPC, 'No space left on device')
        return real(handle)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'the disk of .* is full, at step \d+; the last good checkpoint is') as e:
        train(tmp_path/'run', save_every=3)
    monkeypatch.setattr(os, 'fsync', real)
    saved = has_checkpoint(tmp_path/'run'/'last')
    assert (str(tmp_path/'run'/'last') in str(e.value)) == saved and '\n' not in str(e.value)
    assert train(tmp_path/'run', resume=saved) == straight


def test_the_log_is_rewritten_whole(tmp_path, monkeypatch):
    "A crash at the start of a resumed run loses no line"
    from mlxvit.tracking import JsonLines
    JsonLines(tmp_path/'a.jsonl', [dict(step=1)]).log(dict(step=2))
    def crash(*_): raise OSError('power cut')
    monkeypatch.setattr(os, 'replace', crash)
    with pytest.raises(OSError): JsonLines(tmp_path/'a.jsonl', [dict(step=1)])
    assert [json.loads(l)['step'] for l in (tmp_path/'a.jsonl').read_text().splitlines()] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ['a.jsonl']


# where an export may go

@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder to work in, with an empty folder, a full one, a file and odd links"
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    for name in ('empty', 'full', 'linked'): (tmp_path/'work'/name).mkdir()
    (tmp_path/'work'/'full'/'thesis.txt').write_text('years of work')
    (tmp_path/'work'/'file').write_text('years of work')
    for name, to in (('link', 'linked'), ('dangling', 'nowhere'), ('a', 'b'), ('b', 'a')): (tmp_path/'work'/name).symlink_to(to)
    return tmp_path/'work'


REFUSED = {'.': 'not a checkpoint', '..': 'not a checkpoint', '/': 'not a checkpoint', 'full': 'left alone', 'file': 'is a file',
           'file/x': 'is a file', 'dangling': 'is a link to', 'a': 'leads nowhere', 'a/x': 'leads nowhere', '/proc/none': 'could not be written',
           'x'*254: 'too long'}


@pytest.mark.parametrize('out', REFUSED)
@pytest.mark.parametrize('record', [False, True])
def test_places_that_are_refused(place, capsys, out, record):
    tree = lambda: {str(p): p.lstat().st_ino for p in place.rglob('*')}
    before = tree()
    assert main(['export', 'digit', out, *['--record']*record]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('mlxvit: error: ')
    assert record or REFUSED[out] in err
    assert tree() == before


@pytest.mark.parametrize('out', ['empty', 'link', 'new', 'deep/er', 'a b/é ☃', './-dash', 'tab\there', '*', 'dangling/../new'])
def test_places_that_are_filled(place, out):
    inode = {n: (place/n).stat().st_ino for n in ('empty', 'linked')}
    assert main(['export', 'digit', out]) == 0
    load_checkpoint(place/out)
    assert main(['export', 'digit', out]) == 0 # a checkpoint of ours is replaced
    load_checkpoint(place/out)
    assert (place/'link').is_symlink()
    assert not [p for p in place.rglob('.*')]
    if out != 'empty': assert {n: (place/n).stat().st_ino for n in ('empty',)} == {'empty': inode['empty']}


def test_the_folder_one_stands_in_stays(place, monkeypatch, capsys):
    inode = (place/'empty').stat().st_ino
    monkeypatch.chdir(place/'empty')
    assert main(['export', 'digit', '.']) == 0
    assert main(['export', 'layout', '.']) == 1 and 'the folder you are in' in capsys.readouterr().err
    assert (place/'empty').stat().st_ino == inode and load_checkpoint('.').config['task'] == 'digit'
    (place/'empty'/'inside').mkdir()
    monkeypatch.chdir(place/'empty'/'inside')
    assert main(['export', 'layout', '..']) == 1


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() != 0, reason='mounts')
def test_a_mounted_disk(place, capsys):
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=9m', 'tmpfs', place/'empty'], capture_output=True).returncode: pytest.skip('may not mount')
    try:
        assert main(['export', 'digit', 'empty']) == 0
        load_checkpoint('empty')
        assert main(['export', 'digit', 'empty']) == 1 and 'mounted disk' in capsys.readouterr().err
        assert main(['export', 'layout', 'empty/a']) == 0
        subprocess.run(['mount', '-o', 'remount,size=5m', place/'empty'])
        assert main(['export', 'layout', 'empty/b']) == main(['export', 'layout', 'empty/a']) == 1
        err = capsys.readouterr().err
        assert err.count('\n') == 2 and err.count('No space left') == 2
        load_checkpoint('empty/a')
        assert not [n for n in os.listdir('empty') if n.startswith('.')]
    finally: subprocess.run(['umount', place/'empty'])


@posix
@pytest.mark.parametrize('record', [False, True])
@pytest.mark.parametrize('out', ['empty', 'new'])
def test_an_export_killed_anywhere_can_be_repeated(place, record, out, quick):
    words = ['export', str(place/'small'), out, *['--record']*record]
    train(place/'small', stop_after=1)
    (place/'small'/'metrics.json').write_text('{"accuracy": 0.5}')
    assert main([*words[:2], str(place/'warm'), *words[3:]]) == 0
    for n in range(30, 400, 3):
        killed = killed_at(n, lambda: main(words) and os._exit(1))
        whole = {'config.json', 'metrics.json', 'metrics.jsonl'} | (set() if record else {'SHA256SUMS', 'model.safetensors'})
        finished = record and has_checkpoint(out) # a record is not replaced
        assert main(words) == (1 if finished else 0)
        assert set(os.listdir(out)) == whole
        shutil.rmtree(out)
        if out == 'empty': os.mkdir(out)
        assert finished or sorted(n for n in os.listdir('.') if n.startswith('.')) == []
        if not killed: break
    assert not killed and n > 30


@pytest.mark.parametrize('text', ['{"accurac', '', '[1]', '{"x": 1}', '{"accuracy": "high"}', '['*5000, 'null', '\x00'])
def test_damaged_scores_are_named(run, tmp_path, capsys, text):
    (run/'metrics.json').write_text(text)
    for words in (['results', run], ['export', run, tmp_path/'out'], ['export', run, tmp_path/'out', '--record']):
        assert main(list(map(str, words))) == 1
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and 'metrics.json' in err, err
    assert not (tmp_path/'out').exists()


def test_a_log_whose_last_line_is_being_written(run, tmp_path, capsys):
    assert main(['export', str(run), str(tmp_path/'record'), '--record']) == 0
    log = tmp_path/'record'/'metrics.jsonl'
    whole = read_run(tmp_path/'record')['log']
    for cut in range(1, 40, 3):
        log.write_bytes(log.read_bytes()[:-1] if cut == 1 else log.read_bytes()[:-3])
        assert read_run(tmp_path/'record')['log'] == whole[:-1]
    log.write_text('{"epoch": 1\n{"epoch": 2}\n')
    assert main(['results', str(tmp_path/'record')]) == 1
    assert 'metrics.jsonl, line 1' in capsys.readouterr().err
