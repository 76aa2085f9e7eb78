"""Hugging Face folders: byte-level and SentencePiece shapes of tokenizer.json, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_tokenizer
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ridgeline.errors import InvalidRequest, ModelFileError, Unsupported
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.tokenizer import Tokenizer, from_dir, from_gguf
from ridgeline.text.vocab import MAX_ENDS, turn_ends

# --- byte-level BPE ---


def write_folder(path: Path, **files: Any) -> Path:
    """The tiny tokenizer as tokenizer.json, and `files` as JSON beside it."""
    backend = from_gguf(test_tokenizer.tiny())._backend.pipeline._backend
    (path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def test_folder_equals_gguf(tmp_path):
    tokenizer = from_gguf(test_tokenizer.tiny())
    loaded = from_dir(write_folder(tmp_path))
    for text in test_tokenizer.TEXTS:
        assert loaded.encode(text, add_special=True) == tokenizer.encode(text, add_special=True)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.chat_template is None and loaded.eos_ids == frozenset()


def test_folder_configuration(tmp_path):
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>"},
        "add_bos_token": True,
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    }
    loaded = from_dir(write_folder(tmp_path, tokenizer_config=config, generation_config={"eos_token_id": [2, 7]}))
    assert loaded.encode("hello", add_special=True)[0] == 1
    assert loaded.eos_ids == {0, 2, 7} and loaded.eos_token == "<|im_end|>"
    assert loaded.chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert from_dir(tmp_path).chat_template == "J"


def test_ends_from_config_json_where_generation_config_is_silent(tmp_path):
    for ends, expected in ((5, {5}), ([5, 6], {5, 6}), (10**6, set()), (None, set())):
        write_folder(tmp_path, config={"eos_token_id": ends})
        assert from_dir(tmp_path).eos_ids == expected
    write_folder(tmp_path, config={"eos_token_id": 5}, generation_config={"eos_token_id": 6})
    assert from_dir(tmp_path).eos_ids == {6}


def test_no_more_ends_than_a_batch_has_room_to_ban():
    assert len(turn_ends(range(MAX_ENDS), {}, {}, False)) == MAX_ENDS
    with pytest.raises(ModelFileError, match=r"eos_token_id: 257 tokens that end a text; at most 256"):
        turn_ends(range(MAX_ENDS + 1), {}, {}, False)


def test_folder_bos_habit_truncation_and_padding_of_the_file(tmp_path):
    write_folder(tmp_path, tokenizer_config={"bos_token": "<|im_start|>"})
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    # The habit is read from an empty text, to which padding would add.
    loaded = from_dir(tmp_path)
    assert loaded.encode("x", add_special=True) == [1, *loaded.encode("x", add_special=False)]
    assert loaded.decode(loaded.encode("a longer text", add_special=True)) == "a longer text"


@pytest.mark.parametrize(
    ("template", "config", "tail"),
    [
        ("$A", {}, ()),
        ("$A <|im_end|>", {}, (2,)),
        ("<|im_start|> $A <|im_end|>", {"bos_token": "<|im_start|>"}, (2,)),
        ("<|im_start|> $A", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_eos_token": True}, (2,)),
        ("$A <|im_end|>", {"eos_token": "<|im_end|>", "add_eos_token": True}, (2,)),
    ],
)
def test_what_ends_a_text_that_stands_for_itself(tmp_path, template, config, tail):
    write_folder(tmp_path, tokenizer_config=config)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    loaded = from_dir(tmp_path)
    assert loaded.tail == tail and loaded.encode("x", add_special=True)[-1:] != [2]


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("tokenizer.json", "{", ModelFileError, "tokenizer.json"),
        ("tokenizer.json", "[]", ModelFileError, "tokenizer.json"),
        ("tokenizer_config.json", "{", ModelFileError, "tokenizer_config.json"),
        ("tokenizer_config.json", "[1]", ModelFileError, "tokenizer_config.json"),
        ("tokenizer_config.json", '{"chat_template": 7}', ModelFileError, "chat_template"),
        ("tokenizer_config.json", '{"chat_template": [{"name": [1], "template": "T"}, 7]}', None, ""),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "x", "template": [1]}]}',
            ModelFileError,
            "chat_template",
        ),
        ("tokenizer_config.json", r'{"bos_token": "\ud800"}', ModelFileError, "tokenizer_config.json .*surrogate"),
        ("tokenizer_config.json", r'{"eos_token": {"content": "\udfff"}}', ModelFileError, "surrogate"),
        ("tokenizer_config.json", r'{"chat_template": "\ud800"}', ModelFileError, "surrogate"),
        ("tokenizer_config.json", "[" * 100_000, ModelFileError, "tokenizer_config.json"),
        ("generation_config.json", '{"eos_token_id": 99999999}', ModelFileError, "eos_token_id"),
        ("generation_config.json", '{"eos_token_id": "2"}', ModelFileError, "eos_token_id"),
        ("generation_config.json", b"\xff", ModelFileError, "UTF-8"),
    ],
)
def test_broken_folders_are_refused_by_name(tmp_path, name, content, error, says):
    write_folder(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if error is None:
        assert from_dir(tmp_path).chat_template is None
        return
    with pytest.raises(error, match=says):
        from_dir(tmp_path)


def test_added_tokens_that_are_no_text_are_refused(tmp_path):
    source = (write_folder(tmp_path) / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(source.replace("<tool>", r"\ud800"), encoding="utf-8")
    with pytest.raises(ModelFileError, match="tokenizer.json"):
        from_dir(tmp_path)


# --- patterns that the package's regex engine gives up on: it panics ---

HARD = "a" * 29 + "b"


def test_text_that_the_files_own_pattern_gives_up_on_is_a_request_error(tmp_path):
    backend = from_gguf(test_tokenizer.tiny())._backend.pipeline._backend
    hard = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([hard, pre_tokenizers.ByteLevel(False, use_regex=False)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    tokenizer = from_dir(tmp_path)
    for parse_special in (True, False):
        with pytest.raises(InvalidRequest, match="own tokenizer gives up"):
            tokenizer.encode(HARD, add_special=False, parse_special=parse_special)
    with pytest.raises(InvalidRequest, match="own tokenizer gives up"):
        tokenizer.encode_with_offsets(HARD)
    assert tokenizer.decode(tokenizer.encode("ab", add_special=False)) == "ab"


def test_a_file_that_the_package_gives_up_on_is_a_file_error(tmp_path):
    backend = from_gguf(test_tokenizer.tiny())._backend.pipeline._backend
    backend.normalizer = normalizers.Replace(Regex("(a+)+$"), "x")
    source = json.loads(backend.to_str())
    # An added token is normalised as the file is read.
    entry = source["added_tokens"][-1]
    source["added_tokens"].append(entry | {"id": entry["id"] + 1, "content": HARD, "normalized": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(source), encoding="utf-8")
    with pytest.raises(ModelFileError, match="tokenizer.json cannot be read"):
        from_dir(tmp_path)


def test_a_missing_unknown_token_is_a_request_error(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, [], unk_token="nowhere"))
    backend.decoder = decoders.ByteLevel()
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    with pytest.raises(InvalidRequest, match="nowhere"):
        from_dir(tmp_path).encode("b", add_special=False)


def test_folder_without_tokenizer_and_other_vocabularies(tmp_path):
    with pytest.raises(ModelFileError, match="tokenizer.json"):
        from_dir(tmp_path)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.decoder = tokenizers.decoders.Metaspace()
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    with pytest.raises(Unsupported, match="Metaspace"):
        from_dir(tmp_path)


@pytest.mark.parametrize(
    "model", [models.WordPiece({"a": 0}), models.Unigram([("a", 0.0)]), models.WordLevel({"a": 0})]
)
def test_other_models_are_refused_whatever_their_decoder(tmp_path, model):
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.ByteLevel()
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    with pytest.raises(Unsupported, match=f"model {type(model).__name__}"):
        from_dir(tmp_path)


@pytest.mark.parametrize(
    "option", [{"dropout": 0.5}, {"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}], ids=str
)
def test_options_of_bpe_that_change_its_meaning_are_refused(tmp_path, option):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, [], **option))
    backend.decoder = decoders.ByteLevel()
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    with pytest.raises(Unsupported, match=next(iter(option))):
        from_dir(tmp_path)


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_a_declared_token_that_is_not_there_is_an_error(tmp_path, name):
    write_folder(tmp_path, tokenizer_config={name: "<|nowhere|>"})
    with pytest.raises(ModelFileError, match=f"{name} '<.nowhere.>'"):
        from_dir(tmp_path)


# --- SentencePiece's pieces ---

SPACE = "\u2581"
WORDS = ["he", "ll", "lo", "▁he", "llo", "▁hello", "▁w", "or", "▁wor", "▁▁"]
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{b:02X}>" for b in range(256)),
    *"helowrdx<04>1",
    SPACE,
    *WORDS,
    "<tool>",
    "▁▁▁",
]
MERGES = [("h", "e"), ("l", "l"), ("l", "o"), (SPACE, "he"), ("ll", "o"), ("▁he", "llo"), (SPACE, "w"), ("o", "r")]
MERGES += [("▁w", "or"), (SPACE, SPACE)]
REPLACE = normalizers.Replace(" ", SPACE)
UNSPACED = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
STRIPPED = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
LLAMA2 = {"normalizer": normalizers.Sequence([normalizers.Prepend(SPACE), REPLACE]), "decoder": STRIPPED}
GEMMA = {
    "normalizer": REPLACE,
    "pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous"),
    "decoder": UNSPACED,
}
SHAPES = {
    "llama-2": LLAMA2,
    "gemma": GEMMA,
    "gemma-2": {"normalizer": REPLACE, "decoder": UNSPACED},
    **{
        f"metaspace-{scheme}-{split}": {
            "pre_tokenizer": pre_tokenizers.Metaspace(SPACE, scheme, split),
            "decoder": STRIPPED,
        }
        for scheme in ("always", "first", "never")
        for split in (True, False)
    },
}


def write_pieces(path: Path, shape: dict[str, Any], **model: Any) -> tokenizers.Tokenizer:
    """A tokenizer.json of that shape, and what the package makes of it."""
    options = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"} | model
    vocab = options.pop("vocab", {piece: i for i, piece in enumerate(PIECES)})
    backend = tokenizers.Tokenizer(models.BPE(vocab, MERGES, **options))
    for name, part in shape.items():
        setattr(backend, name, part)
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in PIECES[:3]])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("<tool>", "▁▁▁")])
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.post_processor = bos
    (path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return backend


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    folder = tmp_path_factory.mktemp("pieces")
    theirs = write_pieces(folder, SHAPES[request.param])
    return from_dir(folder), theirs


LINES = [
    "",
    " ",
    "hello world",
    "  hello   world  ",
    "héllo 😀",
    "<0x41>",
    "a▁b",
    "</s>hello</s> x<tool> hello",
    "\n\t\x00",
]


def check_line(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    expected = theirs.encode(text)
    assert ours.encode(text, add_special=True) == expected.ids
    ids = expected.ids[1:]
    spans = ours.encode_with_offsets(text)
    assert [token_id for token_id, _, _ in spans] == ids
    assert [span for _, *span in spans] == [list(span) for span in expected.offsets[1:]]
    detokenizer = Detokenizer(ours, skip_special=False)
    joined = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert joined == ours.decode(ids, skip_special=False)
    # Ours keeps the first space, which some decoders strip: bytes are exact.
    assert theirs.decode(ids, skip_special_tokens=False) in (joined, joined.removeprefix(" "))
    raw = ours.encode(text, add_special=False, parse_special=False)
    assert not any(map(ours.is_special, raw))
    # Shapes differ in where they put a space in front.
    assert ours.decode(raw).replace(" ", "") == text.replace(SPACE, " ").replace(" ", "")


@pytest.mark.parametrize("text", LINES)
def test_pieces_equal_the_package(pair, text):
    check_line(*pair, text)


@given(text=st.text(st.sampled_from("helowrdx  <0x41>é😀\n▁"), max_size=30))
def test_pieces_equal_the_package_on_any_mixture(pair, text):
    check_line(*pair, text)


def test_bytes_of_pieces(pair):
    ours, _ = pair
    assert ours.token_bytes(PIECES.index("▁hello")) == b" hello" and ours.token_bytes(3 + 0x41) == b"A"
    assert ours.token_bytes(PIECES.index("▁▁▁")) == b"   " and ours.token_bytes(PIECES.index("<tool>")) == b"<tool>"
    assert ours.token_bytes(2) == b"</s>" and ours.token_bytes(len(PIECES)) == b""
    assert not ours.lost_bytes and ours.eos_ids == {2} and ours.add_bos


@pytest.mark.parametrize(
    ("shape", "model", "says"),
    [
        (LLAMA2 | {"decoder": decoders.Metaspace()}, {}, "decoder .*Metaspace"),
        (LLAMA2 | {"decoder": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])}, {}, "decoder"),
        ({"decoder": UNSPACED}, {}, "normalizer null with pre_tokenizer null"),
        (GEMMA | {"normalizer": normalizers.NFKC()}, {}, "normalizer .*NFKC"),
        (GEMMA | {"pre_tokenizer": pre_tokenizers.Whitespace()}, {}, "pre_tokenizer .*Whitespace"),
        (LLAMA2, {"byte_fallback": False}, "byte_fallback = False"),
        (LLAMA2, {"vocab": {p: i for i, p in enumerate(PIECES) if p != "<0x41>"}}, "1 byte tokens missing"),
    ],
)
def test_other_shapes_are_refused_by_name(tmp_path, shape, model, says):
    write_pieces(tmp_path, shape, **model)
    with pytest.raises(Unsupported, match=says):
        from_dir(tmp_path)


# --- against transformers ---


@pytest.mark.parity
def test_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(write_folder(tmp_path, tokenizer_config=config))
    ours = from_dir(tmp_path)
    for text in [*test_tokenizer.TEXTS, "<|im_start|>hello <|im_end|> <tool> x"]:
        ids = ours.encode(text, add_special=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        for skip in (True, False):
            theirs_text = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip) == theirs_text
        raw = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text, add_special=False, parse_special=False) == raw
