"""Make the site and the README from the notebooks.

    python tools/site.py            nbdev's processing, then Quarto where it is installed, else smalldocs: into _docs/
    python tools/site.py readme     README.md from nbs/index.ipynb

Both renderers read the one _quarto.yml. Formulas become MathML, which browsers draw without a network.
"""
import html, json, re, shutil, subprocess, sys
from pathlib import Path
import yaml
from latex2mathml.converter import convert
from nbconvert import MarkdownExporter
from nbdev.serve import proc_nbs
from nbformat import read

ROOT = Path(__file__).resolve().parent.parent
REPO = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['repo-url']
SMALLDOCS = Path(sys.executable).with_name('smalldocs')
COLAB = 'https://colab.research.google.com/github/' + REPO.removeprefix('https://github.com/') + '/blob/main/nbs/'


def process() -> Path:
    "nbdev's processing of all notebooks, with a Colab link on each; returns its folder"
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)
    folder = proc_nbs(str(ROOT/'nbs'), force=True)
    for path in folder.rglob('*.ipynb'): add_colab(path, path.relative_to(folder).as_posix())
    shutil.copy(ROOT/'_quarto.yml', folder/'_quarto.yml')
    return folder


def add_colab(path: Path, name: str):
    "Put an 'Open in Colab' link into a page's front matter"
    nb = json.loads(path.read_text(encoding='utf-8'))
    links = {'code-links': [{'text': 'Open in Colab', 'icon': 'play-circle', 'href': COLAB+name}]}
    first = nb['cells'][0]
    front = yaml.safe_load(''.join(first['source']).strip().strip('-')) if first['cell_type'] == 'raw' else {}
    cell = dict(cell_type='raw', id='front', metadata={}, source='---\n' + yaml.safe_dump({**front, **links}, allow_unicode=True) + '---\n')
    nb['cells'] = [cell, *(nb['cells'][1:] if first['cell_type'] == 'raw' else nb['cells'])]
    path.write_text(json.dumps(nb), encoding='utf-8')


def api_index(folder: Path):
    "A page that lists the modules with their first lines"
    rows = []
    for page in sorted(folder.glob('*.qmd')):
        meta = yaml.safe_load(page.read_text(encoding='utf-8').split('---')[1])
        rows.append(f"| [`{meta['title']}`]({page.name}) | {meta.get('description', '')} |")
    (folder/'index.qmd').write_text('---\ntitle: The modules\norder: 0\n---\n\n| module | what it is for |\n| --- | --- |\n' + '\n'.join(rows) + '\n', encoding='utf-8')


def mathml(page: str) -> str:
    "Replace TeX, as KaTeX would find it, by MathML, and drop KaTeX itself"
    def formula(m): return convert(html.unescape(m[3]).strip(), display='block' if m[2] == '[' else 'inline')
    page = re.sub(r'<span class="math (inline|display)">\\([(\[])(.*?)\\[)\]]</span>', formula, page, flags=re.S)
    return re.sub(r'\s*<(script|link)[^>]*katex[^>]*>(.*?</script>)?', '', page, flags=re.S)


def build():
    "The whole site, into _docs"
    folder = process()
    subprocess.run([SMALLDOCS, 'api', 'build', '--dir', folder], check=True, cwd=ROOT)
    api_index(folder/'api')
    if shutil.which('quarto'): subprocess.run(['quarto', 'render', '--no-execute'], check=True, cwd=folder)
    else:
        subprocess.run([SMALLDOCS, 'render', folder], check=True, cwd=ROOT)
        for page in (folder/'_docs').rglob('*.html'): page.write_text(mathml(page.read_text(encoding='utf-8')), encoding='utf-8')
    shutil.rmtree(ROOT/'_docs', ignore_errors=True)
    shutil.move(folder/'_docs', ROOT/'_docs')
    print(f"{len(list((ROOT/'_docs').rglob('*.html')))} pages in _docs")


def readme():
    "README.md from nbs/index.ipynb: its Markdown, and its code with plain outputs; hidden cells left out"
    nb = read(ROOT/'nbs'/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(hide|export|default_exp)', c.source)]
    nb.metadata['language_info'] = {'name': 'python'}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'\]\((?!https?:|#)([^)]+)\)', lambda m: f'](nbs/{m[1]})' if m[1].endswith('.ipynb') else m[0], text)
    (ROOT/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', encoding='utf-8', newline='\n')


if __name__ == '__main__': {'readme': readme, 'site': build}[(sys.argv[1:] or ['site'])[0]]()
