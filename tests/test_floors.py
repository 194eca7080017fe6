"""The floors of the house, proven on the imports: a module may import its own floor or one below, never above,
and the twins never import each other."""
import ast
from pathlib import Path
import pytest

PACKAGE = Path(__file__).resolve().parent.parent/'mlxvit'
FLOORS = [ # ground up; a name stands for a module or a folder of modules
    {'files', 'folders', 'records', 'image_files', 'data', 'config', 'text', 'sequences', 'images', 'plots', 'console'},
    {'torch', 'mlx', 'fit', 'tracking', 'checkpoint'},
    {'averages', 'convert', 'twins', 'encoders', 'features', 'generate', 'metrics', 'rewards', 'explore', 'widgets', 'tasks'},
    {'caption_tasks'},
    {'reader', 'caption_reader'},
    {'results'},
    {'cli', 'app', 'bench', 'caption_bench'},
]
FACE = {'__init__'} # may reach up, but only inside a function


def modules(): return sorted(p for p in PACKAGE.rglob('*.py') if p.name != '_modidx.py' and 'assets' not in p.parts)
def floor(name): return next((i for i,names in enumerate(FLOORS) if name.split('.')[0] in names), None)
def dotted(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imports(source, package):
    "Modules of mlxvit that a source imports, with whether the import stands at the top level; relative names resolved against `package`"
    tree, out = ast.parse(source), []
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package.split('.')[:len(package.split('.'))-node.level+1] if node.level else []
            names = [[*base, *(node.module.split('.') if node.module else [])]]
            if not node.module: names = [[*base, a.name] for a in node.names]
        elif isinstance(node, ast.Import): names = [a.name.split('.') for a in node.names]
        else: continue
        out += [('.'.join(n[1:]), id(node) in top) for n in names if n[0] == 'mlxvit' and len(n) > 1]
    return out


def climbs(path):
    "The imports of a module that run up, or across from twin to twin"
    own, package = dotted(path), '.'.join(['mlxvit', *path.relative_to(PACKAGE).parts[:-1]])
    found = imports(path.read_text(), package)
    if own in FACE: return [m for m,top in found if top]
    up = [m for m,_ in found if floor(m) is not None and floor(own) is not None and floor(m) > floor(own)]
    twin = {'torch': 'mlx', 'mlx': 'torch'}.get(own.split('.')[0])
    return up + [m for m,_ in found if m.split('.')[0] == twin]


@pytest.mark.parametrize('path', modules(), ids=dotted)
def test_no_import_runs_up(path): assert climbs(path) == []


def test_every_module_has_a_floor():
    homeless = [dotted(p) for p in modules() if p.name != '__init__.py' and floor(dotted(p)) is None]
    assert homeless == []


def test_the_ground_knows_no_framework():
    for path in modules():
        if floor(dotted(path)) == 0 or dotted(path) in ('fit', 'tracking', 'checkpoint'):
            names = {a.name.split('.')[0] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module.split('.')[0] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
            assert not names & {'torch', 'mlx'}, path


def test_the_walk_sees_an_import_that_climbs(tmp_path):
    "The proof can fail: an import up, in each way of writing it"
    for line in ('from mlxvit.cli import main', 'import mlxvit.cli', 'from .cli import main', 'from . import cli', 'def f():\n    from .cli import main'):
        assert [m for m,_ in imports(line, 'mlxvit')] == ['cli'], line
    assert imports('from ..config import ViTConfig', 'mlxvit.torch') == [('config', True)]
