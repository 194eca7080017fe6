"""Small changes to the files of foreign models and tokenizers: whatever becomes of them, they are read, or refused in one line

`mutations(rng)` yields folders without end, as a name and the bytes of their files; `check(folder)` reads one, and raises
`AssertionError` if anything but a clear refusal came of it. `python tests/fuzz_models.py 2000 1` tries 2,000 with seed 1.
"""
import copy, json, struct, sys, tempfile, time
from pathlib import Path
from typing import Iterator
import numpy as np

STRANGE = (None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e-400, 0.5, -0.0, float('nan'), float('inf'), '', 'x', '0', '../x', '/etc/passwd', 'a\0b',
           '\ud800', 'x'*10_000, [], [[]], [1], [8, 8], [8, 9], [1, 2, 3], ['a'], [None], {}, {'a': 1}, {'content': '<s>'}, {'height': 8, 'width': 8},
           {'shortest_edge': 10**9}, 10**5, 10**9, 4*10**9, 'hf-hub:someone/model', 'local-dir:/tmp', 'vit', 'clip', 'dinov2', 'llama', 'gelu', 'mlx')
KEYS = ('auto_map', 'quantization_config', 'checkpoint_path', 'pretrained', 'pretrained_cfg', 'model_args', 'architecture', 'model_type', 'vision_config',
        'num_hidden_layers', 'depth', 'img_size', 'embed_dim', '_name_or_path', 'attn_implementation', 'tokenizer_class', 'weight_map', 'added_tokens')


def safetensors(arrays: dict) -> bytes:
    "Arrays as safetensors, by hand, so that a header may be anything"
    header, data = {}, b''
    for name, a in arrays.items():
        header[name] = dict(dtype='F32', shape=list(a.shape), data_offsets=[len(data), len(data)+a.nbytes])
        data += a.astype('<f4').tobytes()
    return with_header(header, data)


