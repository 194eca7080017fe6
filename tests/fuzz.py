"""Mutated files into every reader: an answer comes back, or an error in one line; never anything else.

    python tests/fuzz.py --mutations 20000      # `make fuzz`; prints inputs tried and faults by kind
    python tests/fuzz.py --only 0:1234          # one input again, with its traceback
    python tests/fuzz.py --kinds yaml table --mutations 500 --seed 7

An input is read in a process apart, through the package's own functions. It is a fault when it ends in
an error that is no ValueError, OSError or ImportError, or in one without words, of several lines or of
more than 2,000 characters; when it takes more than 10 s or 1 GB; when the process dies; and when a file
had code run, a pickle opened, the network asked, another program started, or a file outside read.
Input number i of seed s is the same on every machine: `--only s:i`, with the same --kinds.
"""

import argparse, collections, contextlib, io, json, os, random, resource, selectors, signal, socket
import sys, tempfile, time, traceback
from pathlib import Path
from mlxvit.data.unpack import COMMAND as UNPACK
from fuzz_kinds import KINDS, PAYLOAD, SECRET, make_bases, nothing

SECONDS, MEGABYTES = 10, 1000  # that one input may take, above what the process had before
OWN = (ValueError, OSError, ImportError)
SILENT = (
    'pickle.find_class',
    'socket.connect',
    'socket.bind',
    'socket.getaddrinfo',
    'socket.gethostbyname',
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'subprocess.Popen',
)  # never while a file is read


class TooSlow(BaseException):
    "An input took longer than it may"


class Fault(Exception):
    "A promise that was broken without an error"


# ---- one input


class Watch:
    "What Python's own audit events tell while a file is read"

    def __init__(self):
        self.on, self.seen = False, []

    def __call__(self, event, args):
        if not self.on:
            return
        if event in SILENT and not self.own(event, args):
            self.seen.append(f'{event} {str(args)[:80]}')
        elif event == 'import' and str(args[0]).startswith(PAYLOAD):
            self.seen.append(f'imported {args[0]}')
        elif (
            event == 'open'
            and isinstance(args[0], (str, bytes))
            and self.outside(os.fsdecode(args[0]))
        ):
            self.seen.append(f'opened {os.fsdecode(args[0])[-60:]}')

    @staticmethod
    def own(event, args) -> bool:
        "Is it the process in which tables are unpacked, of Python alone, and of no file of the input?"
        return event == 'subprocess.Popen' and UNPACK in map(str, args[1])

    @staticmethod
    def outside(path: str) -> bool:
        return Path(path).name.startswith(SECRET) or path in (
            '/etc/passwd',
            '/dev/zero',
            '/proc/self/mem',
        )


def peak() -> float:
    "The most memory since `forget_peak`, MB"
    status = Path('/proc/self/status')
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == 'darwin' else 2**10
        )
    return (
        next(
            int(line.split()[1])
            for line in status.read_text(encoding='utf-8').splitlines()
            if line.startswith('VmHWM')
        )
        / 1024
    )


def forget_peak():
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')


def where(error: BaseException) -> str:
    "The innermost line of the package that an error came through"
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if 'mlxvit' in f.filename and 'tests' not in f.filename
    ]
    return (
        f'{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}' if frames else '?'
    )


def judged(error: BaseException) -> str:  # '' or what is wrong with it
    "Is it an error that a user can be told?"
    text = str(error)
    if not isinstance(error, OWN):
        return f'{type(error).__name__} at {where(error)}'
    if not text.strip():
        return f'{type(error).__name__} without words at {where(error)}'
    if '\n' in text.strip():
        return f'{type(error).__name__} of several lines at {where(error)}'
    return (
        f'{type(error).__name__} of {len(text):,} characters at {where(error)}'
        if len(text) > 2000
        else ''
    )


