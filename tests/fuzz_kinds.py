"""What tests/fuzz.py mutates and reads: one good file of every kind, and for each kind what reads it."""

import contextlib, io, json, os, random, shutil
from pathlib import Path
import fuzz_mutations as damage
import numpy as np

PAYLOAD = 'fuzz_payload'  # a module that only a hostile file names
SECRET = 'secret'  # begins the name of files that no input may read


# ---- the files that are mutated


def make_bases(home: Path):
    "One good file of every kind; the shipped models are taken as they are"
    from mlxvit import cli
    from mlxvit.data.photos import as_jpeg, draw_shapes, write_parquet
    from mlxvit.features import Writer
    import numpy as np

    small = '--data.limit 640 --data.valid 100 --model.dim 16 --model.heads 2 --model.depth 1'
    small += ' --epochs 1 --quiet --framework torch'
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(f'train digit --out {home}/run {small}'.split()) == 0
    images, captions = draw_shapes(4, seed=1, size=32)
    stored, names = [as_jpeg(i) for i in images], [f'{i}.jpg' for i in range(4)]
    rows = [dict(image=n, captions=c) for n, c in zip(names, captions)]
    karpathy = dict(
        images=[
            dict(filename=n, split='train', sentences=[dict(raw=t) for t in c])
            for n, c in zip(names, captions)
        ]
    )
    coco = dict(
        images=[dict(id=i, file_name=n) for i, n in enumerate(names)],
        annotations=[dict(image_id=i, caption=t) for i, c in enumerate(captions) for t in c],
    )
    tables = {
        't.csv': 'image,captions\n' + ''.join(f'{r["image"]},"{r["captions"][0]}"\n' for r in rows),
        't.jsonl': '\n'.join(map(json.dumps, rows)) + '\n',
        't.json': json.dumps(rows),
        'dataset_x.json': json.dumps(karpathy),
        'captions_train2014.json': json.dumps(coco),
        'captions.txt': 'image,caption\n'
        + ''.join(f'{r["image"]},{t}\n' for r in rows for t in r['captions']),
        'Flickr8k.token.txt': ''.join(
            f'{r["image"]}#{i}\t{t}\n' for r in rows for i, t in enumerate(r['captions'])
        ),
    }
    for name, text in tables.items():
        folder = home / 'tables' / name
        folder.mkdir(parents=True)
        (folder / name).write_text(text, encoding='utf-8')
        for n, raw in zip(names, stored):
            (folder / n).write_bytes(raw)
    write_parquet(home / 'tables' / 'train.parquet', stored, captions)
    with Writer(home / 'f.features', dict(encoder='x'), (4, 2, 3)) as writer:
        writer.append(np.arange(24, dtype='<f2').reshape(4, 2, 3))
    formats = ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM')
    (home / 'images').mkdir()
    for kind in formats:
        images[0].resize((64, 48)).save(home / 'images' / f'x.{kind.lower()}', kind)
    make_foreign(home / 'foreign')


