"""Clean the notebooks for git: nbdev_clean, then no widgets, which some viewers cannot draw and no reader can move.

    python tools/clean.py [NOTEBOOK ...]     # none: all of nbs/
"""
import json, sys
from pathlib import Path
from nbdev.clean import nbdev_clean

VIEW = 'application/vnd.jupyter.widget-view+json'

named = [Path(a) for a in sys.argv[1:]]
for path in named or [None]: nbdev_clean.__wrapped__(fname=path)
for path in named or (Path(__file__).resolve().parent.parent/'nbs').rglob('*.ipynb'):
    if '.ipynb_checkpoints' in path.parts: continue
    nb = json.loads(path.read_text(encoding='utf-8'))
    before = json.dumps(nb)
    nb['metadata'].pop('widgets', None)
    for cell in nb['cells']:
        if 'outputs' in cell: cell['outputs'] = [o for o in cell['outputs'] if VIEW not in o.get('data', {})]
    if json.dumps(nb) != before: path.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