def with_header(header, data: bytes) -> bytes:
    "A file of safetensors with this header"
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def weights(dim=8, depth=2, patch=4, side=8, channels=3) -> dict:
    "The arrays of a tiny ViT of Hugging Face"
    rng = np.random.default_rng(0)
    a = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    linear = lambda name, n, m: {f'{name}.weight': a(n, m), f'{name}.bias': a(n)}
    norm = lambda name: {f'{name}.weight': a(dim), f'{name}.bias': a(dim)}
    found = {'embeddings.cls_token': a(1, 1, dim), 'embeddings.position_embeddings': a(1, 1+(side//patch)**2, dim),
             'embeddings.patch_embeddings.projection.weight': a(dim, channels, patch, patch), 'embeddings.patch_embeddings.projection.bias': a(dim)}
    for i in range(depth):
        b = f'encoder.layer.{i}'
        for part in ('query', 'key', 'value'): found |= linear(f'{b}.attention.attention.{part}', dim, dim)
        found |= linear(f'{b}.attention.output.dense', dim, dim) | linear(f'{b}.intermediate.dense', 2*dim, dim) | linear(f'{b}.output.dense', dim, 2*dim)
        found |= norm(f'{b}.layernorm_before') | norm(f'{b}.layernorm_after')
    return found | norm('layernorm')


def timm_weights(theirs: dict) -> dict:
    "The same arrays by timm's names"
    names = {'embeddings.cls_token': 'cls_token', 'embeddings.position_embeddings': 'pos_embed', 'embeddings.patch_embeddings.projection': 'patch_embed.proj',
             'encoder.layer': 'blocks', 'attention.output.dense': 'attn.proj', 'intermediate.dense': 'mlp.fc1', '.output.dense': '.mlp.fc2',
             'layernorm_before': 'norm1', 'layernorm_after': 'norm2', 'layernorm': 'norm'}
    found = {}
    for name, array in theirs.items():
        for old, new in names.items(): name = name.replace(old, new)
        found[name] = array
    for i in (0, 1):
        for kind in ('weight', 'bias'): found[f'blocks.{i}.attn.qkv.{kind}'] = np.concatenate([found.pop(f'blocks.{i}.attention.attention.{p}.{kind}') for p in ('query', 'key', 'value')])
    return found


def whole() -> dict[str, dict]:
    "Folders that can be read: name -> file -> values, or arrays"
    hugging = dict(model_type='vit', architectures=['ViTModel'], hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
                   patch_size=4, num_channels=3, hidden_act='gelu', layer_norm_eps=1e-12, qkv_bias=True)
    processor = dict(image_processor_type='ViTImageProcessor', size=dict(height=8, width=8), crop_size=8, do_center_crop=False, do_resize=True, do_rescale=True, do_normalize=True,
                     resample=2, rescale_factor=1/255, image_mean=[.5, .5, .5], image_std=[.5, .5, .5])
    arrays, index = weights(), {n: 'model-0.safetensors' for n in weights()}
    timm = dict(architecture='vit_tiny_patch16_224', num_classes=0, global_pool='token', model_args=dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2))
    words = {w: i for i, w in enumerate(['<s>', '</s>', '<unk>', 'a', 'dog', 'runs'])}
    tokenizer = dict(version='1.0', truncation=None, padding=None, added_tokens=[dict(id=0, content='<s>', single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)],
                     normalizer=dict(type='Sequence', normalizers=[dict(type='NFC'), dict(type='Replace', pattern=dict(String='’'), content="'")]),
                     pre_tokenizer=dict(type='Split', pattern=dict(Regex=r'\w+'), behavior='Removed', invert=True), post_processor=None, decoder=None,
                     model=dict(type='WordLevel', vocab=words, unk_token='<unk>'))
    roles = dict(tokenizer_class='PreTrainedTokenizerFast', bos_token='<s>', eos_token=dict(content='</s>'), unk_token='<unk>', pad_token=None)
    return {'hugging': {'config.json': hugging, 'preprocessor_config.json': processor, 'model.safetensors': arrays},
            'shards': {'config.json': hugging, 'model.safetensors.index.json': dict(weight_map=index), 'model-0.safetensors': arrays},
            'timm': {'config.json': timm, 'model.safetensors': timm_weights(arrays)},
            'tokenizer': {'tokenizer.json': tokenizer, 'tokenizer_config.json': roles}}


def places(value, path=()) -> list[tuple]:
    "The path of every value in plain values"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [p for k, v in inner for p in places(v, (*path, k))]


def changed(value, rng: np.random.Generator):
    "Plain values with one thing changed: a value, a key more, a key less, a list that is longer"
    value = copy.deepcopy(value)
    spots = places(value)
    path = spots[rng.integers(len(spots))]
    strange = STRANGE[rng.integers(len(STRANGE))]
    if not path: return strange if rng.random() < 0.3 else {**value, KEYS[rng.integers(len(KEYS))]: strange} if isinstance(value, dict) else strange
    *above, last = path
    parent = value
    for k in above: parent = parent[k]
    act = rng.integers(4)
    if act == 0 and isinstance(parent, dict): del parent[last]
    elif act == 1 and isinstance(parent, dict): parent[KEYS[rng.integers(len(KEYS))]] = strange
    elif act == 2 and isinstance(parent, list): parent.append(copy.deepcopy(parent[last]))
    else: parent[last] = strange
    return value


def changed_bytes(raw: bytes, rng: np.random.Generator) -> bytes:
    "A file with some bytes changed, lost or added"
    at, act = int(rng.integers(len(raw)+1)), rng.integers(4)
    if act == 0: return raw[:at]
    if act == 1: return raw[:at] + bytes(rng.integers(0, 256, 4, np.uint8)) + raw[at+4:]
    if act == 2: return raw[:at] + bytes(rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8)) + raw[at:]
    return raw[:at] + raw[at+int(rng.integers(1, 40)):]


