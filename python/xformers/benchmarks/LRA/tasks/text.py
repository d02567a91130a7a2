"""Texts of bytes, by rules: which of two grammars wrote most of a text; do two texts come from one document?"""

import random
from typing import Any

import torch

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
MINORITY = 0.35  # of a text's sentences are of the other grammar


def _words(count: int, chooser: random.Random) -> list[str]:
    def word() -> str:
        syllables = chooser.randint(2, 3)
        return "".join(chooser.choice(CONSONANTS) + chooser.choice(VOWELS) for _ in range(syllables))

    return [word() for _ in range(count)]


_LEXICON = random.Random(7)
NOUNS, VERBS, TOPIC_WORDS = _words(60, _LEXICON), _words(40, _LEXICON), _words(400, _LEXICON)


def sentence(grammar: int, chooser: random.Random) -> str:
    """0: subject, verb, object; 1: verb, subject, object. The words are the same."""
    subject, thing = (f"the {chooser.choice(NOUNS)}" for _ in range(2))
    verb = chooser.choice(VERBS)
    words = (subject, verb, thing) if grammar == 0 else (verb, subject, thing)
    return " ".join(words) + ". "


def _ids(text: str, seq_len: int) -> torch.Tensor:
    """A byte's number and 1: 0 is padding."""
    from . import padded

    return padded([1 + byte for byte in text.encode()], seq_len)


def text_examples(count: int, seq_len: int, seed: int) -> list[dict[str, Any]]:
    """Texts of a third to all of seq_len bytes; label: the grammar of most of their sentences."""
    chooser = random.Random(seed)
    examples = []
    for _ in range(count):
        label = chooser.randrange(2)
        length = chooser.randint(seq_len // 3, seq_len)
        sentences: list[str] = []
        size = others = 0
        while size < length:
            other = chooser.random() < MINORITY and 2 * (others + 1) < len(sentences) + 1
            others += other
            sentences.append(sentence(label ^ other, chooser))
            size += len(sentences[-1])
        chooser.shuffle(sentences)
        examples.append({"input_ids_0": _ids("".join(sentences), seq_len), "label": torch.tensor(label)})
    return examples


def retrieval_examples(count: int, seq_len: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of texts; a document is a choice of 60 of 400 words; label 1: both texts are of one document."""
    chooser = random.Random(seed)
    examples = []
    for _ in range(count):
        same = chooser.randrange(2)
        first = chooser.sample(TOPIC_WORDS, 60)
        second = first if same else chooser.sample(TOPIC_WORDS, 60)
        texts = []
        for document in (first, second):
            length = chooser.randint(seq_len // 2, seq_len)
            words: list[str] = []
            size = 0
            while size < length:
                words.append(chooser.choice(document))
                size += 1 + len(words[-1])
            texts.append(_ids(" ".join(words), seq_len))
        examples.append({"input_ids_0": texts[0], "input_ids_1": texts[1], "label": torch.tensor(same)})
    return examples
