"""Ways to damage a file on purpose, for tests/fuzz.py: bytes, JSON, safetensors, lines and YAML.

Everything is drawn from the `random.Random` handed in, so that a seed gives the same damage again.
"""

import copy, json, random


class Raw(str):
    "JSON as it stands, which `json.dumps` would not write"


DEEP = 3000  # brackets, more than Python recurses
HOSTILE = [
    Raw(text)
    for text in (
        'null',
        'true',
        'false',
        '[]',
        '{}',
        '""',
        '0',
        '-1',
        '1',
        '2',
        '3',
        '0.5',
        '-0.0',
        '1e308',
        '1e400',
        'NaN',
        'Infinity',
        '-Infinity',
        str(2**31),
        str(2**63),
        str(-(2**63)),
        str(10**18),
        '9' * 6000,
        '1e-400',
        '"x"',
        '"1"',
        json.dumps('x' * 100_000),
        '"\\ud800"',
        '"\\u0000"',
        '"\\u001b]0;owned\\u0007"',
        '"\\u202egpj"',
        '"a|b`c\\n"',
        '"../../secret"',
        '"/etc/passwd"',
        '"/dev/zero"',
        '"hf-hub:owner/name"',
        '"local-dir:/tmp"',
        '"owner/name@main"',
        '"http://127.0.0.1:9/x"',
        '"fuzz_payload:run"',
        '"fuzz_payload.run"',
        '"float16"',
        '"patch"',
        '"cls"',
        '"NaN"',
        '[1,2,3]',
        '[null]',
        '[[1]]',
        '[1e308,1e308]',
        '[1000000,1000000]',
        '[-28,-28]',
        '[28,28]',
        '[0,0]',
        '{"a":{"b":1}}',
        '[' * DEEP + ']' * DEEP,
        '{"a":' * DEEP + '1' + '}' * DEEP,
        '[' * 100_000,
        '[' + '0,' * 99_999 + '0]',
        '{"__reduce__":"os.system"}',
        '[true,false]',
        '[[28,28],[28,28]]',
    )
]


def dump(value) -> str:
    "JSON with raw pieces in it"
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return '{' + ','.join(f'{json.dumps(k)}:{dump(v)}' for k, v in value.items()) + '}'
    if isinstance(value, list):
        return '[' + ','.join(map(dump, value)) + ']'
    return json.dumps(value)


def places(value, found=None) -> list[tuple]:
    "Every (container, key) of a plain value, itself in a list of one"
    found = [] if found is None else found
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        found.append((value, key))
        places(inner, found)
    return found


def nudged(rng: random.Random, value):
    "A value of the same kind, or the same value as another kind"
    if isinstance(value, bool):
        return rng.choice([not value, int(value), str(value)])
    if isinstance(value, (int, float)):
        return rng.choice(
            [
                -value,
                value + 1,
                value - 1,
                value * 10,
                value * 1000,
                value * 10**9,
                float(value),
                str(value),
                [value],
                value / 3,
                value + 0.5,
            ]
        )
    if isinstance(value, str):
        return rng.choice(
            [
                value.upper(),
                value + ' ',
                value[:-1],
                value * 2,
                value + '\0',
                [value],
                value.swapcase(),
                '../' + value,
                {value: value},
            ]
        )
    if isinstance(value, list):
        return rng.choice(
            [
                value[:-1],
                value * 2,
                value * 1000,
                value[::-1],
                [value],
                value + [None],
                dict.fromkeys(map(str, value[:9])),
            ]
        )
    if isinstance(value, dict):
        return rng.choice(
            [
                [value],
                list(value.items())[:9],
                {**value, 'more': 1},
                {k.upper(): v for k, v in value.items()},
                dict(list(value.items())[1:]),
            ]
        )
    return rng.choice([0, '', []])


