"""The tensors in a GGUF file and their types: numbers, names and block sizes, as in ggml.

`gguf.dequantize` unpacks every type in `READABLE`; a test compares the two. This table exists so
that a header can be checked without importing numpy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class GgufType(NamedTuple):
    """How a tensor is stored.

    Attributes:
        number: ggml's number of the type.
        name: its name, such as ``"Q4_K"``.
        block_values: how many values of a row make one block; 1 for a plain type.
        block_bytes: bytes of one block.
    """

    number: int
    name: str
    block_values: int
    block_bytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the values are stored as they are: in F32, F16 or BF16."""
        return self.block_values == 1


READABLE = {
    kind.number: kind
    for kind in (
        GgufType(0, "F32", 1, 4),
        GgufType(1, "F16", 1, 2),
        GgufType(30, "BF16", 1, 2),
        GgufType(2, "Q4_0", 32, 18),
        GgufType(3, "Q4_1", 32, 20),
        GgufType(6, "Q5_0", 32, 22),
        GgufType(7, "Q5_1", 32, 24),
        GgufType(8, "Q8_0", 32, 34),
        GgufType(10, "Q2_K", 256, 84),
        GgufType(11, "Q3_K", 256, 110),
        GgufType(12, "Q4_K", 256, 144),
        GgufType(13, "Q5_K", 256, 176),
        GgufType(14, "Q6_K", 256, 210),
        GgufType(16, "IQ2_XXS", 256, 66),
        GgufType(17, "IQ2_XS", 256, 74),
        GgufType(18, "IQ3_XXS", 256, 98),
        GgufType(19, "IQ1_S", 256, 50),
        GgufType(20, "IQ4_NL", 32, 18),
        GgufType(21, "IQ3_S", 256, 110),
        GgufType(22, "IQ2_S", 256, 82),
        GgufType(23, "IQ4_XS", 256, 136),
        GgufType(29, "IQ1_M", 256, 56),
        GgufType(34, "TQ1_0", 256, 54),
        GgufType(35, "TQ2_0", 256, 66),
        GgufType(39, "MXFP4", 32, 17),
        GgufType(40, "NVFP4", 64, 36),
    )
}

# Types that ggml has removed. Its current versions cannot read them either.
RETIRED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

# Types of ggml that nothing in Python unpacks. Models are hardly ever stored in them.
NOT_READABLE = {
    9: "Q8_1",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    41: "Q1_0",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: by llama.cpp's names: ``"blk.0.attn_q.weight"``.
        type: how it is stored.
        shape: in torch's order, the longest stride first: ``(out, in)`` for a linear.
        path: the file that holds it.
        offset: where it begins, in bytes from the beginning of the file.
        nbytes: its size in the file.
    """

    name: str
    type: GgufType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
