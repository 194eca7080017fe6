"""The library that multiplies matrices for MLX: chosen by measurement, remembered, and never taken from where it must not be;
what a training ran with is recorded, and a resume says what has changed"""
import json, os, shutil, subprocess, sys, time
from pathlib import Path
from unittest.mock import patch
import pytest
from conftest import TINY
import mlxvit.mlx # a fast BLAS before MLX
from mlxvit.checkpoint import load_checkpoint, save_checkpoint
from mlxvit.mlx import blas
from mlxvit.tasks import BLAS_KINDS, differences, machine

cpu_build = pytest.mark.skipif(not blas.is_cpu_build(), reason='the Linux build alone needs another BLAS')
compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
A, B, C = '/a/libtorch_cpu.so', '/b/libmkl_rt.so.2', '/c/libopenblas.so.0'
FILES = {A: 'torch', B: 'mkl', C: 'openblas'}
NUMBERS = {'': 4., A: 200., B: 60., C: 30.}


class Measured:
    "A measurement that gives known numbers, and counts"
    def __init__(self, numbers): self.numbers, self.asked = numbers, []
    def __call__(self, library, environment=None):
        self.asked.append(library)
        return self.numbers[library]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache folder of its own, three libraries that do not exist, and no OPENBLAS_CORETYPE"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.delenv('OPENBLAS_CORETYPE', raising=False)
    monkeypatch.setattr(blas, 'circumstances', lambda files: 'here')
    monkeypatch.setattr(blas, 'candidates', lambda: dict(FILES))
    return tmp_path/'cache'/'mlxvit'/'blas.json'


@pytest.fixture
def measured(monkeypatch):
    "The measurement replaced by known numbers"
    fake = Measured(NUMBERS)
    monkeypatch.setattr(blas, 'measure', fake)
    return fake


def python(code, **environment):
    "Run a script in a fresh process"
    clean = {n: v for n,v in os.environ.items() if n != 'MLXVIT_BLAS'}
    return subprocess.run([sys.executable, '-c', code], env=clean | environment, capture_output=True, text=True, timeout=120)


# --- the choice

@pytest.mark.parametrize('numbers, order', [
    ({}, [A, B, C]),
    ({C: 500.}, [C, A, B]),
    ({C: 210.}, [A, C, B]),       # as fast as the first, as far as milliseconds can tell
    ({A: 0.}, [B, C]),            # it crashed
    ({A: 3., B: 3., C: 3.}, []),  # the built-in one is faster
])
def test_the_fastest_is_first(numbers, order):
    assert blas.by_speed(FILES, NUMBERS | numbers) == order


def test_who_may_have_been_unlucky_is_measured_again(monkeypatch):
    "A busy machine: the second round turns the order round; who is far behind is left alone"
    answers = {'': [4.], A: [50., 60.], B: [90., 55.], C: [40., 200.], 'far': [20.]}
    monkeypatch.setattr(blas, 'measure', lambda name: answers[name].pop(0))
    assert blas.contest({n: (n,) for n in answers}) == {'': 4., A: 60., B: 90., C: 200., 'far': 20.}
    assert not any(answers.values())


def test_the_winner_of_the_measurement_is_loaded(cache, measured):
    measured.numbers = NUMBERS | {B: 900.}
    with patch.object(blas, 'open_globally', lambda path: True): found = blas.take('auto')
    assert (found.name, found.file) == ('mkl', 'libmkl_rt.so.2')
    assert 'libmkl_rt.so.2 (measured 900 GFLOP/s; libtorch_cpu.so 200, libopenblas.so.0 30, built-in 4)' in found.about


def test_a_winner_that_does_not_open_leaves_it_to_the_next(cache, measured):
    with patch.object(blas, 'open_globally', lambda path: path != A): assert blas.take('auto').name == 'mkl'
    with patch.object(blas, 'open_globally', lambda path: False): assert blas.take('auto') is None


def test_who_names_a_kind_gets_it_without_a_measurement(cache, measured):
    with patch.object(blas, 'open_globally', lambda path: True): assert blas.take('openblas').name == 'openblas'
    assert measured.asked == []


