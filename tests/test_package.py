"The package as a whole: light to import, documented, typed, clean, made from the notebooks, and built from its sources"
import ast, hashlib, importlib, inspect, json, os, re, shlex, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
from mlxvit.averages import stages

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted('mlxvit.'+'.'.join(p.relative_to(ROOT/'mlxvit').with_suffix('').parts) for p in (ROOT/'mlxvit').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))


def test_importing_loads_no_framework():
    "`import mlxvit` pulls in neither a framework nor NumPy, so it cannot be slow"
    code = 'import sys, mlxvit; print([m for m in ("torch", "mlx", "numpy", "matplotlib", "PIL") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8').stdout.strip() == '[]'


def test_the_face():
    import mlxvit
    assert mlxvit.load('digit').task == 'digit' and re.fullmatch(r'\d+\.\d+\.\d+', mlxvit.__version__)
    with pytest.raises(AttributeError, match='nothing'): mlxvit.nothing


@pytest.mark.parametrize('name', MODULES)
def test_every_public_symbol_is_documented_and_typed_or_explained(name):
    "A docstring for each function and class; for each argument an annotation, a default, or a comment beside it"
    module = importlib.import_module(name)
    assert module.__doc__, 'the module says nothing of itself'
    source = inspect.getsource(module)
    for symbol in module.__all__:
        obj = getattr(module, symbol)
        if not (inspect.isfunction(obj) or inspect.isclass(obj)): continue
        assert inspect.getdoc(obj), f'{symbol} has no docstring'
        if inspect.isfunction(obj):
            for arg in inspect.signature(obj).parameters.values():
                assert arg.annotation is not arg.empty or re.search(rf'^\s+\*{{0,2}}{arg.name}\b[^#\n]*#', source, re.M) or 'see `' in obj.__doc__, f'{symbol}({arg.name})'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_executed_and_clean(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert 'widgets' not in nb['metadata']
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        assert not [o for o in cell['outputs'] if o['output_type'] == 'error']
        assert not [l for l in ''.join(cell['source']).splitlines() if '/root/' in l or '/home/' in l or '/tmp/' in l]
    text = json.dumps([c.get('outputs') for c in nb['cells']])
    assert not re.search(r'/(root|home|tmp|work)/', text), 'a path of the machine that ran it'
    assert path.stem == 'index' or any(c.get('outputs') for c in nb['cells']), 'not executed'


def test_no_pickle():
    "Nothing in the package reads or writes a pickle"
    for path in (ROOT/'mlxvit').rglob('*.py'): assert not re.search(r'\bpickle\b|torch\.load\(|np\.load\(|joblib|\bdill\b', path.read_text(encoding='utf-8')), path


def test_the_shipped_models_name_how_they_were_made():
    "Every training and every mean behind a model has its command, its seed, and the machine that ran it"
    for config in (ROOT/'mlxvit'/'assets').rglob('config.json'):
        for made in stages(json.loads(config.read_text(encoding='utf-8'))['trained']):
            mean = made['command'].startswith('mlxvit average ')
            assert mean or made['command'].startswith('mlxvit train '), config
            assert {'seconds', 'cores', 'processor', *(() if mean else ('seed',))} <= set(made), config
        commands = [shlex.split(made['command']) for made in stages(json.loads(config.read_text(encoding='utf-8'))['trained'])]
        for i, words in enumerate(commands):
            begun = [words[words.index('--init')+1]] if '--init' in words else words[2:words.index('--out')] if words[1] == 'average' else []
            for name in begun: assert maker(name, commands[:i]), f'{config}: {name} is not the --out of an earlier command'


def maker(name, commands):
    "The command whose --out holds the model of that name: a folder, or `best` or `last` in it"
    return next((c for c in commands if Path(c[c.index('--out')+1]) in (Path(name), Path(name).parent)), None)


@pytest.mark.parametrize('config', sorted((ROOT/'mlxvit'/'assets').rglob('config.json')), ids=lambda p: p.parent.name)
def test_the_command_of_a_shipped_model_still_means_its_settings(config):
    "Typed today, with today's defaults, the recorded command asks for exactly the settings that the model was trained with; of a mean, the first run's"
    from mlxvit.cli import records, select
    from mlxvit.config import from_dict
    from mlxvit.caption_tasks import ALL_TASKS
    saved = json.loads(config.read_text(encoding='utf-8'))
    commands = [shlex.split(made['command']) for made in stages(saved['trained'])]
    while (words := commands.pop())[1] == 'average': commands = [*commands, maker(words[2], commands)]
    words, (home, lying) = words[1:], (os.environ.get('MLXVIT_DATA'), {n: saved['data'][n] for n in ('source', 'encoder')} if saved['task'] == 'photos' else {})
    if lying and not home: pytest.skip('what photographs decide about the model needs the photographs: set MLXVIT_DATA')
    there = {name: f'{home}/{name}' for name in lying.values()} # a record says what, not where
    words, saved['data'] = [there.get(w, w) for w in words], saved['data'] | {n: there[v] for n, v in lying.items()}
    _, flags = select(words)
    for part, record in records(ALL_TASKS[saved['task']], flags).items(): assert record == from_dict(type(record), saved[part]), part


def test_requirements_are_importable_without_the_dev_ones():
    "What the package imports at the top level is a requirement, not a dev requirement"
    wanted = set(re.findall(r'[a-z_]+', re.search(r'^requirements = (.*)$', (ROOT/'settings.ini').read_text(encoding='utf-8'), re.M)[1].lower())) | {'pil', 'yaml'}
    for path in (ROOT/'mlxvit').rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for n in names: assert n.split('.')[0].lower() in wanted | set(sys.stdlib_module_names) | {'mlxvit'}, (path, n)


# Encodings and the console

SOURCES = sorted([*(ROOT/'mlxvit').rglob('*.py'), *(ROOT/'tools').rglob('*.py'), ROOT/'setup.py', Path(__file__), *(ROOT/'tests').glob('fuzz*.py'), *(ROOT/'tests').glob('long_*.py')])
TEXT = {'open': 3, 'fdopen': 3, 'read_text': 0, 'write_text': 1, 'TextIOWrapper': 1, 'NamedTemporaryFile': 3, 'TemporaryFile': 3, 'SpooledTemporaryFile': 4} # name -> place of `encoding` among its arguments
OTHER_OPEN = {'Image', 'os', 'webbrowser', 'tarfile', 'wave', 'run'} # whose `open` is another function
RUN = {'run', 'Popen', 'check_output', 'check_call', 'call', 'getoutput'}


def mode(call, method):
    "The mode that an `open` is given, if it is written out"
    places = [a.value for a in call.args[0 if method else 1:][:1] if isinstance(a, ast.Constant)]
    return next((k.value.value for k in call.keywords if k.arg == 'mode' and isinstance(k.value, ast.Constant)), (places or ['r'])[0])


def local_encodings(source):
    "Lines that read or write text in whatever encoding the system has"
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call): continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, 'id', '')
        owner = getattr(node.func.value, 'id', '') if method else ''
        said = {k.arg for k in node.keywords}
        if 'encoding' in said or None in said: continue
        if name in RUN and said & {'text', 'universal_newlines'}: found.append(node.lineno)
        if name not in TEXT or name == 'open' and owner in OTHER_OPEN: continue
        if name in ('open', 'fdopen') and 'b' in str(mode(node, method and owner not in ('io', 'gzip', 'codecs') and name == 'open')): continue
        if name == 'open' and owner == 'gzip' and 't' not in str(mode(node, False)): continue
        if 'Temporary' in name and (('mode' not in said and not node.args) or 'b' in str(mode(node, True))): continue
        if len(node.args) > TEXT[name] - (name == 'open' and method and owner not in ('io', 'gzip')): continue
        found.append(node.lineno)
    return found


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_utf8_whatever_the_system_says(path):
    assert local_encodings(path.read_text(encoding='utf-8')) == []


