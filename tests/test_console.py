"Output on any console: encodings, control characters, missing streams, readers that hang up"

import io, json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from conftest import command
from mlxvit import cli, console
from mlxvit.reader import ASSETS

ESCAPES = 'x\x1b]0;owned\x07\x9b2J\x7f\u202egpj\u2066\u200b\u2028\ufeff'
OBEYED = '\x1b\x07\x9b\x7f\u202e\u2066\u200b\u2028\ufeff\r\b'


def signed(folder):
    "Make the sums of a checkpoint anew"
    from hashlib import sha256

    names = [
        line.split('  ')[1]
        for line in (folder / 'SHA256SUMS').read_text(encoding='utf-8').splitlines()
    ]
    sums = ''.join(f'{sha256((folder/n).read_bytes()).hexdigest()}  {n}\n' for n in names)
    (folder / 'SHA256SUMS').write_text(sums, encoding='utf-8', newline='\n')


@pytest.fixture
def foreign(tmp_path):
    "Copy a shipped model and change its config.json: foreign(change, name) -> folder"

    def make(change, name='digit', folder='m'):
        there = Path(shutil.copytree(ASSETS / name, tmp_path / folder))
        config = json.loads((there / 'config.json').read_text(encoding='utf-8'))
        change(config)
        (there / 'config.json').write_text(json.dumps(config), encoding='utf-8')
        signed(there)
        return there

    return make


@pytest.fixture
def seven(tmp_path):
    "A picture of a seven: seven(name) -> path"
    from PIL import Image, ImageDraw

    def make(name):
        page = Image.new('RGB', (200, 200), 'white')
        ImageDraw.Draw(page).line([(60, 40), (140, 40), (90, 170)], fill='black', width=14)
        page.save(tmp_path / name, 'PNG')
        return tmp_path / name

    return make


def obeyed(text):
    return [c for c in text if c in OBEYED]


@pytest.mark.parametrize(
    'character',
    [
        chr(n)
        for n in (
            *range(32),
            *range(127, 160),
            0x61C,
            0xAD,
            0x200B,
            0x200E,
            0x200F,
            *range(0x2028, 0x202F),
            *range(0x2060, 0x2065),
            *range(0x2066, 0x2070),
            0xFEFF,
            0xFFF9,
            0xE0001,
            0xE0041,
            0xD800,
            0xDCE9,
        )
    ],
    ids=lambda c: f'U+{ord(c):04X}',
)
def test_what_a_terminal_obeys_is_spelled_out(character):
    text = console.shown(f'a{character}b')
    assert text.isprintable() and text.startswith('a\\') and text.endswith('b')


@pytest.mark.parametrize(
    'text',
    [
        'photo.png',
        'фото 7.png',
        '猫が座る',
        'ñandú',
        'é',
        'می\u200cخواهم',
        '👩\u200d🔬',
        'क\u094d\u200dष',
        'C:\\images\\1.png',
        '10 × 10 – “ok”',
        '\u00a0',
    ],
)
def test_letters_of_any_script_stay(text):
    assert console.shown(text) == text


def test_json_is_ascii_valid_and_one_line():
    record = dict(image=ESCAPES + '猫\udce9\n', caption='\x7f')
    line = console.as_json(record)
    assert line.isascii() and line.isprintable() and json.loads(line) == record
    with pytest.raises(ValueError, match='JSON'):
        console.as_json(dict(p=float('inf')))


def test_a_table_stays_a_table(foreign, capsys):
    "What a record says neither ends its cell nor steers the terminal nor becomes a link"

    def change(config):
        config['trained']['command'] = f'mlxvit {ESCAPES} | `tee` \n| more'
        config['trained']['cores'] = 'many | [two](http://x)'
        config['task'] = 'digit|<b>`'

    folder = foreign(change, folder='a|`b`')
    assert cli.main(['results', str(folder)]) == 0
    head, rule, row, *rest = capsys.readouterr().out.split('\n')
    assert rest == [''] and not obeyed(row) and '\\x1b]0;owned' in row
    import re

    assert len(re.findall(r'(?<!\\)\|', row)) == len(re.findall(r'\|', head))
    assert '<b>' not in row and '[two](' not in row


