"""A training step of ours beside its peers at the same shape, in turn, in one run.

    python tests/bench_step.py [--rounds 30] [--batch 128] [--shape small|shipped]

Every model takes the same batch, the same AdamW, the same clipping. The steps are taken in turn, so that a machine that
slows down slows all of them; the ratio is taken round by round, and its median printed: above 1, ours is faster.
Then: which fraction of the machine's matrix-product rate our step reaches, and where the rest goes.
"""
import argparse, os, statistics as st, time
os.environ.setdefault('KINETO_LOG_LEVEL', '5') # the profiler looks for a GPU, and says so
import torch
from torch import nn
from torch.profiler import profile
from mlxvit.config import ViTConfig, count_flops
from mlxvit.fit import FitConfig
from mlxvit.tasks import machine
from mlxvit.torch.vit import ViT

SHAPES = {'small': dict(patch_size=7, dim=64, depth=4, heads=4), 'shipped': dict(patch_size=4, dim=96, depth=4, heads=6)}


def peers(patch_size, dim, depth, heads):
    "Models of the same shape: name -> (model, images as it takes them, how to call it)"
    import timm, transformers, vit_pytorch
    from vit_pytorch.simple_vit import SimpleViT
    common = dict(image_size=28, patch_size=patch_size, num_classes=10, dim=dim, depth=depth, heads=heads, dim_head=dim//heads, mlp_dim=4*dim, channels=1)
    tiny = dict(img_size=28, patch_size=patch_size, in_chans=1, num_classes=10, embed_dim=dim, depth=depth, num_heads=heads)
    hf = transformers.ViTConfig(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4*dim, image_size=28, patch_size=patch_size, num_channels=1, num_labels=10, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    ours = lambda head: ViT(ViTConfig(patch_size=patch_size, dim=dim, depth=depth, heads=heads, head=head))
    flat, logits = lambda m, x: m(x[:,0])[:,0], lambda m, x: m(x)
    return {
        'mean': {'ours': (ours('mean'), flat), 'vit_pytorch.SimpleViT': (SimpleViT(**common), logits),
                 'timm, no class token': (timm.models.VisionTransformer(**tiny, class_token=False, global_pool='avg'), logits)},
        'class token': {'ours': (ours('cls'), flat), 'vit_pytorch.ViT': (vit_pytorch.ViT(**common), logits), 'timm': (timm.models.VisionTransformer(**tiny), logits),
                        'transformers': (transformers.ViTForImageClassification(hf), lambda m, x: m(pixel_values=x).logits)}}


class Step:
    "One optimizer step of a model on one batch"
    def __init__(self, model, call, batch):
        self.model, self.call, self.x, self.y = model.train(), call, torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def __call__(self):
        loss = nn.functional.cross_entropy(self.call(self.model, self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1., foreach=True)
        self.optimizer.step()

    def time(self): start = time.perf_counter(); self(); return time.perf_counter()-start


def gemm_rate(n=2048, repeats=9):
    "Floating-point operations a second of a large float32 matrix product, the best of several"
    a, times = torch.randn(n, n), []
    for _ in range(repeats): start = time.perf_counter(); a @ a; times.append(time.perf_counter()-start)
    return 2*n**3/min(times)


def where(step):
    "Share of our step by kind of operation"
    with profile() as p:
        for _ in range(10): step()
    kinds = {'matrix products': ('mm', 'addmm', 'bmm', 'baddbmm'), 'GELU': ('gelu',), 'softmax': ('softmax',), 'LayerNorm': ('layer_norm',), 'optimizer and clipping': ('adamw', 'foreach', 'norm', 'Optimizer'), 'copies': ('copy_', 'cat', 'clone')}
    total, share = 0, dict.fromkeys(kinds, 0)
    for e in p.key_averages():
        total += e.self_cpu_time_total
        name = e.key.removeprefix('aten::')
        kind = next((k for k,ws in kinds.items() if (name in ws if k == 'matrix products' else any(w in name for w in ws))), None)
        if kind: share[kind] += e.self_cpu_time_total
    return {**{k: v/total for k,v in share.items()}, 'everything else, and calling it all': 1-sum(share.values())/total}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=30); p.add_argument('--batch', type=int, default=128); p.add_argument('--shape', choices=SHAPES, default='small')
    args, shape = (a := p.parse_args()), SHAPES[a.shape]
    torch.manual_seed(0)
    print(f"{machine()['processor']}, {machine()['cores']} cores, torch {torch.__version__}; batch {args.batch}, {shape}")
    rate = gemm_rate()
    for head, models in peers(**shape).items():
        steps = {n: Step(m, call, args.batch) for n,(m,call) in models.items()}
        for s in steps.values(): [s() for _ in range(3)]
        times = [{n: s.time() for n,s in steps.items()} for _ in range(args.rounds)]
        print(f'\n{head}: median of {args.rounds} rounds')
        for n in steps: print(f"  {n:24s} {st.median(t[n] for t in times)*1e3:7.1f} ms   ratio to ours {st.median(t[n]/t['ours'] for t in times):.2f}")
        flops = 3*args.batch*sum(count_flops(ViTConfig(**shape, head='mean' if head == 'mean' else 'cls')).values())
        mine = st.median(t['ours'] for t in times)
        print(f'  ours: {flops/mine/1e9:.0f} GFLOP/s, {flops/mine/rate:.0%} of the {rate/1e9:.0f} GFLOP/s of a 2048×2048 product')
        for k,v in sorted(where(steps['ours']).items(), key=lambda kv: -kv[1]): print(f'    {v:4.0%} {k}')


if __name__ == '__main__': main()
