"""Mutated files into every reader: what comes back is an answer, or an error in one line; never anything else.

    python tests/fuzz.py --mutations 20000            # `make fuzz`; prints inputs tried and faults by kind
    python tests/fuzz.py --only 0:1234                # one input again, with its traceback
    python tests/fuzz.py --kinds yaml table --mutations 500 --seed 7

An input is read in a process apart, in memory, through the package's own functions. It is a fault when it ends in an
error that is no ValueError, OSError or ImportError, or in one without words or of several lines; when it takes more than
10 s or 1 GB; when the process dies; and when a file had code run, a pickle opened, the network asked, another program
started, or a file outside read. Input number i of seed s is the same on every machine: `--only s:i`.
"""
import argparse, base64, collections, contextlib, io, json, os, random, resource, selectors, shutil, signal, socket, sys, tempfile, time, traceback
from pathlib import Path
import fuzz_mutations as damage

SECONDS, MEGABYTES = 10, 1000 # that one input may take, above what the process had before
OWN = (ValueError, OSError, ImportError)
SILENT = ('pickle.find_class', 'socket.connect', 'socket.bind', 'socket.getaddrinfo', 'socket.gethostbyname', 'os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen') # never while a file is read
PAYLOAD = 'fuzz_payload' # a module that only a hostile file names
SECRET = 'secret' # begins the name of files that no input may read


class TooSlow(BaseException):
    "An input took longer than it may"


class Fault(Exception):
    "A promise that was broken without an error"


# ---- the files that are mutated

def make_bases(home: Path):
    "One good file of every kind; the shipped models are taken as they are"
    from mlxvit import cli
    from mlxvit.data.photos import as_jpeg, draw_shapes, write_parquet
    from mlxvit.features import Writer
    import numpy as np
    small = '--data.limit 640 --data.valid 100 --model.dim 16 --model.heads 2 --model.depth 1 --epochs 1 --quiet --framework torch'
    with contextlib.redirect_stdout(io.StringIO()): assert cli.main(f'train digit --out {home}/run {small}'.split()) == 0
    images, captions = draw_shapes(4, seed=1, size=32)
    stored, names = [as_jpeg(i) for i in images], [f'{i}.jpg' for i in range(4)]
    rows = [dict(image=n, captions=c) for n, c in zip(names, captions)]
    karpathy = dict(images=[dict(filename=n, split='train', sentences=[dict(raw=t) for t in c]) for n, c in zip(names, captions)])
    coco = dict(images=[dict(id=i, file_name=n) for i, n in enumerate(names)], annotations=[dict(image_id=i, caption=t) for i, c in enumerate(captions) for t in c])
    tables = {'t.csv': 'image,captions\n' + ''.join(f'{r["image"]},"{r["captions"][0]}"\n' for r in rows), 't.jsonl': '\n'.join(map(json.dumps, rows)) + '\n', 't.json': json.dumps(rows),
              'dataset_x.json': json.dumps(karpathy), 'captions_train2014.json': json.dumps(coco), 'captions.txt': 'image,caption\n' + ''.join(f'{r["image"]},{t}\n' for r in rows for t in r['captions']),
              'Flickr8k.token.txt': ''.join(f'{r["image"]}#{i}\t{t}\n' for r in rows for i, t in enumerate(r['captions']))}
    for name, text in tables.items():
        folder = home/'tables'/name
        folder.mkdir(parents=True)
        (folder/name).write_text(text, encoding='utf-8')
        for n, raw in zip(names, stored): (folder/n).write_bytes(raw)
    write_parquet(home/'tables'/'train.parquet', stored, captions)
    with Writer(home/'f.features', dict(encoder='x'), (4, 2, 3)) as writer: writer.append(np.arange(24, dtype='<f2').reshape(4, 2, 3))
    formats = ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM')
    (home/'images').mkdir()
    for kind in formats: images[0].resize((64, 48)).save(home/'images'/f'x.{kind.lower()}', kind)
    make_foreign(home/'foreign')