def test_a_library_of_the_named_kind_is_taken_even_if_it_is_slow(cache, measured, monkeypatch):
    monkeypatch.setattr(blas, 'candidates', lambda: {A: 'torch', B: 'openblas', C: 'openblas'})
    measured.numbers = NUMBERS | {B: 0., C: 1.}
    with patch.object(blas, 'open_globally', lambda path: path == C): assert blas.take('openblas').file == 'libopenblas.so.0'


def test_a_core_type_that_slows_is_named(cache, monkeypatch):
    monkeypatch.setenv('OPENBLAS_CORETYPE', 'Prescott')
    def measure(library, environment=None):
        if environment is not None: assert 'OPENBLAS_CORETYPE' not in environment
        return 120. if environment is not None else NUMBERS[library]
    monkeypatch.setattr(blas, 'measure', measure)
    with patch.object(blas, 'open_globally', lambda path: True): about = blas.take('auto').about
    assert 'OPENBLAS_CORETYPE=Prescott slows libopenblas.so.0: 30 GFLOP/s with it, 120 without' in about
    assert 'without OPENBLAS_CORETYPE' not in about


# --- the memory

def test_what_was_measured_is_remembered(cache, measured):
    assert blas.all_speeds(FILES) == NUMBERS and len(measured.asked) >= 4
    measured.asked.clear()
    assert blas.all_speeds(FILES) == NUMBERS and measured.asked == []
    assert json.loads(cache.read_text()) == {'here': NUMBERS}
    assert [p.name for p in cache.parent.iterdir()] == ['blas.json'], 'nothing else is left there'


HOSTILE = {
    'empty': b'', 'no JSON': b'{"here": ', 'null': b'null', 'a list': b'[1, 2]', 'a number': b'7', 'not UTF-8': b'\xff\xfe{}',
    'deep': b'['*90_000, 'long number': b'{"here": {"": ' + b'9'*5000 + b'}}', 'large': json.dumps({'here': {**NUMBERS, C: 900.}, 'x'*200_000: {}}).encode(),
    'entry of a list': b'{"here": [1]}', 'not a number': b'{"here": {"": NaN}}', 'infinite': b'{"here": {"": 1e999}}', 'negative': b'{"here": {"": -1}}',
    'a string': json.dumps({'here': {**NUMBERS, A: '9'}}).encode(), 'true': json.dumps({'here': {**NUMBERS, A: True}}).encode(),
    'another file': json.dumps({'here': {**NUMBERS, '/tmp/evil.so': 9e5}}).encode(),
    'one file too few': json.dumps({'here': {A: 1.}}).encode(), 'all foreign': json.dumps({'here': {'/tmp/evil.so': 9e5}}).encode(),
    'surrogates': b'{"here": {"\\ud800": 1}, "\\udfff": {"a": 1}}', 'null bytes': b'\0'*500,
}

@pytest.mark.parametrize('content', HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_foreign_memory_is_measured_anew(cache, measured, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert blas.all_speeds(FILES) == NUMBERS and measured.asked
    assert blas.remembered()['here'] == NUMBERS, 'and it is whole again'
    with patch.object(blas, 'open_globally', lambda path: True): assert blas.take('auto').file == 'libtorch_cpu.so'


def test_a_pipe_a_folder_or_a_dead_link_in_its_place(cache, measured):
    cache.parent.mkdir(parents=True)
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir), (lambda p: os.symlink('/nonexistent/x', p), os.unlink), (lambda p: os.symlink('/dev/zero', p), os.unlink)):
        make(cache)
        assert blas.remembered() == {}
        assert blas.all_speeds(FILES) == NUMBERS
        if cache.is_dir(): remove(cache)
        else: cache.unlink(missing_ok=True)
        assert not [p for p in cache.parent.iterdir()]


def test_a_pipe_that_somebody_holds_open(cache):
    cache.parent.mkdir(parents=True)
    os.mkfifo(cache)
    held = os.open(cache, os.O_RDWR|os.O_NONBLOCK)
    assert blas.remembered() == {}
    os.close(held)


def test_the_memory_does_not_grow_for_ever(cache):
    for i in range(60): blas.remember(str(i), NUMBERS)
    kept = blas.remembered()
    assert list(kept) == [str(i) for i in range(28, 60)]


