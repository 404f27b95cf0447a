"""Layers at work, one task per file. Each recipe reads from top to bottom and is meant to be copied and changed.

    settings         what can be chosen for a run
    find             the recipe or the cell that a name means
    reading          tables, texts, sounds and images from files
    vocabulary       texts as numbers
    batches          examples side by side, again in the same order after an interruption
    recipe           what a task consists of
    run              training, saving, evaluating and using any recipe
    checkpoints      where an interrupted run goes on
    progress         how it goes: bar, curve, history
    model_folder     a trained model as two files, written whole and read without running anything
    baselines/       what can be done without a network, one file per recipe
"""


class RecipeError(ValueError):
    """What was asked of a recipe cannot be done; the message says what was given, what is needed, and what to type."""


RECIPES = {
    "answer": "Questions about a text: a span of it, or a word.",
    "caption": "A picture into words or digits, with attention over places.",
    "classify-series": "One label for a series of numbers.",
    "classify-text": "One label for a text, such as its sentiment.",
    "forecast": "What comes next in a table of measurements.",
    "language-model": "The next character, word or piece of a text.",
    "music": "The notes of each next step.",
    "summarise": "A long text into a short one, with words copied from it.",
    "tag": "One label for each word or character, such as the accents of a text without.",
    "transcribe": "Speech into words, by CTC.",
    "translate": "A sentence into another language, with attention.",
}