def make_foreign(home: Path):
    "Folders of other libraries"
    import transformers as hf
    tiny = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    hf.utils.logging.disable_progress_bar()
    models = dict(vit=hf.ViTForImageClassification(hf.ViTConfig(**tiny, num_labels=2)), dinov2=hf.Dinov2Model(hf.Dinov2Config(**{k: v for k, v in tiny.items() if k != 'intermediate_size'}, mlp_ratio=2)), clip=hf.CLIPVisionModel(hf.CLIPVisionConfig(**tiny)))
    for name, model in models.items():
        model.save_pretrained(home/name)
        (home/name/'preprocessor_config.json').write_text(json.dumps(dict(image_processor_type='ViTImageProcessor', do_resize=True, size=dict(height=8, width=8), do_rescale=True, rescale_factor=1/255, do_normalize=True, image_mean=[.5]*3, image_std=[.5]*3, resample=2)), encoding='utf-8')
    import timm
    from safetensors.torch import save_file
    args = dict(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    (home/'timm').mkdir()
    save_file(timm.create_model('vit_tiny_patch16_224', num_classes=2, **args).state_dict(), home/'timm'/'model.safetensors')
    (home/'timm'/'config.json').write_text(json.dumps(dict(architecture='vit_tiny_patch16_224', num_classes=2, model_args=args)), encoding='utf-8')


# ---- kinds of inputs: each writes its files into `here`, and returns what reads them

KINDS = {} # name -> (weight, function of rng, bases, here)

def kind(weight: int):
    def add(f):
        KINDS[f.__name__] = (weight, f)
        return f
    return add


MUTATORS = {'.safetensors': damage.mutate_safetensors, '.json': damage.mutate_json, '.jsonl': damage.mutate_lines}


def copied(source: Path, target: Path) -> Path:
    "A folder with links to the files of another, so that one of them can be replaced"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file(): os.symlink(path, target/path.name)
    return target


def replaced(rng: random.Random, path: Path):
    "Put a damaged file in place of a link"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(MUTATORS.get(path.suffix, damage.mutate_bytes)(rng, data))


def signed(folder: Path):
    "Make the sums of a checkpoint anew, as an attacker would"
    from hashlib import sha256
    names = [n for n in ('model.safetensors', 'config.json', 'tokenizer.json', 'optimizer.safetensors', 'state.json', 'metrics.jsonl') if (folder/n).is_file()]
    (folder/'SHA256SUMS').unlink()
    (folder/'SHA256SUMS').write_text(''.join(f'{sha256((folder/n).read_bytes()).hexdigest()}  {n}\n' for n in names), encoding='utf-8')


def nothing(*_, **__): raise ValueError('training would begin here')


def say(*words, begins: bool = True):
    "What a command does, without `main`, which would hide what kind of error it was; or only up to where its work begins"
    from unittest.mock import patch
    from mlxvit import cli
    with contextlib.redirect_stdout(io.StringIO()), patch.object(cli, 'choose_framework', cli.choose_framework if begins else nothing):
        call, flags = cli.select([str(w) for w in words])
        call(flags)


@kind(6)
def checkpoint(rng, bases, here):
    "Any file of a checkpoint, shipped or of a run, its sums made anew; loaded, asked, exported, averaged, listed"
    from mlxvit.reader import ASSETS, load
    name = rng.choice(['digit', 'grid', 'scene', 'scene', 'layout', 'run', 'run', 'run'])
    folder = copied(bases/'run'/'last' if name == 'run' else ASSETS/name, here/'m')
    spoilt = rng.choice(sorted(p for p in folder.iterdir() if p.name != 'metrics.json'))
    replaced(rng, spoilt)
    if spoilt.name != 'SHA256SUMS' and rng.random() < 0.95: signed(folder)
    framework = 'mlx' if rng.random() < 0.2 else 'torch'
    picture = bases/'images'/'x.png'
    if name == 'run' and rng.random() < 0.3: # as the last checkpoint of a run that is resumed
        (here/'r').mkdir()
        folder.rename(here/'r'/'last')
        return lambda: say('train', 'digit', '--resume', '--out', here/'r', '--quiet')
    how = rng.random()
    if how < 0.1: return lambda: say('export', folder, here/'out')
    if how < 0.15: return lambda: say('average', folder, 'digit', '--out', here/'out')
    if how < 0.2: return lambda: say('train', 'digit', '--init', folder, '--out', here/'new', '--data.limit', 640, '--quiet')
    if name == 'scene': return lambda: load(folder, framework).caption(picture, 2)
    return lambda: load(folder, framework).predict(picture)


@kind(2)
def record(rng, bases, here):
    "A run or a record in a table: settings, log, scores"
    from mlxvit.reader import ASSETS
    from mlxvit.results import results_table
    name = rng.choice(['digit', 'grid', 'layout', 'photos', 'scene', 'reading', 'records/taught', 'records/heads-cls'])
    folder = copied(ASSETS/name, here/'m')
    replaced(rng, rng.choice([folder/n for n in ('config.json', 'metrics.json', 'metrics.jsonl') if (folder/n).is_file()]))
    return lambda: results_table([folder])


@kind(1)
def features(rng, bases, here):
    "Features in a file, and their record"
    from mlxvit.features import Features
    for name in ('f.features', 'f.json'): shutil.copy(bases/name, here/name)
    replaced(rng, here/rng.choice(['f.features', 'f.json', 'f.json']))
    def read():
        found = Features(here/'f.features')
        found[0], found[:2]
        found.verify()
    return read


@kind(4)
def table(rng, bases, here):
    "Photographs with captions, in every layout"
    from mlxvit.data.photos import load_photos
    name = rng.choice(sorted(p.name for p in (bases/'tables').iterdir() if p.is_dir()))
    folder = copied(bases/'tables'/name, here/'set')
    (here/f'{SECRET}.jpg').write_bytes((bases/'tables'/'t.csv'/'0.jpg').read_bytes())
    os.symlink(here/f'{SECRET}.jpg', folder/'link.jpg')
    os.mkfifo(folder/'fifo')
    file = folder/name if name != 'train.parquet' else next(folder.glob('*.parquet'))
    mutate = damage.mutate_bytes if name == 'train.parquet' else damage.mutate_table if rng.random() < 0.5 or name.endswith(('.csv', '.txt')) else MUTATORS[file.suffix]
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(parquet(rng) if name == 'train.parquet' and rng.random() < 0.5 else mutate(rng, data))
    def read():
        photos = load_photos(str(folder), 'train', progress=False, cache=str(here/'cache'))
        for i in range(min(3, len(photos))): photos.image(i)
    return read


def parquet(rng) -> bytes:
    "A Parquet file whose columns are of odd types, whose cells name other files, or which unpacks to far more than it is"
    import pyarrow as pa, pyarrow.parquet as pq
    jpeg = b'\xff\xd8\xff\xe0'
    cell = lambda: dict(bytes=rng.choice([None, b'', jpeg, b'\0'*100]), path=rng.choice([None, *damage.NAMES]))
    images = [[cell() for _ in range(3)], ['0.jpg', rng.choice(damage.NAMES), '1.jpg'], [jpeg, b'', None], [1, 2, 3], [None]*3, [[1], [2], [3]], [dict(src='/etc/passwd')]*3]
    said = [[['a', 'b']]*3, ['a', 'b', 'c'], [None]*3, [[None, 'a']]*3, [1.5, float('nan'), 2.], [[[['a']]]]*3, [dict(text='a')]*3, ['x'*10**6]*3, [True]*3, [[]]*3, [b'\xff']*3]
    rows = dict(image=rng.choice(images), captions=rng.choice(said), split=rng.choice([['train']*3, [None]*3, ['\x1b[2J']*3, [1, 2, 3]]))
    if rng.random() < 0.05: rows = dict(image=['0.jpg']*2000, captions=['x'*10**6]*2000, split=['train']*2000) # 2 GB
    for name in list(rows):
        if rng.random() < 0.1: rows[rng.choice(['Image', ' image', 'caption', '\x1b[2J', 'text', 'file_name'])] = rows.pop(name)
    file = io.BytesIO()
    pq.write_table(pa.table({k: pa.array(v) for k, v in rows.items()}), file, compression=rng.choice(['none', 'snappy', 'gzip', 'zstd']))
    return file.getvalue()


@kind(4)
def yaml(rng, bases, here):
    "Settings of a training: read and checked, up to where data and model would be made (which may rightly take long)"
    import yaml as library
    task = rng.choice(['digit', 'grid', 'layout', 'scene', 'photos'])
    settings = library.safe_load((bases/'run'/'config.yaml').read_text(encoding='utf-8'))
    if task != 'digit': settings = dict(epochs=3, lr=0.001, class_weights=[1.0, 2.0], seed=1, model=dict(dim=32, depth=2, dropout=0.1), data=dict(limit=640, size=[64, 64]) if task == 'layout' else dict(limit=640))
    (here/'c.yaml').write_bytes(damage.mutate_yaml(rng, settings))
    return lambda: say('train', task, '--config', here/'c.yaml', '--out', here/'out', '--framework', 'torch', '--quiet', begins=False)


@kind(3)
def image(rng, bases, here):
    "Pictures of every format"
    from mlxvit.images import prepare_digit
    mutations = None
    with contextlib.suppress(ImportError): from fuzz_images import mutations
    if mutations and rng.random() < 0.7: data = drawn(mutations, rng)
    else: data = damage.mutate_bytes(rng, rng.choice(sorted((bases/'images').iterdir())).read_bytes())
    (here/'x.png').write_bytes(data)
    return lambda: prepare_digit(here/'x.png')


def drawn(mutations, rng) -> bytes:
    "One of the images that tests/fuzz_images.py makes: bytes, or (name, bytes), alone or from an iterator"
    made = mutations(rng)
    made = made if isinstance(made, (bytes, tuple)) else next(iter(made))
    return made if isinstance(made, bytes) else next(part for part in made if isinstance(part, bytes))


@kind(4)
def foreign(rng, bases, here):
    "A model of another library"
    from mlxvit.convert import convert
    from mlxvit.encoders import read_source
    folder = copied(bases/'foreign'/rng.choice(['vit', 'dinov2', 'clip', 'timm']), here/'m')
    (folder/f'{PAYLOAD}.pt').write_bytes(b'\x80\x04c' + PAYLOAD.encode() + b'\nrun\n)R.') # a pickle that would be noticed
    replaced(rng, rng.choice([folder/'config.json', folder/'config.json', *sorted(p for p in folder.iterdir() if p.suffix in ('.json', '.safetensors'))]))
    return (lambda: convert(str(folder))) if rng.random() < 0.6 else (lambda: read_source(folder))


# ---- one input

class Watch:
    "What Python's own audit events tell while a file is read"
    def __init__(self): self.on, self.seen = False, []

    def __call__(self, event, args):
        if not self.on: return
        if event in SILENT: self.seen.append(f'{event} {str(args)[:80]}')
        elif event == 'import' and str(args[0]).startswith(PAYLOAD): self.seen.append(f'imported {args[0]}')
        elif event == 'open' and isinstance(args[0], (str, bytes)) and self.outside(os.fsdecode(args[0])): self.seen.append(f'opened {os.fsdecode(args[0])[-60:]}')

    @staticmethod
    def outside(path: str) -> bool:
        return Path(path).name.startswith(SECRET) or path in ('/etc/passwd', '/dev/zero', '/proc/self/mem')


def peak() -> float:
    "The most memory since `forget_peak`, MB"
    status = Path('/proc/self/status')
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)
    return next(int(line.split()[1]) for line in status.read_text(encoding='utf-8').splitlines() if line.startswith('VmHWM'))/1024


