"The live widgets of chapter 8 in a real JupyterLab: run the chapter, move a slider, draw a digit, see the pictures change"
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT/'nbs'/'2_many'/'08_widgets.ipynb'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
needs_browser = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: apt-get install chromium')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab with a copy of the chapter, on this machine, with its settings in a scratch folder"
    home = tmp_path_factory.mktemp('lab')
    shutil.copy(CHAPTER, home/'chapter.ipynb')
    tracker = home/'settings'/'@jupyterlab'/'notebook-extension'/'tracker.jupyterlab-settings'
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}') # draw every cell, whether in view or not
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {**os.environ, 'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'), 'JUPYTER_CONFIG_DIR': str(home/'config'), 'JUPYTER_RUNTIME_DIR': str(home/'run'), 'IPYTHONDIR': str(home/'ipython'), 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '2'}
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', f'--ServerApp.root_dir={home}', '--LabApp.news_url=', '--expose-app-in-browser'],
                              env=env, stdout=open(home/'log', 'w'), stderr=subprocess.STDOUT)
    url = f'http://127.0.0.1:{port}/'
    try:
        for _ in range(240):
            if server.poll() is not None: break
            try: urllib.request.urlopen(url+'api', timeout=2); break
            except OSError: time.sleep(0.5)
        assert server.poll() is None, (home/'log').read_text()
        yield url, home
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope='module')
def page(lab):
    "The chapter, opened and run to its end"
    from playwright.sync_api import sync_playwright
    url, home = lab
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.route('**/*', lambda r: r.continue_() if r.request.url.startswith((url, 'blob:', 'data:')) else r.abort())
        page.goto(url+'lab/tree/chapter.ipynb')
        page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=120_000)
        page.wait_for_function('window.jupyterapp && window.jupyterapp.shell.currentWidget && window.jupyterapp.shell.currentWidget.context && window.jupyterapp.shell.currentWidget.context.sessionContext.session', timeout=120_000)
        run = page.evaluate('window.jupyterapp.commands.execute("notebook:run-all-cells")')
        assert run is not False and page.locator('.jp-OutputArea-output[data-mime-type*="error"]').count() == 0
        yield page
        browser.close()


def differs(element, before, seconds=60):
    "Wait until an element looks different; True if it does"
    end = time.time()+seconds
    while time.time() < end:
        if element.screenshot() != before: return True
        time.sleep(0.3)
    return False


@needs_browser
def test_the_chapter_runs_to_its_end(page):
    failed = page.evaluate('''() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
        .filter(c => c.cell_type === "code" && (c.execution_count === null && c.source.trim() && !c.source.startsWith("#| default_exp") || c.getOutputs().some(o => o.output_type === "error"))).map(c => c.source)''')
    assert failed == []


@needs_browser
@pytest.mark.parametrize('name', ['image', 'block', 'head', 'patch'])
def test_a_slider_moves_the_picture(page, name):
    picture = page.locator('.widget-hbox:has(.widget-slider) img.widget-image').first
    slider = page.locator('.widget-slider', has_text=name).first
    picture.scroll_into_view_if_needed()
    before, said = picture.screenshot(), slider.locator('.widget-readout').inner_text()
    slider.locator('.noUi-handle').focus()
    page.keyboard.press('ArrowRight' if name != 'block' else 'ArrowUp')
    assert differs(picture, before), f'moving {name} changed nothing'
    assert slider.locator('.widget-readout').inner_text() != said


@needs_browser
def test_drawing_is_read_and_wiped(page):
    pad = page.locator('.jp-OutputArea canvas').first
    pad.scroll_into_view_if_needed()
    words = page.locator('.widget-hbox:has(canvas) .widget-label').first
    clear = page.locator('.widget-hbox:has(canvas) button').first
    clear.click()
    page.wait_for_function('e => e.innerText.includes("draw a digit")', arg=words.element_handle(), timeout=60_000)
    box = pad.bounding_box()
    at = lambda x, y: (box['x'] + x*box['width'], box['y'] + y*box['height'])
    page.mouse.move(*at(0.5, 0.15)); page.mouse.down()
    page.mouse.move(*at(0.5, 0.85), steps=20); page.mouse.up()
    page.wait_for_function('e => /^1, [0-9]+% sure$/.test(e.innerText.trim())', arg=words.element_handle(), timeout=60_000)
    picture = page.locator('.widget-hbox:has(canvas) img.widget-image').first
    assert picture.evaluate('i => i.naturalWidth') > 100
    clear.click()
    page.wait_for_function('e => e.innerText.includes("draw a digit")', arg=words.element_handle(), timeout=60_000)


@needs_browser
def test_saving_it_leaves_no_widget_state_after_cleaning(page, lab):
    url, home = lab
    page.evaluate('window.jupyterapp.commands.execute("docmanager:save")')
    saved = json.loads((home/'chapter.ipynb').read_text())
    assert any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for c in saved['cells'] for o in c.get('outputs', [])), 'the live file should hold widgets'
    subprocess.run([sys.executable, ROOT/'tools'/'clean.py', home/'chapter.ipynb'], check=True, cwd=ROOT)
    assert widgets_in(home/'chapter.ipynb') == []


def widgets_in(path):
    "What a notebook file holds of widgets: state in its metadata, views in its outputs"
    book = json.loads(Path(path).read_text())
    return [k for k in book['metadata'] if k == 'widgets'] + [m for c in book['cells'] for o in c.get('outputs', []) for m in o.get('data', {}) if 'widget' in m]


def test_a_saved_picture_stands_below_each_widget():
    cells = [c for c in json.loads(CHAPTER.read_text())['cells'] if c['cell_type'] == 'code']
    shown = [i for i,c in enumerate(cells) if ''.join(c['source']).split('\n')[-1] in ('browser', 'drawing')]
    assert len(shown) == 2 and widgets_in(CHAPTER) == []
    for i in shown: assert any('image/png' in o.get('data', {}) for o in cells[i+1]['outputs'])
