"""Building blocks of the native denoisers and of the caption encoder. Layers take plain numbers and know no config.

Attention works on `b heads n e` (e = head dimension) whatever the backend.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reelwright.types import Text

AttentionName = Literal["auto", "sdpa", "flash", "xformers"]
Checkpointing = bool | PositiveInt  # of activations: true every block, n every n-th one
Layer = TypeVar("Layer", nn.Linear, nn.Conv3d)
Rope = tuple[Tensor, Tensor]  # cosine and signed sine, each `n e`

TIME_SCALE = 1000.0  # continuous t in [0, 1] is embedded on the range of DDPM's steps, which the sinusoids resolve
TIME_FREQUENCIES = 256
MAX_PRODUCT_SCORES = 2**27  # scores of one layer that may stand in memory (256 MiB in bf16); sdpa keeps none
FEW_KEYS = 80  # up to here a softmax down the columns is the faster one, up to three times
ROPE_THETA = 100.0  # grids are tens of positions a side; Heo et al. 2024 (RoPE for vision transformers), section 3


# Attention backends: (q `b heads n e`, k and v `b heads m e`, mask `b m` bool or None) -> `b heads n e`


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])


def product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two batched products around a softmax: in bf16 on a CPU 1.5 to 6 times as fast as sdpa with its backward.

    The scores of few keys stand keys first: torch is slow at the softmax of many short rows, not of short columns.
    """
    b, heads, n, e = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # b*heads n e, b*heads m e twice
    keys_first = k.shape[1] <= FEW_KEYS
    rows, columns = (k, q) if keys_first else (q, k)
    scores = torch.baddbmm(q.new_zeros(1), rows, columns.transpose(1, 2), beta=0, alpha=e**-0.5)  # b*heads n m or m n
    if mask is not None:
        padding = ~(mask[:, None, :, None] if keys_first else mask[:, None, None, :])  # b 1 m 1 or b 1 1 m
        scores = scores.unflatten(0, (b, heads)).masked_fill(padding, -math.inf).flatten(0, 1)
    weights = scores.softmax(dim=1).transpose(1, 2) if keys_first else scores.softmax(dim=2)  # b*heads n m
    return torch.bmm(weights, v).view(b, heads, n, e)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The flash-attn package. It takes no key mask, so a masked call goes through sdpa."""
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attention = flash runs on CUDA in fp16 or bf16, got {q.device} {q.dtype}; use attention = auto or sdpa"
        )
    if mask is not None:
        return sdpa_attention(q, k, v, mask)
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The xformers package. Its bias must be dense and aligned, so a masked call goes through sdpa."""
    if not q.is_cuda:
        raise ValueError(f"attention = xformers runs on CUDA, got {q.device}; use attention = auto or sdpa")
    if mask is not None:
        return sdpa_attention(q, k, v, mask)
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    return memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


ATTENTION_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "sdpa": sdpa_attention,
    "products": product_attention,
    "flash": flash_attention,
    "xformers": xformers_attention,
}
BACKEND_PACKAGES = {"flash": "flash_attn", "xformers": "xformers"}
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None  # once: a compiled block cannot look it up


def check_attention(name: str) -> None:
    """ValueError where `name` is no backend or its package is not installed."""
    if name != "auto" and name not in ATTENTION_BACKENDS:
        raise ValueError(f"attention = {name!r}: known backends are auto, {', '.join(ATTENTION_BACKENDS)}")
    package = BACKEND_PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"attention = {name}: the package {package} is not installed; install it or use attention = auto"
        )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(e)) v over the keys that `mask` (`b m`, True = real) keeps."""
    name = best_attention(q, k.shape[2]) if backend == "auto" else backend
    return ATTENTION_BACKENDS[name](q, k, v, mask)


def best_attention(q: Tensor, keys: int) -> str:
    """What `auto` stands for, by device, dtype and size of the queries `b heads n e`."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.is_cuda:
        return "flash" if half and HAS_FLASH else "sdpa"
    few = q.shape[0] * q.shape[1] * q.shape[2] * keys <= MAX_PRODUCT_SCORES
    return "products" if half and few and q.device.type == "cpu" else "sdpa"


def rope_frequencies(pairs: int, theta: float) -> Tensor:
    """Rotation per position of each pair of channels (Su et al. 2021, RoFormer, section 3.2.2)."""
    return theta ** (-torch.arange(pairs, dtype=torch.float32) / pairs)