@pytest.mark.parametrize('place', ['/dev/null/sub', '/proc/1/nowhere', 'relative/folder', ''])
def test_a_folder_that_cannot_be_written_is_done_without(cache, measured, monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', place)
    monkeypatch.setenv('HOME', '/dev/null')
    for _ in range(2): assert blas.all_speeds(FILES) == NUMBERS
    assert list(tmp_path.iterdir()) == []


def test_two_writers_leave_a_whole_file(cache):
    code = "import sys; from mlxvit.mlx import blas\nfor i in range(100): blas.remember(f'{sys.argv[1]}{i}', {'': 4.})"
    writers = [subprocess.Popen([sys.executable, '-c', code, name], env=os.environ | {'MLXVIT_BLAS': 'off'}) for name in 'ab']
    while any(w.poll() is None for w in writers):
        if cache.exists(): json.loads(cache.read_text())
        time.sleep(0.002)
    assert [w.returncode for w in writers] == [0, 0] and 1 <= len(blas.remembered()) <= 32


@cpu_build
def test_circumstances_are_all_in_the_name(tmp_path, monkeypatch):
    library = tmp_path/'libopenblas.so'
    library.write_bytes(b'one')
    names = [blas.circumstances([]), blas.circumstances([str(library)])]
    library.write_bytes(b'other')
    names.append(blas.circumstances([str(library)]))
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_CORETYPE', 'MKL_NUM_THREADS'):
        monkeypatch.setenv(name, '7')
        names.append(blas.circumstances([str(library)]))
    monkeypatch.setattr(blas, 'processor_model', lambda: ['model name: another'])
    names.append(blas.circumstances([str(library)]))
    monkeypatch.setattr(blas, 'usable_cores', lambda: 99)
    names.append(blas.circumstances([str(library)]))
    assert len(set(names)) == len(names)


@cpu_build
def test_a_second_import_measures_nothing(tmp_path):
    code = "import mlxvit.mlx as m; print(m.BLAS.about)"
    forbid = "import subprocess\ndef run(*a, **k): raise AssertionError('measured again')\nsubprocess.run = run\n"
    first, second = (python(c, XDG_CACHE_HOME=str(tmp_path)) for c in (code, forbid+code))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert first.stdout == second.stdout and 'measured' in first.stdout and 'built-in' in first.stdout


@cpu_build
def test_where_no_process_can_be_started_the_first_is_taken(tmp_path):
    code = "import subprocess\ndef run(*a, **k): raise PermissionError('no processes here')\nsubprocess.run = run\nimport mlxvit.mlx as m; print(m.BLAS)"
    p = python(code, XDG_CACHE_HOME=str(tmp_path))
    assert p.returncode == 0 and "name='torch'" in p.stdout and 'measured' not in p.stdout, p.stderr
    assert not list(tmp_path.iterdir())


# --- libraries that misbehave

@cpu_build
@pytest.mark.parametrize('trial', ['import os; os.abort()', 'import time; time.sleep(60)', 'print("much")', 'print("nan")', 'print(-3)', 'print(7); raise SystemExit(1)', 'pass', 'print("x"*100000)'])
def test_a_trial_that_crashes_hangs_or_babbles_counts_as_nothing(trial):
    with patch.object(blas, 'TRIAL', trial), patch.object(blas, 'LIMIT', 1): assert blas.measure('') == 0


SOURCE = {
    'crashes': '__attribute__((constructor)) void f(void) { abort(); }\nvoid sgemm_(void) {}',
    'miscounts': 'void sgemm_(void) {}',
    'hangs': 'void sgemm_(void) { for (;;) sleep(1); }',
    'has no product': 'void scipy_sgemm_(void) {}',
}

@cpu_build
@compiler
@pytest.mark.parametrize('fault', SOURCE)
def test_a_bad_library_is_not_taken(tmp_path, fault):
    (tmp_path/'a.c').write_text('#include <stdlib.h>\n#include <unistd.h>\n' + SOURCE[fault])
    library = tmp_path/'libopenblas.so.0'
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, tmp_path/'a.c'], check=True)
    with patch.object(blas, 'LIMIT', 2): assert blas.measure(str(library)) == 0
    with patch.dict(os.environ, LD_LIBRARY_PATH=str(tmp_path)): assert str(library) in blas.candidates()


