"""Fuzz the allocation language and measure its speed: `python tools/bench/fuzz_alloc_spec.py --count 1000000`.

Every text must either parse, and then survive its canonical form, or raise AllocSyntaxError with a span inside the text
and, if a correction is offered, one that parses. The first text that breaks this law is printed and the exit code is 1.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import alloc_spec

DEVICES = ("cpu", "cuda:0", "cuda:1", "cuda:10", "xpu:2", "mps", "mlu:0", "CUDA:3", "npu")
UNITS = ("b", "k", "kb", "mb", "MiB", "g", "GB", "gib", "tb")
PIECES = (
    *DEVICES,
    *UNITS,
    *",;#:%*- \t\n=.",
    "2.5",
    "0",
    "007",
    "50",
    "auto",
    "free",
    "free-1gb",
    "run",
    ",run",
    "nan",
    "1e3",
    "9" * 50,
)
LETTERS = "cudapmkgtbfreon0123456789.,;:#%*- \t=\n\0é，；０\u212a\u0130\ud800\U0001f600"


def entries(rng: random.Random) -> str:
    """A text of entries that is nearly always valid."""
    names = rng.sample(DEVICES, rng.randint(1, 4))
    return ";".join(f"{name},{amount(rng)}{',run' if name != 'cpu' and rng.random() < 0.2 else ''}" for name in names)


def amount(rng: random.Random) -> str:
    """One amount."""
    number = f"{rng.uniform(0, 40):.{rng.randint(0, 4)}f}"
    match rng.randrange(6):
        case 0:
            return number + rng.choice(UNITS)
        case 1:
            return f"{number}%"
        case 2:
            return f"{rng.random():.3f}"
        case 3:
            return f"free-{number}{rng.choice(UNITS)}"
        case 4:
            return f"{number}{rng.choice(UNITS)}*"
        case _:
            return rng.choice(("*", "auto", "free"))


def wire(rng: random.Random) -> str:
    """A wire string, with or without an expert part."""
    compute, *donors = rng.sample(DEVICES, rng.randint(2, 4))
    expert = entries(rng) if rng.random() < 0.5 else ""
    return f"{expert}#{compute};{rng.uniform(0, 128):.1f};{','.join(donors)}"


def mutated(rng: random.Random) -> str:
    """A valid text with one to three characters inserted, deleted or replaced."""
    text = entries(rng) if rng.random() < 0.7 else wire(rng)
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(text))
        inserted = rng.choice(LETTERS) if rng.random() < 0.7 else ""
        text = text[:start] + inserted + text[start + rng.randint(0, 2) :]
    return text


def soup(rng: random.Random) -> str:
    """Pieces of the language in any order."""
    return "".join(rng.choices(PIECES, k=rng.randint(0, 12)))


def noise(rng: random.Random) -> str:
    """Characters of all kinds, lone surrogates included."""
    if rng.random() < 0.5:
        return "".join(rng.choices(LETTERS, k=rng.randint(0, 40)))
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(0, 20)))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "entries": entries,
    "wire": wire,
    "mutated": mutated,
    "soup": soup,
    "noise": noise,
}


def outcome(text: str) -> str:
    """Parse a text and return what became of it.

    Raises:
        AssertionError: the law does not hold.
    """
    try:
        spec = alloc_spec.parse(text)
    except alloc_spec.AllocSyntaxError as error:
        start, end = error.span
        if not 0 <= start <= end <= len(text) or error.source != text:
            raise AssertionError(f"span {error.span} lies outside the text") from error
        if error.suggestion is not None:
            alloc_spec.parse(error.suggestion)
        str(error)
        return "contradiction" if isinstance(error, alloc_spec.AllocRuleError) else "not the language"
    if alloc_spec.parse(str(spec)) != spec:
        raise AssertionError(f"the canonical text {str(spec)!r} means something else")
    return "parsed"


def fuzz(count: int, seed: int) -> tuple[Counter[tuple[str, str]], str | None]:
    """Try so many texts; return the counts by kind and outcome, and the complaint about a text that breaks the law."""
    rng = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    for index in range(count):
        kind = list(KINDS)[index % len(KINDS)]
        text = KINDS[kind](rng)
        try:
            counts[kind, outcome(text)] += 1
        except Exception as error:  # noqa: BLE001 - whatever else comes out is the finding
            return counts, f"{kind} {text!r}: {type(error).__name__}: {error}"
    return counts, None


def rate(texts: Sequence[str], repeats: int = 40) -> float:
    """Parses a second of CPU time, refusals with their corrections included; the best of several repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for text in texts:
            try:
                alloc_spec.parse(text)
            except alloc_spec.AllocSyntaxError:
                continue
        best = min(best, time.process_time() - start)
    return len(texts) / best


def measure(seed: int, samples: int) -> dict[str, float]:
    """Parses a second of texts that parse and of texts that are refused."""
    rng = random.Random(seed)
    texts = [make(rng) for make in KINDS.values() for _ in range(samples)]
    parsed = [text for text in texts if outcome(text) == "parsed"]
    refused = [text for text in texts if outcome(text) != "parsed"]
    return {
        "parsed": rate(parsed),
        "refused, with correction": rate(refused),
        "cuda:0,2.5gb;cpu,*": rate(["cuda:0,2.5gb;cpu,*"] * 500),
    }


def main() -> int:
    """Fuzz, measure, print one table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="texts to try (default: 1000000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator (default: 0)")
    parser.add_argument("--samples", type=int, default=200, help="texts of each kind to time (default: 200)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    counts, complaint = fuzz(arguments.count, arguments.seed)
    seconds = time.perf_counter() - start
    outcomes = ("parsed", "contradiction", "not the language")
    print(f"{'kind':<10}" + "".join(f"{name:>18}" for name in (*outcomes, "total")))
    for kind in KINDS:
        row = [counts[kind, name] for name in outcomes]
        print(f"{kind:<10}" + "".join(f"{value:>18,}" for value in (*row, sum(row))))
    totals = [sum(counts[kind, name] for kind in KINDS) for name in outcomes]
    print(f"{'all':<10}" + "".join(f"{value:>18,}" for value in (*totals, sum(totals))))
    print(f"{sum(totals):,} texts in {seconds:.1f} s, seed {arguments.seed}")
    if complaint is not None:
        print(f"BROKEN: {complaint}")
        return 1
    print(f"\nparses a second of CPU time, Python {platform.python_version()}, {os.cpu_count()} cores, best of 40:")
    for name, value in measure(arguments.seed, arguments.samples).items():
        print(f"  {name:<26}{value:>12,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
