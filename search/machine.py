"""On what kind of machine something was computed: another kind may give other last digits."""

import platform
from functools import cache
from pathlib import Path

LISTING = Path("/proc/cpuinfo")
_NUMBERS = ("cpu family", "model", "CPU implementer", "CPU part")  # names may be missing, or those of many
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "sve", "bf16")


def processor(listing: Path = LISTING) -> str:
    """What the processor calls itself, or its kind where it does not."""
    return _facts(listing).get("model name") or platform.processor() or platform.machine()


@cache
def kind(listing: Path = LISTING) -> str:
    """What libraries choose their code for the processor by, as far as the system tells."""
    facts = _facts(listing)
    numbers = [f"{name} {facts[name]}" for name in _NUMBERS if name in facts]
    has = facts.get("flags", facts.get("Features", "")).split()
    return ", ".join([processor(listing), *numbers, *(feature for feature in _FEATURES if feature in has)])


def _facts(listing: Path) -> dict[str, str]:
    """Of the first processor."""
    if not listing.is_file():
        return {}
    block = listing.read_text(errors="replace").partition("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
