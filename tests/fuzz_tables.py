"Tables, the photos they name, and feature files, mutated: each is read, or refused in one line"
import io, json, sys, tempfile, warnings
from functools import lru_cache
from pathlib import Path
import numpy as np
from PIL import Image
from mlxvit.data.photos import Photos, load_photos
from mlxvit.features import Features, Writer

HOSTILE = ['../../etc/passwd', '/etc/passwd', '/proc/self/environ', 'file:///etc/passwd', r'..\..\x', '%2e%2e/%2e%2e/x', '~/x', '\0', '\x1b[31m', '', 'é'*300, 'a.jpg', 'C:\\a.jpg',
           "['a', 'b']", '[' * 500, '\ud800', None, True, 0, -1, 7, 1.5, float('nan'), float('inf'), 1e308, 10**30, [], {}, [[]], [None], {'raw': 3}, {'bytes': None, 'path': '/etc/passwd'}, ['x'] * 2000]
TEXTS = [b'[' * 3000, b'{"a":' * 3000, b'9' * 6000, b'1e999', b'NaN', b'\x00' * 50, b'\xff\xfe', b'"' * 3, b',' * 3000, b';', b'\t', b'|', b'\r\n', b'\n' * 500, b'#0\t', b'sep=;\n', b'\xef\xbb\xbf', b'x' * 200_000]


def jpeg(shade):
    file = io.BytesIO()
    Image.new('RGB', (16, 12), (shade, 80, 200 - shade)).save(file, 'JPEG')
    return file.getvalue()


@lru_cache(1)
def bases():
    "Small sets in every layout: name -> file -> contents"
    import datasets, pyarrow as pa, pyarrow.parquet as pq
    datasets.disable_progress_bars()
    photos = {'1.jpg': jpeg(10), 'images/2.jpg': jpeg(90)}
    said = {'1.jpg': ['A dog runs .', 'A brown dog .'], '2.jpg': ['A man , alone .']}
    rows = [dict(image=n, captions=c) for n, c in said.items()]
    flat = [(n, c) for n, captions in said.items() for c in captions]
    text = {
        'set.jsonl': '\n'.join(map(json.dumps, rows)), 'set.json': json.dumps(rows),
        'frame.json': json.dumps(dict(image={'0': '1.jpg', '1': '2.jpg'}, captions={'0': 'A dog .', '1': 'A man .'})),
        'dataset_x.json': json.dumps(dict(images=[dict(filename=n, split='train', sentences=[dict(raw=c) for c in cs]) for n, cs in said.items()])),
        'captions_x.json': json.dumps(dict(images=[dict(id=i, file_name=n) for i, n in enumerate(said)], annotations=[dict(image_id=i, caption=c) for i, n in enumerate(said) for c in said[n]])),
        'set.csv': 'image,captions\n' + '\n'.join(f'{n},"{json.dumps(c).replace(chr(34), 2*chr(34))}"' for n, c in said.items()),
        'python.csv': 'image;captions\n' + '\n'.join(f'{n};{c}' for n, c in said.items()),
        'set.tsv': 'image\tcaptions\n' + '\n'.join(f'{n}\t{c}' for n, c in flat),
        'captions.txt': 'image,caption\n' + '\n'.join(f'{n},{c}' for n, c in flat),
        'x.token': '\n'.join(f'{n}#0\t{c}' for n, c in flat)}
    sets = {name: {name: content.encode(), **photos} for name, content in text.items()}
    sets['beside'] = {**photos, '1.txt': b'A dog .\nA brown dog .', 'images/2.txt': b'A man .'}
    cells = [dict(bytes=raw, path=name) for name, raw in photos.items()]
    kinds = {'packed': dict(image=cells, captions=list(said.values())), 'named': dict(image=list(photos), captions=['A dog .', 'A man .'])}
    for name, columns in kinds.items():
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), file, compression='zstd' if name == 'named' else 'snappy')
        sets[f'{name}.parquet'] = {'train.parquet': file.getvalue().to_pybytes(), **photos}
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict(kinds['packed']).save_to_disk(folder)
        sets['saved'] = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
        with Writer(Path(folder)/'x.features', {'encoder': 'none', 'model': {'dim': 4}}, (4, 3, 2)) as writer: writer.append(np.ones((4, 3, 2), '<f2'))
        sets['features'] = {name: (Path(folder)/name).read_bytes() for name in ('x.features', 'x.json')}
    return sets


