"""`prepare`: only what changed is done again, nothing is lost by a kill, and every lost clip is named."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reelwright.prepare.encoding as encoding
import reelwright.prepare.verb as verb
from reelwright.bundle import build_bundle, draw, fitted_path
from reelwright.data.cache import Cache
from reelwright.data.decode import BadVideo, read_window
from reelwright.data.sandbox import Decoders
from reelwright.loading import DeferredText
from reelwright.models.codec import BlockCodec
from reelwright.models.text import FrozenText
from reelwright.prepare import Summary, open_prepared, prepare
from reelwright.recipe import Recipe
from reelwright.train import train
from reelwright.types import UserError
from reelwright.video.write import read_frames, write_video


@pytest.fixture
def own(tmp_path: Path, shapes_clips: Path, write_recipe) -> Any:
    """A recipe on a copy of the collection with a cache of its own: `own("codec.channels=16")`."""
    data = shutil.copytree(shapes_clips, tmp_path / "data")

    def load(*overrides: str) -> Recipe:
        return Recipe.load(write_recipe(*overrides, data=data, cache=tmp_path / "cache"))

    return load


def done(summary: Summary) -> tuple[int, int, int]:
    """(clips encoded, captions encoded, things fitted)"""
    return summary.encoded, summary.texts, len(summary.fitted)


def sample_of(summary: Summary, clip: str) -> Any:
    return next(sample for sample in summary.manifest.samples if sample.clip == clip)


def test_the_second_prepare_does_nothing(own):
    first = prepare(own())
    captions = {caption for sample in first.manifest.samples for caption in sample.captions}
    assert done(first) == (24, len(captions) + 1, 2)  # and the empty caption
    second = prepare(own())
    assert done(second) == (0, 0, 0) and second.to_json()["reused"] == 24
    assert second.manifest == first.manifest
    assert done(prepare(own(), verify=True)) == (0, 0, 0)


def test_verify_compares_what_is_stored_and_makes_the_damaged_anew(own, run_cli, tmp_path):
    first = prepare(own())
    before = {key: Cache(own().cache_dir).get(key) for key in Cache(own().cache_dir).keys()}  # noqa: SIM118
    shards = {path.name.split("-")[0]: path for path in (own().cache_dir / "shards").glob("*.safetensors")}
    for shard in shards.values():
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(bytes(data))
    assert done(prepare(own())) == (0, 0, 0), "a start does not read everything"
    mended = prepare(own(), verify=True)
    assert done(mended) == (1, 1, 0) and len(mended.damaged) == 2 and mended.manifest == first.manifest
    told = [line for line in mended.lines() if line.startswith("damaged in the cache, made anew where it is needed: ")]
    assert sorted(told) == sorted(
        f"damaged in the cache, made anew where it is needed: {path}, 1 item" for path in shards.values()
    )
    after = Cache(own().cache_dir)
    assert after.keys() == before.keys() and not after.verify()
    assert all(torch.equal(after.get(key)[name], value) for key in before for name, value in before[key].items())
    result = run_cli("prepare", tmp_path / "recipe.yaml", "--verify", "--json")
    assert result.code == 0 and json.loads(result.out)["damaged"] == []


def test_a_changed_caption_redoes_its_text_only(own):
    before = prepare(own())
    path = own().data.path / "captions.json"
    captions = json.loads(path.read_text())
    captions["00003.mp4"] = "an altogether different sentence"
    path.write_text(json.dumps(captions))
    after = prepare(own())
    assert done(after) == (0, 1, 0)
    old, new = sample_of(before, "00003.mp4"), sample_of(after, "00003.mp4")
    assert new.captions == ("an altogether different sentence",)
    assert new.latent_keys == old.latent_keys and new.text_keys != old.text_keys


def test_changed_bytes_redo_one_clip(own):
    before = prepare(own())
    video = own().data.path / "videos" / "00005.mp4"
    frames, fps = read_frames(video)
    write_video(video, 255 - frames, fps)
    after = prepare(own())
    assert done(after) == (1, 0, 0)
    latents = [Cache(own().cache_dir).get(sample_of(s, "00005.mp4").latent_keys[0])["mean"] for s in (before, after)]
    assert not torch.equal(*latents)


def test_a_changed_byte_behind_the_old_time_redoes_one_clip(own):
    prepare(own())
    video = own().data.path / "videos" / "00005.mp4"
    stat, data = video.stat(), bytearray(video.read_bytes())
    data[data.index(b"2003-202") + 8] ^= 1  # a year in what the encoder wrote of itself: every frame stays
    with video.open("r+b") as file:  # in place, as no editor would
        file.write(data)
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (video.stat().st_mtime_ns, video.stat().st_size) == (stat.st_mtime_ns, stat.st_size)
    assert done(prepare(own())) == (1, 0, 0)


def test_where_nothing_changed_nothing_is_decoded_or_written(own, monkeypatch):
    recipe = own()
    prepare(recipe)
    manifest = next((recipe.cache_dir / "manifests").iterdir())
    written = manifest.stat().st_mtime_ns
    monkeypatch.setattr(Decoders, "submit", lambda *_, **__: pytest.fail("a clip is decoded"))
    monkeypatch.setattr(verb, "_codec_psnr", lambda *_: pytest.fail("the codec is measured again"))
    prepare(recipe)
    assert manifest.stat().st_mtime_ns == written


def test_a_changed_codec_redoes_latents_but_no_text(own):
    prepare(own())
    other = prepare(own("codec.channels=16"))
    assert done(other) == (24, 0, 1)
    assert other.manifest.samples[0].latent_size == prepare(own()).manifest.samples[0].latent_size
    assert done(prepare(own())) == (0, 0, 0), "the first codec's latents are still there"


def test_killed_in_the_middle_it_goes_on(own, tmp_path, monkeypatch):
    whole = prepare(own())
    kept = Cache(own().cache_dir)
    expected = {s.clip: kept.get(s.latent_keys[0])["mean"] for s in whole.manifest.samples}
    shutil.rmtree(own().cache_dir)

    monkeypatch.setattr(encoding, "STORED_AT_ONCE", 5)
    encode, calls = BlockCodec.encode, []

    def killed(self, video):
        calls.append(len(video))
        if len(calls) == 13:  # two lots of five are stored by then
            raise KeyboardInterrupt
        return encode(self, video)

    monkeypatch.setattr(BlockCodec, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(own())
    monkeypatch.setattr(BlockCodec, "encode", encode)
    after = prepare(own())
    assert (after.encoded, after.to_json()["reused"], after.fitted) == (14, 10, [])
    cache = Cache(own().cache_dir)
    assert all(torch.equal(cache.get(s.latent_keys[0])["mean"], expected[s.clip]) for s in after.manifest.samples)


def test_a_fit_stays_when_clips_go_until_refit(own):
    prepare(own())
    captions = own().data.path / "captions.json"
    some = dict(list(json.loads(captions.read_text()).items())[:16])
    captions.write_text(json.dumps(some))
    kept = prepare(own("data.max_dropped=1"))
    assert len(kept.manifest.samples) == 16 and len(kept.manifest.dropped) == 8
    assert fitted_path(own("data.max_dropped=1"), "codec") == fitted_path(own(), "codec")
    assert done(kept) == (0, 0, 0)
    again = prepare(own("data.max_dropped=1"), refit=True)
    assert again.fitted == ["codec pca", "tokenizer of text native"]
    assert again.encoded == 16 and again.texts == len(set(some.values())) + 1
    assert done(prepare(own("data.max_dropped=1"), refit=True)) == (0, 0, 2), "the same fit again needs no new latents"


def undecodable(monkeypatch, *names: str) -> None:
    """Clips that pass inspection and fail when they are decoded for encoding."""
    submit = Decoders.submit

    def failing(self, function, video, *rest, **settings):
        if function is not read_window or video.name not in names:
            return submit(self, function, video, *rest, **settings)
        failed: Future[Any] = Future()
        failed.set_exception(BadVideo("its frames cannot be decoded"))
        return failed

    monkeypatch.setattr(Decoders, "submit", failing)


def test_a_clip_that_fails_after_inspection_is_named_and_counted(own, monkeypatch):
    undecodable(monkeypatch, "00007.mp4")
    summary = prepare(own())
    assert summary.encoded == 23 and len(summary.manifest.samples) == 23
    assert summary.to_json()["dropped"] == [{"id": "00007.mp4", "reason": "its frames cannot be decoded"}]
    assert "dropped 00007.mp4: its frames cannot be decoded" in summary.lines()
    assert any("1 clips dropped" in line for line in summary.lines())
    indices = {s.clip: s.index for s in prepare(own("codec.channels=16")).manifest.samples}
    assert indices["00008.mp4"] == 8, "the samples after it keep their index, hence their draws"


def test_more_lost_than_allowed_stops(own, monkeypatch):
    undecodable(monkeypatch, "00007.mp4", "00009.mp4", "00011.mp4")
    with pytest.raises(UserError, match=r"3 of 24 clips.*data.max_dropped = 0.1(?s:.*)00009.mp4: its frames"):
        prepare(own())
    with pytest.raises(UserError, match="not prepared for this recipe"):
        open_prepared(own())


def test_clips_that_share_a_lost_file_are_lost_with_it(own, monkeypatch):
    data = own().data.path
    shutil.copy(data / "videos" / "00007.mp4", data / "videos" / "00099.mp4")
    captions = json.loads((data / "captions.json").read_text())
    (data / "captions.json").write_text(json.dumps({**captions, "00099.mp4": "the same again"}))
    undecodable(monkeypatch, "00007.mp4", "00099.mp4")
    summary = prepare(own())
    reason = "its frames cannot be decoded"
    assert summary.to_json()["dropped"] == [{"id": f"000{n}.mp4", "reason": reason} for n in ("07", "99")]
    assert len(open_prepared(own()).manifest.samples) == 23


def test_latents_that_are_not_finite_are_named_and_never_stored(own, monkeypatch):
    encode = BlockCodec.encode
    calls: list[int] = []

    def poisoned(self, video):
        posterior = encode(self, video)
        calls.append(1)
        if len(calls) == 9:
            posterior.mean[..., 0, 0] = torch.nan
        return posterior

    monkeypatch.setattr(BlockCodec, "encode", poisoned)
    summary = prepare(own())
    dropped = [{"id": "00008.mp4", "reason": "the codec pca makes NaN or infinity of it"}]
    assert summary.to_json()["dropped"] == dropped and summary.encoded == 23
    monkeypatch.setattr(BlockCodec, "encode", encode)
    assert prepare(own()).encoded == 1, "a codec that gives numbers again gets its clip back"


def test_what_inspection_and_decoding_lose_counts_together(own, monkeypatch):
    own()
    for name in ("00001.mp4", "00002.mp4"):
        (own().data.path / "videos" / name).write_text("no video")
    undecodable(monkeypatch, "00007.mp4")
    assert len(prepare(own("data.max_dropped=0.13")).manifest.dropped) == 3
    with pytest.raises(UserError, match="3 of 24 clips"):
        prepare(own("data.max_dropped=0.1"))


def test_a_stochastic_codecs_posterior_is_kept_and_drawn_from(own, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    settings: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 4, "latent_channels": 4}
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**settings).save_pretrained(tmp_path / "vae", safe_serialization=True)
    codec = f"codec={{type: autoencoder_kl, model: {tmp_path / 'vae'}}}"
    recipe = own(codec, "train.steps=2", "model.patch=[1, 4, 4]")
    summary = prepare(recipe)
    assert summary.fitted == ["tokenizer of text native"]
    item = Cache(recipe.cache_dir).get(summary.manifest.samples[0].latent_keys[0])
    assert set(item) == {"mean", "logvar"} and item["mean"].shape == item["logvar"].shape == (4, 8, 16, 16)

    prepared = open_prepared(recipe)
    bundle = build_bundle(recipe)
    index = next(iter(prepared.training.samples))
    batch = prepared.training.load([(index, 0), (index, 1)], seed=0)
    latents = draw(batch, bundle.objective, seed=0).latents
    assert not torch.equal(latents[0], latents[1]), "another draw in another epoch"
    spread = (latents - batch.latents.mean) / (0.5 * batch.latents.logvar).exp()  # pyright: ignore
    assert abs(spread.mean()) < 0.05 and abs(spread.std() - 1) < 0.05
    assert train(recipe, say=lambda _: None).step == 2


@pytest.fixture
def clip_folder(tmp_path: Path, shapes_clips: Path) -> Path:
    """A CLIP text tower of random weights with a word tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    captions = json.loads((shapes_clips / "captions.json").read_text()).values()
    words = ["<pad>", "<s>", "</s>", "<unk>", *sorted({word for caption in captions for word in caption.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    folder = tmp_path / "clip"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_frozen_encoders_embeddings_are_cached_and_training_does_without_it(own, clip_folder, monkeypatch):
    recipe = own(f"text={{type: clip, model: {clip_folder}}}", "train.steps=2")
    summary = prepare(recipe)
    sample = summary.manifest.samples[0]
    embeddings = Cache(recipe.cache_dir).get(sample.text_keys[0])["embeddings"]
    assert embeddings.shape == (len(sample.captions[0].split()) + 2, 16), "trimmed to the caption's own length"
    assert prepare(recipe).texts == 0

    made: list[weakref.ref[FrozenText]] = []
    build = FrozenText.__init__
    monkeypatch.setattr(
        FrozenText, "__init__", lambda self, *rest: (made.append(weakref.ref(self)), build(self, *rest))[1]
    )
    alive: list[bool] = []

    def look(*_: Any) -> None:
        gc.collect()
        alive.append(any(encoder() is not None for encoder in made))

    outcome = train(recipe, on_step=look, say=lambda _: None)
    assert alive == [False, False], "no text encoder is in memory while the model trains"
    assert made == [], "nor was it loaded: its files are those its fingerprint was taken of"
    names = (outcome.run_dir / "checkpoints" / "step-0000002").iterdir()
    assert not {"tokenizer.json"} & {path.name for path in names}


def test_a_frozen_encoder_is_loaded_where_its_files_changed_or_a_caption_is_new(own, clip_folder, monkeypatch):
    time.sleep(0.2)  # what changed a moment ago is not taken for settled
    recipe = own(f"text={{type: clip, model: {clip_folder}}}")
    first = prepare(recipe)
    loaded: list[int] = []
    build = FrozenText.__init__
    monkeypatch.setattr(FrozenText, "__init__", lambda self, *rest: (loaded.append(1), build(self, *rest))[1])

    def loads(summary: Summary) -> int:
        assert summary.manifest.text_fingerprint == first.manifest.text_fingerprint
        count = len(loaded)
        loaded.clear()
        return count

    assert loads(prepare(recipe)) == 0
    weights = clip_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the same, but the time says that it may not be
    assert loads(prepare(recipe)) == 1
    time.sleep(0.2)
    assert loads(prepare(recipe)) <= 1 and loads(prepare(recipe)) == 0
    path = recipe.data.path / "captions.json"
    captions = json.loads(path.read_text())
    captions["00003.mp4"] = "a red circle"
    path.write_text(json.dumps(captions))
    assert loads(prepare(recipe)) == 1 and loads(prepare(recipe)) == 0

    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    changed = prepare(recipe)
    assert changed.manifest.text_fingerprint != first.manifest.text_fingerprint and changed.texts > 1


def test_an_encoder_that_is_replaced_while_it_is_deferred_is_not_used(own, clip_folder):
    recipe = own(f"text={{type: clip, model: {clip_folder}}}")
    prepare(recipe)
    time.sleep(0.2)
    prepare(recipe)
    deferred = DeferredText(recipe)
    weights = clip_folder / "model.safetensors"
    tensors = {name: tensor + 0.01 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="was replaced while this command ran; start it again"):
        deferred.tokenize(["a red circle"])
    assert DeferredText(recipe).fingerprint() != deferred.fingerprint()


def test_a_clip_lost_to_the_codecs_fit_alone_is_not_lost(own, monkeypatch):
    """A limit that is reached once, as on a busy machine, need not be reached again."""
    whole, failed = verb.WindowReader._taken, []

    def once(self, piece, future, keep):
        if keep and piece.sample.clip.id == "00003.mp4" and not failed:
            failed.append(True)
            self.drop(piece.sample, "took longer than 60 s")
            return iter(())
        return whole(self, piece, future, keep)

    monkeypatch.setattr(verb.WindowReader, "_taken", once)
    samples = own("data.validation=0")
    summary = prepare(samples)
    assert failed and summary.manifest.dropped == () and summary.encoded == 24


def test_a_file_replaced_while_preparing_leaves_no_false_latent(own):
    """What comes back under the old bytes is encoded from them."""
    recipe = own()
    video = recipe.data.path / "videos" / "00005.mp4"
    before = video.read_bytes()
    frames, fps = read_frames(video)

    def replace(stage, number, total):
        if stage == "inspecting" and number == total:
            write_video(video, 255 - frames, fps)

    lost = prepare(recipe, replace)
    assert [(item.id, item.reason) for item in lost.manifest.dropped] == [("00005.mp4", "changed while it was read")]
    video.write_bytes(before)
    assert prepare(recipe).encoded == 1


def test_captions_longer_than_the_encoder_are_reported(own):
    cut = prepare(own("text.length=4"))
    assert cut.to_json()["captions_cut"] == 24
    assert any("24 captions are longer than text.length = 4 tokens" in line for line in cut.lines())
    whole = prepare(own("text.length=64"))
    assert whole.to_json()["captions_cut"] == 0 and not any("text.length" in line for line in whole.lines())


def test_the_codecs_ceiling_is_measured_on_what_is_cached(own):
    summary = prepare(own())
    measured = summary.manifest.about["codec_psnr_db"]
    assert 20 < measured < 60
    exact = prepare(own("codec={type: pixels, block: [1, 4, 4]}")).manifest.about["codec_psnr_db"]
    assert exact is None or exact > measured + 20


def test_the_windows_the_codec_is_measured_on_are_spread_over_all(own, monkeypatch):
    read: list[list[int]] = []
    whole = verb.WindowReader.read

    def watched(self, pieces, keep=False):
        read.append([piece.sample.index for piece in pieces])
        return whole(self, pieces, keep)

    monkeypatch.setattr(verb.WindowReader, "read", watched)
    monkeypatch.setattr(verb, "CHECKED_WINDOWS", (5, 5))
    prepare(own())
    assert read[-1] == [0, 4, 9, 14, 19]


def test_sample_prompts_are_spread_over_the_held_out_clips(own):
    recipe = own("train.sample_prompts=[a red circle moves left]")
    prepare(recipe)
    assert open_prepared(recipe).sample_prompts(recipe) == ["a red circle moves left"]
    held_out = {s.captions[0] for s in open_prepared(own()).validation.samples.values()}
    assert set(open_prepared(own()).sample_prompts(own("train.sample_prompts=4"))) == held_out
    assert np.isfinite(open_prepared(recipe).texts(["a red circle moves left", ""]).values.numpy()).all()


AUTOENCODER = (
    "codec={type: autoencoder, block: [4, 16, 16], patch: [2, 8, 8], patch_channels: 24, channels: 6, width: 24, "
    "heads: 2, encoder_depth: 1, decoder_depth: 1, steps: 3, batch_size: 4}"
)


def test_an_autoencoder_is_trained_once_and_used(own):
    stages = []
    first = prepare(own(AUTOENCODER), progress=lambda stage, done, total: stages.append((stage, done, total)))
    assert first.fitted[0] == "codec autoencoder" and ("training the codec", 3, 3) in stages
    latents = Cache(own(AUTOENCODER).cache_dir).get(first.manifest.samples[0].latent_keys[0])["mean"]
    assert latents.shape[0] == 6 and latents.dtype == torch.float32
    assert done(prepare(own(AUTOENCODER))) == (0, 0, 0)
    assert prepare(own(AUTOENCODER, "codec.steps=4")).fitted[0] == "codec autoencoder", "another codec is another fit"
