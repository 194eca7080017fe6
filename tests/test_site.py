"The built site in a real browser: every page, the search, the theme, the links, the formulas"
import functools, http.server, os, re, shutil, subprocess, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
CHAPTERS = sorted(p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: apt-get install chromium')


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def docs(tmp_path_factory):
    "The site, built in a copy of the tree"
    tree = tmp_path_factory.mktemp('site')/'tree'
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for n in names:
        if not (ROOT/n).exists(): continue
        (tree/n).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/n, tree/n, follow_symlinks=False)
    p = subprocess.run([sys.executable, 'tools/site.py'], cwd=tree, capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(tree)})
    assert p.returncode == 0, p.stdout+p.stderr
    assert 'broken link' not in p.stdout+p.stderr, p.stdout+p.stderr
    return tree/'_docs'


@pytest.fixture(scope='module')
def site(docs):
    "The site, served on this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(docs)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


@pytest.fixture
def page(browser, site):
    "A page that keeps the console's complaints about our own files, and reaches nothing but our server"
    context = browser.new_context(color_scheme='light')
    page = context.new_page()
    page.complaints = []
    page.route('**/*', lambda r: r.continue_() if r.request.url.startswith(site) else r.abort())
    ours = lambda m: (m.location or {}).get('url', '').startswith(site) or not (m.location or {}).get('url')
    page.on('console', lambda m: page.complaints.append(m.text) if m.type == 'error' and ours(m) else None)
    page.on('pageerror', lambda e: page.complaints.append(str(e)))
    yield page
    context.close()


class Links(HTMLParser):
    "The links and anchors of a page"
    def __init__(self, text): super().__init__(); self.links, self.anchors = [], set(); self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        for key in ('id', 'name'):
            if a.get(key): self.anchors.add(a[key])
        for key in ('href', 'src'):
            if a.get(key): self.links.append(a[key])


def test_every_chapter_is_a_page(docs):
    assert [c for c in CHAPTERS if not (docs/c).exists()] == []
    assert (docs/'api'/'config.html').exists()


def test_no_broken_internal_link(docs):
    pages, broken = {p: Links(p.read_text()) for p in docs.rglob('*.html')}, []
    for path,page in pages.items():
        for link in page.links:
            if re.match(r'[a-z]+:|//', link): continue
            file, anchor = urldefrag(link)
            target = (path.parent/unquote(file)).resolve() if file else path
            if target.is_dir(): target = target/'index.html'
            if not target.exists() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors): broken.append((path.relative_to(docs).as_posix(), link))
    assert broken == []


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_a_page_loads_without_an_error_of_ours(page, site, chapter):
    assert page.goto(site+chapter).ok
    page.wait_for_load_state('load')
    assert page.title() and page.locator('main h1, header h1').count() >= 1
    assert page.complaints == []
    page.evaluate("document.querySelectorAll('pre, code').forEach(e => e.remove())") # a regular expression is no formula
    text = page.inner_text('body')
    assert not re.search(r'\\\(|\\\[|\$\$|\\frac|\\sqrt', text), 'a formula that was not drawn'


def test_formulas_are_drawn(page, site):
    page.goto(site+'1_digit/03_attention.html')
    boxes = [m.bounding_box() for m in page.locator('math').all()]
    assert len(boxes) >= 3 and all(b['width'] > 4 and b['height'] > 4 for b in boxes)


def test_search_finds_patchify(page, site):
    page.goto(site+'index.html')
    page.keyboard.press('/')
    box = page.locator('input[type=search], input.aa-Input, #quarto-search input, .smalldocs-search input').first
    box.wait_for(state='visible', timeout=10_000)
    box.fill('patchify')
    hit = page.locator('a[href*="02_patches"]:visible, a[href*="api/patches"]:visible').filter(has_text=re.compile('patch', re.I)).first
    hit.wait_for(state='visible', timeout=15_000)
    with page.expect_navigation(): hit.click()
    assert 'patches' in page.url and page.locator('text=patchify').count() > 0
    assert page.complaints == []


def test_the_theme_toggles_and_is_remembered(page, site):
    background = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
    page.goto(site+'1_digit/02_patches.html')
    light = background()
    page.locator('.quarto-color-scheme-toggle:visible').first.click()
    page.wait_for_function('before => getComputedStyle(document.body).backgroundColor !== before', arg=light, timeout=5_000)
    dark = background()
    brightness = lambda c: sum(map(int, re.findall(r'\d+', c)[:3]))
    assert brightness(dark) < 300 < brightness(light)
    page.goto(site+'1_digit/03_attention.html')
    page.wait_for_timeout(300)
    assert background() == dark
    for text in ('main p', '#quarto-sidebar a.sidebar-item-text', '#TOC a'): assert contrast(page, text) > 3, text


CONTRAST = """selector => {
    const rgb = c => c.match(/[\\d.]+/g).map(Number), lum = c => { const f = v => (v /= 255) <= 0.03928 ? v/12.92 : ((v+0.055)/1.055)**2.4; return 0.2126*f(c[0]) + 0.7152*f(c[1]) + 0.0722*f(c[2]) };
    let e = [...document.querySelectorAll(selector)].find(e => e.offsetParent), ink = lum(rgb(getComputedStyle(e).color)), paper = null;
    for (; e && paper === null; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) paper = lum(c) }
    return (Math.max(ink, paper) + 0.05)/(Math.min(ink, paper) + 0.05) }"""


def contrast(page, selector):
    "WCAG contrast of the first visible match against what is painted behind it"
    return page.evaluate(CONTRAST, selector)


def test_a_chapter_has_what_a_reader_needs(page, site):
    "Code shown, contents, previous and next, source, Colab, pictures"
    page.goto(site+'1_digit/02_patches.html')
    assert 'def patchify' in page.inner_text('main')
    assert page.locator('nav#TOC a, #TOC a').count() >= 5
    assert page.locator('.nav-page-previous a').get_attribute('href').endswith('01_mnist.html')
    assert page.locator('.nav-page-next a').get_attribute('href').endswith('03_attention.html')
    assert page.locator('a[href^="https://colab.research.google.com/github/"][href$="1_digit/02_patches.ipynb"]').count() >= 1
    assert page.locator('a[href*="/blob/main/nbs/1_digit/02_patches.ipynb"]').count() >= 1
    assert page.locator('main img').count() >= 2


def test_the_api_links_to_the_source(page, site):
    for twin in ('torch', 'mlx'): # both have a module of this name
        page.goto(f'{site}api/mlxvit.{twin}.patches.html')
        assert page.locator(f'a[href*="/blob/main/mlxvit/{twin}/patches.py#L"]').count() >= 2
        assert 'side P of a patch' in page.inner_text('main')