def damaged(rng, raw):
    "Bytes changed, cut, doubled, or with something foreign in the middle"
    raw, kind = bytearray(raw), rng.integers(6)
    at, to = sorted(rng.integers(0, len(raw) + 1, 2))
    if kind == 0: return bytes(raw[:at])
    if kind == 1: return bytes(raw[:at] + raw[to:])
    if kind == 2: return bytes(raw[:to] + raw[at:])
    if kind == 3: return bytes(raw[:at]) + TEXTS[rng.integers(len(TEXTS))] + bytes(raw[at:])
    for _ in range(1 if kind == 4 else 8):
        if raw: raw[rng.integers(len(raw))] = rng.integers(256)
    return bytes(raw)


def changed(rng, value):
    "Plain values with one of them exchanged for a hostile one"
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1: return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.integers(len(value))
        return [*value[:at], changed(rng, value[at]), *value[at+1:]]
    return HOSTILE[rng.integers(len(HOSTILE))]


def mutated(rng, name, raw):
    "One file, changed as text or as values"
    if name.endswith(('.json', '.jsonl')) and rng.random() < 0.6:
        lines = raw.decode().split('\n') if name.endswith('.jsonl') else [raw.decode()]
        at = rng.integers(len(lines))
        lines[at] = json.dumps(changed(rng, json.loads(lines[at])))
        return '\n'.join(lines).encode()
    if name.endswith(('.csv', '.tsv', '.txt', '.token')) and rng.random() < 0.4:
        words = raw.decode().replace('1.jpg', str(HOSTILE[rng.integers(len(HOSTILE))]), 1)
        return words.encode('utf-8', 'surrogatepass')
    return damaged(rng, raw)


def mutations(rng):
    "Without end: what was changed, and the files of a folder, by name"
    sets = bases()
    while True:
        name = list(sets)[rng.integers(len(sets))]
        files = dict(sets[name])
        which = [f for f in files if not f.endswith('.jpg')] if rng.random() < 0.95 else list(files)
        for file in sorted(set(rng.choice(which, rng.integers(1, 3)).tolist())): files[file] = mutated(rng, file, files[file])
        yield f'tables: {name}', files


def check(folder):
    "Read a folder; what may be raised is one line of ValueError or OSError"
    folder = Path(folder)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as cache:
            warnings.simplefilter('ignore')
            if (folder/'x.features').exists(): Features(folder/'x.features', {'encoder': 'none'} if len(folder.name) % 2 else None)[:]; return 'read'
            photos = load_photos(folder, progress=False, cache=cache)
            assert isinstance(photos, Photos) and len(photos)
            assert all(isinstance(text, str) for captions in photos.captions for text in captions)
            return 'read'
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError) or '\n' in str(error) or len(str(error)) > 2000: raise AssertionError(f'no clear line: {type(error).__name__} {error!r:.300}') from error
        return str(error)


def write(folder, files):
    "The files of one mutation"
    for name, raw in files.items():
        path = Path(folder)/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


if __name__ == '__main__':
    import collections, resource, time, traceback
    tries, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes, slowest, faults = collections.Counter(), (0, ''), 0
    for i, (name, files) in zip(range(tries), mutations(np.random.default_rng(seed))):
        with tempfile.TemporaryDirectory() as folder:
            write(folder, files)
            start = time.perf_counter()
            try: outcomes['read' if check(folder) == 'read' else 'refused'] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt): raise
                faults += 1
                print(f'{i} {name}: {type(error).__name__}: {str(error)[:300]}', *traceback.format_exc().splitlines()[-8:], sep='\n   ', flush=True)
            slowest = max(slowest, (time.perf_counter() - start, f'{i} {name}'))
    peak = [resource.getrusage(who).ru_maxrss//1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f'{tries} mutations: {dict(outcomes)}, {faults} faults, slowest {slowest[0]:.1f} s ({slowest[1]}), peak {peak[0]} MB, of processes apart {peak[1]} MB')
