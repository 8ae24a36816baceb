"""Prints the Free On-line Dictionary of Computing, from Debian's dict-foldoc, as passages: a source, a tab, a text."""

import gzip
import re

FOLDER = "/usr/share/dictd/"
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def number(text):
    """A dictd index's base 64."""
    value = 0
    for digit in text:
        value = value * 64 + DIGITS.index(digit)
    return value


entries = gzip.open(FOLDER + "foldoc.dict.dz").read()
seen = set()
for line in open(FOLDER + "foldoc.index", encoding="utf-8", errors="replace"):
    word, start, length = line.rstrip("\n").split("\t")[:3]
    place = number(start), number(length)
    if word.startswith("00") or place in seen:
        continue
    seen.add(place)
    text = entries[place[0] : sum(place)].decode("utf-8", "replace")
    text = re.sub(r"\[[^\]]*\]\s*$", "", text.strip())
    text = re.sub(r"\(\d{4}-\d\d-\d\d\)", "", text)
    text = re.sub(r"[{}]", "", text)
    text = " ".join(re.sub(r"<[^>]*>", "", text).split())
    if len(text) >= 120:
        print("foldoc\t" + (text[:1600].rsplit(" ", 1)[0] if len(text) > 1600 else text))
