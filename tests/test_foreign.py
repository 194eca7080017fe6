"Foreign models, processors and tokenizers: read as their library reads them, or refused in one line that names file and key"
import json, shutil, warnings
from pathlib import Path
import numpy as np
import pytest
from fuzz_models import check, mutations, safetensors, timm_weights, weights, whole, write
from mlxvit.checkpoint import CheckpointError
from mlxvit.convert import ARCHITECTURES, convert, facts_of_arguments, facts_of_name, facts_of_timm, fetch
from mlxvit.encoders import Encoder, EncoderConfig
from mlxvit.metrics import caption_scores
from mlxvit.text import Tokenizer, take, train_characters, train_words, warn_once


def folder(path, kind='hugging', **changes):
    "A tiny model or tokenizer; a change replaces a file, by its name without the ending, or keys in it"
    files = whole()[kind]
    for name, value in changes.items():
        file = next(f for f in files if f.split('.')[0] == name)
        files[file] = {**files[file], **value} if isinstance(value, dict) and not file.endswith('safetensors') else value
    raw = lambda n, v: v if isinstance(v, bytes) else safetensors(v) if n.endswith('safetensors') else json.dumps(v).encode()
    write(path, {n: raw(n, v) for n, v in files.items()})
    return path


def features(path, framework='torch'): return Encoder(EncoderConfig(str(path), framework=framework)).features(np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3))


def test_every_architecture_of_the_table_is_what_timm_says():
    "Built with one block and without memory for its weights"
    import timm, torch
    for name in ARCHITECTURES:
        with torch.device('meta'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = timm.create_model(name, num_classes=0, depth=1)
        facts, (own, pool, after) = facts_of_timm(model), facts_of_arguments(dict(architecture=name))
        assert {k: own[k] for k in facts} == facts and own['dim'] == model.embed_dim and (pool, after) == (model.global_pool, False), name
    assert {facts_of_name(n)['depth'] for n in ARCHITECTURES} == {10, 12, 24, 27, 32, 36, 40, 48}


def test_a_folder_of_timm_is_what_timm_computes(tmp_path):
    import timm, torch
    model = timm.create_model('deit3_small_patch16_224', img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=3, num_classes=5).eval()
    write(tmp_path/'t', {'config.json': json.dumps(dict(architecture='deit3_small_patch16_224.fb_in1k', num_classes=5, num_features=12, pretrained_cfg=dict(url='https://x', file='y.pth'),
          model_args=dict(img_size=[32, 32], patch_size=8, embed_dim=12, depth=2, num_heads=3, init_values=1e-5, drop_path_rate=0.1))).encode(),
          'model.safetensors': safetensors({n: a.detach().numpy() for n, a in model.state_dict().items()})})
    from mlxvit.convert import build
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert abs(build(convert(tmp_path/'t'), 'torch')(x.permute(0, 2, 3, 1).contiguous())[:,0] - model(x)).max() < 1e-5


@pytest.mark.parametrize('args, words', [
    (dict(depth=10**5), 'depth should be at most 1,000'), (dict(img_size=2**17), 'img_size should be at most 16,384'), (dict(embed_dim=1e9), 'embed_dim should be a whole number'), (dict(foo=1), "['foo']"),
    (dict(depth=3), 'depth should be 3 by the configuration, and is 2 in the arrays'), (dict(embed_dim=16), 'dim should be 16'), (dict(num_heads=0), 'num_heads should be at least 1'), (dict(num_heads=3), '3 heads do not divide'),
    (dict(class_token=1), 'class_token should be true or false'), (dict(global_pool='map'), 'pools its tokens by attention'), (dict(global_pool='avg'), 'last norm after pooling'),
    (dict(features_only=True), 'features_only'), (dict(cache_dir='/tmp'), 'cache_dir'), (dict(norm_layer='x'), 'norm_layer'), (dict(block_fn='x'), 'block_fn'), (dict(patch_size=[4, 8]), 'should be square')])
def test_arguments_of_timm_are_refused_by_name(tmp_path, args, words):
    timm = whole()['timm']['config.json']
    path = folder(tmp_path/'t', 'timm', config={'model_args': {**timm['model_args'], **args}})
    with pytest.raises(CheckpointError) as error: convert(path)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('size, channels', [(4, 3), (8, 1), (3, 3), (1, 1)])
@pytest.mark.parametrize('layout', ['pt', 'mlx'])
def test_both_layouts_of_a_patch_kernel(tmp_path, size, channels, layout):
    "By the shape, and where that says nothing, by the word of the file"
    side = size*2
    arrays = weights(patch=size, side=side, channels=channels)
    path = folder(tmp_path/'m', config=dict(patch_size=size, image_size=side, num_channels=channels), model=arrays)
    expected = convert(path).weights
    name = 'embeddings.patch_embeddings.projection.weight'
    from safetensors.numpy import save_file
    kernel = arrays[name].transpose(0, 2, 3, 1) if layout == 'mlx' else arrays[name]
    save_file({**arrays, name: np.ascontiguousarray(kernel)}, path/'model.safetensors', metadata={'format': layout})
    found = convert(path).weights
    assert all(np.array_equal(found[n], expected[n]) for n in expected)


def test_a_kernel_that_fits_no_patch_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='is no kernel for patches of 2×2'): convert(folder(tmp_path/'m', config=dict(patch_size=2)))


