"""What a GGUF itself means, read with the gguf package's own reader: the importer's oracle.

Tokenisation and arithmetic follow llama.cpp (src/llama-vocab.cpp, the llama graph), written as
plainly as possible and sharing nothing with the importer.
"""

import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import regex
from gguf import GGUFReader
from gguf.quants import dequantize

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PATTERNS = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "qwen2": (QWEN2,),
}


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


class Gguf:
    """One file, with the parts a test asks for."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {
            key: field.contents() for key, field in reader.fields.items()
        }
        self.tensors = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
        }

    def __getitem__(self, key: str) -> Any:
        return self.metadata[key]


class ReferenceTokenizer:
    """Splits off special tokens, cuts by the regular expressions in turn, merges by rank."""

    def __init__(self, gguf: Gguf) -> None:
        self.tokens: list[str] = gguf["tokenizer.ggml.tokens"]
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        types = gguf["tokenizer.ggml.token_type"]
        self.special = sorted(
            (token for token, type in zip(self.tokens, types, strict=True) if type in {2, 3, 4}),
            key=len,
            reverse=True,
        )
        merges = [tuple(merge.split(" ")) for merge in gguf["tokenizer.ggml.merges"]]
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        name = gguf["tokenizer.ggml.pre"]
        self.patterns = PATTERNS[name]
        self.takes_whole_pieces = name == "llama-bpe"
        self.composes = name == "qwen2"  # as the model's own tokenizer does, and llama.cpp does not
        self.known_pieces: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in regex.split(f"({'|'.join(map(regex.escape, self.special))})", text):
            if part in self.special:
                ids.append(self.ids[part])
            else:
                ids.extend(id for piece in self.pieces(part) for id in self.merged(piece))
        return ids

    def pieces(self, text: str) -> list[str]:
        if self.composes:
            text = unicodedata.normalize("NFC", text)
        pieces = [text] if text else []
        for pattern in self.patterns:
            pieces = [cut for piece in pieces for cut in self.cut(pattern, piece)]
        return pieces

    @staticmethod
    def cut(pattern: str, text: str) -> list[str]:
        cuts, end = [], 0
        for match in regex.finditer(pattern, text):
            cuts += [text[end : match.start()], match.group()]
            end = match.end()
        return [cut for cut in [*cuts, text[end:]] if cut]

    def merged(self, piece: str) -> list[int]:
        if piece not in self.known_pieces:
            self.known_pieces[piece] = self.merge(piece)
        return self.known_pieces[piece]

    def merge(self, piece: str) -> list[int]:
        symbols = [byte_alphabet()[byte] for byte in piece.encode()]
        if self.takes_whole_pieces and "".join(symbols) in self.ids:
            return [self.ids["".join(symbols)]]
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 60))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            symbols[at : at + 2] = ["".join(best)]
        return [self.ids[symbol] for symbol in symbols]


class ReferenceSentencePiece:
    """Merges the neighbours whose union has the highest score, the first of equals; then bytes."""

    def __init__(self, gguf: Gguf) -> None:
        self.tokens: list[str] = gguf["tokenizer.ggml.tokens"]
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        self.scores: list[float] = gguf["tokenizer.ggml.scores"]
        types = gguf["tokenizer.ggml.token_type"]
        self.special = [t for t, type in zip(self.tokens, types, strict=True) if type in {2, 3, 4}]
        self.prefix = "\u2581" if gguf.metadata.get("tokenizer.ggml.add_space_prefix", True) else ""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in regex.split(f"({'|'.join(map(regex.escape, self.special))})", text):
            if part in self.special:
                ids.append(self.ids[part])
            elif part:
                ids.extend(self.merged([*(self.prefix + part.replace(" ", "\u2581"))]))
        return ids

    def merged(self, symbols: list[str]) -> list[int]:
        while True:
            unions = ["".join(pair) for pair in pairwise(symbols)]
            known = [
                (-self.scores[self.ids[u]], at) for at, u in enumerate(unions) if u in self.ids
            ]
            if not known:
                break
            at = min(known)[1]
            symbols[at : at + 2] = [unions[at]]
        return [id for symbol in symbols for id in self.ids_of(symbol)]

    def ids_of(self, symbol: str) -> list[int]:
        if symbol in self.ids:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Nearest bfloat16, ties to even, by exact arithmetic instead of bit patterns."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)


def reference_logits(gguf: Gguf, ids: list[int], *, rounded: bool) -> np.ndarray:
    """Logits of a plain llama forward pass in float32: [tokens, vocabulary].

    Rotary pairs are neighbours (2i, 2i + 1), as GGUF stores them.
    """
    heads = gguf["llama.attention.head_count"]
    groups = gguf["llama.attention.head_count_kv"]
    epsilon = gguf["llama.attention.layer_norm_rms_epsilon"]
    size = gguf["llama.rope.dimension_count"]
    base = gguf["llama.rope.freq_base"]
    count = len(ids)

    def weight(name: str) -> np.ndarray:
        values = gguf.tensors[f"{name}.weight"].astype(np.float32)
        return rounded_to_bfloat16(values) if rounded else values

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight(name)

    angles = np.arange(count)[:, None] * base ** (-np.arange(0, size, 2) / size)

    def turned(x: np.ndarray) -> np.ndarray:
        x = x.reshape(count, -1, size // 2, 2)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        left, right = x[..., 0], x[..., 1]
        pairs = np.stack([left * cos - right * sin, left * sin + right * cos], -1)
        return pairs.reshape(count, -1, size).astype(np.float32)

    x = weight("token_embd")[ids]
    for layer in range(gguf["llama.block_count"]):
        name = f"blk.{layer}."
        normed = norm(x, name + "attn_norm")
        q = turned(normed @ weight(name + "attn_q").T)
        k = turned(normed @ weight(name + "attn_k").T).repeat(heads // groups, 1)
        v = (normed @ weight(name + "attn_v").T).reshape(count, groups, size)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v.repeat(heads // groups, 1))
        x = x + mixed.reshape(count, -1) @ weight(name + "attn_output").T
        normed = norm(x, name + "ffn_norm")
        gate, up = normed @ weight(name + "ffn_gate").T, normed @ weight(name + "ffn_up").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(name + "ffn_down").T
    head = "output" if "output.weight" in gguf.tensors else "token_embd"
    logits: np.ndarray = norm(x, "output_norm") @ weight(head).T
    return logits
