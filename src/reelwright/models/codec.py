"""Video <-> latents: one linear block codec with three ways to choose its basis, and diffusers' AutoencoderKL.

The block codec needs no training. It cuts a video into blocks (frames, height, width), subtracts the mean block,
rotates each block of 3 * frames * height * width numbers into an orthonormal basis and keeps `channels` coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.models.decoding import Decoding, at_once, is_large, tiling
from reelwright.models.foreign import Frozen, Precision, content_hash, freeze, load_foreign
from reelwright.randomness import keyed_generator
from reelwright.types import Compression, Posterior, Size, UserError

CHROMA_COST = 2.0  # DCT order: a chroma frequency ranks with luma of twice the frequency, as the eye resolves half
FIT_CHUNK = 4096  # blocks a covariance product takes at once
MIN_RELATIVE_DEVIATION = 1e-3  # coefficients that hardly vary are not blown up by whitening

Block = tuple[PositiveInt, PositiveInt, PositiveInt]


class BlockCodecConfig(Config):
    """What the three linear codecs share. `build().fit(videos)` makes one ready."""

    block: Block = (4, 16, 16)  # frames, height, width that one latent position covers
    whiten: float = Field(default=0.5, ge=0, le=1)  # coefficients are divided by deviation ** whiten
    fit_clips: PositiveInt = 1024  # at most so many clips, evenly taken from the training split, are fitted on
    fit_blocks: PositiveInt = 65536  # at most so many blocks of them are used by `fit`

    @property
    def block_numbers(self) -> int:
        return 3 * math.prod(self.block)

    @property
    def latent_channels(self) -> int:
        return self.block_numbers

    def build(self) -> BlockCodec:
        return BlockCodec(self)


class KeptChannelsConfig(BlockCodecConfig):
    """A block codec that drops the least of its coefficients."""

    channels: PositiveInt = 160  # coefficients kept of each block

    @property
    def latent_channels(self) -> int:
        return self.channels

    @model_validator(mode="after")
    def _check_channels(self) -> KeptChannelsConfig:
        if self.channels > self.block_numbers:
            raise ValueError(
                f"channels = {self.channels}: a block of {'x'.join(map(str, self.block))} RGB pixels has only "
                f"{self.block_numbers} numbers; use channels <= {self.block_numbers} or a larger block"
            )
        return self


class PCACodecConfig(KeptChannelsConfig):
    """Principal components of the data's own blocks: the least squared error any linear codec of this size can have."""

    type: Literal["pca"] = "pca"


class DCTCodecConfig(KeptChannelsConfig):
    """The lowest frequencies of a 3-D DCT in opponent colours: needs no data but for its scales."""

    type: Literal["dct"] = "dct"


class PixelCodecConfig(BlockCodecConfig):
    """All pixels of a block as channels: nothing is lost."""

    type: Literal["pixels"] = "pixels"
    block: Block = (1, 4, 4)
    whiten: float = Field(default=0.0, ge=0, le=1)


