"""A device for tests, called ``second``: it computes like the CPU and refuses the CPU's tensors as a GPU does.

It stands for GPUs where there is none: whatever is left behind on the CPU, or fetched without being asked for, raises.
"""

import os
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

NAME = "second"
BUILDABLE = bool(shutil.which("ninja") and shutil.which("c++"))
BUILD = "SECOND_DEVICE_BUILD"
"""Variable of the environment: a folder where it is compiled, or was."""


@cache
def register() -> None:
    """Makes torch know the device in this process; compiles it at the first time, in some seconds."""
    from torch.utils.cpp_extension import load

    source = str(Path(__file__).with_name("second_device.cpp"))
    flags = ["-O0", "-w"]
    load("second_device", [source], flags, build_directory=os.environ[BUILD], is_python_module=False)
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(NAME)
    for name, found in {
        "is_available": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False, "manual_seed_all": None,
        "get_amp_supported_dtype": [torch.bfloat16],
    }.items():  # fmt: skip
        setattr(module, name, lambda *_, found=found: found)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