def test_names_and_captions_are_shown(monkeypatch, seven, tmp_path, capsys):
    name = 'a\x1b[2Jb\u202e\nmlxvit: error: fake.png'
    seven(name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(['predict', 'digit', name, '\x1b]0;gone\x07.png', '--framework', 'torch']) == 1
    said = capsys.readouterr()
    assert (
        len(said.out.splitlines()) == 1
        and 'a\\x1b[2Jb\\u202e\\nmlxvit' in said.out
        and ': 7 (' in said.out
    )
    assert len(said.err.splitlines()) == 1 and not obeyed(said.err) and 'gone' in said.err
    assert cli.main(['predict', 'digit', name, '--json', '--framework', 'torch']) == 0
    assert json.loads(capsys.readouterr().out)['image'] == name
    from mlxvit.caption_reader import CaptionReader

    monkeypatch.setattr(CaptionReader, 'caption', lambda *_: ESCAPES)
    assert cli.main(['caption', 'scene', name, '--framework', 'torch']) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and not obeyed(out) and '\\x1b]0;owned' in out


@pytest.mark.parametrize(
    'words',
    [
        ['\x1b[2J'],
        ['train', 'x\x1b[2J\u202e'],
        ['predict', 'digit', 'x.png', '--\x1b[2J\x9b'],
        ['train', 'digit', '--lr', '\x1b[2J'],
        ['train', '--\x1b[31m'],
    ],
)
def test_usage_errors_are_shown_too(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    said = capsys.readouterr()
    assert left.value.code == 2 and not obeyed(said.out + said.err)


def test_a_yaml_key_is_shown(tmp_path, capsys):
    (tmp_path / 'c.yaml').write_text('"\\e]0;owned\\a\\u202e": 1\n', encoding='utf-8')
    with pytest.raises(SystemExit):
        cli.main(['train', 'digit', '--config', str(tmp_path / 'c.yaml')])
    assert not obeyed(capsys.readouterr().err)


@pytest.mark.parametrize(
    'error',
    [
        ValueError('wrong'),
        KeyError('model'),
        AssertionError(),
        MemoryError(),
        RecursionError('too deep'),
        TypeError("'x' is\nno\x1b[2J number"),
        OSError(28, 'No space left on device'),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
        ZeroDivisionError(),
        BaseException('a panic'),
        EOFError(),
        BrokenPipeError(32, 'Broken pipe'),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize('stage', ['select', 'call'])
def test_any_error_is_one_line(monkeypatch, capsys, error, stage):
    "Whatever is raised: one line that says something, exit code 1, a traceback on request alone"

    def failing(*_):
        raise error

    monkeypatch.setattr(
        cli, 'select', failing if stage == 'select' else lambda words: (failing, None)
    )
    assert cli.main(['results']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith('mlxvit: error: ')
        and len(line) > len('mlxvit: error: ')
        and line.isprintable()
    )
    assert cli.main(['results', '--traceback']) == 1
    said = capsys.readouterr().err
    assert 'Traceback (most recent call last)' in said and 'in failing' in said and not obeyed(said)


def test_traceback_is_taken_anywhere_and_recorded_nowhere(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, 'select', lambda words: (lambda flags: seen.append(words), None))
    for words in (
        ['--traceback', 'results', 'a'],
        ['results', '--traceback', 'a'],
        ['results', 'a', '--traceback'],
    ):
        assert cli.main(words) == 0
    assert seen == [['results', 'a']] * 3


def test_an_interruption_and_a_long_error(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, 'select', stop)
    assert cli.main([]) == 130 and 'Ctrl-C' in capsys.readouterr().err
    assert len(console.reason(ValueError('x' * 10**7))) < 3000


def test_warnings_are_lines(capsys):
    import warnings

    with console.console():
        warnings.warn('of a library\x1b[2J')
    assert capsys.readouterr().err == 'mlxvit: warning: of a library\\x1b[2J\n'


@pytest.mark.parametrize('stream', [None, 'closed', 'strict', 'plain object'])
def test_streams_of_every_kind(monkeypatch, stream, seven, tmp_path):
    "No console, a closed one, one of another encoding, one that is no file"

    class Plain:
        def __init__(self):
            self.text = ''

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    made = dict(
        closed=io.TextIOWrapper(io.BytesIO()),
        strict=io.TextIOWrapper(io.BytesIO(), encoding='ascii'),
    )
    made['closed'].close()
    made['plain object'] = Plain()
    name = seven('фото.png')
    for which in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, which, made.get(stream))
    code = cli.main(['predict', 'digit', str(name), 'nowhere.png', '--framework', 'torch'])
    assert sys.stdout is made.get(stream)
    monkeypatch.undo()
    assert code == 1
    if stream == 'strict':
        assert b'\\u0444\\u043e' in made['strict'].buffer.getvalue()
    if stream == 'plain object':
        assert 'фото.png: 7' in made['plain object'].text


def started(*words, environment=(), **kw):
    "A process of the command line, its streams as given, with buffers as people have them"
    env = {n: v for n, v in os.environ.items() if n != 'PYTHONUNBUFFERED'} | dict(environment)
    return subprocess.Popen(
        command(*words), env=env, **{**dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE), **kw}
    )


@pytest.mark.parametrize('encoding', ['cp1252', 'cp1251', 'ascii', 'shift_jis', 'cp437'])
def test_help_in_any_encoding(encoding):
    p = started('train', 'layout', '--help', environment={'PYTHONIOENCODING': encoding})
    out, err = p.communicate(timeout=100)
    assert p.returncode == 0 and not err and b'--data.size' in out


def test_a_plain_locale_reads_and_shows_utf8(foreign):
    "LC_ALL=C and no UTF-8 mode, as on an old server or a Windows console"

    def change(config):
        config['trained']['command'] = 'mlxvit train 数字 ×'

    folder = foreign(change)
    p = started(
        'results',
        folder,
        environment={'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
    )
    out, err = p.communicate(timeout=100)
    assert p.returncode == 0 and '\\u6570'.encode() in out, err


@pytest.mark.parametrize(
    'words',
    [['train', 'digit', '--help'], ['results'], ['results', 'digit'], ['--help'], ['nonsense']],
)
def test_a_reader_that_hangs_up(words):
    "As in `mlxvit ... | true`: no word of it, and the exit code of one that met a closed pipe"
    read, write = os.pipe()
    os.close(read)
    p = started(*words, stdout=write, stderr=subprocess.PIPE if words != ['nonsense'] else write)
    os.close(write)
    _, err = p.communicate(timeout=100)
    assert not err and p.returncode in (1, 141), err


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
def test_a_full_disk_is_one_line():
    with open('/dev/full', 'w', encoding='utf-8') as full:
        p = started('results', 'digit', stdout=full)
    err = p.communicate(timeout=100)[1].decode()
    assert p.returncode == 1 and err.count('\n') == 1 and 'No space left' in err


@pytest.mark.skipif(os.name != 'posix', reason='a shell that closes streams')
@pytest.mark.parametrize('closing', ['>&-', '2>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_no_streams_at_all(closing, tmp_path):
    line = ' '.join(map(str, command('results', 'digit')))
    p = subprocess.run(['bash', '-c', f'{line} {closing}'], capture_output=True, timeout=100)
    assert (
        p.returncode == 0 and b'Traceback' not in p.stderr and b'Exception' not in p.stderr
    ), p.stderr


@pytest.mark.skipif(
    os.name != 'posix' or sys.platform == 'darwin', reason='file names are bytes on Linux alone'
)
def test_a_name_that_is_no_utf8(tmp_path):
    "A run in a folder whose name is Latin-1: trained, saved, listed"
    from conftest import TINY

    out = os.fsencode(tmp_path) + b'/caf\xe9'
    p = subprocess.run(
        [*map(os.fsencode, command('train', 'digit', '--epochs', 1, *TINY, '--out')), out],
        capture_output=True,
        timeout=300,
    )
    assert p.returncode == 0, p.stderr
    config = json.loads((Path(os.fsdecode(out)) / 'last' / 'config.json').read_bytes())
    assert 'caf\udce9' in config['trained']['command']
    q = subprocess.run(
        [*map(os.fsencode, command('results')), out], capture_output=True, timeout=100
    )
    assert q.returncode == 0 and b'caf\\udce9' in q.stdout
