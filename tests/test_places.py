"""Which tokens stand in a span of characters is found by looking at a few of them, as if all had been looked at."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from legend_hf.reading.templates import Rendered, _content_of

WORDS = [
    "Tell me about bread.\n\nAssistant: With care",
    " naïve é e\u0301 \ufb01 ㎏ 日本語 🙂🙂",
    "  \t\n a  b",
    "<s></s>",
]
SPECIAL = ["<s>", "</s>", "<unk>"]


def tokenizer(model, trainer, pre, normal=None, after=None) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer = pre
    if normal is not None:
        made.normalizer = normal
    made.train_from_iterator(WORDS * 3, trainer)
    if after is not None:
        made.post_processor = after
    return made


def around() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])


def byte_level(*, trim: bool, prefix: bool) -> Tokenizer:
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=letters)
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    after = processors.Sequence([processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix), around()])
    return tokenizer(models.BPE(), trainer, pre, after=after)


TOKENIZERS = {
    "bytes": byte_level(trim=False, prefix=False),
    "bytes, no spaces in offsets": byte_level(trim=True, prefix=True),
    "pieces": tokenizer(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        around(),
    ),
    "unigram": tokenizer(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>"),
        pre_tokenizers.Metaspace(),
        normalizers.NFKC(),
    ),
}


def looked_through(rendered: Rendered, encoding: Encoding) -> list[int]:
    """The same by looking at every token."""

    def inside(a: int, b: int) -> bool:
        return any(b > start and (a < end or a == b == end) for start, end in rendered.spans)

    return [i for i, (a, b) in enumerate(encoding.offsets) if inside(a, b)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *" \nab🙂é"]), min_size=1, max_size=6).map("".join), st.data())
@example("a b  ", None)
def test_as_if_every_token_had_been_looked_at(name, text, data):
    cuts = [0, len(text)]
    if data is not None:
        count = data.draw(st.sampled_from([2, 4]))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=count, max_size=count)))
    rendered = Rendered(text, tuple(zip(cuts[::2], cuts[1::2], strict=True)), specials=True)
    for whole in (text, text[: cuts[-1]]):
        encoding = TOKENIZERS[name].encode(whole)
        assert list(_content_of(rendered, encoding)) == looked_through(rendered, encoding)


def test_the_tokenizers_differ_in_what_the_search_must_stand():
    """The control: tokens without width, several in one character, special ones at both ends, and none at all."""
    trimmed = TOKENIZERS["bytes, no spaces in offsets"].encode("a b  🙂")
    assert any(a == b > 0 for a, b in trimmed.offsets)
    assert len(trimmed.offsets) > len(set(trimmed.offsets))
    assert trimmed.token_to_chars(0) is trimmed.token_to_chars(len(trimmed) - 1) is None
    assert TOKENIZERS["unigram"].encode("a b").token_to_chars(0) is not None