class BlockCodec(nn.Module):
    """latent = gain * basis^T (block - mean); its least-squares inverse decodes. Latents have unit RMS over the fit.

    Everything fitted is a buffer, so `state_dict` holds the whole codec.
    """

    needs_fit = True
    frames_apart = True  # every latent frame is decoded by itself

    def __init__(self, config: BlockCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.latent_channels
        self.compression = Compression(*config.block)
        numbers = config.block_numbers
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("gain", torch.zeros(self.channels))  # zero until fitted
        self.mean: Tensor
        self.gain: Tensor
        self.basis: Tensor | None
        if isinstance(config, PixelCodecConfig):
            self.register_buffer("basis", None)  # the identity
        elif isinstance(config, DCTCodecConfig):
            self.register_buffer("basis", dct_basis(config.block, self.channels))
        else:
            self.register_buffer("basis", torch.zeros(numbers, self.channels))

    @property
    def fitted(self) -> bool:
        return bool(self.gain.any())

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Fit mean, scales and (PCA) basis to videos `b 3 f h w` in [-1, 1], read once and in order.

        Where `videos` has a length, `fit_blocks` is spread evenly over it. The result depends on the videos alone and
        is the same bit for bit on the same machine. UserError for too few blocks or videos without variation.
        """
        numbers = self.config.block_numbers
        full = isinstance(self.config, PCACodecConfig)
        device = self.mean.device
        total = torch.zeros(numbers, dtype=torch.float64, device=device)
        square = torch.zeros((numbers, numbers) if full else (self.channels,), dtype=torch.float64, device=device)
        origin: Tensor | None = None  # a first mean: sums of small numbers lose nothing in float32
        count = 0
        for chosen in in_chunks(self._chosen_blocks(videos), FIT_CHUNK):
            blocks = chosen.to(device)  # m numbers
            if origin is None:
                origin = blocks.mean(dim=0)
            centred = blocks - origin  # m numbers
            total += centred.sum(dim=0, dtype=torch.float64)
            count += len(centred)
            if full:
                square += (centred.T @ centred).double()
            else:
                square += self._project(centred).square().sum(dim=0, dtype=torch.float64)
        needed = max(2, self.channels if full else 2)
        if origin is None or count < needed:
            raise UserError(
                f"codec.channels = {self.channels}: the videos have only {count} blocks of "
                f"{'x'.join(map(str, self.config.block))}, fewer than the {needed} needed to fit; "
                "use more clips, smaller blocks or fewer channels"
            )
        offset = total / count
        if full:
            basis, variance = principal_components(square / count - torch.outer(offset, offset), self.channels)
            assert self.basis is not None
            self.basis.copy_(basis)
        else:
            variance = square / count - self._project(offset.float()).double().square()
        self.mean.copy_(origin + offset.float())
        self.gain.copy_(self._gain(variance))

    def encode(self, video: Tensor) -> Posterior:
        """`b 3 f h w` in [-1, 1] -> posterior without variance, mean `b channels f' h' w'`."""
        self._check_fitted()
        size = self.compression.latent_size(Size(*video.shape[2:]))
        with torch.autocast(video.device.type, enabled=False):
            latents = self._project(to_blocks(video.float(), self.config.block) - self.mean) * self.gain  # b n channels
        return Posterior(latents.transpose(1, 2).reshape(video.shape[0], self.channels, *size.tuple))

    def decode(self, latents: Tensor) -> Tensor:
        """`b channels f' h' w'` -> `b 3 f h w`, clamped to [-1, 1]."""
        self._check_fitted()
        grid = latents.shape[2:]
        with torch.autocast(latents.device.type, enabled=False):
            coefficients = latents.float().flatten(2).transpose(1, 2) / self.gain  # b n channels
            blocks = coefficients if self.basis is None else coefficients @ self.basis.T  # b n numbers
            video = from_blocks(blocks + self.mean, self.config.block, (grid[0], grid[1], grid[2]))
        return video.clamp(-1, 1)

    def fingerprint(self) -> str:
        """sha256 over the settings and everything fitted."""
        return content_hash(self.config.plain(), self.state_dict())

    def _project(self, blocks: Tensor) -> Tensor:
        return blocks if self.basis is None else blocks @ self.basis  # ... channels

    def _gain(self, variance: Tensor) -> Tensor:
        """1 / (deviation ** whiten), times what brings the whole to unit RMS."""
        deviation = variance.clamp_min(0).sqrt()  # channels
        largest = float(deviation.max())
        if largest < 1e-6:
            raise UserError("codec: the videos do not vary at all (every block is the same); check that they decode")
        deviation = deviation.clamp_min(MIN_RELATIVE_DEVIATION * largest)
        whitened = deviation ** (1 - self.config.whiten)
        return (deviation**-self.config.whiten / whitened.square().mean().sqrt()).float()

    def _chosen_blocks(self, videos: Iterable[Tensor]) -> Iterable[Tensor]:
        """Blocks `m numbers` to fit on, a keyed random choice in each video where there are too many."""
        quota = max(1, self.config.fit_blocks // len(videos)) if isinstance(videos, Sized) and len(videos) else None
        left = self.config.fit_blocks
        for index, video in enumerate(videos):
            blocks = to_blocks(video.float().cpu(), self.config.block).flatten(0, 1)  # m numbers
            allowed = min(left, quota or left)
            if len(blocks) > allowed:
                chosen = torch.randperm(len(blocks), generator=keyed_generator("codec fit", index))[:allowed]
                blocks = blocks[chosen.sort().values]
            left -= len(blocks)
            yield blocks
            if left == 0:
                return

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError(
                f"the {type(self.config).__name__} codec is not fitted; call fit(videos) or load its weights"
            )


def in_chunks(rows: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The same rows in order, gathered into tensors of `count` or a little more: few large products, not many small."""
    waiting: list[Tensor] = []
    for tensor in rows:
        waiting.append(tensor)
        if sum(len(t) for t in waiting) >= count:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def principal_components(covariance: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors `numbers channels` (largest entry positive, so that signs repeat) and their variances.

    Solved in float32, a quarter of float64's time; then made orthonormal, and the variances taken, in float64.
    """
    _, vectors = torch.linalg.eigh(covariance.float())  # ascending
    basis, _ = torch.linalg.qr(vectors[:, -channels:].flip(1).double())
    peaks = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    basis = basis * peaks.sign()
    return basis, (covariance @ basis * basis).sum(dim=0)


def dct_basis(block: tuple[int, int, int], channels: int) -> Tensor:
    """The first `channels` separable DCT-II functions over (colour, frames, height, width), `numbers channels`.

    The three-point DCT over RGB is an orthonormal opponent colour space: luma, red-blue, green against both.
    """
    colour, frames, height, width = (dct_matrix(extent) for extent in (3, *block))
    basis = torch.einsum("ai,bj,ck,dl->abcdijkl", colour, frames, height, width)  # functions, then pixels
    basis = basis.reshape(3 * math.prod(block), -1)
    axes = [torch.arange(extent, dtype=torch.float64) for extent in (3, *block)]
    c, f, h, w = torch.meshgrid(*axes, indexing="ij")
    radius = ((f / block[0]) ** 2 + (h / block[1]) ** 2 + (w / block[2]) ** 2).sqrt()
    order = torch.where(c > 0, radius * CHROMA_COST, radius).flatten().argsort(stable=True)
    return basis[order[:channels]].T.float().contiguous()


def dct_matrix(extent: int) -> Tensor:
    """Orthonormal DCT-II, `frequency position`, float64."""
    position = (torch.arange(extent, dtype=torch.float64) + 0.5) * math.pi / extent
    matrix = torch.cos(torch.arange(extent, dtype=torch.float64)[:, None] * position) * math.sqrt(2 / extent)
    matrix[0] /= math.sqrt(2)
    return matrix


def to_blocks(video: Tensor, block: tuple[int, int, int]) -> Tensor:
    """`b 3 f h w` -> `b n 3*bf*bh*bw`, blocks row-major over (f, h, w). ValueError where the size does not divide."""
    size = Compression(*block).latent_size(Size(*video.shape[2:]))
    (gf, gh, gw), (bf, bh, bw) = size.tuple, block
    x = video.reshape(video.shape[0], 3, gf, bf, gh, bh, gw, bw)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(video.shape[0], gf * gh * gw, 3 * bf * bh * bw)


def from_blocks(blocks: Tensor, block: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """Inverse of `to_blocks`."""
    (gf, gh, gw), (bf, bh, bw) = grid, block
    x = blocks.reshape(blocks.shape[0], gf, gh, gw, 3, bf, bh, bw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(blocks.shape[0], 3, gf * bf, gh * bh, gw * bw)


class AutoencoderKLConfig(Config):
    """An image autoencoder of diffusers (sd-vae-ft-mse and its kind), applied to every frame by itself."""

    type: Literal["autoencoder_kl"] = "autoencoder_kl"
    model: str  # a diffusers directory or a hub id
    subfolder: str = ""  # "vae" inside a whole pipeline
    dtype: Precision = "float32"  # precision of encoding
    decode_dtype: Precision = "float32"  # of decoding; what overflows in less is decoded again in float32
    tiling: bool | Literal["auto"] = "auto"  # overlapping tiles: less memory, faint seams; auto: to decode large ones
    frames_per_chunk: PositiveInt = 8  # frames in memory at a time, fewer where they are large

    def build(self) -> AutoencoderKLCodec:
        """UserError where the weights are missing, pickles or pointers."""
        return AutoencoderKLCodec(self)


class AutoencoderKLCodec(Frozen):
    """Frames through a frozen AutoencoderKL; latents are multiplied by its scaling_factor (after its shift_factor)."""

    needs_fit = False
    fitted = True
    frames_apart = True

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        def load() -> Any:
            return AutoencoderKL.from_pretrained(
                config.model, subfolder=config.subfolder or None, use_safetensors=True, torch_dtype=torch.float32
            )

        self.config = config
        self.vae = load_foreign(load, config.model, "codec.model", config.subfolder)
        freeze(self.vae)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels: int = self.vae.config.latent_channels
        self.compression = Compression(1, factor, factor)
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.shift_factor or 0.0)
        self._decoding = Decoding(config.decode_dtype)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """`b 3 f h w` in [-1, 1] -> mean and log-variance `b channels f h' w'`, float32."""
        self.compression.latent_size(Size(*video.shape[2:]))
        dtype = getattr(torch, self.config.dtype)
        means, logvars = [], []
        for frames in self._chunks(video, 1):  # n 3 h w
            tiled = tiling(self.vae, self.config.tiling is True)
            with tiled, torch.autocast(video.device.type, dtype=dtype, enabled=dtype != torch.float32):
                posterior = self.vae.encode(frames).latent_dist
            means.append((posterior.mean.float() - self.shift) * self.scale)
            logvars.append(posterior.logvar.float() + 2 * math.log(self.scale))
        batch = video.shape[0]
        return Posterior(unfold_frames(torch.cat(means), batch), unfold_frames(torch.cat(logvars), batch))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`b channels f h' w'` -> `b 3 f h w`, clamped to [-1, 1]."""
        area = self.compression.height * self.compression.width
        wanted = self.config.tiling
        with tiling(self.vae, is_large(area * latents.shape[3] * latents.shape[4]) if wanted == "auto" else wanted):
            frames = [
                self._decoding(lambda z: self.vae.decode(z).sample, z / self.scale + self.shift)
                for z in self._chunks(latents, area)
            ]
        return unfold_frames(torch.cat(frames), latents.shape[0]).clamp(-1, 1)

    def fingerprint(self) -> str:
        """sha256 over what latents depend on: weights, factors and the precision of encoding; not the path."""
        settings = {"type": self.config.type, "dtype": self.config.dtype, "scale": self.scale, "shift": self.shift}
        if self.config.tiling is True:
            settings["tiling"] = True
        return content_hash(settings, self.state_dict())

    def _chunks(self, video: Tensor, area: int) -> Iterable[Tensor]:
        """Frames `n c h w` a few at a time; `area` is how many pixels each place stands for."""
        count = min(self.config.frames_per_chunk, at_once(area * video.shape[3] * video.shape[4]))
        return video.float().transpose(1, 2).flatten(0, 1).split(count)


def unfold_frames(frames: Tensor, batch: int) -> Tensor:
    """`(b f) c h w` -> `b c f h w`."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def pixels_to_video(pixels: Tensor) -> Tensor:
    """uint8 `b f h w c` -> float32 `b c f h w` in [-1, 1]."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels {pixels.dtype} {tuple(pixels.shape)}: expected uint8 `b f h w 3`")
    return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def video_to_pixels(video: Tensor) -> Tensor:
    """float `b 3 f h w` in [-1, 1] -> uint8 `b f h w 3`: rounded, and clamped where it leaves the range."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video {tuple(video.shape)}: expected float `b 3 f h w`")
    return ((video.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