class Clock:
    "Interrupts what takes too long: so much of the processor, or thrice as much while it waits"

    def __init__(self, seconds: float):
        self.seconds, self.cpu, self.wall = seconds, time.process_time(), time.monotonic()

    def start(self):
        signal.signal(signal.SIGALRM, self.strike)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds / 10)

    def strike(self, *_):
        if (
            time.process_time() - self.cpu >= 0.9 * self.seconds
            or time.monotonic() - self.wall >= 3 * self.seconds
        ):
            raise TooSlow

    def stop(self):
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(read, watch: Watch, seconds: float = SECONDS, megabytes: float = MEGABYTES) -> dict:
    "Read one input, and say how it ended: outcome '' is fine"
    forget_peak()
    before, begin, error, fault = peak(), time.monotonic(), None, ''
    clock, stderr = Clock(seconds), io.StringIO()
    watch.seen, watch.on = [], True
    try:
        clock.start()
        with contextlib.redirect_stderr(stderr):
            read()
    except SystemExit as e:  # the usage, and exit code 2
        if e.code != 2 or 'Traceback' in stderr.getvalue():
            fault = f'exit code {e.code}'
    except TooSlow as e:
        fault, error = f'more than {seconds} s in {where(e)}', e
    except BaseException as e:
        fault, error = judged(e), e
    finally:
        watch.on = False
        clock.stop()
    more = peak() - before
    if more > megabytes:
        fault = f'{more/1000:.1f} GB' + (f' at {where(error)}' if error else '')
    if watch.seen:
        fault = f'touched: {watch.seen[0]}'
    trace = ''.join(traceback.format_exception(error)) if error else ''
    return dict(
        fault=fault,
        error=type(error).__name__ if error else '',
        text=str(error)[:200],
        seconds=time.monotonic() - begin,
        megabytes=more,
        trace=trace[-6000:],
    )


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

    if hasattr(fit, 'train_epoch'):
        fit.train_epoch = nothing
    cli.fit = only_resumed(cli.fit)
    os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1')
    socket.setdefaulttimeout(1)
    import warnings

    warnings.simplefilter('ignore')
    used = (
        int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[0])
        * os.sysconf('SC_PAGE_SIZE')
        if Path('/proc/self/statm').exists()
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30, resource.RLIM_INFINITY))


def only_resumed(fit):
    "Of a training, only what a resumed run reads of its folder"

    def read(learner, train, valid, config, out=None, about=None, resume=False, *more, **flags):
        return (
            fit(learner, train, valid, config, out, about, resume, *more, **flags)
            if resume
            else nothing()
        )

    return read


def work(pipe: int, numbers, seed: int, kinds: list[str], bases: Path):
    "The life of a worker: a line before each input, and one after it"
    with os.fdopen(pipe, 'w', encoding='utf-8') as out:
        prepare()
        watch = Watch()
        sys.addaudithook(watch)
        quiet = os.open(
            os.devnull, os.O_WRONLY
        )  # what native code says of a panic is of no use here
        os.dup2(quiet, 2)
        for number in numbers:
            print(json.dumps(dict(begun=number)), file=out, flush=True)
            print(
                json.dumps(dict(number=number, **one_input(seed, number, kinds, bases, watch))),
                file=out,
                flush=True,
            )


class Worker:
    "A forked process that reads every n-th input"

    def __init__(self, numbers, *args):
        self.numbers, self.args, self.begun, self.since, self.rest = (
            list(numbers),
            args,
            None,
            time.monotonic(),
            b'',
        )
        here, there = os.pipe()
        self.pid, self.pipe = os.fork(), here
        if not self.pid:
            os.close(here)
            status = 1
            try:
                work(there, self.numbers, *args)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(there)

    def lines(self) -> list[dict] | None:  # None: it has ended
        "What the worker said since"
        part = os.read(self.pipe, 2**20)
        if not part:
            return None
        *whole, self.rest = (self.rest + part).split(b'\n')
        return [json.loads(line) for line in whole]

    def end(self, kill: bool = False) -> str:
        "Wait for it, or stop it, and say how it ended"
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        status = os.waitpid(self.pid, 0)[1]
        return (
            f'signal {os.WTERMSIG(status)}'
            if os.WIFSIGNALED(status)
            else f'exit code {os.WEXITSTATUS(status)}'
        )


