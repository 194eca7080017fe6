"The command line as a user meets it: as a process, with its output and exit code"
import json, struct
import pytest
from conftest import TINY


@pytest.mark.parametrize('args, words', [
    (['--help'], ['train', 'evaluate', 'predict', 'caption', 'average', 'export', 'results', 'convert', 'bench']),
    (['train', '--help'], ['digit', 'grid', 'layout']),
    (['train', 'grid', '--help'], ['--data.rows', 'cells down', 'largest rotation, degrees']),
    (['train', 'layout', '--help'], ['--data.size', '--data.most', 'most digits on a canvas', '--init', '--class_weights', '--focal']),
    (['train', 'digit', '--help'], ['--epochs', '--model.dim', '--data.rotate', 'passes over the training set', '--config', '--resume']),
    (['predict', '--help'], ['--json', '--prepared']),
    (['evaluate', '--help'], ['--framework']),
    (['--version'], ['0.']),
])
def test_help(mlxvit, args, words):
    p = mlxvit(*args)
    assert p.returncode == 0, p.stderr
    for w in words: assert w in p.stdout


@pytest.mark.parametrize('code, args, words', [
    (2, [], ['usage']),
    (2, ['train', 'cats'], ['cats']),
    (2, ['train', 'digit', '--epochs', 'many'], ['epochs']),
    (2, ['train', 'digit', '--epoch_number', '3'], ['epoch_number']),
    (1, ['train', 'digit', '--epochs', '0'], ['epochs should be at least 1']),
    (1, ['train', 'digit', '--model.heads', '5'], ['5 heads do not divide a width of 64']),
    (1, ['train', 'digit', '--model.patch_size', '6'], ['patches of 6 px do not tile']),
    (1, ['train', 'digit', '--schedule', 'stairs'], ["unknown schedule 'stairs'", 'cosine']),
    (1, ['train', 'digit', '--framework', 'jax'], ["unknown framework 'jax'"]),
    (1, ['train', 'digit', '--data.source', 'disk'], ["unknown source 'disk'"]),
    (1, ['train', 'digit', '--data.name', 'fashion'], ["only 'mnist' is bundled"]),
    (1, ['train', 'digit', '--data.limit', '10'], ['cannot make batches of 64 from 10']),
    (2, ['train', 'digit', '--track', 'paper'], ['paper', 'wandb-offline']),
    (1, ['train', 'digit', '--resume'], ['no checkpoint at']),
    (1, ['train', 'digit', '--model.C', '5'], ['the data needs model.C=10, got 5']),
    (1, ['train', 'grid', '--data.rows', '0'], ['rows should be at least 1, got 0']),
    (1, ['train', 'grid', '--data.cols', '3', '--model.cells', '[2,2]'], ['the data needs model.cells=(2, 3), got (2, 2)']),
    (1, ['train', 'grid', '--model.patch_size', '14', '--model.head', 'sum'], ["unknown head 'sum'"]),
    (1, ['train', 'grid', '--model.patch_size', '56'], ['2×2 cells do not divide 1×1 patches']),
    (1, ['train', 'grid', '--data.limit', '100'], ['cannot make batches of 64 grids of 2×2 from 100 digits']),
    (1, ['train', 'layout', '--data.size', '[60,64]'], ['cells of 8 px do not tile a 60×64 canvas']),
    (1, ['train', 'layout', '--data.least', '5'], ['expected 0 <= least <= most digits, got 5 and 4']),
    (1, ['train', 'layout', '--data.most', '65'], ['64 cells hold at most 64 digits, got 65']),
    (1, ['train', 'layout', '--data.size', '[16,16]', '--data.least', '1', '--data.most', '1', '--data.canvases', '64'], ['found no room for 1 digits on a 16×16 canvas']),
    (1, ['train', 'layout', '--data.canvases', '10'], ['cannot make batches of 64 from 10 canvases']),
    (1, ['train', 'layout', '--class_weights', '[1,2]', '--data.canvases', '64', '--data.valid', '100'], ['2 class weights for 11 classes']),
    (1, ['train', 'layout', '--init', 'digit', '--data.canvases', '64', '--data.valid', '100'], ['digit, named by --init: embedding.projection.weight has shape (96, 16), expected (96, 64)']),
    (1, ['results', 'nowhere'], ['nowhere is no run']),
    (1, ['bench', 'cats'], ["unknown task 'cats'", "'captions'"]),
    (1, ['train', 'digit', '--stop_after', '-1', '--data.limit', '640', '--out', 'never'], ['stop_after should be at least 1']),
    (1, ['evaluate', 'nowhere'], ["no model 'nowhere'", 'digit']),
    (1, ['predict', 'digit', 'nowhere.png'], ['nowhere.png does not exist']),
])
def test_mistakes_are_one_line(mlxvit, tmp_path, code, args, words):
    p = mlxvit(*args, cwd=tmp_path)
    assert p.returncode == code, p.stderr
    assert 'Traceback' not in p.stderr
    if code == 1: assert p.stderr.count('\n') == 1 and p.stderr.startswith('mlxvit: error: ')
    for w in words: assert w in p.stderr
    assert not list(tmp_path.rglob('model.safetensors')), 'a refused run leaves no model behind'