def mutate_value(rng: random.Random, value):
    "A plain value with one to three changes"
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        spots = places(root)
        container, key = rng.choice(spots if rng.random() < 0.95 else spots[:1])
        how = rng.random()
        if how < 0.45:
            container[key] = rng.choice(HOSTILE)
        elif how < 0.75:
            container[key] = nudged(rng, container[key])
        elif how < 0.85 and container is not root:
            del container[key]
        elif how < 0.93:
            other, there = rng.choice(spots)
            container[key] = (
                copy.deepcopy(other[there]) if container is not other else rng.choice(HOSTILE)
            )
        elif isinstance(container, dict):
            container[rng.choice(['', 'x', '__class__', '\x1b[2J', 'config', key + 's'])] = (
                rng.choice(HOSTILE)
            )
        else:
            container[key] = rng.choice(HOSTILE)
    return root[0]


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    "A JSON file with other values, or broken as text"
    if rng.random() < 0.12:
        return mutate_bytes(rng, data)
    text = dump(mutate_value(rng, json.loads(data)))
    how = rng.random()
    if how < 0.02:
        return text.encode('utf-16')
    if how < 0.04:
        return b'\xef\xbb\xbf' + text.encode()
    if how < 0.05 and text.startswith('{'):
        return ('{"a":1,' + text[1:-1] + ',"a":2}').encode()
    return text.encode(errors='replace')


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    "Bytes that were flipped, cut, doubled, moved or overwritten"
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        size = len(out)
        at = rng.randrange(size + 1)
        near = min(at, 64) if rng.random() < 0.5 else at  # headers are where readers go wrong
        how = rng.randrange(9)
        if how == 0 and size:
            out[near % size] ^= 1 << rng.randrange(8)
        elif how == 1 and size:
            out[near % size] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x7B])
        elif how == 2:
            del out[at:]
        elif how == 3:
            del out[near : near + rng.choice([1, 2, 4, 8, 100])]
        elif how == 4:
            out[near:near] = rng.randbytes(rng.choice([1, 2, 4, 8, 100]))
        elif how == 5:
            out[near : near + 8] = rng.choice(
                [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, size, size + 1]
            ).to_bytes(8, rng.choice(['little', 'big']))
        elif how == 6:
            out[near:near] = out[near : near + rng.choice([16, 256, 4096])] * rng.choice([1, 2, 50])
        elif how == 7:
            out[near : near + 4] = rng.choice(
                [b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\0\0\0\x01']
            )
        else:
            out += rng.choice([b'\0', b'\n', b'}', b'x' * 100_000, bytes(1_000_000)])
    return bytes(out) if rng.random() < 0.99 else b''


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    "A safetensors file with another header, length or body"
    size = int.from_bytes(data[:8], 'little')
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.random()
    if how < 0.15:
        return (
            rng.choice(
                [0, 1, size - 1, size + 1, 2**31, 2**63 - 1, 2**64 - 1, 100_000_001, len(data)]
            ).to_bytes(8, 'little')
            + data[8:]
        )
    if how < 0.25:
        return mutate_bytes(rng, data)
    if how < 0.35:
        return data[: 8 + size] + mutate_bytes(rng, body)
    if how < 0.40:  # numbers that are none
        special = rng.choice([b'\0\0\xc0\x7f', b'\0\0\x80\x7f', b'\xff\xff\x7f\x7f'])
        at = 4 * rng.randrange(len(body) // 4)
        return (
            data[: 8 + size]
            + body[:at]
            + special * min(500, (len(body) - at) // 4)
            + body[at + 4 * min(500, (len(body) - at) // 4) :]
        )
    names = [n for n in header if n != '__metadata__']
    if how < 0.75:
        name = rng.choice(names)
        part = rng.choice(['dtype', 'shape', 'data_offsets'])
        new = {
            'dtype': ['F64', 'F16', 'BF16', 'I64', 'U8', 'BOOL', 'F8_E5M2', 'X', 7],
            'shape': [
                [],
                [0],
                [1],
                [-1],
                [2**40, 2**40],
                [2**63],
                [1] * 40,
                header[name]['shape'][::-1],
                header[name]['shape'] + [1],
                'x',
            ],
            'data_offsets': [
                [0, 0],
                [4, 0],
                [0, 2**63],
                [-4, 4],
                [0, len(body)],
                [1, 5],
                [0],
                'x',
                [0.5, 4],
            ],
        }[part]
        header[name][part] = rng.choice(new)
    elif how < 0.85:
        header[rng.choice(['x', names[0] + '.', '__metadata__', '\x1b[2J'])] = header.pop(
            rng.choice(names)
        )
    else:
        header = mutate_value(rng, header)
    text = dump(header).encode(errors='replace')
    return len(text).to_bytes(8, 'little') + text + body


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    "A file of lines, each JSON: one is changed, doubled, lost, or no JSON any more"
    lines = data.split(b'\n')
    at = rng.randrange(len(lines))
    how = rng.random()
    if how < 0.5 and lines[at].strip():
        lines[at] = mutate_json(rng, lines[at])
    elif how < 0.6:
        lines[at : at + 1] = lines[at : at + 1] * rng.choice([0, 2, 1000])
    elif how < 0.7:
        lines[at] = rng.choice(
            [
                b'',
                b'null',
                b'[]',
                b'{}',
                b'7',
                b'"x"',
                b'NaN',
                b'{"epoch":"x"}',
                b'\xff',
                b'[' * 100_000,
            ]
        )
    else:
        return mutate_bytes(rng, data)
    return b'\n'.join(lines)


NAMES = [
    '../secret.jpg',
    '../../etc/passwd',
    '/etc/passwd',
    '/dev/zero',
    '/dev/stdin',
    'fifo',
    '/proc/self/mem',
    'C:\\\\x.jpg',
    '..\\secret.jpg',
    'link.jpg',
    'a\0b',
    '',
    ' ',
    '.',
    '..',
    '/',
    '~',
    'x' * 5000,
    '0.jpg/',
    '0.JPG',
    '%30.jpg',
    'http://127.0.0.1:9/0.jpg',
    'zip://0.jpg::x.zip',
    's3://b/0.jpg',
    'file:///etc/passwd',
    '\x1b]0;owned\x07',
    '\u202egpj.0',
    'NaN',
    '7',
    '["a"',
    "['a', 'b']",
    '"',
    '""',
    '=cmd()',
]


def mutate_table(rng: random.Random, data: bytes) -> bytes:
    "A table as text: fields of others, other separators, other ends of lines, or other bytes"
    how = rng.random()
    if how < 0.3:
        return mutate_bytes(rng, data)
    if how < 0.36:
        return data.decode().encode(rng.choice(['utf-16', 'utf-32', 'utf-8-sig', 'utf-16-be']))
    lines = data.decode().split('\n')
    at = rng.randrange(len(lines))
    if how < 0.8:
        mark = rng.choice([',', '\t', '|', '"', ':', ' '])
        fields = lines[at].split(mark)
        fields[rng.randrange(len(fields))] = rng.choice(NAMES)
        lines[at] = mark.join(fields)
    elif how < 0.9:
        lines[at : at + 1] = lines[at : at + 1] * rng.choice([0, 2, 3000])
    else:
        return rng.choice(['\r', '\r\n', '\x85', '\n\n', ';']).join(lines).encode(errors='replace')
    return '\n'.join(lines).encode(errors='replace')


LAUGHS = (
    'x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n'
    + ''.join(f'x{i}: &x{i} [{",".join([f"*x{i-1}"]*10)}]\n' for i in range(1, 9))
    + 'class_weights: *x8\n'
)
YAML = [
    text.encode(errors='surrogateescape')
    for text in (
        LAUGHS,
        'a: &a [*a]\nclass_weights: *a\n',
        '&a {model: *a}\n',
        'epochs: ' + '9' * 6000,
        'lr: ' + '9' * 400 + '.0',
        'epochs: 0x' + 'f' * 6000,
        'epochs: 1_000_000_000_000',
        'lr: .nan',
        'lr: -.inf',
        'lr: 1:30:00',
        'epochs: 2026-11-28',
        'epochs: !!python/object/apply:fuzz_payload.run []',
        'epochs: !!python/name:fuzz_payload.run',
        'epochs: !!binary aGVsbG8=',
        'epochs: !!float x',
        'epochs: !!int ""',
        'lr: !!timestamp 2026-99-99',
        '!!set {epochs}',
        'model: !!omap [dim: 3]',
        '<<: {epochs: 1}',
        '<<: [1, 2]',
        'model: &m {dim: 16}\ndata:\n  <<: *m\n',
        '[' * 10_000,
        '{' * 10_000,
        'a: ' * 3000,
        '- ' * 3000,
        'model: ' + '{dim: ' * 2000,
        'epochs: 1\nepochs: 2\n',
        '\tepochs: 1',
        'epochs: "\\e]0;owned\\a"',
        '"\\e[2J": 1',
        'epochs: 1\0',
        'epochs: 1\n---\nepochs: 2\n',
        '%YAML 9.9\n---\nepochs: 1\n',
        '%TAG ! tag:x\n---\n!x 1\n',
        '? [1, 2]\n: 3\n',
        '? {a: 1}\n: 3\n',
        'null',
        '~',
        '7',
        '[]',
        '"x"',
        'config: c.yaml',
        'config: /dev/zero',
        'data:\n  warps: 100000000000\n',
        'batch_size: 1000000000000',
        'model:\n  dim: 1000000000\n  heads: 1\n',
        'model:\n  depth: 100000000\n',
        'data:\n  source: owner/name@0123456789012345678901234567890123456789\n',
        'class_weights: [' + '1,' * 100_000 + '1]',
        'schedule: ' + 'x' * 1_000_000,
        'lr: 1e400',
        'seed: -1',
        'seed: 1e3',
        'epochs: yes',
        'out: /proc/self/mem',
        'framework: [torch]',
        'resume: maybe',
        'x' * 1_000_000,
        ': :',
        '@',
        '`',
        '%',
        '*x',
        '&x',
        '!',
        '|',
        '>',
        "'",
        '"',
        '---',
        '...',
    )
]
YAML += [
    'epochs: 1\n'.encode('utf-16'),
    'epochs: 1\n'.encode('utf-32'),
    b'\xef\xbb\xbfepochs: 1\n',
    b'\xff\xfe\x00',
    b'\x80',
    'lr: 1\n'.encode('utf-16-be'),
    b'\x00' * 1000,
]


def as_yaml(value, depth: int = 0) -> str:
    "A plain value as YAML in the flow style, raw pieces as they stand"
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict) and not depth:
        return ''.join(f'{json.dumps(k)}: {as_yaml(v, 1)}\n' for k, v in value.items()) or '{}'
    return dump(value)


def mutate_yaml(rng: random.Random, settings: dict) -> bytes:
    "Settings as YAML with hostile values, or one of the ways YAML itself goes wrong"
    if rng.random() < 0.3:
        return rng.choice(YAML)
    text = as_yaml(mutate_value(rng, settings)).encode(errors='replace')
    return mutate_bytes(rng, text) if rng.random() < 0.2 else text
