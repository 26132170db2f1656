"""A sphere with choices, and an executor without processes."""

import os
import signal
import struct
import sys
import time
from pathlib import Path

from search import Choice, Executor, Failure, Real, Space
from search.errors import UnfitWorker

SPACE = Space(((Choice(4), Real(-1.0, 1.0, 0.3), Real(0.0, 1.0, 0.3)),) * 4)
RIGHT = [2.0, 0.3, 0.7, 1.0, -0.5, 0.2, 3.0, 0.1, 0.9, 0.0, 0.6, 0.4]
INITIAL = [[0.0, 0.0, 1.0] * 4, [1.0, 0.0, 0.5] * 4, [2.0, 0.0, 0.0] * 4]


def fitness(genome):
    pairs = zip(SPACE.genes, genome, RIGHT, strict=True)
    return -sum(float(a != b) if isinstance(gene, Choice) else (a - b) ** 2 for gene, a, b in pairs)


ORDER = Space(((Real(-1.0, 2.0, 0.2),) * 9,) * 4)
"""Four blocks of nine scores."""

WINNERS = [{0, 2, 4, 6}, {1, 3, 5, 7}, {0, 1, 2, 3}, {5, 6, 7, 8}]
ORDERS = [[(place + 0.5) / 9 for place in range(9)] * 4, [(place * 4 % 9 + 0.5) / 9 for place in range(9)] * 4]


def hits(genome):
    """Minus about how many of the four highest of each block are the wrong ones; 0 at best, -18 at worst."""
    blocks = [genome[part] for part in ORDER.slices]
    highest = [set(sorted(range(9), key=lambda place: block[place])[-4:]) for block in blocks]
    wrong = [right - found for found, right in zip(highest, WINNERS, strict=True)]
    return -sum(1.0 + place / 100 + block / 1000 for block, places in enumerate(wrong) for place in sorted(places))


def unpack(phenotype):
    return struct.unpack(f"{len(SPACE)}d", phenotype)


def sphere(phenotype):
    genome = unpack(phenotype)
    return {"fitness": fitness(genome), "cost": sum(genome)}


class Sphere:
    """Phenotypes are coarse, so that different genomes share one."""

    def __init__(self, evaluate=sphere, digits=2):
        self.evaluate = evaluate
        self.digits = digits

    def phenotype(self, genome):
        return struct.pack(f"{len(SPACE)}d", *(round(value, self.digits) + 0.0 for value in genome))


class Inline(Executor):
    """Runs in the driver and delivers backwards."""

    workers = 1

    def __init__(self):
        self.ran = []

    def run(self, function, items):
        for index in reversed(range(len(items))):
            self.ran.append(items[index])
            try:
                yield index, function(items[index])
            except Exception as error:  # noqa: BLE001
                yield index, Failure(f"{type(error).__name__}: {error}")

    def close(self):
        pass


def square(item):
    return item * item


def slow_first(item):
    time.sleep(0.5 if item == 0 else 0.0)
    return item


def odd_fails(item):
    if item % 2:
        raise ValueError(f"odd: {item}")
    return item


def without_data(item):
    raise UnfitWorker("no data here")


def without_data_at_first(marker):
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    raise UnfitWorker("no data yet")


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raises_unpicklable(item):
    raise Unpicklable(item, item)


def says_much(item):
    raise ValueError("first\nsecond\n" + "word " * 1000)


def leaves(item):
    raise SystemExit(3)


def environment(item):
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return os.getpid(), os.environ["OMP_NUM_THREADS"], os.environ["MALLOC_MMAP_THRESHOLD_"], ignored


def die_at_three(item):
    time.sleep(0.02)
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_once(item):
    marker, value = item
    if value == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


class DyingSphere:
    """Kills its worker at about one phenotype in eleven, once."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, phenotype):
        marker = Path(self.folder) / f"{sum(phenotype)}"
        if sum(phenotype) % 11 == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sphere(phenotype)


def fatal_sphere(phenotype):
    """Always kills its worker at about one phenotype in eleven."""
    if sum(phenotype) % 11 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return sphere(phenotype)


def hang_at_three(item):
    if item == 3:
        time.sleep(60)
    return item


def hang_once(item):
    marker, value = item
    if value == 3 and not Path(marker).exists():
        Path(marker).touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    return value


def raise_once(item):
    marker, value = item
    if value == 3 and not Path(marker).exists():
        Path(marker).write_text(str(os.getpid()))
        raise MemoryError("cannot allocate")
    return value if value != 3 else os.getpid()


_LEAK = []


def hoard(megabytes):
    """This process' number, once it holds so much more and a second has gone, as loky looks but once a second."""
    _LEAK.append(bytearray(b"x") * (megabytes << 20))
    time.sleep(1.1)
    return os.getpid()


def leak(megabytes):
    """Keeps so much more memory at every call."""
    _LEAK.append(bytearray(os.urandom(2**20) * megabytes))
    return os.getpid(), len(_LEAK)


def is_imported(module):
    return module in sys.modules


_left: list[bytearray] = []


def leaves_gaps(megabytes):
    """Allocates so much, keeps a little between the pieces, and says what the process held before, in MB."""
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    pieces = []
    for _ in range(megabytes):
        pieces.append(bytearray(b"x") * 2**20)
        _left.append(bytearray(1000))
    return held