@cpu_build
@compiler
def test_an_import_survives_a_library_that_crashes(tmp_path):
    (tmp_path/'a.c').write_text('#include <stdlib.h>\n' + SOURCE['crashes'])
    subprocess.run(['cc', '-shared', '-fPIC', '-o', tmp_path/'libopenblas.so', tmp_path/'a.c'], check=True)
    p = python('import mlxvit.mlx as m; print(m.BLAS.about)', LD_LIBRARY_PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path/'cache'))
    assert p.returncode == 0 and 'libopenblas.so not usable' in p.stdout, p.stderr


# --- where libraries may come from

def test_nothing_is_taken_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('libopenblas.so.0', 'libmkl_rt.so.2', 'torch/lib/libtorch_cpu.so', 'torch/__init__.py', 'numpy.libs/libopenblas.so', 'mlx/core.py', 'cmeel.prefix/lib/libopenblas.so'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('')
    monkeypatch.delitem(sys.modules, 'torch', raising=False)
    for first in ('', '.', str(tmp_path)):
        monkeypatch.setattr(sys, 'path', [first, *sys.path])
        for asked in ('', ':', '.', './', str(tmp_path), f'{tmp_path}/', f'{tmp_path}/torch/..', f'.:{tmp_path}', 'numpy.libs'):
            monkeypatch.setenv('LD_LIBRARY_PATH', asked)
            assert not [p for p in blas.candidates() if str(tmp_path) in os.path.realpath(p)]


def test_other_names_are_left_alone(tmp_path, monkeypatch):
    for name in ('libopenblas64.so.0', 'libopenblasp64_.so.0', 'libopenblas64_-r0.3.so', 'libopenblas\n.so', 'libopenblas\x1b[31m.so', 'libopenblas.so.0', 'libopenblas.a', 'libopenblas.so.py'): (tmp_path/name).write_text('')
    monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path))
    assert [Path(p).name for p in blas.candidates() if str(tmp_path) in p] == ['libopenblas.so.0']


def test_a_file_with_many_names_counts_once(tmp_path, monkeypatch):
    (tmp_path/'libopenblas.so.0').write_text('')
    for name in ('libopenblas.so', 'libopenblasp-r0.3.so'): (tmp_path/name).symlink_to('libopenblas.so.0')
    monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path))
    assert len([p for p in blas.candidates() if str(tmp_path) in p]) == 1


@cpu_build
def test_folders_that_are_not_text_or_cannot_be_read(tmp_path, monkeypatch):
    odd = Path(os.fsdecode(os.fsencode(tmp_path)+b'/\xff\xfe'))
    odd.mkdir()
    (odd/'libopenblas.so').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setenv('LD_LIBRARY_PATH', f'{odd}:/nonexistent:/dev/null:/proc/1/root')
    monkeypatch.setattr(blas, 'measure', lambda library, environment=None: 7.)
    files = blas.candidates()
    assert str(odd/'libopenblas.so') in files
    first = blas.all_speeds(files)
    monkeypatch.setattr(blas, 'measure', lambda *args: 1/0)
    assert blas.all_speeds(files) == first


@cpu_build
def test_the_first_wish_that_is_there_is_granted():
    code = 'import mlxvit.mlx as m; print(m.BLAS.name)'
    assert python(code, MLXVIT_BLAS='nosuchthing, torch').stdout == 'torch\n'
    assert python(code, MLXVIT_BLAS=',').stdout != ''
    refused = python(code, MLXVIT_BLAS='nosuchthing,alsonot')
    assert refused.returncode == 1 and 'MLXVIT_BLAS=nosuchthing,alsonot: no such library' in refused.stderr


@cpu_build
def test_an_explicit_file_wins(tmp_path):
    torch = next(p for p,source in blas.candidates().items() if source == 'torch')
    p = python('import mlxvit.mlx as m; print(m.BLAS.name, m.BLAS.file)', MLXVIT_BLAS=torch, XDG_CACHE_HOME=str(tmp_path))
    assert p.stdout == f'{torch} libtorch_cpu.so\n', p.stderr
    assert not list(tmp_path.iterdir()), 'who names a library waits for no measurement'


# --- what a training writes down, and what a resume says

def test_the_kinds_of_a_record_are_the_kinds_of_libraries():
    assert {*BLAS_KINDS} == {*blas.SOURCES, 'built-in'} and {*BLAS_KINDS.values()} == {*blas.SOURCES, 'off'}


