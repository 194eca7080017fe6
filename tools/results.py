"""From run folders to what is shipped and shown, in one command.

    python tools/results.py            # runs/NAME -> mlxvit/assets, then the pages with tables, and README.md
    python tools/results.py --assets   # only the first half

A run that is finished is examined (if it was not), and its weights or its record replace those in the package. A run
that is not there leaves what is shipped as it is. Then every page that shows results is executed again.
"""
import shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS, ASSETS = ROOT/'runs', ROOT/'mlxvit'/'assets'
MODELS = {'digit': 'ship', 'grid': 'grid2', 'layout': 'layout-z', 'layout-large': 'layout-large', 'reading': 'reading', 'scene': 'scene', 'photos': 'photos'} # shipped name -> run
RECORDS = ('heads-cls', 'heads-tokens', 'heads-mean', 'loss-plain', 'loss-weights', 'loss-focal', 'loss-both',
           'around-3', 'around-5', 'around-5p', 'digit-torch', 'digit-mlx', 'grid-torch', 'grid-mlx', 'layout-torch', 'layout-mlx', 'taught', 'paid', 'paid-c')
PAGES = ['2_many/06_grids', '2_many/07_layouts', '3_mlx/12_training', '4_caption/14_reading', '4_caption/21_recipe', '5_ship/22_caption_reader', '5_ship/22_results', 'index']


def mlxvit(*args): subprocess.run([shutil.which('mlxvit'), *map(str, args)], check=True, cwd=ROOT)


def take(run, target, *flags):
    "Examine a run and put its export in place of what is shipped"
    if not any((f/'config.json').exists() for f in (run/'best', run)): return print(f'{run.relative_to(ROOT)} is not here: {target.relative_to(ROOT)} stays as it is')
    if not (run/'metrics.json').exists(): mlxvit('evaluate', run.relative_to(ROOT))
    shutil.rmtree(target, ignore_errors=True)
    mlxvit('export', run.relative_to(ROOT), target.relative_to(ROOT), *flags)


def main():
    for name, run in MODELS.items(): take(RUNS/run, ASSETS/name)
    for name in RECORDS: take(RUNS/name, ASSETS/'records'/name, '--record')
    if '--assets' in sys.argv: return
    for page in PAGES: subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', ROOT/'nbs'/f'{page}.ipynb'], check=True)
    for tool in ('site.py readme', 'clean.py'): subprocess.run([sys.executable, *f'{ROOT}/tools/{tool}'.split()], check=True, cwd=ROOT)


if __name__ == '__main__': main()
