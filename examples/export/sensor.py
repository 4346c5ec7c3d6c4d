"""A net that learns on a Cortex-M4: this writes its kernel, and links an image for it.

    python examples/export/sensor.py build
    qemu-system-arm -M mps2-an386 -nographic -semihosting -kernel build/sensor.elf

The image (sensor.c) sees readings of a sensor, and a button that says when one was too high; where
the threshold lies it has to learn. What links it is the ziglang package, or arm-none-eabi-gcc.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import chainrule as cr

HERE = Path(__file__).parent

x = cr.input("x", ("batch", 1))
alarm = cr.input("alarm", ("batch", 1))
W1, b1 = cr.parameter("W1", (1, 4)), cr.parameter("b1", (4,))
W2, b2 = cr.parameter("W2", (4, 1)), cr.parameter("b2", (1,))

h = cr.tanh(x @ W1 + b1).named("h")
z = (h @ W2 + b2).named("z")
loss = cr.losses.binary_cross_entropy(z, alarm)
step = cr.training_step(loss, cr.optim.Adam(0.05), outputs=cr.sigmoid(z).named("p"))


def compiler() -> list[str] | None:
    """What makes code for a Cortex-M4 without a system, or None."""
    if find_spec("ziglang"):
        target = ["-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp"]
        return [sys.executable, "-m", "ziglang", "cc", *target]
    gcc = shutil.which("arm-none-eabi-gcc")
    flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    return [gcc, *flags] if gcc else None


def link(folder: Path) -> Path:
    """The image, of which every function that is not called is left out."""
    command = compiler()
    if command is None:
        raise SystemExit("nothing here compiles for Cortex-M4: pip install ziglang")
    image = folder / "sensor.elf"
    words = ["-Os", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib", "-ffunction-sections"]
    words += ["-Wl,-e,start", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"]
    script = ["-Wl,--gc-sections", "-Wl,-T," + str(HERE / "sensor.ld")]
    sources = [str(HERE / "sensor.c"), str(folder / "libsensor.a")]
    subprocess.run([*command, *words, f"-I{folder}", *sources, *script, "-o", image], check=True)
    return image


def main(folder: Path) -> None:
    """Export and link."""
    art = step.export(folder, name="sensor", target="thumbv7em-none-eabihf", max_batch=16)
    for path in (*art.files.values(), link(folder)):
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build"))