def test_a_folder_named_like_a_shipped_model_is_ambiguous(mlxvit, run, tmp_path):
    run.rename(tmp_path/'digit')
    p = mlxvit('evaluate', 'digit', cwd=tmp_path)
    assert p.returncode == 1 and 'write ./digit for the folder' in p.stderr
    assert mlxvit('evaluate', './digit', cwd=tmp_path).returncode == 0
    assert (tmp_path/'digit'/'metrics.json').exists()


def test_train_evaluate_predict_export(mlxvit, run, tmp_path):
    p = mlxvit('evaluate', run)
    assert p.returncode == 0 and ': digits: ' in p.stdout
    q = mlxvit('export', run, tmp_path/'small')
    assert q.returncode == 0, q.stderr
    assert sorted(f.name for f in (tmp_path/'small').iterdir()) == ['SHA256SUMS', 'config.json', 'metrics.json', 'metrics.jsonl', 'model.safetensors']
    trained = json.loads((tmp_path/'small'/'config.json').read_text())['trained']
    assert {'command', 'cores', 'processor', 'seconds', 'seed', 'epoch'} <= set(trained)
    scores = lambda out: out.splitlines()[0].split(': ', 1)[1]
    assert scores(mlxvit('evaluate', tmp_path/'small').stdout) == scores(p.stdout)


def test_the_saved_configuration_repeats_the_run(mlxvit, straight, tmp_path):
    "config.yaml of a run, handed to --config, gives the same weights"
    p = mlxvit('train', 'digit', '--config', straight/'config.yaml', '--out', tmp_path/'again')
    assert p.returncode == 0, p.stderr
    assert (tmp_path/'again'/'last'/'model.safetensors').read_bytes() == (straight/'last'/'model.safetensors').read_bytes()


def test_flags_win_over_yaml(mlxvit, tmp_path):
    (tmp_path/'c.yaml').write_text('epochs: 3\nmodel:\n  dim: 16\n  heads: 2\n')
    p = mlxvit('train', 'digit', '--config', tmp_path/'c.yaml', '--epochs', 1, '--model.depth', 1, '--data.limit', 256, '--data.valid', 100, '--out', tmp_path/'r', '--quiet')
    assert p.returncode == 0, p.stderr
    config = json.loads((tmp_path/'r'/'last'/'config.json').read_text())
    assert (config['fit']['epochs'], config['model']['dim'], config['model']['depth']) == (1, 16, 1)


@pytest.mark.parametrize('yaml, words', [('epochs: lots\n', 'epochs'), ('epoch: 3\n', 'epoch'), ('epochs: [\n', 'c.yaml is no YAML')])
def test_a_bad_yaml_is_a_usage_error(mlxvit, tmp_path, yaml, words):
    (tmp_path/'c.yaml').write_text(yaml)
    p = mlxvit('train', 'digit', '--config', tmp_path/'c.yaml', cwd=tmp_path)
    assert p.returncode == 2 and words in p.stderr and 'Traceback' not in p.stderr


def test_a_progress_bar_on_the_console(mlxvit, tmp_path):
    p = mlxvit('train', 'digit', '--epochs', 1, '--out', tmp_path/'r', *[t for t in TINY if t != '--quiet'])
    assert '10/10' in p.stderr and 'valid_accuracy' in p.stderr
    assert '1 epoch of 10 steps' in p.stdout


def test_a_diverging_run_says_where(mlxvit, tmp_path):
    p = mlxvit('train', 'digit', '--epochs', 1, '--lr', '1e30', '--clip', 0, '--warmup', 0, '--out', tmp_path/'r', *TINY)
    assert p.returncode == 1 and 'learning rate' in p.stderr and 'step' in p.stderr and 'last good checkpoint' in p.stderr