def rope_table(extents: tuple[int, ...], head_dim: int, device: torch.device | str, theta: float = ROPE_THETA) -> Rope:
    """Axial rotary table of a grid, row-major: each axis rotates its own share of the channel pairs.

    The first axis takes what the others leave. Channel i turns with channel i + head_dim / 2.
    """
    pairs = head_dim // 2
    share = pairs // len(extents)
    shares = [pairs - share * (len(extents) - 1)] + [share] * (len(extents) - 1)
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in extents), indexing="ij")
    angles = torch.cat(
        [grid.reshape(-1, 1) * rope_frequencies(count, theta) for grid, count in zip(grids, shares, strict=True)], dim=1
    )  # n e/2
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=1).to(device), torch.cat([-sin, sin], dim=1).to(device)  # n e


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate `... n e` by its positions: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cos, sin = rope[0].to(x.dtype), rope[1].to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def coordinate_features(
    extents: tuple[int, int, int], octaves: int, device: torch.device | str, part: tuple[float, float] | None = None
) -> Tensor:
    """`n 6*octaves`: sines and cosines of where each position lies within the whole grid, from 0 to 1 an axis.

    RoPE tells only how far apart two tokens are. In pure noise all tokens are alike, so without this no token could
    know where in the frame it stands. Relative to the grid, hence any size.

    `part` is the first row of frames and their number, where the grid is part of a longer one: its times are then those
    of a grid of its own length, spread over all of the longer one.
    """
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) / n for n in extents]
    if part is not None:
        start, count = part
        stretch = (extents[0] - 1) / max(1.0, count - 1)
        axes[0] = ((torch.arange(extents[0], dtype=torch.float32) + start) * stretch + 0.5) / extents[0]
    grids = torch.meshgrid(*axes, indexing="ij")
    turns = math.pi * 2.0 ** torch.arange(octaves, dtype=torch.float32)
    angles = torch.cat([grid.reshape(-1, 1) * turns for grid in grids], dim=1)  # n 3*octaves
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)  # n 6*octaves


def head_norm(x: Tensor) -> Tensor:
    """LayerNorm over each head, `... e`, of queries and keys (Dehghani et al. 2023, ViT-22B): bounds the logits.

    Without weights: logits reach sqrt(e) either way, sharp enough, and three passes over the data are saved.
    """
    return F.layer_norm(x, (x.shape[-1],))


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and RoPE, among all tokens or in groups of them.

    Without `rope` the caller gives the tokens their positions, without `normalise` queries and keys are as projected
    (Vaswani et al. 2017).
    """

    def __init__(
        self, width: int, heads: int, backend: str = "auto", bias: bool = False, normalise: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.backend, self.normalise = heads, backend, normalise
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Tensor, rope: Rope | None, mask: Tensor | None = None, frames: int = 1, across: bool = False
    ) -> Tensor:
        """x `b n d`, rope of the tokens of one group, mask `b n` True where real (only with frames = 1).

        The n tokens are `frames` rows of n / frames places. They attend within their row, or `across` rows to the
        tokens at their own place.
        """
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, frames, n // frames, 3, self.heads, d // self.heads)  # b f s 3 heads e
        order = (3, 0, 2, 4, 1, 5) if across else (3, 0, 1, 4, 2, 5)
        qkv = qkv.permute(order).flatten(1, 2)  # 3 b*g heads m e: g groups of m tokens
        qk, v = qkv.split([2, 1])  # 2 b*g heads m e, 1 b*g heads m e
        if v.shape[3] == 1:
            out = v[0]  # a token alone attends to itself
        else:
            qk = head_norm(qk) if self.normalise else qk
            q, k = (apply_rope(qk, rope) if rope else qk).unbind(0)  # b*g heads m e
            out = attend(q, k, v[0], mask, self.backend)  # b*g heads m e
        out = out.unflatten(0, (b, -1)).permute((0, 3, 1, 2, 4) if across else (0, 1, 3, 2, 4))  # b f s heads e
        return self.out(out.reshape(b, n, d))  # b n d


class CrossAttention(nn.Module):
    """Multi-head attention of visual tokens to text. Keys and values come projected: a model does all blocks at once.

    The output projection starts at zero, so that text enters only as far as it helps.
    """

    def __init__(
        self, width: int, heads: int, backend: str = "auto", bias: bool = False, normalise: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.backend, self.normalise = heads, backend, normalise
        self.q = nn.Linear(width, width, bias=bias)
        self.out = zero_init(nn.Linear(width, width, bias=bias))

    def forward(self, x: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        """x `b n d`, kv `b l 2*d`, mask `b l` True where the text token is real."""
        b, n, d = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)  # b heads n e
        k, v = kv.view(b, kv.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # b heads l e
        if self.normalise:
            q, k = head_norm(q), head_norm(k)
        out = attend(q, k, v, mask, self.backend)  # b heads n e
        return self.out(out.transpose(1, 2).reshape(b, n, d))  # b n d


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # b n d


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP (Vaswani et al. 2017; Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None = None) -> Tensor:
        """x `b n d`, rope of the n tokens, mask `b n` True where real."""
        x = x + self.attention(self.attention_norm(x), rope, mask)  # b n d
        return x + self.mlp(self.mlp_norm(x))  # b n d


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then (1 + scale) x + shift (Peebles & Xie 2023, DiT). x `b n d`, rest `b 1 d`."""
    return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), eps=1e-6), 1 + scale)


