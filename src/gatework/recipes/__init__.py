"""Layers at work, one task per file. Each recipe reads from top to bottom and is meant to be copied and changed.

    settings         what can be chosen for a run (no torch, so that the command line starts at once)
    find_cell        the cell that a name or a `file.py:function` means
    language_model   characters of a text: train, evaluate, generate
    characters       its data: a text as steps of parallel streams; unigram and bigram counts
    checkpoints      where an interrupted run goes on
    model_folder     a trained model as two files, written whole and read without running anything
"""


class RecipeError(ValueError):
    """What was asked of a recipe cannot be done; the message says what was given, what is needed, and what to type."""