def wandb_records(path):
    "The records of a .wandb file: a header, then LevelDB's log format in blocks of 32 KiB"
    raw, at, part = path.read_bytes(), 7, b''
    assert raw[:4] == b':W&B'
    while at+7 <= len(raw):
        if 32768 - at%32768 < 7: at += 32768 - at%32768; continue
        size, kind = struct.unpack_from('<HB', raw, at+4)
        part += raw[at+7:at+7+size]
        at += 7+size
        if kind in (1, 4): yield part; part = b''


@pytest.mark.parametrize('args, score', [(['digit', '--epochs', 6, *TINY], 'valid_accuracy'), (['reading', '--epochs', 2, '--data.canvases', 64, '--data.warps', 16, *TINY, '--batch_size', 16], 'valid_loss')], ids=['digits', 'captions'])
def test_wandb_offline_writes_what_the_log_says(mlxvit, tmp_path, args, score):
    "Weights & Biases for real, without a network: its file on disk holds our records"
    from wandb.proto import wandb_internal_pb2 as pb
    p = mlxvit('train', *args, '--track', 'wandb-offline', '--out', tmp_path/'r')
    assert p.returncode == 0, p.stderr
    files, rows = list((tmp_path/'r').glob('wandb/offline-run-*/*.wandb')), []
    assert len(files) == 1
    for raw in wandb_records(files[0]):
        record = pb.Record(); record.ParseFromString(raw)
        if record.WhichOneof('record_type') == 'history': rows.append({i.key or '.'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    log = [json.loads(l) for l in (tmp_path/'r'/'metrics.jsonl').read_text().splitlines()]
    scores = lambda records: [r[score] for r in records if score in r]
    assert len(scores(log)) == int(args[2]) and scores(rows) == pytest.approx(scores(log))


SMALL = '--epochs 1 --data.limit 640 --data.valid 100 --model.dim 16 --model.heads 2 --model.depth 1 --quiet'.split()


def test_a_grid_from_training_to_prediction(mlxvit, tmp_path):
    "Train, examine, predict a picture, export a record, and print the table: three digits in a row"
    from PIL import Image
    from mlxvit.data.mnist import load_digits
    import numpy as np
    run, picture = tmp_path/'three', tmp_path/'number.png'
    assert mlxvit('train', 'grid', '--data.rows', 1, '--data.cols', 3, '--out', run, *SMALL).returncode == 0
    p = mlxvit('evaluate', run)
    assert 'digits: ' in p.stdout and 'whole images: ' in p.stdout
    Image.fromarray(255-np.hstack(load_digits('test').images[:3])).resize((420, 140)).save(picture)
    answer = json.loads(mlxvit('predict', run, picture, '--json').stdout)
    assert np.shape(answer['cells']) == (1, 3) and [d['column'] for d in answer['digits']] == [0, 1, 2]
    words = mlxvit('predict', run, picture).stdout.splitlines()
    assert 'number.png: 3 digits, each at least ' in words[0] and words[1].split() == [str(c) for c in answer['cells'][0]]
    p = mlxvit('export', run, tmp_path/'record', '--record')
    assert p.returncode == 0 and sorted(f.name for f in (tmp_path/'record').iterdir()) == ['config.json', 'metrics.json', 'metrics.jsonl']
    table = mlxvit('results', run, tmp_path/'record').stdout
    assert table.count('mlxvit train grid --data.rows 1 --data.cols 3') == 2 and 'whole images' in table


def test_a_layout_begins_with_the_weights_of_another(mlxvit, tmp_path):
    "--init takes over everything but the positions, which are stretched; with a rate of nought they stay so"
    import numpy as np
    from safetensors.numpy import load_file
    small, large = tmp_path/'small', tmp_path/'large'
    layout = ('train', 'layout', '--data.canvases', 64, *SMALL)
    assert mlxvit(*layout, '--data.size', '[32,32]', '--data.most', 1, '--out', small).returncode == 0
    p = mlxvit(*layout, '--data.size', '[32,64]', '--data.most', 2, '--lr', 0, '--init', small, '--out', large)
    assert p.returncode == 0, p.stderr
    a, b = (load_file(r/'best'/'model.safetensors') for r in (small, large))
    assert a['embedding.position'].shape[1] == 16 and b['embedding.position'].shape[1] == 32
    assert all(np.array_equal(a[n], b[n]) for n in a if n != 'embedding.position')
    config = json.loads((large/'best'/'config.json').read_text())
    before, = config['trained']['before']
    assert config['data']['size'] == [32, 64] and str(small) in before['command'] and before['epoch'] == 1
    table = mlxvit('results', large).stdout
    assert table.count('mlxvit train layout') == 2 and ' && ' in table
    p = mlxvit('train', 'layout', '--resume', '--data.size', '[32,64]', '--out', large, '--quiet')
    assert p.returncode == 0, p.stderr


def test_a_model_takes_its_architecture_from_another(mlxvit, tmp_path):
    "--init without model flags goes on with the other's shape, and a flag that is typed wins, to its cost"
    small, large = tmp_path/'small', tmp_path/'large'
    layout = ('train', 'layout', '--data.canvases', 64, *SMALL[:4], '--quiet', '--epochs', 1, '--data.valid', 100)
    assert mlxvit(*layout, *SMALL, '--model.convolution', 3, '--model.positions', 'false', '--out', small).returncode == 0
    p = mlxvit(*layout, '--data.size', '[64,96]', '--init', small, '--out', large)
    assert p.returncode == 0, p.stderr
    a, b = (json.loads((r/'best'/'config.json').read_text())['model'] for r in (small, large))
    assert b == {**a, 'image_size': [64, 96], 'cells': [8, 12]} and not b['positions'] and b['convolution'] == 3 and b['dim'] == 16
    p = mlxvit(*layout, '--init', small, '--model.dim', 32, '--out', tmp_path/'wide')
    assert p.returncode == 1 and 'named by --init' in p.stderr and not (tmp_path/'wide').exists()


def test_the_mean_of_siblings(mlxvit, tmp_path):
    "Averaged, examined, shipped and counted; strangers, other shapes and one alone are refused, and nothing is written"
    import numpy as np
    from safetensors.numpy import load_file
    run = lambda name, *more: mlxvit('train', 'digit', '--epochs', 1, '--out', name, *TINY, *more, cwd=tmp_path)
    assert all(run(*words).returncode == 0 for words in (['start'], ['a', '--init', 'start', '--seed', 1], ['b', '--init', 'start', '--seed', 2], ['stranger', '--seed', 3]))
    p = mlxvit('average', 'a', 'b', '--out', 'mean', cwd=tmp_path)
    assert p.returncode == 0 and 'the mean of 2 models' in p.stdout, p.stderr
    a, b, mean = (load_file(tmp_path/f/'model.safetensors') for f in ('a/best', 'b/best', 'mean'))
    for n in a: np.testing.assert_allclose(mean[n], (a[n]+b[n])/2, atol=1e-7)
    assert mlxvit('evaluate', 'mean', cwd=tmp_path).returncode == 0 and mlxvit('export', 'mean', 'shipped', cwd=tmp_path).returncode == 0
    assert (tmp_path/'shipped/metrics.json').exists()
    table = mlxvit('results', 'mean', cwd=tmp_path).stdout
    assert table.count('mlxvit train digit') == 3 and table.count('--out start') == 1 and 'mlxvit average a b --out mean' in table
    assert mlxvit('average', 'start', 'a', '--out', 'of-two-ages', cwd=tmp_path).returncode == 0
    assert run('wide', '--model.dim', 32).returncode == 0
    for words, says in ((['a', 'stranger'], 'no training in common'), (['a', 'wide'], 'they differ in model.dim'), (['a'], 'two runs at least, got 1'), (['a', 'nobody'], "no model 'nobody'")):
        p = mlxvit('average', *words, '--out', 'never', cwd=tmp_path)
        assert p.returncode == 1 and says in p.stderr and p.stderr.count('\n') == 1, p.stderr
    assert not (tmp_path/'never').exists()
    p = mlxvit('average', 'a', 'b', '--out', 'a', cwd=tmp_path)
    assert p.returncode == 1 and 'left alone' in p.stderr


def test_a_layout_is_printed_with_dots(mlxvit, tmp_path):
    "An empty canvas is an answer, not an error"
    from PIL import Image
    Image.new('L', (64, 64), 255).save(tmp_path/'blank.png')
    p = mlxvit('predict', 'layout', tmp_path/'blank.png')
    assert p.stdout.splitlines()[0].endswith('blank.png: 0 digits') and p.stdout.splitlines()[1:] == ['. . . . . . . .']*8
    assert json.loads(mlxvit('predict', 'layout', tmp_path/'blank.png', '--json').stdout)['digits'] == []
