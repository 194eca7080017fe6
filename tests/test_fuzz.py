"A bounded run of the fuzzer (the long one: `make fuzz`), and proof that it notices what it should"

import os, subprocess, sys, time
from pathlib import Path
import pytest

pytest.importorskip('datasets', reason='the fuzzer writes Parquet')
pytest.importorskip('timm', reason='the fuzzer writes models of timm')
if not hasattr(os, 'fork'):
    pytest.skip('the fuzzer forks its workers', allow_module_level=True)
HERE = Path(__file__).parent
FUZZ = str(HERE / 'fuzz.py')


def fuzz(code, timeout=100):
    "Run Python with the fuzzer imported, in a process of its own"
    begin = f'import sys; sys.path.insert(0, {str(HERE)!r}); import os, signal, fuzz\nfrom pathlib import Path\n'
    return subprocess.run(
        [sys.executable, '-c', begin + code],
        capture_output=True,
        text=True,
        encoding='utf-8',
        timeout=timeout,
    )


def test_no_mutated_file_is_a_fault():
    "Some hundred inputs of fixed seeds, for forty seconds at most: answers, or errors in one line"
    p = subprocess.run(
        [
            sys.executable,
            FUZZ,
            '--mutations',
            '500',
            '--seed',
            '21',
            '--workers',
            '2',
            '--seconds',
            '40',
        ],
        capture_output=True,
        text=True,
        encoding='utf-8',
        timeout=300,
    )
    assert p.returncode == 0 and 'inputs tried, 0 faults' in p.stdout, (
        p.stdout[-6000:] + p.stderr[-2000:]
    )


FAULTS = {
    'raise TypeError("x")': 'TypeError',
    'raise KeyError("x")': 'KeyError',
    'raise RecursionError("x")': 'RecursionError',
    'raise MemoryError': 'MemoryError',
    'raise ValueError': 'without words',
    'raise ValueError("two\\nlines")': 'of several lines',
    'raise ValueError("x"*5000)': 'of 5,000 characters',
    'assert False': 'AssertionError',
    'sys.exit(1)': 'exit code 1',
    'while True: pass': 'more than 0.5 s',
    'bytearray(150_000_000)': '0.1 GB',
    'import pickle; pickle.loads(b"cos\\ngetcwd\\n.")': 'pickle.find_class',
    'os.system("true")': 'os.system',
    'import socket; socket.socket().connect(("127.0.0.1", 9))': 'socket.connect',
    'open("/etc/passwd", encoding="utf-8")': 'opened /etc/passwd',
    'import fuzz_payload': 'imported fuzz_payload',
}
FINE = [
    'pass',
    'raise ValueError("wrong")',
    'raise FileNotFoundError(2, "No such file", "x")',
    'raise ImportError("pip install x")',
    'sys.exit(2)',
]


def test_the_fuzzer_notices_every_kind_of_fault():
    "One process attempts each, with small limits"
    code = f'''
def reader(line):
    def read(): exec(line, dict(os=os, sys=sys))
    return read
watch = fuzz.Watch()
sys.addaudithook(watch)
for line in {[*FAULTS, *FINE]!r}: print(repr(fuzz.attempt(reader(line), watch, seconds=.5, megabytes=100)['fault']))
'''
    p = fuzz(code)
    assert p.returncode == 0, p.stderr
    found = p.stdout.splitlines()
    for line, (what, fault) in zip(found, FAULTS.items()):
        assert fault in line, (what, line)
    assert found[len(FAULTS) :] == ["''"] * len(FINE)


def test_workers_that_hang_or_die_are_replaced(tmp_path):
    "One that cannot be interrupted and one that kills its process: faults; the others are read"
    code = f'''
fuzz.SECONDS = 1
fuzz.prepare = lambda: None
count = iter(range(100))
def fake(seed, number, kinds, bases, watch):
    if number == 2: os.abort()
    if number == 5:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        import time
        time.sleep(60)
    return dict(kind='yaml', fault='', error='', text='', seconds=0., megabytes=0., trace='')
fuzz.one_input = fake
tried, faults = fuzz.run(12, 0, ['yaml'], 2, 60, Path({str(tmp_path)!r}))
print(sum(tried.values()), sorted((f['number'], f['fault']) for f in faults))
'''
    begin = time.monotonic()
    p = fuzz(code)
    assert p.returncode == 0, p.stderr
    assert (
        p.stdout.strip()
        == "12 [(2, 'the process died: signal 6'), (5, 'more than 1 s, and not to be interrupted')]"
    )
    assert time.monotonic() - begin < 60


def test_an_input_is_the_same_again():
    "What `--only` makes is what the run made"
    code = '''
import random, fuzz_mutations as d
data = d.json.dumps(dict(a=[1, 2.5, "x"], b=dict(c=None))).encode()
for i in range(200):
    for mutate in (d.mutate_json, d.mutate_bytes, d.mutate_lines): print(mutate(random.Random(f"0:{i}"), data)[:200])
    print(d.mutate_yaml(random.Random(f"0:{i}"), dict(a=1))[:200])
'''
    one, another = fuzz(code), fuzz(code)
    assert (
        one.returncode == 0
        and one.stdout == another.stdout
        and len(set(one.stdout.splitlines())) > 400
    ), one.stderr
