"The package as a whole: light to import, documented, typed, clean, and made from the notebooks"
import ast, importlib, inspect, json, os, re, shlex, subprocess, sys
from pathlib import Path
import pytest
from mlxvit.averages import stages

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted('mlxvit.'+'.'.join(p.relative_to(ROOT/'mlxvit').with_suffix('').parts) for p in (ROOT/'mlxvit').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))


def test_importing_loads_no_framework():
    "`import mlxvit` pulls in neither a framework nor NumPy, so it cannot be slow"
    code = 'import sys, mlxvit; print([m for m in ("torch", "mlx", "numpy", "matplotlib", "PIL") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


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
    nb = json.loads(path.read_text())
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
    for path in (ROOT/'mlxvit').rglob('*.py'): assert not re.search(r'\bpickle\b|torch\.load\(|np\.load\(|joblib|\bdill\b', path.read_text()), path


def test_the_shipped_models_name_how_they_were_made():
    "Every training and every mean behind a model has its command, its seed, and the machine that ran it"
    for config in (ROOT/'mlxvit'/'assets').rglob('config.json'):
        for made in stages(json.loads(config.read_text())['trained']):
            mean = made['command'].startswith('mlxvit average ')
            assert mean or made['command'].startswith('mlxvit train '), config
            assert {'seconds', 'cores', 'processor', *(() if mean else ('seed',))} <= set(made), config
        commands = [shlex.split(made['command']) for made in stages(json.loads(config.read_text())['trained'])]
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
    saved = json.loads(config.read_text())
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
    wanted = set(re.findall(r'[a-z_]+', re.search(r'^requirements = (.*)$', (ROOT/'settings.ini').read_text(), re.M)[1].lower())) | {'pil', 'yaml'}
    for path in (ROOT/'mlxvit').rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for n in names: assert n.split('.')[0].lower() in wanted | set(sys.stdlib_module_names) | {'mlxvit'}, (path, n)
