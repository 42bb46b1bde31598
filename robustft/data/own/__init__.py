"""A user's own images: in folders, in domain folders, in a table, in a Hugging Face data set.

From the bottom up: `names` (what classes are called), `prompts` (what is said of them), `listing` (which images there
are, and what is drawn from them), `reading` (the pixels a person sees), `collection` (what all kinds have in common),
and one file a kind.
"""
