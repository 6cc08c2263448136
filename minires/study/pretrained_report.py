"""What a pre-trained sweep found."""

from pathlib import Path

from minires.study import pretrained


def load(folder):
    return pretrained.read_cells(Path(folder))[1]


def text_table(records):
    return "\n".join(f"{c.key} " + pretrained._in_words(r) for c, r in records.items())
