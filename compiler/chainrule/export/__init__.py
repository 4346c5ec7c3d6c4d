"""Training steps as self-contained kernels with a C interface, for this machine and others."""

from chainrule.export.artifact import (
    Artifact,
    about,
    check_examples,
    check_formats,
    check_members,
    formats_of,
    left_out,
    write_kernel,
)
from chainrule.export.gpu import GpuGolden, GpuKernel, compile_gpu_kernel
from chainrule.export.gpu_files import check_gpu_formats, gpu_formats, write_gpu_kernel
from chainrule.export.gpu_selftest import golden_of
from chainrule.export.kernel import Kernel, compile_kernel
from chainrule.export.model import (
    Derivative,
    Drawn,
    Given,
    Model,
    Number,
    Same,
    Size,
    StateTensor,
    Unit,
    Variant,
)
from chainrule.export.names import is_identifier
from chainrule.export.slices import loss_of, with_calls_of
from chainrule.export.state import state_bytes
from chainrule.export.targets import narrow, targets_of

__all__ = [
    "Artifact",
    "Derivative",
    "Drawn",
    "Given",
    "GpuGolden",
    "GpuKernel",
    "Kernel",
    "Model",
    "Number",
    "Same",
    "Size",
    "StateTensor",
    "Unit",
    "Variant",
    "about",
    "check_examples",
    "check_formats",
    "check_gpu_formats",
    "check_members",
    "compile_gpu_kernel",
    "compile_kernel",
    "formats_of",
    "golden_of",
    "gpu_formats",
    "is_identifier",
    "left_out",
    "loss_of",
    "narrow",
    "state_bytes",
    "targets_of",
    "with_calls_of",
    "write_gpu_kernel",
    "write_kernel",
]
