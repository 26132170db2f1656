"""``python -m blend.schema``: writes the schema of the present version anew."""

from blend.schema import FILE, text

FILE.write_text(text())
