"Installs what settings.ini describes: the one place where name, version and requirements are written down"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

ROOT = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=['='])
with open(ROOT/'settings.ini', encoding='utf-8') as settings: ini.read_file(settings) # one that is missing is told as such
cfg = ini['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE', 'SECURITY.md'],
    long_description=(ROOT/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=['Programming Language :: Python :: 3'],
    packages=find_packages(include=['mlxvit', 'mlxvit.*']), package_data={'mlxvit': ['assets/**/*']},
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['mlxvit=mlxvit._modidx:d']},
)