def test_the_walk_sees_a_local_encoding():
    "The test above can fail: each way to forget an encoding, and none of the ways to say it"
    forgotten = """open(p)|open(p, 'w')|open(p, mode='a')|p.open()|p.open('w')|p.read_text()|p.write_text(t)|p.read_text(errors='replace')|os.fdopen(f, 'w')|io.open(p)|gzip.open(p, 'rt')
        subprocess.run(c, text=True)|subprocess.Popen(c, universal_newlines=True)|io.TextIOWrapper(b)|tempfile.NamedTemporaryFile('w')|check_output(c, text=True)"""
    said = """open(p, 'rb')|open(p, encoding='utf-8')|open(p, 'w', -1, 'utf-8')|p.open('wb')|p.open(encoding='utf-8')|p.read_text('utf-8')|p.write_text(t, 'utf-8')|p.write_text(t, encoding='utf-8')|os.fdopen(f, 'wb')
        gzip.open(p)|subprocess.run(c)|subprocess.run(c, text=True, encoding='utf-8')|Image.open(b)|os.open(p, 0)|tempfile.NamedTemporaryFile()|run.open(learner, False, 3)|open(p, **more)"""
    for line in forgotten.replace('\n', '|').split('|'): assert local_encodings(line.strip()), line
    for line in said.replace('\n', '|').split('|'): assert not local_encodings(line.strip()), line