def recomputed(checkpointing: Checkpointing, index: int) -> bool:
    """Whether block number `index` keeps no activations: of every n blocks the first (Chen et al. 2016, 1604.06174)."""
    return bool(checkpointing) and index % int(checkpointing) == 0


def run_block(block: nn.Module, checkpointing: bool, *arguments: Any) -> Tensor:
    """block(*arguments); with `checkpointing`, while it trains, keeping no activations but computing them again."""
    if checkpointing and block.training:
        return checkpoint(block, *arguments, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return block(*arguments)


def zero_init(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class TimestepEmbedding(nn.Module):
    """Sinusoids of TIME_SCALE * t (Ho et al. 2020, DDPM, appendix B), then a two-layer MLP. t `b` -> `b d`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = TIME_FREQUENCIES // 2
        # On the CPU by name: `arange` on the meta device, where only sizes are checked, loads the compiler for seconds.
        steps = torch.arange(half, dtype=torch.float32, device="cpu")
        frequencies = torch.exp(-math.log(10000.0) * steps / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor
        self.hidden = nn.Linear(TIME_FREQUENCIES, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angles = TIME_SCALE * t.float()[:, None] * self.frequencies  # b k/2
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.hidden.weight.dtype)  # b k
        return self.out(F.silu(self.hidden(waves)))  # b d


def patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """`b c f h w` -> `b n c*pf*ph*pw`, tokens row-major over (f, h, w)."""
    b, c, f, h, w = x.shape
    pf, ph, pw = patch
    x = x.reshape(b, c, f // pf, pf, h // ph, ph, w // pw, pw)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # b f' h' w' c pf ph pw
    return x.reshape(b, (f // pf) * (h // ph) * (w // pw), c * pf * ph * pw)


def unpatchify(x: Tensor, patch: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """Inverse of `patchify`; `grid` is the number of patches along (f, h, w)."""
    (gf, gh, gw), (pf, ph, pw) = grid, patch
    x = x.reshape(x.shape[0], gf, gh, gw, -1, pf, ph, pw)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # b c f' pf h' ph w' pw
    return x.reshape(x.shape[0], -1, gf * pf, gh * ph, gw * pw)


def check_inputs(x_t: Tensor, t: Tensor, cond: Text, channels: int, text_width: int) -> None:
    """ValueError where a denoiser's inputs are not x_t `b c f h w`, t `b` and text `b l text_width`."""
    if x_t.ndim != 5 or x_t.shape[1] != channels:
        raise ValueError(f"x_t {tuple(x_t.shape)}: expected `b {channels} f h w`")
    if t.shape != x_t.shape[:1]:
        raise ValueError(f"t {tuple(t.shape)}: expected one time a sample, ({x_t.shape[0]},)")
    if cond.values.ndim != 3 or cond.values.shape[0] != x_t.shape[0] or cond.values.shape[2] != text_width:
        raise ValueError(f"text {tuple(cond.values.shape)}: expected `{x_t.shape[0]} l {text_width}`")


def needed_mask(mask: Tensor) -> Tensor | None:
    """The mask, or None where every token is real: attention without a mask takes a faster path."""
    fewest = int(mask.sum(dim=1).min())
    if fewest == 0:
        raise ValueError("a text without a single real token; every encoder gives an empty caption at least one")
    return None if fewest == mask.shape[1] else mask


def masked_mean(text: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Mean over the real tokens, or with the weights `b l` of all: `b l d` -> `b d`."""
    if weights is None:
        if mask is None:
            return text.mean(dim=1)
        weights = mask.to(text.dtype) / mask.sum(dim=1, keepdim=True)  # b l
    return (text * weights.to(text.dtype)[:, :, None]).sum(dim=1)
