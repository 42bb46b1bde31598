"""What comes after training: predictions of a model that a run left, and the model in the forms that others load.

`source` says what lies beside a model, `model` is what `robustft.load` gives, `predict`, `export` and `app` are
commands; `formats` has one file for each form, with what writes it and what loads it back. Behind `app` stand `looking`
(what is said of an image), `neighbours` (training images like it), `server` and the page in `assets`.
"""
