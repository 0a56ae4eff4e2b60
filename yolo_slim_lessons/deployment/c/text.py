"""Pieces of the C file: what stands around the numbers, and arrays and structures in C's notation. Used in lesson 13.

What the layers do stands in the ``.c`` files beside this one, which are copied as they are. Leaves out: which arrays
and structures there are (``writing``).
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np

C_FILES = Path(__file__).parent
KERNELS = {  # file → what the compiler says of the processor
    "avx512": "__AVX512VNNI__ __AVX512BW__ __AVX512DQ__ __AVX512VL__",
    "avx2": "__AVX2__",
    "neon": "__ARM_FEATURE_DOTPROD __ARM_NEON",
}
TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "uint32": "uint32_t"}


def layers_text() -> str:
    """What all models have in common: the layers, with the kernels for each kind of processor."""
    read = {file.stem: file.read_text(encoding="utf-8") for file in C_FILES.glob("*.c")}
    kernels = ""
    for directive, (name, macros) in zip(("if", "elif", "elif"), KERNELS.items(), strict=True):
        conditions = ["!defined(MODEL_PORTABLE)", *(f"defined({macro})" for macro in macros.split())]
        kernels += f"#{directive} {' && '.join(conditions)}\n\n{read[name]}\n"
    kernels += f"#else\n\n{read['portable']}\n#endif\n"
    return "\n".join((read["description"], read["plain"], kernels, read["layers"]))


def identifier(name: str) -> str:
    """A name of C for the name of a node."""
    return re.sub(r"\W", "_", name if name[0].isalpha() else f"layer_{name}")


def array_text(name: str, numbers: np.ndarray, kind: str | None = None) -> str:
    """A constant array, of structures of ``kind`` or of the type of ``numbers``."""
    kind = kind or TYPES[str(numbers.dtype)]
    text = str(numbers.tolist())[1:-1].replace("[", "{").replace("]", "}")
    text = textwrap.indent(textwrap.fill(text, 114, break_on_hyphens=False), "    ")
    return f"static const {kind} {name}[{len(numbers)}] = {{\n{text}}};"


def struct_text(kind: str, name: str, **fields: object) -> str:
    text = ", ".join(f".{key} = {value}" for key, value in fields.items())
    text = textwrap.indent(textwrap.fill(text, 114, break_on_hyphens=False, break_long_words=False), "    ")
    return f"static const {kind} {name} = {{\n{text}}};\n"


def fill(text: str, **values: object) -> str:
    """``text`` with each ``@key@`` replaced; C has braces of its own."""
    return re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), text)


HEADER = """\
/* An image classifier in integer arithmetic, written by yolo_slim_lessons. */
#ifndef @upper@_H
#define @upper@_H

#include <stdint.h>

#define @upper@_HEIGHT @height@
#define @upper@_WIDTH @width@
#define @upper@_CHANNELS @channels@
#define @upper@_CLASSES @classes@
#define @upper@_LOGIT_BITS @logit_bits@
#define @upper@_RAM @ram@ /* bytes that do not change their place, without the stack */

#ifdef __cplusplus
extern "C" {
#endif

extern const char *const @name@_class_names[@upper@_CLASSES];

/* The number of the likeliest class. Not for two threads at once: both would write to the same memory.

   image: @height@ rows of @width@ pixels of @channels@ bytes each: red, green and blue, where there are three.
   logits: @classes@ numbers; divided by 2^@upper@_LOGIT_BITS they are the logits, exactly. */
int @name@_run(const uint8_t *image, int64_t *logits);

#ifdef __cplusplus
}
#endif

#endif
"""

SOURCE = """\
/* An image classifier in integer arithmetic, written by yolo_slim_lessons. C99, no library, no allocation.

   First what the layers do, then their numbers, then @name@_run(), which calls one after the other.
   Compile with optimization, and for your processor: cc -O3 -march=native. -DMODEL_PORTABLE leaves out all that is
   written for particular processors. A negative number shifted to the right must keep its sign, as on all of them. */

#include "@name@.h"

#include <string.h>

enum { ARENA_BYTES = @arena@, BORDER_BYTES = @border@ };

@layers@
/* Numbers ========================================================================================================== */

const char *const @name@_class_names[@upper@_CLASSES] = {
    @names@};

@constants@
/* The network ====================================================================================================== */

static uint8_t arena[ARENA_BYTES]; /* all tensors; those that live at different times lie in the same place */

int @name@_run(const uint8_t *image, int64_t *logits)
{
@calls@
}
"""
