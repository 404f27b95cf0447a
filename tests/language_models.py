"""A text, settings and a hostile object for the tests of the language-model recipe; the fixtures are in conftest."""

from functools import partial
from pydoc_data.topics import topics

from gatework.recipes import run
from gatework.recipes.language_model import LanguageModel, Settings
from gatework.recipes.running_text import Text

REFERENCE = "\n\n".join(topics.values())
TINY = Settings(cell="gru", hidden=8, layers=2, embedding=4, dropout=0.3, epochs=3, batch_size=4, seq_len=30)
train = partial(run.train, LanguageModel)


def text_of(content: str) -> Text:
    return Text(lambda: content.splitlines(keepends=True))


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")