def make_foreign(home: Path):
    "Folders of other libraries"
    import transformers as hf

    tiny = dict(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    hf.utils.logging.disable_progress_bar()
    models = dict(
        vit=hf.ViTForImageClassification(hf.ViTConfig(**tiny, num_labels=2)),
        dinov2=hf.Dinov2Model(
            hf.Dinov2Config(
                **{k: v for k, v in tiny.items() if k != 'intermediate_size'}, mlp_ratio=2
            )
        ),
        clip=hf.CLIPVisionModel(hf.CLIPVisionConfig(**tiny)),
    )
    for name, model in models.items():
        model.save_pretrained(home / name)
        (home / name / 'preprocessor_config.json').write_text(
            json.dumps(
                dict(
                    image_processor_type='ViTImageProcessor',
                    do_resize=True,
                    size=dict(height=8, width=8),
                    do_rescale=True,
                    rescale_factor=1 / 255,
                    do_normalize=True,
                    image_mean=[0.5] * 3,
                    image_std=[0.5] * 3,
                    resample=2,
                )
            ),
            encoding='utf-8',
        )
    import timm
    from safetensors.torch import save_file

    args = dict(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    (home / 'timm').mkdir()
    save_file(
        timm.create_model('vit_tiny_patch16_224', num_classes=2, **args).state_dict(),
        home / 'timm' / 'model.safetensors',
    )
    (home / 'timm' / 'config.json').write_text(
        json.dumps(dict(architecture='vit_tiny_patch16_224', num_classes=2, model_args=args)),
        encoding='utf-8',
    )


# ---- kinds of inputs: each writes its files into `here`, and returns what reads them

KINDS = {}  # name -> (weight, function of rng, bases, here)


def kind(weight: int):
    def add(f):
        KINDS[f.__name__] = (weight, f)
        return f

    return add


MUTATORS = {
    '.safetensors': damage.mutate_safetensors,
    '.json': damage.mutate_json,
    '.jsonl': damage.mutate_lines,
}


def copied(source: Path, target: Path) -> Path:
    "A folder with links to the files of another, so that one of them can be replaced"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            os.symlink(path, target / path.name)
    return target


def replaced(rng: random.Random, path: Path):
    "Put a damaged file in place of a link"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(MUTATORS.get(path.suffix, damage.mutate_bytes)(rng, data))


def signed(folder: Path):
    "Make the sums of a checkpoint anew, as an attacker would"
    from hashlib import sha256

    names = [
        n
        for n in (
            'model.safetensors',
            'config.json',
            'tokenizer.json',
            'optimizer.safetensors',
            'state.json',
            'metrics.jsonl',
        )
        if (folder / n).is_file()
    ]
    (folder / 'SHA256SUMS').unlink()
    (folder / 'SHA256SUMS').write_text(
        ''.join(f'{sha256((folder/n).read_bytes()).hexdigest()}  {n}\n' for n in names),
        encoding='utf-8',
    )


def nothing(*_, **__):
    raise ValueError('training would begin here')


def say(*words, begins: bool = True):
    "What a command does, without `main`, which hides the kind of error; or up to where work begins"
    from unittest.mock import patch
    from mlxvit import cli

    with contextlib.redirect_stdout(io.StringIO()), patch.object(
        cli, 'choose_framework', cli.choose_framework if begins else nothing
    ):
        call, flags = cli.select([str(w) for w in words])
        call(flags)


@kind(6)
def checkpoint(rng, bases, here):
    "Any file of a checkpoint, its sums made anew; loaded, asked, exported, averaged, resumed"
    from mlxvit.reader import ASSETS, load

    name = rng.choice(['digit', 'grid', 'scene', 'scene', 'layout', 'run', 'run', 'run'])
    folder = copied(bases / 'run' / 'last' if name == 'run' else ASSETS / name, here / 'm')
    spoilt = rng.choice(sorted(p for p in folder.iterdir() if p.name != 'metrics.json'))
    replaced(rng, spoilt)
    if spoilt.name != 'SHA256SUMS' and rng.random() < 0.95:
        signed(folder)
    framework = 'mlx' if rng.random() < 0.2 else 'torch'
    picture = bases / 'images' / 'x.png'
    if name == 'run' and rng.random() < 0.3:  # as the last checkpoint of a run that is resumed
        (here / 'r').mkdir()
        folder.rename(here / 'r' / 'last')
        return lambda: say('train', 'digit', '--resume', '--out', here / 'r', '--quiet')
    how = rng.random()
    if how < 0.1:
        return lambda: say('export', folder, here / 'out')
    if how < 0.15:
        return lambda: say('average', folder, 'digit', '--out', here / 'out')
    if how < 0.2:
        return lambda: say(
            'train',
            'digit',
            '--init',
            folder,
            '--out',
            here / 'new',
            '--data.limit',
            640,
            '--quiet',
        )
    if name == 'scene':
        return lambda: load(folder, framework).caption(picture, 2)
    return lambda: load(folder, framework).predict(picture)


@kind(2)
def record(rng, bases, here):
    "A run or a record in a table: settings, log, scores"
    from mlxvit.reader import ASSETS
    from mlxvit.results import results_table

    name = rng.choice(
        [
            'digit',
            'grid',
            'layout',
            'photos',
            'scene',
            'reading',
            'records/taught',
            'records/heads-cls',
        ]
    )
    folder = copied(ASSETS / name, here / 'm')
    replaced(
        rng,
        rng.choice(
            [
                folder / n
                for n in ('config.json', 'metrics.json', 'metrics.jsonl')
                if (folder / n).is_file()
            ]
        ),
    )
    return lambda: results_table([folder])


@kind(1)
def features(rng, bases, here):
    "Features in a file, and their record"
    from mlxvit.features import Features

    for name in ('f.features', 'f.json'):
        shutil.copy(bases / name, here / name)
    replaced(rng, here / rng.choice(['f.features', 'f.json', 'f.json']))

    def read():
        found = Features(here / 'f.features')
        found[0], found[:2]
        found.verify()

    return read


@kind(4)
def table(rng, bases, here):
    "Photographs with captions, in every layout"
    from mlxvit.data.photos import load_photos

    name = rng.choice(sorted(p.name for p in (bases / 'tables').iterdir() if p.is_dir()))
    folder = copied(bases / 'tables' / name, here / 'set')
    (here / f'{SECRET}.jpg').write_bytes((bases / 'tables' / 't.csv' / '0.jpg').read_bytes())
    os.symlink(here / f'{SECRET}.jpg', folder / 'link.jpg')
    os.mkfifo(folder / 'fifo')
    file = folder / name if name != 'train.parquet' else next(folder.glob('*.parquet'))
    mutate = (
        damage.mutate_bytes
        if name == 'train.parquet'
        else (
            damage.mutate_table
            if rng.random() < 0.5 or name.endswith(('.csv', '.txt'))
            else MUTATORS[file.suffix]
        )
    )
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(
        parquet(rng) if name == 'train.parquet' and rng.random() < 0.5 else mutate(rng, data)
    )

    def read():
        photos = load_photos(str(folder), 'train', progress=False, cache=str(here / 'cache'))
        for i in range(min(3, len(photos))):
            photos.image(i)

    return read


def parquet(rng) -> bytes:
    "Parquet of odd types, with names of other files, or which unpacks to far more than it is"
    import pyarrow as pa, pyarrow.parquet as pq

    jpeg = b'\xff\xd8\xff\xe0'
    cell = lambda: dict(
        bytes=rng.choice([None, b'', jpeg, b'\0' * 100]), path=rng.choice([None, *damage.NAMES])
    )
    images = [
        [cell() for _ in range(3)],
        ['0.jpg', rng.choice(damage.NAMES), '1.jpg'],
        [jpeg, b'', None],
        [1, 2, 3],
        [None] * 3,
        [[1], [2], [3]],
        [dict(src='/etc/passwd')] * 3,
    ]
    said = [
        [['a', 'b']] * 3,
        ['a', 'b', 'c'],
        [None] * 3,
        [[None, 'a']] * 3,
        [1.5, float('nan'), 2.0],
        [[[['a']]]] * 3,
        [dict(text='a')] * 3,
        ['x' * 10**6] * 3,
        [True] * 3,
        [[]] * 3,
        [b'\xff'] * 3,
    ]
    rows = dict(
        image=rng.choice(images),
        captions=rng.choice(said),
        split=rng.choice([['train'] * 3, [None] * 3, ['\x1b[2J'] * 3, [1, 2, 3]]),
    )
    if rng.random() < 0.05:
        rows = dict(
            image=['0.jpg'] * 2000, captions=['x' * 10**6] * 2000, split=['train'] * 2000
        )  # 2 GB
    for name in list(rows):
        if rng.random() < 0.1:
            rows[rng.choice(['Image', ' image', 'caption', '\x1b[2J', 'text', 'file_name'])] = (
                rows.pop(name)
            )
    file = io.BytesIO()
    pq.write_table(
        pa.table({k: pa.array(v) for k, v in rows.items()}),
        file,
        compression=rng.choice(['none', 'snappy', 'gzip', 'zstd']),
    )
    return file.getvalue()


@kind(4)
def yaml(rng, bases, here):
    "Settings, up to where data and model would be made (which may rightly take long)"
    import yaml as library

    task = rng.choice(['digit', 'grid', 'layout', 'scene', 'photos'])
    settings = library.safe_load((bases / 'run' / 'config.yaml').read_text(encoding='utf-8'))
    if task != 'digit':
        settings = dict(
            epochs=3,
            lr=0.001,
            class_weights=[1.0, 2.0],
            seed=1,
            model=dict(dim=32, depth=2, dropout=0.1),
            data=dict(limit=640, size=[64, 64]) if task == 'layout' else dict(limit=640),
        )
    (here / 'c.yaml').write_bytes(damage.mutate_yaml(rng, settings))
    return lambda: say(
        'train',
        task,
        '--config',
        here / 'c.yaml',
        '--out',
        here / 'out',
        '--framework',
        'torch',
        '--quiet',
        begins=False,
    )


@kind(3)
def image(rng, bases, here):
    "Pictures of every format"
    from mlxvit.images import prepare_digit

    mutations = None
    with contextlib.suppress(ImportError):
        from fuzz_images import mutations
    if mutations and rng.random() < 0.7:
        data = drawn(mutations, rng)
    else:
        data = damage.mutate_bytes(
            rng, rng.choice(sorted((bases / 'images').iterdir())).read_bytes()
        )
    (here / 'x.png').write_bytes(data)
    return lambda: prepare_digit(here / 'x.png')


def drawn(mutations, rng) -> bytes:
    "One of what tests/fuzz_images.py makes: bytes, or (name, bytes), alone or from an iterator"
    made = mutations(np.random.default_rng(rng.getrandbits(64)))
    made = made if isinstance(made, (bytes, tuple)) else next(iter(made))
    return (
        made if isinstance(made, bytes) else next(part for part in made if isinstance(part, bytes))
    )


@kind(4)
def foreign(rng, bases, here):
    "A model of another library"
    from mlxvit.convert import convert
    from mlxvit.encoders import read_source

    folder = copied(bases / 'foreign' / rng.choice(['vit', 'dinov2', 'clip', 'timm']), here / 'm')
    (folder / f'{PAYLOAD}.pt').write_bytes(
        b'\x80\x04c' + PAYLOAD.encode() + b'\nrun\n)R.'
    )  # a pickle that would be noticed
    replaced(
        rng,
        rng.choice(
            [
                folder / 'config.json',
                folder / 'config.json',
                *sorted(p for p in folder.iterdir() if p.suffix in ('.json', '.safetensors')),
            ]
        ),
    )
    return (lambda: convert(str(folder))) if rng.random() < 0.6 else (lambda: read_source(folder))