GREY = dict(config=dict(num_channels=1), model=weights(channels=1))

@pytest.mark.parametrize('processor, mean', [({}, (.5,)), (dict(image_mean=.25, image_std=.5), (.25,)), (dict(image_mean=[.1], image_std=[.5]), (.1,)), (None, (.5,))])
def test_a_grey_model_with_the_processor_it_comes_with(tmp_path, processor, mean):
    path = folder(tmp_path/'m', **GREY, **(dict(preprocessor_config=processor) if processor else {}))
    if processor is None: (path/'preprocessor_config.json').unlink()
    encoder = Encoder(EncoderConfig(str(path), framework='torch'))
    assert encoder.preparation.mean == mean and encoder.features(np.zeros((1, 8, 8), np.uint8)).shape == (1, 5, 8)


@pytest.mark.parametrize('model, processor, words', [
    (GREY, dict(image_mean=[.1, .2, .3]), 'preprocessor_config.json: image_mean has 3 different numbers'), ({}, dict(image_mean=[.1]), 'should be as many numbers'), ({}, dict(image_std=0), 'image_std should be above 0'),
    ({}, dict(image_std='x'), 'image_std should be a list of numbers'), ({}, dict(resample=7), 'resample should be at most 5'), ({}, dict(resample='3'), 'resample should be a whole number'),
    ({}, dict(size=10**6), 'size should be 1 to 2,048'), ({}, dict(size=[8, 8]), 'size should be a whole number'), ({}, dict(size=dict(longest_edge=8)), 'cannot be followed'),
    ({}, dict(do_center_crop='yes'), 'do_center_crop should be true or false'), ({}, dict(crop_size=dict(height=0, width=1), do_center_crop=True), 'crop_size.height'), ({}, dict(rescale_factor=0), 'only 1/255')])
def test_a_processor_is_refused_by_file_and_key(tmp_path, model, processor, words):
    path = folder(tmp_path/'m', **model, preprocessor_config=processor)
    with pytest.raises(ValueError) as error: Encoder(EncoderConfig(str(path), framework='torch'))
    assert words in str(error.value) and 'preprocessor_config.json' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('config, words', [
    (dict(patch_size=0), 'patch_size should be at least 1'), (dict(image_size=[8, 8, 8]), 'image_size should be 2 numbers'), (dict(num_attention_heads=0), 'num_attention_heads should be at least 1'),
    (dict(layer_norm_eps='1e-6'), 'layer_norm_eps should be a number'), (dict(hidden_act=['gelu']), 'hidden_act should be a text'), (dict(model_type='clip', vision_config=[1]), 'vision_config should be an object'),
    (dict(num_hidden_layers=10**9), 'at most 1,000'), (dict(num_hidden_layers=3), 'depth should be 3'), (dict(hidden_size=768), 'dim should be 768'), (dict(num_channels=1), 'channels should be 1'),
    (dict(image_size=16), 'embedding.position'), (dict(auto_map=dict(AutoModel='a.B')), 'code of its own'), (dict(quantization_config=dict(bits=4)), 'quantised'), (dict(model_type=['vit']), 'unknown architecture')])
def test_a_configuration_is_refused_by_key(tmp_path, config, words):
    path = folder(tmp_path/'m', config=config)
    for call in (convert, features):
        with pytest.raises(CheckpointError) as error: call(path)
        assert words in str(error.value) and '\n' not in str(error.value)


def test_keys_that_change_nothing_change_nothing(tmp_path):
    plain = features(folder(tmp_path/'a'))
    more = folder(tmp_path/'b', config=dict(torch_dtype='float16', _name_or_path='x/y', attn_implementation='someone/kernel', transformers_version='9', problem_type=[], id2label={'0': 'x'}))
    (more/'adapter_config.json').write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/model"}')
    assert np.array_equal(features(more), plain)
    assert abs(features(more, 'mlx') - plain).max() < 1e-4


@pytest.mark.parametrize('files, words', [({'a': '../m/model-0.safetensors'}, 'is not the name of a file'), ({'a': '/etc/passwd.safetensors'}, 'is not the name'), ({'a': 'x.bin'}, 'no file of safetensors'), ({'a': 1}, 'weight_map'),
                                          ([], 'weight_map'), ({}, 'weight_map'), ({str(i): f'{i}.safetensors' for i in range(2000)}, '2,000 files'), ({'a': 'model-1.safetensors'}, 'has no model-1.safetensors')])
def test_an_index_names_files_of_its_folder(tmp_path, files, words):
    path = folder(tmp_path/'m', 'shards')
    (path/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=files)))
    with pytest.raises(CheckpointError) as error: convert(path)
    assert words in str(error.value)