def forget_peak():
    with contextlib.suppress(OSError): Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')


def where(error: BaseException) -> str:
    "The innermost line of the package that an error came through"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if 'mlxvit' in f.filename and 'tests' not in f.filename]
    return f'{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}' if frames else '?'


def judged(error: BaseException) -> str: # '' or what is wrong with it
    "Is it an error that a user can be told?"
    text = str(error)
    if not isinstance(error, OWN): return f'{type(error).__name__} at {where(error)}'
    if not text.strip(): return f'{type(error).__name__} without words at {where(error)}'
    if '\n' in text.strip(): return f'{type(error).__name__} of several lines at {where(error)}'
    return f'{type(error).__name__} of {len(text):,} characters at {where(error)}' if len(text) > 2000 else ''


class Clock:
    "Interrupts what takes too long: so much time of the processor, or thrice as much on a busy machine or while waiting"
    def __init__(self, seconds: float): self.seconds, self.cpu, self.wall = seconds, time.process_time(), time.monotonic()

    def start(self):
        signal.signal(signal.SIGALRM, self.strike)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds/10)

    def strike(self, *_):
        if time.process_time() - self.cpu >= 0.9*self.seconds or time.monotonic() - self.wall >= 3*self.seconds: raise TooSlow

    def stop(self): signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(read, watch: Watch, seconds: float = SECONDS, megabytes: float = MEGABYTES) -> dict:
    "Read one input, and say how it ended: outcome '' is fine"
    forget_peak()
    before, begin, error, fault = peak(), time.monotonic(), None, ''
    clock, stderr = Clock(seconds), io.StringIO()
    watch.seen, watch.on = [], True
    try:
        clock.start()
        with contextlib.redirect_stderr(stderr): read()
    except SystemExit as e: # the usage, and exit code 2
        if e.code != 2 or 'Traceback' in stderr.getvalue(): fault = f'exit code {e.code}'
    except TooSlow as e: fault, error = f'more than {seconds} s in {where(e)}', e
    except BaseException as e: fault, error = judged(e), e
    finally:
        watch.on = False
        clock.stop()
    more = peak() - before
    if more > megabytes: fault = f'{more/1000:.1f} GB' + (f' at {where(error)}' if error else '')
    if watch.seen: fault = f'touched: {watch.seen[0]}'
    trace = ''.join(traceback.format_exception(error)) if error else ''
    return dict(fault=fault, error=type(error).__name__ if error else '', text=str(error)[:200], seconds=time.monotonic()-begin, megabytes=more, trace=trace[-6000:])