def test_a_record_says_with_what(straight):
    trained = load_checkpoint(straight/'last').config['trained']
    assert trained['threads'] == 1 and {'python', 'numpy', 'torch', 'mlxvit'} <= {*trained['versions']}
    assert 'blas' not in trained and 'mlx' not in trained['versions']
    found = machine('mlx')
    assert found['threads'] >= 1 and found['blas'] == Path(mlxvit.mlx.BLAS.name).name and 'mlx' in found['versions']


def test_differences_are_told_and_foreign_records_survived():
    now = machine('mlx')
    old = {n: now[n] for n in ('processor', 'cores', 'system')} # from before the other fields
    assert differences(now, now) == [] and differences({}, now) == [] and differences(old, now) == []
    assert differences({**now, 'threads': 64}, now) == [f"threads: 64 then, {now['threads']} now"]
    assert differences({**now, 'versions': {**now['versions'], 'numpy': '1.0'}}, now) == [f"numpy: '1.0' then, '{now['versions']['numpy']}' now"]
    for strange in (None, 7, [], 'x', {'numpy': None}, {'numpy': {'a': [1]*10_000}}, {'numpy': '\x1b[31m'}):
        for line in differences({**now, 'versions': strange, 'threads': strange}, now):
            assert len(line) < 200 and line.isprintable()


def test_a_resume_says_in_one_line_what_has_changed(mlxvit, tmp_path):
    out = tmp_path/'run'
    p = mlxvit('train', 'digit', '--epochs', 2, '--stop_after', 1, '--out', out, *TINY)
    assert p.returncode == 0, p.stderr
    saved = load_checkpoint(out/'last')
    saved.config['trained'] |= dict(threads=64, processor='another', versions={'torch': '0.0'})
    save_checkpoint(out/'last', saved)
    p = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet')
    assert p.returncode == 0 and p.stderr.count('\n') == 1
    assert 'bytes may differ' in p.stderr and "processor: 'another' then" in p.stderr and "threads: 64 then, 1 now; torch: '0.0' then" in p.stderr


@cpu_build
def test_a_resume_takes_the_library_it_was_trained_with(mlxvit, tmp_path, monkeypatch):
    "The built-in one, which nothing but the record would choose; by hand another, and it says so"
    monkeypatch.delenv('MLXVIT_BLAS', raising=False)
    out = tmp_path/'run'
    tiny = ('--framework', 'mlx', '--epochs', 3, '--out', out, *TINY)
    first = mlxvit('train', 'digit', *tiny, '--stop_after', 1, env=os.environ | {'MLXVIT_BLAS': 'off'})
    assert first.returncode == 0, first.stderr
    trained = lambda: load_checkpoint(out/'last').config['trained']
    assert trained()['blas'] == 'built-in' and 'mlx' in trained()['versions']
    same = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet', '--stop_after', 2)
    assert same.returncode == 0 and 'warning' not in same.stderr and trained()['blas'] == 'built-in', same.stderr
    other = mlxvit('train', 'digit', '--resume', '--out', out, '--quiet', env=os.environ | {'MLXVIT_BLAS': 'torch'})
    assert other.returncode == 0 and "blas: 'built-in' then, 'torch' now" in other.stderr and other.stderr.count('\n') == 1


@cpu_build
@compiler
@pytest.mark.parametrize('kind', ['{library}', '{library},torch', ['{library}']])
def test_a_record_names_no_file_to_load(tmp_path, kind):
    "A checkpoint may come from anybody: its library is asked for by kind alone"
    (tmp_path/'a.c').write_text('#include <stdio.h>\n__attribute__((constructor)) void f(void) { fclose(fopen("'+str(tmp_path/'mark')+'", "w")); }\nvoid sgemm_(void) {}')
    library = tmp_path/'evil.so'
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, tmp_path/'a.c'], check=True)
    named = json.loads(json.dumps(kind).replace('{library}', str(library)))
    p = python(f"from mlxvit.tasks import import_mlx; import_mlx({named!r}); import mlxvit.mlx, os; print(mlxvit.mlx.BLAS.name, os.environ.get('MLXVIT_BLAS'))")
    assert p.returncode == 0 and p.stdout.endswith('None\n'), p.stderr
    assert not (tmp_path/'mark').exists()