def test_every_line_goes_through_the_console():
    "No module but `console` prints: what it prints might be somebody else's (see page 22h)"
    for path in (ROOT/'mlxvit').rglob('*.py'):
        if path.name == 'console.py': continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print': pytest.fail(f'{path}:{node.lineno} prints: use mlxvit.console.tell or complain')
            if isinstance(node, ast.Attribute) and node.attr in ('stdout', 'stderr') and getattr(node.value, 'id', '') == 'sys' and path.name != 'cli.py': pytest.fail(f'{path}:{node.lineno} writes to a stream')


# What is built and shipped

def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def tree(folder):
    "A copy of the sources without the large files of the models"
    large = shutil.ignore_patterns('.*', '_*', 'runs', 'build', 'dist', 'wandb', '*.egg-info', '__pycache__', '*.safetensors', '*.gz', '*.ipynb')
    shutil.copytree(ROOT, folder, ignore=lambda where, names: large(where, names) - {'_modidx.py', '__init__.py', '_quarto.yml'}, symlinks=True)
    return folder


def setup(folder, *words):
    done = subprocess.run([sys.executable, 'setup.py', '-q', *map(str, words)], cwd=folder, capture_output=True, text=True, encoding='utf-8', env={**os.environ, 'SOURCE_DATE_EPOCH': '1700000000', 'PYTHONPATH': ''})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_distribution_can_be_built_from(tmp_path):
    "Every file that building needs is in it, with all that the wheel holds (the whole way: tests/long_sdist.py)"
    setup(ROOT, 'egg_info', '--egg-base', tmp_path)
    names = set((tmp_path/'mlxvit.egg-info'/'SOURCES.txt').read_text(encoding='utf-8').splitlines())
    names = {n for n in names if '.egg-info/' not in n}
    wanted = {'setup.py', 'settings.ini', 'README.md', 'LICENSE', 'NOTICE', 'SECURITY.md', 'requirements.lock', 'Makefile'}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT/'mlxvit').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert not wanted - names, sorted(wanted - names)[:5]
    assert not [n for n in names if n.startswith(('/', '..', '.git', 'runs/', '_docs'))]
    for name in ('setup.py', 'settings.ini', 'README.md'): shutil.copy(ROOT/name, tmp_path/name)
    cfg = settings()
    assert setup(tmp_path, '--name', '--version').split() == [cfg['lib_name'], cfg['version']]


def test_two_builds_give_the_same_wheel(tmp_path):
    "Byte by byte, at another time and in another folder; with its licences"
    wheels = []
    for name in ('one', 'another'):
        folder = tree(tmp_path/name)
        for path in folder.rglob('*'): os.utime(path, (len(name), len(name)))
        setup(folder, 'bdist_wheel', '--dist-dir', tmp_path/f'{name}-wheel')
        wheels += (tmp_path/f'{name}-wheel').glob('*.whl')
    from zipfile import ZipFile
    inside = ZipFile(wheels[0]).namelist()
    for name in ('LICENSE', 'NOTICE', 'SECURITY.md'): assert [n for n in inside if n.endswith(f'dist-info/licenses/{name}')], inside[-9:]
    assert 'mlxvit/assets/mnist/LICENSE.md' in inside and not [n for n in inside if n.startswith(('tests', 'tools'))]
    one, another = (hashlib.sha256(w.read_bytes()).hexdigest() for w in wheels)
    assert one == another


