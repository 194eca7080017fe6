"Killing a process at every act that the system is asked for: what `test_runs.py` and `long_runs.py` share"
import os, signal, sys
import numpy as np

ACTS = {'open', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.remove', 'os.chmod', 'os.truncate', 'os.listdir',
        'os.scandir', 'fcntl.flock', 'shutil.rmtree'}


def killed_at(n, work):
    "Run `work()` in a child, which kills itself with signal 9 before its n-th act on files; was it killed?"
    pid = os.fork()
    if not pid:
        left = [n]
        def count(event, args):
            if event not in ACTS: return
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        try: work()
        except BaseException as e:
            os.write(2, f'{type(e).__name__}: {e}\n'.encode())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def in_child(work):
    "Run `work()` in a child; what it returns (a text) comes back"
    end, start = os.pipe()
    pid = os.fork()
    if not pid:
        try: os.write(start, str(work()).encode())
        except BaseException as e: os.write(start, f'{type(e).__name__}: {e}'.encode())
        finally: os._exit(0)
    os.close(start)
    return pid, end


def answers(children):
    "What children returned, in their order, once all have ended"
    said = []
    for pid, end in children:
        with open(end, 'rb') as f: said.append(f.read().decode())
        os.waitpid(pid, 0)
    return said


class Straight:
    "A learner that needs no framework: its weight is a sum over the batches seen, with momentum"
    def __init__(self, pause=0.): self.w, self.m, self.steps, self.pause = np.zeros(50), np.zeros(50), 0, pause

    def step(self, batch, lr):
        if self.pause:
            import time
            time.sleep(self.pause)
        self.m = 0.9*self.m + batch
        self.w = self.w - lr*self.m
        self.steps += 1
        return dict(loss=float(np.abs(self.w).sum() + batch.mean()), grad_norm=1.)

    def evaluate(self, valid): return dict(loss=1., accuracy=float(self.steps))
    def weights(self): return {'w': self.w}
    def state(self): return {'m': self.m}
    def load(self, weights, state, steps): self.w, self.m, self.steps = weights['w'], state['m'], steps


class Draws:
    "Seven batches per epoch, each a function of (epoch, place)"
    def __len__(self): return 7

    def epoch(self, epoch, start=0):
        for place in range(start, 7): yield np.random.default_rng([epoch, place]).normal(size=50)
