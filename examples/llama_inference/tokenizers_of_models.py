"""From text to the numbers that a model knows, and back."""

import json
from pathlib import Path

from xformers.helpers.training import UserError


class ByteTokenizer:
    """A token is a byte of UTF-8; behind the 256 of them begin, end and padding."""

    n_words, bos_id, eos_id, pad_id = 259, 256, 257, 258

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        return [self.bos_id] * bos + list(text.encode()) + [self.eos_id] * eos

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class SentencePiece:
    """A tokenizer.model, by the package sentencepiece."""

    def __init__(self, path: Path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(f"{path} needs the package sentencepiece.  Fix: pip install sentencepiece") from error
        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is damaged or no model of sentencepiece.  Fix: fetch it again") from error
        self.n_words, self.bos_id = self._model.vocab_size(), self._model.bos_id()
        self.eos_id, self.pad_id = self._model.eos_id(), self._model.pad_id()

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        return [self.bos_id] * bos + self._model.encode(text) + [self.eos_id] * eos

    def decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens)


def load_tokenizer(folder: Path) -> ByteTokenizer | SentencePiece:
    """tokenizer.model of the folder or the one above; bytes for a model of 259 tokens that has none."""
    for path in (folder / "tokenizer.model", folder.parent / "tokenizer.model"):
        if path.is_file():
            return SentencePiece(path)
    try:
        if json.loads((folder / "params.json").read_text()).get("vocab_size") == ByteTokenizer.n_words:
            return ByteTokenizer()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}/params.json: {error}.  Fix: name the folder of a LLaMA model") from error
    raise UserError(f"neither {folder} nor the folder above has a tokenizer.model.  Fix: put the model's file there")