def lock():
    "The pins of requirements.lock: name -> (version, hashes)"
    pins, name = {}, ''
    for line in (ROOT/'requirements.lock').read_text(encoding='utf-8').splitlines():
        if line.startswith('#') or not line.strip(): continue
        if m := re.fullmatch(r'([A-Za-z0-9._-]+)==(\S+) \\', line): name, pins[m[1]] = m[1], (m[2], [])
        elif m := re.fullmatch(r'    --hash=sha256:([0-9a-f]{64})(?: \\)?', line): pins[name][1].append(m[1])
        else: pytest.fail(f'not a pin, nor a hash: {line!r}') # an address, a path, an option
    return pins


def test_the_lock_satisfies_what_the_settings_ask_for():
    "Every requirement for Linux is pinned within its bounds, with hashes, and no address or path stands in the file"
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    pins = {canonicalize_name(n): p for n, p in lock().items()}
    linux = dict(sys_platform='linux', platform_machine='x86_64', python_version='3.11', extra='')
    wanted = [Requirement(r) for r in f"{settings()['requirements']} {settings()['dev_requirements']}".split()]
    for r in wanted:
        if r.marker and not r.marker.evaluate(linux): continue
        version, hashes = pins[canonicalize_name(r.name)]
        assert r.specifier.contains(version), f'{r} but {version} is locked: make lock'
    assert 'mlx-cpu' in pins and all(hashes for _, hashes in pins.values())


def test_every_bound_has_its_reason():
    "Each requirement is named in the comment above it, and the floors stay above the holes that are known"
    from packaging.requirements import Requirement
    text = (ROOT/'settings.ini').read_text(encoding='utf-8')
    reasons = text[text.index('# A lower bound is'):text.index('\nrequirements =')]
    wanted = [Requirement(r) for r in f"{settings()['requirements']} {settings()['dev_requirements']}".split()]
    for r in wanted:
        if str(r.specifier): assert r.name in reasons, r
    floors = dict(pillow='12.3', torch='2.12', timm='1.0.25', transformers='5.9', datasets='5.1', pyarrow='23.0.0', jupyterlab='4.6.1', nbconvert='7.17.0', pytest='9.0.2', tqdm='4.66.2', setuptools='78.1.0')
    for name, hole in floors.items(): assert not next(r for r in wanted if r.name == name).specifier.contains(hole), f'{name} {hole} has a known hole'


def test_windows_gets_mlx_and_its_library():
    "`mlx[cpu]` brings the library on Linux alone, so that it is named for Windows"
    from packaging.requirements import Requirement
    for system, names in (('win32', {'mlx', 'mlx-cpu'}), ('linux', {'mlx'}), ('darwin', {'mlx'})):
        machine = dict(sys_platform=system, platform_machine='AMD64')
        wanted = [Requirement(r) for r in settings()['requirements'].split() if r.startswith('mlx')]
        assert {r.name for r in wanted if r.marker.evaluate(machine)} == names


@pytest.mark.parametrize('path', sorted((ROOT/'.github'/'workflows').glob('*.yml')), ids=lambda p: p.name)
def test_workflows_have_few_rights(path):
    "Read access alone at the top; actions by commit, the version beside it; no credentials left; who deploys does nothing else"
    import yaml
    text = path.read_text(encoding='utf-8')
    flow = yaml.safe_load(text)
    assert flow['permissions'] == {'contents': 'read'}
    assert 'pull_request_target' not in text and '${{ github.event' not in text
    for line in text.splitlines():
        if 'uses:' in line: assert re.search(r'uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+(\.\d+)*$', line), line
    for name, job in flow['jobs'].items():
        for step in job['steps']:
            if 'actions/checkout@' in step.get('uses', ''): assert step['with']['persist-credentials'] is False
        if 'permissions' in job: assert name == 'deploy' and not [s for s in job['steps'] if 'run' in s or 'checkout' in s.get('uses', '')]


def test_no_registry_and_no_machine_is_named():
    "Where packages come from is the reader's choice, and no path of the machine that wrote a file is in it"
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, encoding='utf-8').stdout.splitlines()
    if not names: pytest.skip('not a clone')
    hosts = re.compile(rb'(pypi|pythonhosted)' + rb'\.org|download\.pytorch\.' + rb'org|registry\.npmjs\.' + rb'org|--(extra-)?index-' + rb'url[ =]|find-' + rb'links[ =]')
    for name in names:
        path = ROOT/name
        if path.is_file() and path.suffix not in ('.safetensors', '.gz', '.png'): assert not (m := hosts.search(path.read_bytes())), (name, m)
