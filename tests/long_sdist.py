"""From the sdist to an answer: sdist -> wheel -> a fresh environment -> `mlxvit predict digit x.png`.

    python tests/long_sdist.py     # about a minute; part of `make long`

The libraries are those of this environment; mlxvit itself is the built one. Both wheels, of the tree
and of the sdist, must be equal byte by byte.
"""

import hashlib, os, shutil, subprocess, sys, sysconfig, tarfile, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EPOCH = '1700000000'  # any fixed second: the time of all files in a wheel
NOT_OURS = ('.git', '.venv', '_docs', '_proc', 'build', 'dist', 'runs', '*.egg-info', '__pycache__')


def run(*words, cwd, **environment) -> str:
    "Run a program, and return what it says"
    env = {**os.environ, 'SOURCE_DATE_EPOCH': EPOCH, **environment}
    words = list(map(str, words))
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8')
    if done.returncode:
        sys.exit(f'{" ".join(words)} failed:\n{done.stdout}{done.stderr}')
    return done.stdout.strip()


def build(kind: str, source: Path, out: Path) -> Path:
    "Build an sdist or a wheel of a folder"
    run(sys.executable, '-m', 'build', f'--{kind}', '--no-isolation', '-o', out, source, cwd=source)
    return next(out.iterdir())


def environment(folder: Path, wheel: Path) -> Path:
    "A fresh environment with the wheel, and the libraries of this one behind; returns its programs"
    run(sys.executable, '-m', 'venv', folder, cwd=folder.parent)
    here = sysconfig.get_path('purelib')
    scheme = dict(vars={'base': str(folder), 'platbase': str(folder)})
    there = Path(sysconfig.get_path('purelib', 'venv', **scheme))
    (there / 'libraries.pth').write_text(f'{here}\n', encoding='utf-8')
    programs = Path(sysconfig.get_path('scripts', 'venv', **scheme))
    run(
        programs / 'python',
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--no-index',
        wheel,
        cwd=folder.parent,
    )
    return programs


def picture(path: Path) -> Path:
    "A seven, drawn with a thick pen"
    from PIL import Image, ImageDraw

    page = Image.new('RGB', (200, 200), 'white')
    ImageDraw.Draw(page).line([(60, 40), (140, 40), (90, 170)], fill='black', width=14)
    page.save(path)
    return path


def main():
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        tree = Path(shutil.copytree(ROOT, home / 'tree', ignore=shutil.ignore_patterns(*NOT_OURS)))
        sdist, first = build('sdist', tree, home / 'sdist'), build('wheel', tree, home / 'first')
        with tarfile.open(sdist) as archive:
            archive.extractall(home / 'unpacked', filter='data')
        (source,) = (home / 'unpacked').iterdir()
        second = build('wheel', source, home / 'second')
        sums = [hashlib.sha256(w.read_bytes()).hexdigest() for w in (first, second)]
        print(
            f'{sdist.name}: {sdist.stat().st_size/1e6:.1f} MB; {first.name}: {first.stat().st_size/1e6:.1f} MB, {sums[0]}'
        )
        if sums[0] != sums[1]:
            sys.exit(f'the wheel of the sdist differs: {sums[1]}')
        programs = environment(home / 'venv', second)
        where = run(
            programs / 'python',
            '-c',
            'import mlxvit; print(mlxvit.__file__)',
            cwd=home,
            PYTHONPATH='',
        )
        if not where.startswith(str(home / 'venv')):
            sys.exit(f'another mlxvit answered: {where}')
        answer = run(
            programs / 'mlxvit',
            'predict',
            'digit',
            picture(home / 'x.png').name,
            cwd=home,
            PYTHONPATH='',
        )
        print(answer)
        if not answer.startswith('x.png: 7 '):
            sys.exit('a seven was not read')
    print('sdist -> wheel -> mlxvit predict: 3 passed, 0 failed')


if __name__ == '__main__':
    main()