def changed_arrays(arrays: dict, rng: np.random.Generator) -> bytes:
    "A file of safetensors with an array more, less, of another shape or value, or another header"
    arrays, names = dict(arrays), list(arrays)
    name, act = names[rng.integers(len(names))], rng.integers(8)
    a = arrays[name]
    if act == 0: del arrays[name]
    elif act == 1: arrays[name] = a.reshape(-1)
    elif act == 2: arrays[name] = a[..., :-1]
    elif act == 3: arrays[name] = np.full_like(a, np.nan)
    elif act == 4: arrays[('blocks.99999999999.norm1.weight', 'vit.' + name, 'x', 'encoder.layer.٣.output.dense.bias')[rng.integers(4)]] = a
    elif act == 5: arrays[name] = np.moveaxis(a, -1, 0)
    elif act == 6: arrays[name] = a[:0]
    raw = safetensors(arrays)
    if act < 7: return raw
    size = struct.unpack('<Q', raw[:8])[0]
    return with_header(changed(json.loads(raw[8:8+size]), rng), raw[8+size:])


def mutations(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, bytes]]]:
    "Folders with one change each, without end: a name, and the bytes of each file"
    base = whole()
    while True:
        kind = list(base)[rng.integers(len(base))]
        files = {n: safetensors(v) if n.endswith('.safetensors') else json.dumps(v).encode() for n, v in base[kind].items()}
        which = list(files)[rng.integers(len(files))]
        if rng.random() < 0.15: files[which] = changed_bytes(files[which], rng)
        elif which.endswith('.safetensors'): files[which] = changed_arrays(base[kind][which], rng)
        else:
            value = changed(base[kind][which], rng)
            for _ in range(rng.integers(3)): value = changed(value, rng)
            files[which] = json.dumps(value).encode()
        yield f'{kind}/{which}', files


def write(folder: Path, files: dict[str, bytes]):
    "Lay files into a folder of their own"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir(): old.unlink()
    for name, raw in files.items(): (folder/name).write_bytes(raw)


def read(folder: Path):
    "Read a folder in every way that there is"
    from mlxvit.convert import convert
    from mlxvit.encoders import Encoder, EncoderConfig
    from mlxvit.text import take
    if (folder/'tokenizer.json').exists():
        words = take(folder)
        return words.decode_all(words.batch(['a dog runs', 'a <s> cat ran']))
    convert(folder)
    encoder = Encoder(EncoderConfig(str(folder), framework='torch'))
    if encoder.model.patches <= 4096: return encoder.features(np.zeros((1, *encoder.image_shape), np.uint8))


def check(folder: Path, limit: float = 5.) -> str:
    "Read a folder; '' if it could be, else the one line that refused it"
    start, words = time.perf_counter(), ''
    try: read(folder)
    except (ValueError, OSError, ImportError) as error: words = str(error)
    except Exception as error: raise AssertionError(f'{type(error).__name__}: {error}') from error
    assert '\n' not in words and len(words) < 1000, f'more than a line: {words!r:.400}'
    assert time.perf_counter() - start < limit, f'{time.perf_counter() - start:.0f} s'
    return words


def main(n: int = 2000, seed: int = 1) -> int:
    "Try many, and print what was found"
    faults, refused = 0, 0
    with tempfile.TemporaryDirectory() as t:
        write(Path(t)/'model', {n: safetensors(v) if n.endswith('.safetensors') else json.dumps(v).encode() for n, v in whole()['hugging'].items()})
        read(Path(t)/'model') # libraries are loaded once
        for i, (name, files) in zip(range(n), mutations(np.random.default_rng(seed))):
            write(Path(t)/'model', files)
            try: refused += bool(check(Path(t)/'model'))
            except AssertionError as error:
                faults += 1
                print(f'{i} {name}: {error}'[:600])
    import resource
    print(f'{n} tried, {refused} refused, {n-refused-faults} read, {faults} faults, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024} MB')
    return faults


if __name__ == '__main__': sys.exit(bool(main(*(int(a) for a in sys.argv[1:]))))
