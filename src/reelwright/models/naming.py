"""Latents that name what captions say.

What captions say of clips may be a small part of how they look, and a denoiser learns what is large first. With a
codec's `align` the words of a clip's captions have to be read off its noisy latents by one linear layer (as Zha et al.
2024, "Language-Guided Image Tokenization for Generation", arXiv 2412.05796, tie latents to text, but captions are
needed here only to train), which makes that part larger.

That words can be read off the latents does not say where the latents of words lie that were never together. With
`additive` the latents have to be near a sum of one vector a word, as far as the words say what they are: "orange" is
then the same step from every shape, and a denoiser that learns it of some finds it of all.

The words of a clip are taken as they are also where `augment` exchanged its colours: a word of colour is then one of
several colours, and names and sums say less of colours than of shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORD = re.compile(r"\w+")
WORD_SHARES = (0.005, 0.6)  # of the clips: rarer words are too rare to learn, commoner ones say little


class Naming(nn.Module):
    """The words of a clip's captions told by its latents, and the latents by the words: each by one linear layer.

    It is not kept: only training needs it.
    """

    def __init__(self, channels: int, words: Tensor) -> None:
        """`words` of every clip, `n words`, from 0 (in no caption of the clip) to 1 (in all)."""
        super().__init__()
        self.name = nn.Linear(channels, words.shape[1])
        self.add = nn.Linear(words.shape[1], channels)
        usual = words.mean(0)
        self.chance = float(F.binary_cross_entropy(usual.expand_as(words), words)) * words.shape[1]
        self.register_buffer("usual", usual)
        self.usual: Tensor  # words

    def forward(self, latents: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Of `b channels ...` of about unit variance and `b words`: two errors.

        The cross-entropy of all words, as a share of what their frequencies alone would have, and the squared error of
        the latents' mean over positions as a sum over words.
        """
        latents = latents.flatten(2).mean(2)  # b channels
        told = self.name(latents).float()  # b words
        named = F.binary_cross_entropy_with_logits(told, words) * words.shape[1] / max(self.chance, 1e-6)
        return named, F.mse_loss(self.add(words - self.usual).float(), latents.float())


def caption_words(captions: Sequence[Sequence[str]]) -> Tensor | None:
    """Of every clip the share of its captions that have each word, `n words`; None where no word tells clips apart.

    Words in very few clips, or in most, are left out.
    """
    sets = [[set(WORD.findall(caption.lower())) for caption in some] for some in captions]
    shares = Counter(word for some in sets for word in set().union(*some))
    rarest, commonest = (share * len(sets) for share in WORD_SHARES)
    words = sorted(word for word, count in shares.items() if max(2, rarest) <= count <= commonest)
    if not words:
        return None
    place = {word: number for number, word in enumerate(words)}
    table = torch.zeros(len(sets), len(words))
    for row, some in zip(table, sets, strict=True):
        for caption in some:
            row[[place[word] for word in caption if word in place]] += 1 / len(some)
    return table
