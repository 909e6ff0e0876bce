"""The native caption encoder as properties; CLIP and T5 against transformers itself, with their real tokenizers."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.models.text import BEGIN, CLIPTextConfig, NativeTextConfig, T5TextConfig
from reelwright.types import Text, TextEncoder, UsageError, UserError

torch.set_num_threads(1)

CAPTIONS = ["a red ball rolls to the left", "a blue square moves up", "a green ball rolls to the right"] * 3
TOKENIZERS = Path(__file__).parents[2] / ".." / "shared" / "tokenizers"


def native(**settings):
    torch.manual_seed(0)
    made = NativeTextConfig.parse({"vocab_size": 300, "width": 16, "heads": 2, "length": 12, **settings}).build()
    made.fit(CAPTIONS)
    return made


LONG = native(length=4096)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_string_encodes_and_comes_back(caption):
    tokens = LONG.tokenize([caption, "a ball"])
    assert LONG.untokenize(tokens) == [caption, "a ball"]
    assert tokens.values.max() < 300


def test_special_ids_cannot_be_written_in_a_caption_and_lone_surrogates_encode():
    tokens = LONG.tokenize(["<pad><bos> \ud800"])
    assert LONG.untokenize(tokens) == ["<pad><bos> ?"]
    assert (tokens.values[0, 1:] > BEGIN).all()


def test_empty_caption_has_one_real_token():
    made = native()
    tokens = made.tokenize(["", "a red ball"])
    assert tokens.mask.sum(dim=1).tolist() == [1, made.count_tokens(["a red ball"])[0]]
    assert made.tokenize([""]).values.tolist() == [[BEGIN]]
    assert made(tokens).values.isfinite().all()


def test_long_captions_are_cut_and_counted():
    made = native()
    caption = "zyx " * 20
    tokens = made.tokenize([caption])
    assert tokens.values.shape == (1, 12) and tokens.mask.all()
    assert made.count_tokens([caption, ""]) == [81, 1]


def test_words_seen_often_take_few_tokens():
    made = native()
    assert made.count_tokens(["a red ball rolls"])[0] < made.count_tokens(["q rxd bqll zolls"])[0]


def test_fit_is_deterministic_and_travels_as_json():
    made, again, other = native(), native(), NativeTextConfig(vocab_size=300, width=16, heads=2, length=12).build()
    assert made.tokenizer_json() == again.tokenizer_json() and made.fingerprint() == again.fingerprint()
    assert made.fitted and not other.fitted
    with pytest.raises(ValueError, match="no tokenizer yet"):
        other.tokenize(["a"])
    other.load_tokenizer(made.tokenizer_json())
    assert other.fingerprint() == made.fingerprint()
    assert torch.equal(other.tokenize(CAPTIONS).values, made.tokenize(CAPTIONS).values)
    made.fit(["something else entirely"])
    assert made.fingerprint() != again.fingerprint()
    with pytest.raises(ValueError, match="not a tokenizer"):
        other.load_tokenizer("{}")
    with pytest.raises(ValueError, match="more than text.vocab_size = 258"):
        NativeTextConfig(vocab_size=258).build().load_tokenizer(native().tokenizer_json())


def test_no_captions_still_give_every_byte_a_token():
    made = NativeTextConfig(vocab_size=258, width=16, heads=2).build()
    made.fit([])
    assert made.untokenize(made.tokenize(["näh 你"])) == ["näh 你"]
    with pytest.raises(UsageError, match="at least 258"):
        NativeTextConfig.parse({"vocab_size": 257})


def test_embeddings_ignore_padding_and_neighbours():
    made = native().double()
    assert isinstance(made, TextEncoder) and made.trainable
    short = made.tokenize(["a red ball"])
    length = short.values.shape[1]
    both = made.tokenize(["a red ball", "a green ball rolls to the right"])
    assert both.values.shape[1] > length
    torch.testing.assert_close(made(both).values[:1, :length], made(short).values, atol=1e-12, rtol=1e-12)


def test_embeddings_see_order_in_both_directions():
    made = native()
    one, two = (made(made.tokenize([c])).values[0] for c in ("ab", "ba"))
    assert not torch.allclose(one[0], two[0], atol=1e-3)  # the first token hears of what follows
    assert one.shape[1] == made.width
    one.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.blocks.parameters())


def test_without_blocks_a_caption_is_its_words_in_any_order():
    made = native(depth=0).double()
    one, two = (made(made.tokenize([c])).values[0] for c in ("ab", "ba"))
    torch.testing.assert_close(one[1], two[2], atol=0, rtol=0)
    torch.testing.assert_close(one.mean(0), two.mean(0), atol=1e-12, rtol=1e-12)
    assert not torch.allclose(one.mean(0), made(made.tokenize(["aa"])).values[0].mean(0), atol=1e-3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    if not (TOKENIZERS / "clip").is_dir():
        pytest.skip("the real CLIP tokenizer is not beside the project")
    from transformers import CLIPTextConfig as TransformersConfig
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPTextModel(
        TransformersConfig(
            vocab_size=49408, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=49406, eos_token_id=49407,
        )
    ).save_pretrained(folder)  # fmt: skip
    shutil.copytree(TOKENIZERS / "clip", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    if not (TOKENIZERS / "t5").is_dir():
        pytest.skip("the real T5 tokenizer is not beside the project")
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    T5EncoderModel(
        T5Config(vocab_size=32128, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    ).save_pretrained(folder)  # fmt: skip
    shutil.copytree(TOKENIZERS / "t5", folder, dirs_exist_ok=True)
    return folder


def test_clip_equals_transformers(clip_folder):
    from transformers import CLIPTextModel

    made = CLIPTextConfig(model=str(clip_folder)).build()
    assert isinstance(made, TextEncoder) and not made.trainable and made.width == 8
    tokens = made.tokenize(["a photo of a cat", "a cat"])
    assert tokens.values[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens.mask.sum(1).tolist() == [7, 4] == made.count_tokens(["a photo of a cat", "a cat"])
    reference = CLIPTextModel.from_pretrained(clip_folder).eval()
    for row, caption in enumerate(["a photo of a cat", "a cat"]):
        ids = made.tokenize([caption]).values
        with torch.no_grad():
            expected = reference(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(made(tokens).values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_clip_cuts_at_its_length_and_stays_frozen(clip_folder):
    made = CLIPTextConfig(model=str(clip_folder), length=5).build().train()
    assert made.tokenize(["a photo of a cat", ""]).values.shape == (2, 5)
    assert made.count_tokens(["a photo of a cat", ""]) == [7, 2]
    assert not made.encoder.training and not any(p.requires_grad for p in made.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert made(made.tokenize(["a cat"])).values.dtype == torch.float32


def test_t5_equals_transformers(t5_folder):
    from transformers import T5EncoderModel

    made = T5TextConfig(model=str(t5_folder)).build()
    captions = ["A man is surfing.", "surf"]
    tokens = made.tokenize(captions)
    assert tokens.values[0].tolist() == [71, 388, 19, 21061, 5, 1]
    reference = T5EncoderModel.from_pretrained(t5_folder).eval()
    for row, caption in enumerate(captions):
        ids = made.tokenize([caption]).values
        with torch.no_grad():
            expected = reference(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(made(tokens).values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert made.tokenize([""]).mask.sum() == 1


def test_padding_as_pretrained_video_models_want_it(t5_folder):
    from transformers import T5EncoderModel

    captions = ["A man is surfing.", "surf"]
    trimmed, encoded, kept = (
        T5TextConfig(model=str(t5_folder), length=9, padding=padding).build()
        for padding in ("trimmed", "encoded", "kept")
    )
    ids = encoded.tokenize(captions).values
    assert ids.shape == (2, 9) and torch.equal(kept.tokenize(captions).values, ids)
    with torch.no_grad():
        unmasked = T5EncoderModel.from_pretrained(t5_folder).eval()(input_ids=ids).last_hidden_state
    found = {made.padding: made(made.tokenize(captions)) for made in (trimmed, encoded, kept)}
    assert found["trimmed"].values.shape[1] == 6 and torch.equal(found["encoded"].mask[:, :6], found["trimmed"].mask)
    assert not found["encoded"].mask[:, 6:].any() and found["kept"].mask.all()
    for padding in ("encoded", "kept"):
        torch.testing.assert_close(found[padding].values, unmasked, atol=1e-5, rtol=1e-5)
    assert (found["trimmed"].values[0] - unmasked[0, :6]).abs().max() > 1e-4  # padding that is seen changes the rest
    assert len({made.fingerprint() for made in (trimmed, encoded, kept)}) == 3


def test_fingerprint_follows_the_weights_not_the_path(t5_folder, tmp_path):
    copied = shutil.copytree(t5_folder, tmp_path / "copy")
    first, second = (T5TextConfig(model=str(path)).build() for path in (t5_folder, copied))
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != T5TextConfig(model=str(t5_folder), length=9).build().fingerprint()
    with torch.no_grad():
        next(second.encoder.parameters()).add_(1)
    assert first.fingerprint() != second.fingerprint()


def test_text_models_that_cannot_be_loaded(clip_folder, t5_folder, tmp_path):
    with pytest.raises(UserError, match="holds a clip_text_model, but text.type = t5"):
        T5TextConfig(model=str(clip_folder)).build()
    with pytest.raises(UserError, match="no folder"):
        CLIPTextConfig(model=str(tmp_path / "absent")).build()
    pickled = shutil.copytree(t5_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle.*safetensors"):
        T5TextConfig(model=str(pickled)).build()
    empty = shutil.copytree(t5_folder, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        T5TextConfig(model=str(empty)).build()


def test_mask_and_values_travel_together():
    made = native()
    out = made(made.tokenize(CAPTIONS))
    assert isinstance(out, Text) and out.values.shape == (*out.mask.shape, 16)