def one_input(seed: int, number: int, kinds: list[str], bases: Path, watch: Watch) -> dict:
    "Make input `number` of a seed, and read it"
    rng = random.Random(f'{seed}:{number}')
    name = rng.choices(kinds, [KINDS[k][0] for k in kinds])[0]
    with tempfile.TemporaryDirectory(prefix='fuzz', ignore_cleanup_errors=True) as folder:
        read = KINDS[name][1](rng, bases, Path(folder))
        return dict(kind=name, **attempt(read, watch))


# ---- many inputs, in processes apart

def prepare():
    "What a worker needs once: no network, no training, no more memory than some gigabytes"
    sys.path.insert(0, str(Path(__file__).parent))
    from mlxvit import cli, fit
    if hasattr(fit, 'train_epoch'): fit.train_epoch = nothing
    cli.fit = only_resumed(cli.fit)
    os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1')
    socket.setdefaulttimeout(1)
    import warnings
    warnings.simplefilter('ignore')
    used = int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[0])*os.sysconf('SC_PAGE_SIZE') if Path('/proc/self/statm').exists() else 0
    if used: resource.setrlimit(resource.RLIMIT_AS, (used + 6*2**30, resource.RLIM_INFINITY))


def only_resumed(fit):
    "Of a training, only what a resumed run reads of its folder"
    def read(learner, train, valid, config, out=None, about=None, resume=False, *more, **flags):
        return fit(learner, train, valid, config, out, about, resume, *more, **flags) if resume else nothing()
    return read