def run(
    mutations: int,
    seed: int,
    kinds: list[str],
    workers: int,
    budget: float,
    bases: Path,
    tell=print,
) -> tuple[collections.Counter, list[dict]]:
    "All inputs, by several workers; one that hangs or dies is replaced, and its input is a fault"
    args, tried, faults, stop = (
        (seed, kinds, bases),
        collections.Counter(),
        [],
        time.monotonic() + budget,
    )
    worst = collections.defaultdict(float)
    selector = selectors.DefaultSelector()

    stopped = []  # Ctrl-C ends the run, and what was found is still told
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))

    def start(numbers):
        worker = Worker(numbers, *args)
        selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def restart(worker, fault):
        selector.unregister(worker.pipe)
        how = worker.end(kill=bool(fault))
        if worker.begun is None:
            raise SystemExit(f'a worker ended before its first input: {how}')
        number = worker.begun
        name = random.Random(f'{seed}:{number}').choices(kinds, [KINDS[k][0] for k in kinds])[0]
        tried[name] += 1
        faults.append(
            dict(
                number=number,
                kind=name,
                fault=fault or f'the process died: {how}',
                trace='',
                text='',
            )
        )
        if rest := worker.numbers[worker.numbers.index(number) + 1 :]:
            start(rest)

    for k in range(workers):
        if numbers := range(k, mutations, workers):
            start(numbers)
    while selector.get_map() and time.monotonic() < stop and not stopped:
        for key, _ in selector.select(timeout=0.5):
            worker, said = key.data, key.data.lines()
            if said is None and worker.begun is not None:
                restart(worker, '')
            elif said is None:
                selector.unregister(worker.pipe)
                if (how := worker.end()) != 'exit code 0':
                    raise SystemExit(f'a worker ended between inputs: {how}')
            for line in said or []:
                worker.since = time.monotonic()
                worker.begun = line.get('begun')
                if 'number' not in line:
                    continue
                tried[line['kind']] += 1
                worst['seconds'], worst['MB'] = max(worst['seconds'], line['seconds']), max(
                    worst['MB'], line['megabytes']
                )
                if line['fault']:
                    faults.append(line)
                    again = f'--only {seed}:{line["number"]}'
                    tell(f'{line["kind"]}: {line["fault"][:140]}   {again}', flush=True)
                if sum(tried.values()) % 2000 == 0:
                    tell(
                        f'{sum(tried.values()):,} inputs, {len(faults)} faults, at most '
                        f'{worst["seconds"]:.1f} s and {worst["MB"]:.0f} MB for one',
                        flush=True,
                    )
        for worker in [k.data for k in selector.get_map().values()]:
            if worker.begun is not None and time.monotonic() - worker.since > 3 * SECONDS + 5:
                restart(worker, f'more than {SECONDS} s, and not to be interrupted')
    for key in list(selector.get_map().values()):
        selector.unregister(key.data.pipe)
        key.data.end(kill=True)
    return tried, faults


def report(tried: collections.Counter, faults: list[dict], seed: int):
    "Inputs by kind, then faults by kind and place, each with one input that shows it"
    for name in sorted(tried):
        print(
            f'{name:12} {tried[name]:7,} inputs, {sum(f["kind"] == name for f in faults):4} faults'
        )
    groups = collections.defaultdict(list)
    for fault in faults:
        groups[fault['kind'], fault['fault']].append(fault)
    for (name, fault), each in sorted(groups.items(), key=lambda g: -len(g[1])):
        print(
            f'  {len(each):4} × {name}: {fault[:140]}   '
            f'--only {seed}:{each[0]["number"]}   {each[0]["text"][:100]!r}'
        )
    print(f'{sum(tried.values()):,} inputs tried, {len(faults)} faults', flush=True)


def bases_in(folder: Path) -> Path:
    "Make the good files in a process apart, so that this one stays as it was"
    pid = os.fork()
    if not pid:
        status = 1
        try:
            make_bases(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        sys.exit('the files to mutate could not be made')
    return folder


def main() -> int:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--mutations', type=int, default=20_000, help='inputs to try')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    p.add_argument('--workers', type=int, default=os.cpu_count() or 1)
    p.add_argument(
        '--seconds', type=float, default=float('inf'), help='stop after so many, whatever was tried'
    )
    p.add_argument('--only', default='', help='SEED:NUMBER, one input again, with its traceback')
    a = p.parse_args()
    os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
    import datasets, timm, torch, transformers  # here, once, so that a worker begins at once
    import mlxvit.cli, mlxvit.reader

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


if __name__ == '__main__':
    sys.exit(main())