@pytest.mark.parametrize('file', ['config.json', 'model.safetensors', 'preprocessor_config.json'])
def test_links_stay_in_the_folder_or_the_cache_of_the_hub(tmp_path, file):
    expected = features(folder(tmp_path/'m'))
    shutil.move(tmp_path/'m'/file, tmp_path/'elsewhere')
    (tmp_path/'m'/file).symlink_to(tmp_path/'elsewhere')
    with pytest.raises(CheckpointError, match='leads out of its folder'): features(tmp_path/'m')
    cache = tmp_path/'hub'/'models--a--b'
    (cache/'blobs').mkdir(parents=True)
    shutil.copytree(tmp_path/'m', cache/'snapshots'/'0123', ignore=shutil.ignore_patterns(file))
    shutil.move(tmp_path/'elsewhere', cache/'blobs'/'ab')
    (cache/'snapshots'/'0123'/file).symlink_to('../../blobs/ab')
    assert np.array_equal(features(cache/'snapshots'/'0123'), expected)


@pytest.mark.parametrize('name', ['hf-hub:a/b', 'a/b', 'a/b@main', '../..@' + '0'*40, 'a/b:c@' + '0'*40, 'a/../b@' + '0'*40, 'https://x/a@' + '0'*40, 'ä/b@' + '0'*40, 'a/b@' + '0'*39, 'a'*99 + '/b@' + '0'*40])
def test_a_name_of_the_hub_is_owner_model_and_commit(name):
    with pytest.raises(CheckpointError, match='owner/model@revision'): fetch(name)
    with pytest.raises(ValueError, match='owner/model@revision'): take(name)


@pytest.mark.parametrize('file, change, words', [
    ('tokenizer', dict(model=None), 'an object with a model'), ('tokenizer', dict(model=dict(type='WordLevel', vocab={'a': 4*10**9}, unk_token='a')), 'ids of 2 tokens'), ('tokenizer', dict(added_tokens=[dict(id=0, content=1)]), 'content of an added token'),
    ('tokenizer', dict(added_tokens='x'), 'added_tokens should be a list'), ('tokenizer', dict(pre_tokenizer=dict(type='Split', pattern=dict(Regex='(a*)*$'), behavior='Isolated', invert=False)), 'repeats a repetition'),
    ('tokenizer', dict(pre_tokenizer=dict(type='Evil')), 'tokenizer.json cannot be read'), ('tokenizer', dict(normalizer=dict(type='Precompiled', precompiled_charsmap='AAAA')), 'precompiled_charsmap is damaged'),
    ('tokenizer_config', dict(bos_token=1), 'bos_token should be a text'), ('tokenizer_config', dict(eos_token=dict(content=['a'])), 'eos_token should be a text')])
def test_a_tokenizer_is_refused_by_file_and_part(tmp_path, file, change, words):
    path = folder(tmp_path/'t', 'tokenizer', **{file: change})
    with pytest.raises(ValueError) as error: take(path)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_a_tokenizer_without_its_json_says_what_to_do(tmp_path):
    (tmp_path/'vocab.json').write_text('{"a": 0}')
    with pytest.raises(ValueError, match='has no tokenizer.json; load it with its own library'): take(tmp_path)


def test_a_kept_tokenizer_with_other_names_is_refused():
    import hashlib
    from mlxvit.text import digest
    kept = {k: v for k, v in json.loads(train_words(['a dog']).to_json()).items() if k != 'sha256'}
    for names in (None, [], {'pad': 1}, {**kept['names'], 'inner': 'x'}, {**kept['names'], 'pad': ['x']}):
        changed = {'names': names, 'tokenizer': kept['tokenizer']}
        with pytest.raises(ValueError, match='should name its pad'): Tokenizer.from_json(json.dumps(dict(format=kept['format'], sha256=digest(changed), **changed)))


def test_languages_without_spaces():
    answers, truths = ['一只狗在草地上跑', 'หมากำลังวิ่ง'], [['一只狗在草地上跑步'], ['หมากำลังเดิน']]
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='have no spaces') as said:
        for _ in range(3): caption_scores(answers, truths)
        train_words(answers)
    assert len(said) == 2 and all('\n' not in str(w.message) for w in said)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scores = caption_scores(answers, truths, by='characters')
        words = train_characters(answers)
        train_words(['a dog', 'a cat']), train_words(['一只 狗', '两 只'])
    assert scores['rouge'] > 0.7 and scores['words'] == 10
    assert words.decode_all(words.batch(answers)) == answers and words.encode('狗跑')[0] != words.unknown


def test_three_hundred_small_changes(tmp_path):
    "`python tests/fuzz_models.py 2000 1` tries more"
    features(folder(tmp_path/'warm')) # libraries are loaded once
    outcome = []
    for (name, files), _ in zip(mutations(np.random.default_rng(7)), range(300)):
        write(tmp_path/'m', files)
        outcome.append(check(tmp_path/'m'))
    assert 30 < outcome.count('') < 150