def work(pipe: int, numbers, seed: int, kinds: list[str], bases: Path):
    "The life of a worker: a line before each input, and one after it"
    with os.fdopen(pipe, 'w', encoding='utf-8') as out:
        prepare()
        watch = Watch()
        sys.addaudithook(watch)
        quiet = os.open(os.devnull, os.O_WRONLY) # what native code says of a panic is of no use here
        os.dup2(quiet, 2)
        for number in numbers:
            print(json.dumps(dict(begun=number)), file=out, flush=True)
            print(json.dumps(dict(number=number, **one_input(seed, number, kinds, bases, watch))), file=out, flush=True)


class Worker:
    "A forked process that reads every n-th input"
    def __init__(self, numbers, *args):
        self.numbers, self.args, self.begun, self.since, self.rest = list(numbers), args, None, time.monotonic(), b''
        here, there = os.pipe()
        self.pid, self.pipe = os.fork(), here
        if not self.pid:
            os.close(here)
            status = 1
            try:
                work(there, self.numbers, *args)
                status = 0
            except BaseException: traceback.print_exc()
            finally: os._exit(status)
        os.close(there)

    def lines(self) -> list[dict] | None: # None: it has ended
        "What the worker said since"
        part = os.read(self.pipe, 2**20)
        if not part: return None
        *whole, self.rest = (self.rest + part).split(b'\n')
        return [json.loads(line) for line in whole]

    def end(self, kill: bool = False) -> str:
        "Wait for it, or stop it, and say how it ended"
        if kill: os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        status = os.waitpid(self.pid, 0)[1]
        return f'signal {os.WTERMSIG(status)}' if os.WIFSIGNALED(status) else f'exit code {os.WEXITSTATUS(status)}'


