"""Write requirements.lock: the versions installed here, and the hashes of their files.

    python tools/lock.py     # wants `uv` (pip install uv); read the difference before committing it

For Python 3.11 (3.11.5 or later) on Linux x86_64, everything in settings.ini, the development tools too.
No address of an index and no path of this machine stands in it, so pip takes each file from wherever it
is set up to, and refuses other bytes:
`pip install --require-hashes -r requirements.lock && pip install -e . --no-deps --no-build-isolation`.
"""

import re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / 'requirements.lock'
HEAD = '''# Written by `make lock` (tools/lock.py): Python 3.11, Linux x86_64, requirements and dev_requirements of settings.ini.
# pip install --require-hashes -r requirements.lock && pip install -e . --no-deps --no-build-isolation
'''
FOREIGN = re.compile(
    r'https?:|file:|(^|\s)-|@ |/'
)  # an address, a path or an option, which no lock of ours has


def wanted() -> list[str]:
    "What settings.ini asks for, a requirement each"
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    cfg = ini['DEFAULT']
    return [*cfg['requirements'].split(), *cfg['dev_requirements'].split()]


def installed() -> list[str]:
    "The versions in this environment, as constraints"
    pins = {d.metadata['Name']: d.version for d in distributions()}
    return sorted(f'{name}=={version}' for name, version in pins.items() if name != 'mlxvit')


def compile_lock(folder: Path) -> str:
    "What uv makes of both: pins with hashes"
    (folder / 'wanted.in').write_text('\n'.join(wanted()) + '\n', encoding='utf-8')
    (folder / 'installed.txt').write_text('\n'.join(installed()) + '\n', encoding='utf-8')
    command = [
        shutil.which('uv') or 'uv',
        'pip',
        'compile',
        'wanted.in',
        '--constraints',
        'installed.txt',
    ]
    command += ['--python-version', '3.11.5', '--python-platform', 'x86_64-manylinux_2_35']
    command += [
        '--generate-hashes',
        '--no-header',
        '--no-annotate',
        '--no-emit-index-url',
        '--no-emit-find-links',
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        text = compile_lock(Path(folder))
    pins = [line for line in text.splitlines() if '--hash=' not in line]
    if strange := [line for line in pins if FOREIGN.search(line.removesuffix(' \\'))]:
        sys.exit(f'an address or a path in the lock: {strange[:3]}')
    LOCK.write_text(HEAD + text, encoding='utf-8', newline='\n')
    print(f'{len(pins)} packages in {LOCK.name}')


if __name__ == '__main__':
    main()