def run(mutations: int, seed: int, kinds: list[str], workers: int, budget: float, bases: Path, tell=print) -> tuple[collections.Counter, list[dict]]:
    "All inputs, by several workers; one that hangs or dies is replaced, and its input is a fault"
    args, tried, faults, stop = (seed, kinds, bases), collections.Counter(), [], time.monotonic() + budget
    worst = collections.defaultdict(float)
    selector = selectors.DefaultSelector()
    def start(numbers):
        worker = Worker(numbers, *args)
        selector.register(worker.pipe, selectors.EVENT_READ, worker)
    def restart(worker, fault):
        selector.unregister(worker.pipe)
        how = worker.end(kill=bool(fault))
        if worker.begun is None: raise SystemExit(f'a worker ended before its first input: {how}')
        number = worker.begun
        name = random.Random(f'{seed}:{number}').choices(kinds, [KINDS[k][0] for k in kinds])[0]
        tried[name] += 1
        faults.append(dict(number=number, kind=name, fault=fault or f'the process died: {how}', trace='', text=''))
        if rest := worker.numbers[worker.numbers.index(number)+1:]: start(rest)
    for k in range(workers):
        if numbers := range(k, mutations, workers): start(numbers)
    while selector.get_map() and time.monotonic() < stop:
        for key, _ in selector.select(timeout=0.5):
            worker, said = key.data, key.data.lines()
            if said is None and worker.begun is not None: restart(worker, '')
            elif said is None:
                selector.unregister(worker.pipe)
                if (how := worker.end()) != 'exit code 0': raise SystemExit(f'a worker ended between inputs: {how}')
            for line in said or []:
                worker.since = time.monotonic()
                worker.begun = line.get('begun')
                if 'number' not in line: continue
                tried[line['kind']] += 1
                worst['seconds'], worst['MB'] = max(worst['seconds'], line['seconds']), max(worst['MB'], line['megabytes'])
                if line['fault']: faults.append(line)
                if sum(tried.values())%2000 == 0: tell(f'{sum(tried.values()):,} inputs, {len(faults)} faults, at most {worst["seconds"]:.1f} s and {worst["MB"]:.0f} MB for one', flush=True)
        for worker in [k.data for k in selector.get_map().values()]:
            if worker.begun is not None and time.monotonic() - worker.since > 3*SECONDS + 5: restart(worker, f'more than {SECONDS} s, and not to be interrupted')
    for key in list(selector.get_map().values()):
        selector.unregister(key.data.pipe)
        key.data.end(kill=True)
    return tried, faults


def report(tried: collections.Counter, faults: list[dict], seed: int):
    "Inputs by kind, then faults by kind and place, each with one input that shows it"
    for name in sorted(tried): print(f'{name:12} {tried[name]:7,} inputs, {sum(f["kind"] == name for f in faults):4} faults')
    groups = collections.defaultdict(list)
    for fault in faults: groups[fault['kind'], fault['fault']].append(fault)
    for (name, fault), each in sorted(groups.items(), key=lambda g: -len(g[1])):
        print(f'  {len(each):4} × {name}: {fault[:140]}   --only {seed}:{each[0]["number"]}   {each[0]["text"][:100]!r}')
    print(f'{sum(tried.values()):,} inputs tried, {len(faults)} faults', flush=True)


def bases_in(folder: Path) -> Path:
    "Make the good files in a process apart, so that this one stays as it was"
    pid = os.fork()
    if not pid:
        status = 1
        try:
            make_bases(folder)
            status = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(status)
    if os.waitpid(pid, 0)[1]: sys.exit('the files to mutate could not be made')
    return folder


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--mutations', type=int, default=20_000, help='inputs to try')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    p.add_argument('--workers', type=int, default=os.cpu_count() or 1)
    p.add_argument('--seconds', type=float, default=float('inf'), help='stop after so many, whatever was tried')
    p.add_argument('--only', default='', help='SEED:NUMBER, one input again, with its traceback')
    a = p.parse_args()
    os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
    import datasets, timm, torch, transformers, mlxvit.cli, mlxvit.reader # here, once, so that a worker begins at once
    with tempfile.TemporaryDirectory() as folder:
        bases = bases_in(Path(folder))
        if a.only:
            seed, number = map(int, a.only.split(':'))
            prepare()
            watch = Watch()
            sys.addaudithook(watch)
            found = one_input(seed, number, a.kinds, bases, watch)
            print(found.pop('trace'))
            print(found)
            return bool(found['fault'])
        tried, faults = run(a.mutations, a.seed, a.kinds, a.workers, a.seconds, bases)
    report(tried, faults, a.seed)
    return bool(faults)


if __name__ == '__main__': sys.exit(main())
